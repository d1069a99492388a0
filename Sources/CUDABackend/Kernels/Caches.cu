// Rows in and out of the caches of generation, of float32 and bfloat16 in any mixture. What decoding counts, positions, lies on
// the card, so that a step that was recorded once is the same at every position.
#include "Values.cuh"

/// Copies `columns` neighbours by 128 threads.
DEVICE void copyRow(u64 x, u64 y, long long from, long long to, int columns) {
  const bool isEven = (columns & 7) == 0 && ((x | y) & 15) == 0 && ((from | to) & 7) == 0;
  const int step = isEven ? 8 : 1;
  for (int c = threadIdx.x * step; c < columns; c += 128 * step) {
    if (isEven) {
      float v[8];
      loadValues(x, from + c, v);
      storeValues(y, to + c, v);
    } else {
      storeValue(y, to + c, loadValue(x, from + c));
    }
  }
}

/// A run of rows from one array to another.
struct Move {
  int from, to, count;
};

/// Rows of x, `stride` apart, into rows of y, end to end. grid (moves, row slices), 128 threads
extern "C" __global__ void __launch_bounds__(128) copyRowMoves(
  u64 x, u64 y, const Move *moves, int columns, long long stride) {
  const Move move = moves[blockIdx.x];
  for (int row = blockIdx.y; row < move.count; row += gridDim.y)
    copyRow(x, y, (move.from + row) * stride, (long long)(move.to + row) * columns, columns);
}

/// Row positions[s] mod `room` of sequence s of the cache [S, room, columns] = x[s], rows of x `stride` apart. grid (S)
extern "C" __global__ void __launch_bounds__(128) storeRows(
  u64 x, u64 cache, const int *positions, int room, int columns, long long stride) {
  const int s = blockIdx.x;
  copyRow(x, cache, s * stride, ((long long)s * room + positions[s] % room) * columns, columns);
}

/// positions[s] += 1. grid (S / 128 rounded up)
extern "C" __global__ void __launch_bounds__(128) advancePositions(int *positions, int count) {
  const int s = blockIdx.x * 128 + threadIdx.x;
  if (s < count) positions[s] += 1;
}

/// history[s] [taps, channels] = the newest rows of what was there and then of rows ends[s] to ends[s + 1] of x, `stride` apart:
/// a channel a thread, which reads a row before it writes one further up. grid (channels / 128 rounded up, S)
extern "C" __global__ void __launch_bounds__(128) remember(
  u64 x, u64 history, const int *ends, int taps, int channels, long long stride) {
  const int c = blockIdx.x * 128 + threadIdx.x, s = blockIdx.y;
  if (c >= channels) return;
  const int end = ends[s + 1], count = end - ends[s], fresh = count < taps ? count : taps;
  const long long first = (long long)s * taps * channels + c;
  for (int row = 0; row < taps - fresh; ++row)
    storeValue(history, first + row * channels, loadValue(history, first + (row + fresh) * channels));
  for (int row = 0; row < fresh; ++row)
    storeValue(
      history, first + (long long)(taps - fresh + row) * channels, loadValue(x, (end - fresh + row) * stride + c));
}

// MARK: Attention over caches of any type and size of heads (CacheAttention.cu has the fast one)

/// Below all scores.
constexpr float NONE = -1e30f;

/// As `cacheAttention`, heads of up to 256 channels: a key after the other by each of four warps. grid (parts, H, S), 128 threads;
/// 4 x size floats of shared memory
extern "C" __global__ void __launch_bounds__(128) cacheAttentionExact(
  u64 q, u64 k, u64 v, const int *positions, int groups, int room, int rowsPerBlock, int size, float scale,
  float *outputs, float *sums) {
  const int s = blockIdx.z, h = blockIdx.y, heads = gridDim.y, group = h * groups / heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int filled = positions[s] + 1 < room ? positions[s] + 1 : room, begin = blockIdx.x * rowsPerBlock;
  const int end = begin + rowsPerBlock < filled ? begin + rowsPerBlock : filled;
  if (begin >= end) return;
  float query[8], sum[8], top = NONE, total = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int c = lane + 32 * i;
    query[i] = c < size ? scale * loadValue(q, ((long long)s * heads + h) * size + c) : 0.0f;
    sum[i] = 0;
  }
  for (int row = begin + warp; row < end; row += 4) {
    const long long first = (((long long)s * room + row) * groups + group) * size;
    float score = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (lane + 32 * i < size) score += query[i] * loadValue(k, first + lane + 32 * i);
    score = laneTotal(score);
    const float larger = fmaxf(top, score), shrink = exactExponential(top - larger);
    const float weight = exactExponential(score - larger);
    top = larger;
    total = total * shrink + weight;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (lane + 32 * i < size) sum[i] = sum[i] * shrink + weight * loadValue(v, first + lane + 32 * i);
  }
  float *shared = reinterpret_cast<float *>(dynamicShared());
  __shared__ float tops[4], totals[4];
  if (lane == 0) tops[warp] = top, totals[warp] = total;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (lane + 32 * i < size) shared[warp * size + lane + 32 * i] = sum[i];
  syncBlock();
  top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
  const long long place = ((long long)s * heads + h) * gridDim.x + blockIdx.x;
  for (int c = threadIdx.x; c < size; c += 128) {
    float value = 0, all = 0;
    for (int w = 0; w < 4; ++w) {
      const float weight = exactExponential(tops[w] - top);
      value += weight * shared[w * size + c];
      all += weight * totals[w];
    }
    outputs[place * size + c] = value;
    if (c == 0) sums[place * 2] = top, sums[place * 2 + 1] = all;
  }
}

/// o [S, H, size] of what the blocks of a cache found, in their order. grid (H, S), 128 threads
extern "C" __global__ void __launch_bounds__(128) joinCacheParts(
  const float *outputs, const float *sums, const int *positions, int room, int rowsPerBlock, int parts, int size,
  u64 o) {
  const int filled = positions[blockIdx.y] + 1 < room ? positions[blockIdx.y] + 1 : room;
  const int used = (filled + rowsPerBlock - 1) / rowsPerBlock;
  const long long item = (long long)blockIdx.y * gridDim.x + blockIdx.x;
  const float *own = outputs + item * parts * size, *ownSums = sums + item * parts * 2;
  float top = NONE;
  for (int p = 0; p < used; ++p) top = fmaxf(top, ownSums[2 * p]);
  for (int c = threadIdx.x; c < size; c += 128) {
    float value = 0, all = 0;
#pragma unroll 4
    for (int p = 0; p < used; ++p) {
      const float weight = exactExponential(ownSums[2 * p] - top);
      value += weight * own[(long long)p * size + c];
      all += weight * ownSums[2 * p + 1];
    }
    storeValue(o, item * size + c, value / all);
  }
}
