// Softmax attention on tensor cores, operands bfloat16, sums float32, for heads of HEAD_SIZE channels, a multiple of 16 and
// at most 128 (Dao, 2023: a block keeps a tile of queries and walks the keys, scores never leave the registers). Spans as in
// AttentionExact.cu. A warp owns 16 rows of a tile. The backward pass walks twice, for queries over the keys and for keys
// over the queries, so that nothing is added by atomics.
#include "Primitives.cuh"
#include "Spans.cuh"

constexpr int SIZE = HEAD_SIZE, BLOCKS = SIZE / 16, TILE = 64;
/// Queries that the keys' backward pass takes at a time.
constexpr int FEW = 32;
constexpr float LOG2E = 1.4426950408889634f;
static_assert(SIZE % 16 == 0 && SIZE <= 128, "head size");

DEVICE float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Begins to copy rows of head h of x, which are `stride` elements apart, into blocks of 16 x 16 of shared memory; zeros behind `count`. By 128
/// threads: eight lanes write the eight rows of a tile, without bank conflicts.
template <int rows>
DEVICE void copyRows(bf16 *shared, const bf16 *x, long long first, int count, int stride, int h) {
  constexpr int CHUNKS = SIZE / 8;
#pragma unroll
  for (int e = threadIdx.x; e < rows * CHUNKS; e += 128) {
    const int r = e / (8 * CHUNKS) * 8 + e % 8, c = e / 8 % CHUNKS;
    copyAsync(
      shared + ((r / 16) * BLOCKS + c / 2) * BLOCK + (r / 8 % 2 * 2 + c % 2) * 64 + r % 8 * 8,
      x + (first + (r < count ? r : 0)) * stride + h * SIZE + c * 8, r < count);
  }
}

/// s[16, 16 n] = a [16, SIZE] times the transpose of the rows of `b`.
template <int n> DEVICE void scores(float (&s)[n][2][4], const Quad (&a)[BLOCKS], const bf16 *b, int lane) {
#pragma unroll
  for (int j = 0; j < n; ++j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) s[j][i / 4][i % 4] = 0;
#pragma unroll
    for (int d = 0; d < BLOCKS; ++d)
      multiplyAdd(s[j][0], s[j][1], a[d], loadMatrix(b + (j * BLOCKS + d) * BLOCK + straight(lane)));
  }
}

/// The same, where the left operand lies in shared memory too.
template <int n> DEVICE void scores(float (&s)[n][2][4], const bf16 *a, const bf16 *b, int lane) {
#pragma unroll
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 8; ++i) s[j][i / 4][i % 4] = 0;
#pragma unroll
  for (int d = 0; d < BLOCKS; ++d) {
    const Quad left = loadMatrix(a + d * BLOCK + crossed(lane));
#pragma unroll
    for (int j = 0; j < n; ++j)
      multiplyAdd(s[j][0], s[j][1], left, loadMatrix(b + (j * BLOCKS + d) * BLOCK + straight(lane)));
  }
}

/// out[16, SIZE] += p [16, 16 n] times the rows of `b`.
template <int n>
DEVICE void weightedSums(float (&out)[BLOCKS][2][4], const float (&p)[n][2][4], const bf16 *b, int lane) {
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const Quad left = packed(p[j][0], p[j][1]);
#pragma unroll
    for (int d = 0; d < BLOCKS; ++d)
      multiplyAdd(out[d][0], out[d][1], left, loadMatrixTransposed(b + (j * BLOCKS + d) * BLOCK + crossed(lane)));
  }
}

/// Rows [16, SIZE] of a warp to head h of x, rows of which are `stride` elements apart; of its two rows a lane writes those that are there.
DEVICE void writeRows(
  bf16 *x, const float (&out)[BLOCKS][2][4], const float (&factor)[2], long long first, int count, int stride,
  int h, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half;
    if (r >= count) continue;
    u32 *row = reinterpret_cast<u32 *>(x + (first + r) * stride + h * SIZE) + lane % 4;
#pragma unroll
    for (int d = 0; d < BLOCKS; ++d)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        row[d * 8 + part * 4] =
          pack(out[d][part][2 * half] * factor[half], out[d][part][2 * half + 1] * factor[half]);
  }
}

