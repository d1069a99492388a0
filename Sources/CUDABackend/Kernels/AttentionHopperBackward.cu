// The gradients of softmax attention by the products of warpgroups. As in Attention.cu there are two walks, for queries over
// the keys and for keys over the queries, so that nothing is added by atomics. Two warpgroups keep 64 rows each, a third copies.
#include "AttentionHopper.cuh"

constexpr int GROUPS = 2, ROWS = GROUPS * TILE, THREADS = (GROUPS + 1) * 128, STAGES = 4;
/// Numbers of a stage of queries that are no matrices: logarithms of sums, then o . dO, of 64 rows.
constexpr int SCALARS = 2 * TILE;
/// Rows of a block, its threads, and bytes of dynamic shared memory of the two kernels: for the launch.
extern "C" __device__ const int attentionBackwardSizes[4] = {
  ROWS, THREADS, (ROWS * SIZE + STAGES * STAGE) * 2 + 2 * STAGES * 8 + 1024,
  (2 * ROWS * SIZE + STAGES * STAGE) * 2 + STAGES * SCALARS * 4 + 2 * STAGES * 8 + 1024};

/// dots: o . dO of every row. tiles: span and first query of each run of 128 queries. grid (tiles x heads), 384 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionBackwardQueries(
  const bf16 *dO, const bf16 *q, const bf16 *k, const bf16 *v, const float *logSums, const float *dots,
  const int *tiles, const Span *spans, int heads, int groups, int vStride, float scale, bf16 *dQ) {
  // Queries, then their gradients, pass through the same memory to registers.
  bf16 *rows = reinterpret_cast<bf16 *>(alignedShared()), *stages = rows + ROWS * SIZE;
  Stages<STAGES> barriers;
  barriers.initialize(reinterpret_cast<u64 *>(stages + STAGES * STAGE), GROUPS * 4);
  const int tile = blockIdx.x / heads, h = blockIdx.x % heads, group = h * groups / heads;
  const Span span = spans[tiles[2 * tile]];
  const int offset = tiles[2 * tile + 1], count = min(ROWS, span.queryCount - offset);
  const int base = span.keyCount - span.queryCount + offset;
  const int first = max(0, base - span.window + 1) / TILE * TILE, end = base + count;
  const int member = uniform(threadIdx.x / 128);
  syncBlock();
  if (member == GROUPS) {
    giveRegisters<24>();
    const int kStride = groups * SIZE;
    k += (long long)span.key * kStride + group * SIZE;
    v += (long long)span.key * vStride + group * SIZE;
    Turn<STAGES> turn;
    for (int key = first, count = 0; key < end; key += TILE, turn.advance(), ++count) {
      barriers.begin(turn, count);
      bf16 *stage = stages + turn.stage * STAGE;
      copyRows<TILE>(stage, k + (long long)key * kStride, end - key, kStride);
      copyRows<TILE>(stage + 2 * PANEL, v + (long long)key * vStride, end - key, vStride);
      barriers.end(turn);
    }
  } else {
    takeRegisters<240>();
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    Quad query[8], gradient[8];
    bf16 *own = rows + member * TILE * SIZE;
    const long long start = ((long long)(span.query + offset + member * TILE) * heads + h) * SIZE;
    copyRows<TILE>(own, q + start, count - member * TILE, heads * SIZE);
    commitCopies();
    waitCopies<0>();
    syncWarpgroup(member);
    loadOperands<TILE>(query, own);
    syncWarpgroup(member);
    copyRows<TILE>(own, dO + start, count - member * TILE, heads * SIZE);
    commitCopies();
    waitCopies<0>();
    syncWarpgroup(member);
    loadOperands<TILE>(gradient, own);
    float shift[2], overlap[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const long long place = (long long)(span.query + offset + row + 8 * half) * heads + h;
      const bool isThere = row + 8 * half < count;
      shift[half] = isThere ? logSums[place] * LOG2E : 0;
      overlap[half] = isThere ? dots[place] : 0;
    }
    float out[16][4] = {};
    const float factor = scale * LOG2E;
    const int groupBase = base + member * TILE;
    Turn<STAGES> turn;
    for (int key = first; key < end; key += TILE, turn.advance()) {
      barriers.await(turn);
      if (key >= groupBase + TILE || key + TILE <= groupBase - span.window + 1) {
        barriers.release(turn);
        continue;
      }
      const bf16 *keys = stages + turn.stage * STAGE, *values = keys + 2 * PANEL;
      float s[8][4], d[8][4];
      beginProducts();
#pragma unroll
      for (int c = 0; c < 8; ++c) multiplyWarpgroup(s, query[c], channels<TILE>(keys, c), c > 0);
      commitProducts();
#pragma unroll
      for (int c = 0; c < 8; ++c) multiplyWarpgroup(d, gradient[c], channels<TILE>(values, c), c > 0);
      commitProducts();
      waitProducts<1>();
      touch(s);
      const bool isInside = key + TILE - 1 <= groupBase && key > groupBase + TILE - 1 - span.window;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int place = key + j * 8 + lane % 4 * 2 + i % 2, position = base + row + i / 2 * 8;
          const bool isSeen = isInside || (place <= position && place > position - span.window);
          s[j][i] = isSeen ? power2(s[j][i] * factor - shift[i / 2]) : 0.0f;
        }
      waitProducts<0>();
      touch(d);
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] *= d[j][i] - overlap[i / 2];
      Quad p[4];
      packSums(p, s);
      beginProducts();
#pragma unroll
      for (int j = 0; j < 4; ++j) multiplyWarpgroup(out, p[j], someRows(keys, j), 1);
      commitProducts();
      waitProducts<0>();
      barriers.release(turn);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      if (r >= count) continue;
      u32 *to = reinterpret_cast<u32 *>(dQ + ((long long)(span.query + offset + r) * heads + h) * SIZE) + lane % 4;
#pragma unroll
      for (int d = 0; d < 16; ++d) to[d * 4] = pack(out[d][2 * half] * scale, out[d][2 * half + 1] * scale);
    }
  }
}

