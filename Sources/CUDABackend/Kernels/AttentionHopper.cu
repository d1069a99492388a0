// Softmax attention forward by the products of warpgroups: three that keep 64 queries each in registers and walk the keys,
// and one that copies keys and values ahead of them.
#include "AttentionHopper.cuh"

constexpr int GROUPS = 3, QUERIES = GROUPS * TILE, THREADS = (GROUPS + 1) * 128, STAGES = 4;
/// Queries of a block, its threads, and bytes of dynamic shared memory: for the launch.
extern "C" __device__ const int attentionSizes[3] = {
  QUERIES, THREADS, (QUERIES * SIZE + STAGES * STAGE) * 2 + 2 * STAGES * 8 + 1024};

DEVICE float quadTotal(float x) {
  x += shuffleXor(x, 1);
  return x + shuffleXor(x, 2);
}
DEVICE float quadMaximum(float x) {
  x = fmaxf(x, shuffleXor(x, 1));
  return fmaxf(x, shuffleXor(x, 2));
}

/// tiles: span and first query of each run of 192 queries, those that see most keys first. grid (tiles x heads), 512 threads
extern "C" __global__ void __launch_bounds__(THREADS, 1) attentionForward(
  const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, const Span *spans, int heads, int groups,
  int vStride, float scale, bf16 *o, float *logSums) {
  bf16 *queries = reinterpret_cast<bf16 *>(alignedShared()), *stages = queries + QUERIES * SIZE;
  Stages<STAGES> barriers;
  barriers.initialize(reinterpret_cast<u64 *>(stages + STAGES * STAGE), GROUPS * 4);
  const int tile = blockIdx.x / heads, h = blockIdx.x % heads, group = h * groups / heads;
  const Span span = spans[tiles[2 * tile]];
  const int offset = tiles[2 * tile + 1], count = min(QUERIES, span.queryCount - offset);
  // Where the block's first query stands among the keys.
  const int base = span.keyCount - span.queryCount + offset;
  const int first = max(0, base - span.window + 1) / TILE * TILE, end = base + count;
  const int member = uniform(threadIdx.x / 128);
  syncBlock();
  if (member == GROUPS) {
    giveRegisters<32>();
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
    takeRegisters<160>();
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    Quad query[8];
    bf16 *own = queries + member * TILE * SIZE;
    copyRows<TILE>(
      own, q + ((long long)(span.query + offset + member * TILE) * heads + h) * SIZE, count - member * TILE,
      heads * SIZE);
    commitCopies();
    waitCopies<0>();
    syncWarpgroup(member);
    loadOperands<TILE>(query, own);
    float out[16][4] = {}, most[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
    const float factor = scale * LOG2E;
    // Where the queries of this warpgroup begin among the keys.
    const int groupBase = base + member * TILE;
    Turn<STAGES> turn;
    for (int key = first; key < end; key += TILE, turn.advance()) {
      barriers.await(turn);
      // Keys that none of its queries sees.
      if (key >= groupBase + TILE || key + TILE <= groupBase - span.window + 1) {
        barriers.release(turn);
        continue;
      }
      const bf16 *keys = stages + turn.stage * STAGE, *values = keys + 2 * PANEL;
      float s[8][4];
      beginProducts();
#pragma unroll
      for (int d = 0; d < 8; ++d) multiplyWarpgroup(s, query[d], channels<TILE>(keys, d), d > 0);
      commitProducts();
      waitProducts<0>();
      if (key + TILE - 1 > groupBase || key <= groupBase + TILE - 1 - span.window) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int place = key + j * 8 + lane % 4 * 2 + i % 2, position = base + row + i / 2 * 8;
            if (place > position || place <= position - span.window) s[j][i] = -1e30f;
          }
      }
      float shift[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float highest = most[half];
#pragma unroll
        for (int j = 0; j < 8; ++j) highest = fmaxf(highest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        highest = quadMaximum(highest);
        const float keep = power2((most[half] - highest) * factor);
        most[half] = highest;
        // Where nothing is seen yet the weights become zero: what rounding leaves of large numbers must not.
        shift[half] = fmaxf(highest, -1e29f) * factor;
        sum[half] *= keep;
        // Behind the first tiles the highest score seldom changes; by one there is nothing to multiply.
        if (anyLane(keep != 1)) {
#pragma unroll
          for (int d = 0; d < 16; ++d) {
            out[d][2 * half] *= keep;
            out[d][2 * half + 1] *= keep;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[j][i] = power2(s[j][i] * factor - shift[i / 2]);
          sum[i / 2] += s[j][i];
        }
      Quad p[4];
      packSums(p, s);
      beginProducts();
#pragma unroll
      for (int j = 0; j < 4; ++j) multiplyWarpgroup(out, p[j], someRows(values, j), 1);
      commitProducts();
      waitProducts<0>();
      barriers.release(turn);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] = quadTotal(sum[half]);
      const int r = row + 8 * half;
      if (r >= count) continue;
      const long long place = (long long)(span.query + offset + r) * heads + h;
      const float inverse = 1.0f / sum[half];
      if (lane % 4 == 0) logSums[place] = most[half] * scale + logf(sum[half]);
      u32 *to = reinterpret_cast<u32 *>(o + place * SIZE) + lane % 4;
#pragma unroll
      for (int d = 0; d < 16; ++d) to[d * 4] = pack(out[d][2 * half] * inverse, out[d][2 * half + 1] * inverse);
    }
  }
}