DEVICE float quadTotal(float x) {
  x += shuffleXor(x, 1);
  return x + shuffleXor(x, 2);
}
DEVICE float quadMaximum(float x) {
  x = fmaxf(x, shuffleXor(x, 1));
  return fmaxf(x, shuffleXor(x, 2));
}

struct Queries {
  Span span;
  /// Of the tile: where it begins in the span, how many there are, where the first stands among the keys.
  int offset, count, base;
  /// Keys that some of them see.
  int first, end;
};

DEVICE Queries queriesOf(const int *tiles, const Span *spans) {
  Queries q;
  q.span = spans[tiles[2 * blockIdx.x]];
  q.offset = tiles[2 * blockIdx.x + 1];
  q.count = min(TILE, q.span.queryCount - q.offset);
  q.base = q.span.keyCount - q.span.queryCount + q.offset;
  q.first = max(0, q.base - q.span.window + 1) / TILE * TILE;
  q.end = q.base + q.count;
  return q;
}

/// Sets the scores of keys that a query does not see to a number below all others.
DEVICE void mask(float (&s)[4][2][4], const Queries &q, int key, int row, int lane) {
  const bool isInside = key + TILE - 1 <= q.base && key > q.base + TILE - 1 - q.span.window;
  if (isInside) return;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int place = key + j * 16 + part * 8 + lane % 4 * 2 + i % 2;
        const int position = q.base + row + i / 2 * 8;
        if (place > position || place <= position - q.span.window) s[j][part][i] = -1e30f;
      }
}

/// tiles: span and first query of each run of 64 queries. grid (tiles, heads), 128 threads
extern "C" __global__ void __launch_bounds__(128, 2) attentionForward(
  const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, const Span *spans, int heads, int groups,
  int vStride, float scale, bf16 *o, float *logSums) {
  bf16 *keys = reinterpret_cast<bf16 *>(dynamicShared()), *values = keys + 2 * TILE * SIZE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.y, group = h * groups / heads;
  const Queries own = queriesOf(tiles, spans);
  const int row = warp * 16 + lane / 4;
  copyRows<TILE>(values, q, own.span.query + own.offset, own.count, heads * SIZE, h);
  copyRows<TILE>(keys, k, own.span.key + own.first, own.end - own.first, groups * SIZE, group);
  commitCopies();
  waitCopies<0>();
  syncBlock();
  Quad query[BLOCKS];
#pragma unroll
  for (int d = 0; d < BLOCKS; ++d) query[d] = loadMatrix(values + (warp * BLOCKS + d) * BLOCK + crossed(lane));
  syncBlock();
  copyRows<TILE>(values, v, own.span.key + own.first, own.end - own.first, vStride, group);
  commitCopies();
  float out[BLOCKS][2][4] = {}, most[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
  const float factor = scale * LOG2E;
  int stage = 0;
  for (int key = own.first; key < own.end; key += TILE, stage ^= 1) {
    waitCopies<0>();
    syncBlock();
    if (key + TILE < own.end) {
      const int next = (stage ^ 1) * TILE * SIZE, count = own.end - key - TILE;
      copyRows<TILE>(keys + next, k, own.span.key + key + TILE, count, groups * SIZE, group);
      copyRows<TILE>(values + next, v, own.span.key + key + TILE, count, vStride, group);
      commitCopies();
    }
    float s[4][2][4];
    scores<4>(s, query, keys + stage * TILE * SIZE, lane);
    mask(s, own, key, row, lane);
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = most[half];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int part = 0; part < 2; ++part)
          highest = fmaxf(highest, fmaxf(s[j][part][2 * half], s[j][part][2 * half + 1]));
      highest = quadMaximum(highest);
      const float keep = power2((most[half] - highest) * factor);
      most[half] = highest;
      // Where nothing is seen yet the weights become zero: what rounding leaves of large numbers must not.
      shift[half] = fmaxf(highest, -1e29f) * factor;
      sum[half] *= keep;
#pragma unroll
      for (int d = 0; d < BLOCKS; ++d)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          out[d][part][2 * half] *= keep;
          out[d][part][2 * half + 1] *= keep;
        }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[j][part][i] = power2(s[j][part][i] * factor - shift[i / 2]);
          sum[i / 2] += s[j][part][i];
        }
    weightedSums<4>(out, s, values + stage * TILE * SIZE, lane);
  }
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = quadTotal(sum[half]);
    inverse[half] = 1.0f / sum[half];
    if (lane % 4 == 0 && row + 8 * half < own.count)
      logSums[(long long)(own.span.query + own.offset + row + 8 * half) * heads + h] =
        most[half] * scale + logf(sum[half]);
  }
  writeRows(
    o, out, inverse, own.span.query + own.offset + warp * 16, own.count - warp * 16, heads * SIZE, h, lane);
}

