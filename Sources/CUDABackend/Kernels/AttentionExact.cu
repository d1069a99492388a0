// Softmax attention in plain float32 arithmetic, for any head size up to 256, windows, packed documents and caches: the
// float32 mode, and what bfloat16 falls back to where the tensor cores' kernels do not fit. HEAD_SIZE is the size.
//
// A span says which keys a run of queries sees: query i of it stands at keyCount - queryCount + i among its keys. The
// backward pass makes the probabilities again from the kept log-sum-exp; keys add up their queries in order.
#include "Spans.cuh"
#include "Values.cuh"

constexpr int SIZE = HEAD_SIZE, TILE = SIZE <= 128 ? 32 : 16, THREADS = TILE * 8;
/// Channels and tile columns of a thread: eight threads share a row.
constexpr int CHANNELS = (SIZE + 7) / 8, COLUMNS = TILE / 8, STRIDE = SIZE + 1;

/// Rows of head h from `first` on, `stride` elements apart, zero behind `count`.
DEVICE void loadTile(float *tile, u64 x, long long first, int count, int stride, int h) {
  for (int e = threadIdx.x; e < TILE * SIZE; e += THREADS) {
    const int r = e / SIZE, c = e % SIZE;
    tile[r * STRIDE + c] = r < count ? loadValue(x, (first + r) * stride + h * SIZE + c) : 0.0f;
  }
}

DEVICE float dot(const float *x, const float *y) {
  float sum = 0;
#pragma unroll 4
  for (int c = 0; c < SIZE; ++c) sum += x[c] * y[c];
  return sum;
}

template <typename F> DEVICE float eight(float x, F f) {
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) x = f(x, shuffleXor(x, mask));
  return x;
}

/// tiles: span and first query of each run of TILE queries. grid (tiles, heads), THREADS threads
extern "C" __global__ void __launch_bounds__(THREADS) attentionForward(
  u64 q, u64 k, u64 v, const int *tiles, const Span *spans, int heads, int groups, int vStride,
  float scale, u64 o, float *logSums) {
  float *queries = reinterpret_cast<float *>(dynamicShared()), *keys = queries + TILE * STRIDE;
  float *p = keys + TILE * STRIDE;
  const Span span = spans[tiles[2 * blockIdx.x]];
  const int offset = tiles[2 * blockIdx.x + 1], h = blockIdx.y, group = h * groups / heads;
  const int row = threadIdx.x / 8, lane = threadIdx.x % 8;
  const int rows = min(TILE, span.queryCount - offset);
  // Where this row's query, the first and the last of the tile stand among the keys.
  const int base = span.keyCount - span.queryCount + offset, position = base + row;
  loadTile(queries, q, span.query + offset, rows, heads * SIZE, h);
  float out[CHANNELS] = {}, most = -1e30f, sum = 0;
  const int oldest = max(0, base - span.window + 1), end = base + rows;
  for (int first = oldest; first < end; first += TILE) {
    __syncthreads();
    loadTile(keys, k, span.key + first, min(TILE, end - first), groups * SIZE, group);
    __syncthreads();
    float scores[COLUMNS], highest = most;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const int key = first + lane + 8 * j;
      const bool isSeen = row < rows && key <= position && key > position - span.window;
      scores[j] = isSeen ? dot(queries + row * STRIDE, keys + (lane + 8 * j) * STRIDE) * scale : -1e30f;
      highest = fmaxf(highest, scores[j]);
    }
    highest = eight(highest, [](float a, float b) { return fmaxf(a, b); });
    const float keep = exactExponential(most - highest);
    float part = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      scores[j] = scores[j] > -1e29f ? exactExponential(scores[j] - highest) : 0.0f;
      part += scores[j];
      p[row * (TILE + 1) + lane + 8 * j] = scores[j];
    }
    sum = sum * keep + eight(part, [](float a, float b) { return a + b; });
    most = highest;
    __syncthreads();
    loadTile(keys, v, span.key + first, min(TILE, end - first), vStride, group);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      out[c] *= keep;
      if (lane + 8 * c < SIZE)
#pragma unroll 4
        for (int j = 0; j < TILE; ++j) out[c] += p[row * (TILE + 1) + j] * keys[j * STRIDE + lane + 8 * c];
    }
  }
  if (row >= rows) return;
  const long long place = (long long)(span.query + offset + row) * heads + h;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c)
    if (lane + 8 * c < SIZE) storeValue(o, place * SIZE + lane + 8 * c, out[c] / sum);
  if (lane == 0) logSums[place] = most + logf(sum);
}