/// The queries of a span, in tiles, that see some of a block's keys.
struct Seers {
  /// Where the block's first key and the span's first query stand among the span's keys.
  int place, base;
  int begin, end;
};
DEVICE Seers seers(const Span &span, int first, int count) {
  Seers s;
  s.place = first - span.key;
  s.base = span.keyCount - span.queryCount;
  s.begin = max(0, max(s.place, 0) - s.base) / TILE * TILE;
  s.end = (int)min((long long)span.queryCount, (long long)s.place + count - 1 + span.window - s.base);
  if (s.place + count <= 0 || s.place >= span.keyCount) s.end = s.begin;
  return s;
}

/// 4 bytes from device to shared memory, without waiting; zero where they are not `valid`.
DEVICE void copyWordAsync(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sharedAddress(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

/// A block of 128 keys sees the queries of every span that holds some of it, in order: one head's share of the gradients,
/// [keys, heads, SIZE]. grid (keys / 128 rounded up x heads), 384 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionBackwardKeys(
  const bf16 *dO, const bf16 *q, const bf16 *k, const bf16 *v, const float *logSums, const float *dots,
  const Span *spans, int spanCount, int keyCount, int heads, int groups, int vStride, float scale, float *dK,
  float *dV) {
  bf16 *keys = reinterpret_cast<bf16 *>(alignedShared()), *values = keys + ROWS * SIZE;
  bf16 *stages = values + ROWS * SIZE;
  float *scalars = reinterpret_cast<float *>(stages + STAGES * STAGE);
  Stages<STAGES> barriers;
  barriers.initialize(reinterpret_cast<u64 *>(scalars + STAGES * SCALARS), GROUPS * 4);
  const int h = blockIdx.x % heads, group = h * groups / heads;
  const int first = blockIdx.x / heads * ROWS, count = min(ROWS, keyCount - first);
  const int member = uniform(threadIdx.x / 128);
  syncBlock();
  if (member == GROUPS) {
    giveRegisters<24>();
    Turn<STAGES> turn;
    int turns = 0;
    for (int index = 0; index < spanCount; ++index) {
      const Span span = spans[index];
      const Seers some = seers(span, first, count);
      for (int offset = some.begin; offset < some.end; offset += TILE, turn.advance(), ++turns) {
        barriers.begin(turn, turns);
        const int stage = turn.stage, left = span.queryCount - offset;
        const long long start = ((long long)(span.query + offset) * heads + h) * SIZE;
        copyRows<TILE>(stages + stage * STAGE, q + start, left, heads * SIZE);
        copyRows<TILE>(stages + stage * STAGE + 2 * PANEL, dO + start, left, heads * SIZE);
        const int i = threadIdx.x % TILE, isDot = threadIdx.x % 128 / TILE;
        const long long at = (long long)(span.query + offset + (i < left ? i : 0)) * heads + h;
        copyWordAsync(
          scalars + stage * SCALARS + isDot * TILE + i, (isDot ? dots : logSums) + at, i < left);
        barriers.end(turn);
      }
    }
  } else {
    takeRegisters<240>();
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    const bf16 *ownKeys = keys + member * TILE * SIZE, *ownValues = values + member * TILE * SIZE;
    const int from = first + member * TILE, left = count - member * TILE;
    copyRows<TILE>(const_cast<bf16 *>(ownKeys), k + ((long long)from * groups + group) * SIZE, left, groups * SIZE);
    copyRows<TILE>(const_cast<bf16 *>(ownValues), v + (long long)from * vStride + group * SIZE, left, vStride);
    commitCopies();
    waitCopies<0>();
    publishCopies();
    syncWarpgroup(member);
    float dKey[16][4] = {}, dValue[16][4] = {};
    const float factor = scale * LOG2E;
    Turn<STAGES> turn;
    for (int index = 0; index < spanCount; ++index) {
      const Span span = spans[index];
      const Seers some = seers(span, first, count);
      // Where the keys of this warpgroup stand among the span's.
      const int place = some.place + member * TILE;
      for (int offset = some.begin; offset < some.end; offset += TILE, turn.advance()) {
        barriers.await(turn);
        const int position = some.base + offset;
        // Queries that see none of them.
        if (place > position + TILE - 1 || place + TILE <= position - span.window + 1) {
          barriers.release(turn);
          continue;
        }
        const bf16 *query = stages + turn.stage * STAGE, *gradient = query + 2 * PANEL;
        const float *shifts = scalars + turn.stage * SCALARS + lane % 4 * 2, *overlaps = shifts + TILE;
        float s[8][4], d[8][4];
        beginProducts();
#pragma unroll
        for (int c = 0; c < 8; ++c)
          multiplyWarpgroup(s, channels<TILE>(ownKeys, c), channels<TILE>(query, c), c > 0);
        commitProducts();
#pragma unroll
        for (int c = 0; c < 8; ++c)
          multiplyWarpgroup(d, channels<TILE>(ownValues, c), channels<TILE>(gradient, c), c > 0);
        commitProducts();
        waitProducts<1>();
        touch(s);
        // Whether all queries of the tile see all of these keys.
        const bool isInside = place >= 0 && place + TILE <= span.keyCount && offset + TILE <= span.queryCount &&
                              place + TILE - 1 <= position && place > position + TILE - 1 - span.window;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 shift = *reinterpret_cast<const float2 *>(shifts + j * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int column = j * 8 + lane % 4 * 2 + i % 2, own = place + row % TILE + i / 2 * 8;
            const int at = position + column;
            const bool isSeen = isInside || (offset + column < span.queryCount && own >= 0 && own < span.keyCount &&
                                             own <= at && own > at - span.window);
            s[j][i] = isSeen ? power2(s[j][i] * factor - (i % 2 ? shift.y : shift.x) * LOG2E) : 0.0f;
          }
        }
        Quad p[4], slope[4];
        packSums(p, s);
        beginProducts();
#pragma unroll
        for (int j = 0; j < 4; ++j) multiplyWarpgroup(dValue, p[j], someRows(gradient, j), 1);
        commitProducts();
        waitProducts<1>();
        touch(d);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 overlap = *reinterpret_cast<const float2 *>(overlaps + j * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) d[j][i] = s[j][i] * (d[j][i] - (i % 2 ? overlap.y : overlap.x));
        }
        packSums(slope, d);
        beginProducts();
#pragma unroll
        for (int j = 0; j < 4; ++j) multiplyWarpgroup(dKey, slope[j], someRows(query, j), 1);
        commitProducts();
        waitProducts<0>();
        barriers.release(turn);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row % TILE + 8 * half;
      if (r >= left) continue;
      const long long to = ((long long)(from + r) * heads + h) * SIZE + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < 16; ++d) {
        *reinterpret_cast<float2 *>(dK + to + d * 8) =
          make_float2(dKey[d][2 * half] * scale, dKey[d][2 * half + 1] * scale);
        *reinterpret_cast<float2 *>(dV + to + d * 8) = make_float2(dValue[d][2 * half], dValue[d][2 * half + 1]);
      }
    }
  }
}