/// dots: o . dO of every row. The grid of the forward pass.
extern "C" __global__ void __launch_bounds__(128, 2) attentionBackwardQueries(
  const bf16 *dO, const bf16 *q, const bf16 *k, const bf16 *v, const float *logSums, const float *dots,
  const int *tiles, const Span *spans, int heads, int groups, int vStride, float scale, bf16 *dQ) {
  bf16 *keys = reinterpret_cast<bf16 *>(dynamicShared()), *values = keys + 2 * TILE * SIZE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.y, group = h * groups / heads;
  const Queries own = queriesOf(tiles, spans);
  const int row = warp * 16 + lane / 4;
  copyRows<TILE>(keys, q, own.span.query + own.offset, own.count, heads * SIZE, h);
  copyRows<TILE>(values, dO, own.span.query + own.offset, own.count, heads * SIZE, h);
  commitCopies();
  waitCopies<0>();
  syncBlock();
  Quad query[BLOCKS], gradient[BLOCKS];
#pragma unroll
  for (int d = 0; d < BLOCKS; ++d) {
    query[d] = loadMatrix(keys + (warp * BLOCKS + d) * BLOCK + crossed(lane));
    gradient[d] = loadMatrix(values + (warp * BLOCKS + d) * BLOCK + crossed(lane));
  }
  float shift[2], overlap[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const long long place = (long long)(own.span.query + own.offset + row + 8 * half) * heads + h;
    const bool isThere = row + 8 * half < own.count;
    shift[half] = isThere ? logSums[place] * LOG2E : 0;
    overlap[half] = isThere ? dots[place] : 0;
  }
  syncBlock();
  copyRows<TILE>(keys, k, own.span.key + own.first, own.end - own.first, groups * SIZE, group);
  copyRows<TILE>(values, v, own.span.key + own.first, own.end - own.first, vStride, group);
  commitCopies();
  float out[BLOCKS][2][4] = {};
  const float factor = scale * LOG2E;
  int stage = 0;
  for (int key = own.first; key < own.end; key += TILE, stage ^= 1) {
    waitCopies<0>();
    syncBlock();
    if (key + TILE < own.end) {
      const int next = (stage ^ 1) * TILE * SIZE, count = own.end - key - TILE;
      copyRows<TILE>(keys + next, k, own.span.key + key + TILE, count, groups * SIZE, group);
      copyRows<TILE>(values + next, v, own.span.key + key + TILE, count, vStride, group);
      commitCopies();
    }
    float s[4][2][4], d[4][2][4];
    scores<4>(s, query, keys + stage * TILE * SIZE, lane);
    scores<4>(d, gradient, values + stage * TILE * SIZE, lane);
    mask(s, own, key, row, lane);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          d[j][part][i] =
            power2(s[j][part][i] * factor - shift[i / 2]) * (d[j][part][i] - overlap[i / 2]);
    weightedSums<4>(out, d, keys + stage * TILE * SIZE, lane);
  }
  const float scales[2] = {scale, scale};
  writeRows(dQ, out, scales, own.span.query + own.offset + warp * 16, own.count - warp * 16, heads * SIZE, h, lane);
}

/// Float32 rows [16, SIZE] of a warp to head h of x [rows, heads, SIZE].
DEVICE void writeSums(
  float *x, const float (&out)[BLOCKS][2][4], float factor, long long first, int count, int heads, int h, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half;
    if (r >= count) continue;
    float2 *row = reinterpret_cast<float2 *>(x + ((first + r) * heads + h) * SIZE) + lane % 4;
#pragma unroll
    for (int d = 0; d < BLOCKS; ++d)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        row[d * 8 + part * 4] =
          make_float2(out[d][part][2 * half] * factor, out[d][part][2 * half + 1] * factor);
  }
}