/// dots: o . dO of every row. The grid of the forward pass.
extern "C" __global__ void __launch_bounds__(THREADS) attentionBackwardQueries(
  u64 dO, u64 q, u64 k, u64 v, const float *logSums, const float *dots, const int *tiles, const Span *spans, int heads,
  int groups, int vStride, float scale, u64 dQ) {
  float *queries = reinterpret_cast<float *>(dynamicShared()), *gradients = queries + TILE * STRIDE;
  float *keys = gradients + TILE * STRIDE, *d = keys + TILE * STRIDE;
  const Span span = spans[tiles[2 * blockIdx.x]];
  const int offset = tiles[2 * blockIdx.x + 1], h = blockIdx.y, group = h * groups / heads;
  const int row = threadIdx.x / 8, lane = threadIdx.x % 8;
  const int rows = min(TILE, span.queryCount - offset);
  const int base = span.keyCount - span.queryCount + offset, position = base + row;
  const long long place = (long long)(span.query + offset + row) * heads + h;
  loadTile(queries, q, span.query + offset, rows, heads * SIZE, h);
  loadTile(gradients, dO, span.query + offset, rows, heads * SIZE, h);
  const float logSum = row < rows ? logSums[place] : 0, overlap = row < rows ? dots[place] : 0;
  float out[CHANNELS] = {};
  const int oldest = max(0, base - span.window + 1), end = base + rows;
  for (int first = oldest; first < end; first += TILE) {
    float slopes[COLUMNS];
    __syncthreads();
    loadTile(keys, v, span.key + first, min(TILE, end - first), vStride, group);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) slopes[j] = dot(gradients + row * STRIDE, keys + (lane + 8 * j) * STRIDE);
    __syncthreads();
    loadTile(keys, k, span.key + first, min(TILE, end - first), groups * SIZE, group);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const int key = first + lane + 8 * j;
      const bool isSeen = row < rows && key <= position && key > position - span.window;
      const float score = dot(queries + row * STRIDE, keys + (lane + 8 * j) * STRIDE) * scale;
      d[row * (TILE + 1) + lane + 8 * j] =
        isSeen ? exactExponential(score - logSum) * (slopes[j] - overlap) * scale : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
      if (lane + 8 * c < SIZE)
#pragma unroll 4
        for (int j = 0; j < TILE; ++j) out[c] += d[row * (TILE + 1) + j] * keys[j * STRIDE + lane + 8 * c];
  }
  if (row >= rows) return;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c)
    if (lane + 8 * c < SIZE) storeValue(dQ, place * SIZE + lane + 8 * c, out[c]);
}

/// A tile of keys sees the queries of every span that holds some of it, in order. grid (keys / TILE rounded up, groups)
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionBackwardKeys(
  u64 dO, u64 q, u64 k, u64 v, const float *logSums, const float *dots, const Span *spans, int spanCount, int keyCount,
  int heads, int groups, int vStride, float scale, u64 dK, u64 dV, int dVStride) {
  float *keys = reinterpret_cast<float *>(dynamicShared()), *values = keys + TILE * STRIDE;
  float *queries = values + TILE * STRIDE, *gradients = queries + TILE * STRIDE;
  float *p = gradients + TILE * STRIDE, *d = p + TILE * (TILE + 1);
  const int first = blockIdx.x * TILE, group = blockIdx.y, count = min(TILE, keyCount - first);
  const int row = threadIdx.x / 8, lane = threadIdx.x % 8, perGroup = heads / groups;
  loadTile(keys, k, first, count, groups * SIZE, group);
  loadTile(values, v, first, count, vStride, group);
  float dKey[CHANNELS] = {}, dValue[CHANNELS] = {};
  for (int s = 0; s < spanCount; ++s) {
    const Span span = spans[s];
    // Where the tile's keys stand among the span's; queries that see some of them.
    const int place = first - span.key, own = place + row;
    if (place + count <= 0 || place >= span.keyCount) continue;
    const int base = span.keyCount - span.queryCount;
    const int begin = max(0, max(place, 0) - base), end = min((long long)span.queryCount, (long long)place + count - 1 + span.window - base);
    for (int offset = begin / TILE * TILE; offset < end; offset += TILE) {
      const int rows = min(TILE, span.queryCount - offset);
      for (int h = group * perGroup; h < (group + 1) * perGroup; ++h) {
        __syncthreads();
        loadTile(queries, q, span.query + offset, rows, heads * SIZE, h);
        loadTile(gradients, dO, span.query + offset, rows, heads * SIZE, h);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
          const int i = lane + 8 * j, position = base + offset + i;
          const bool isSeen =
            i < rows && row < count && own >= 0 && own <= position && own > position - span.window;
          const long long at = (long long)(span.query + offset + i) * heads + h;
          const float score = dot(queries + i * STRIDE, keys + row * STRIDE) * scale;
          const float weight = isSeen ? exactExponential(score - logSums[at]) : 0.0f;
          const float slope = dot(gradients + i * STRIDE, values + row * STRIDE);
          p[row * (TILE + 1) + i] = weight;
          d[row * (TILE + 1) + i] = isSeen ? weight * (slope - dots[at]) * scale : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
          if (lane + 8 * c >= SIZE) continue;
#pragma unroll 4
          for (int i = 0; i < TILE; ++i) {
            dValue[c] += p[row * (TILE + 1) + i] * gradients[i * STRIDE + lane + 8 * c];
            dKey[c] += d[row * (TILE + 1) + i] * queries[i * STRIDE + lane + 8 * c];
          }
        }
      }
    }
  }
  if (row >= count) return;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    if (lane + 8 * c >= SIZE) continue;
    const long long at = ((long long)(first + row) * groups + group) * SIZE + lane + 8 * c;
    storeValue(dK, at, dKey[c]);
    storeValue(dV, (first + row) * dVStride + group * SIZE + lane + 8 * c, dValue[c]);
  }
}