/// A tile of keys sees the queries of every span that holds some of it, in order: one head's share of the gradients,
/// [keys, heads, SIZE]. grid (keys / 64 rounded up, heads), 128 threads
extern "C" __global__ void __launch_bounds__(128, 2) attentionBackwardKeys(
  const bf16 *dO, const bf16 *q, const bf16 *k, const bf16 *v, const float *logSums, const float *dots,
  const Span *spans, int spanCount, int keyCount, int heads, int groups, int vStride, float scale, float *dK,
  float *dV) {
  bf16 *keys = reinterpret_cast<bf16 *>(dynamicShared()), *values = keys + TILE * SIZE;
  bf16 *queries = values + TILE * SIZE, *gradients = queries + 2 * FEW * SIZE;
  float *shifts = reinterpret_cast<float *>(gradients + 2 * FEW * SIZE), *overlaps = shifts + 2 * FEW;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.y, group = h * groups / heads;
  const int first = blockIdx.x * TILE, count = min(TILE, keyCount - first), row = warp * 16 + lane / 4;
  copyRows<TILE>(keys, k, first, count, groups * SIZE, group);
  copyRows<TILE>(values, v, first, count, vStride, group);
  commitCopies();
  float dKey[BLOCKS][2][4] = {}, dValue[BLOCKS][2][4] = {};
  const float factor = scale * LOG2E;
  for (int index = 0; index < spanCount; ++index) {
    const Span span = spans[index];
    // Where the tile's keys stand among the span's, and which queries see some of them.
    const int place = first - span.key, base = span.keyCount - span.queryCount;
    if (place + count <= 0 || place >= span.keyCount) continue;
    const int begin = max(0, max(place, 0) - base) / FEW * FEW;
    const int end = (int)min((long long)span.queryCount, (long long)place + count - 1 + span.window - base);
    auto fetch = [&](int offset, int stage) {
      const int rows = min(FEW, span.queryCount - offset);
      copyRows<FEW>(queries + stage * FEW * SIZE, q, span.query + offset, rows, heads * SIZE, h);
      copyRows<FEW>(gradients + stage * FEW * SIZE, dO, span.query + offset, rows, heads * SIZE, h);
      if (threadIdx.x < FEW) {
        const long long at = (long long)(span.query + offset + threadIdx.x) * heads + h;
        const bool isThere = (int)threadIdx.x < rows;
        shifts[stage * FEW + threadIdx.x] = isThere ? logSums[at] * LOG2E : 0;
        overlaps[stage * FEW + threadIdx.x] = isThere ? dots[at] : 0;
      }
      commitCopies();
    };
    syncBlock();
    if (begin < end) fetch(begin, 0);
    int stage = 0;
    for (int offset = begin; offset < end; offset += FEW, stage ^= 1) {
      waitCopies<0>();
      syncBlock();
      if (offset + FEW < end) fetch(offset + FEW, stage ^ 1);
      const bf16 *query = queries + stage * FEW * SIZE, *gradient = gradients + stage * FEW * SIZE;
      float s[2][2][4], d[2][2][4];
      scores<2>(s, keys + warp * BLOCKS * BLOCK, query, lane);
      scores<2>(d, values + warp * BLOCKS * BLOCK, gradient, lane);
      // Whether all queries of the tile see all keys of the tile.
      const bool isInside = place >= 0 && place + TILE <= span.keyCount && offset + FEW <= span.queryCount &&
                            place + TILE - 1 <= base + offset && place > base + offset + FEW - 1 - span.window;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int column = j * 16 + part * 8 + lane % 4 * 2 + i % 2;
            const int position = base + offset + column, own = place + row + i / 2 * 8;
            const bool isSeen = isInside || (offset + column < span.queryCount && own >= 0 && own < span.keyCount &&
                                             own <= position && own > position - span.window);
            const float p = isSeen ? power2(s[j][part][i] * factor - shifts[stage * FEW + column]) : 0.0f;
            s[j][part][i] = p;
            d[j][part][i] = p * (d[j][part][i] - overlaps[stage * FEW + column]);
          }
      weightedSums<2>(dValue, s, gradient, lane);
      weightedSums<2>(dKey, d, query, lane);
    }
  }
  waitCopies<0>();
  writeSums(dK, dKey, scale, first + warp * 16, count - warp * 16, heads, h, lane);
  writeSums(dV, dValue, 1, first + warp * 16, count - warp * 16, heads, h, lane);
}
