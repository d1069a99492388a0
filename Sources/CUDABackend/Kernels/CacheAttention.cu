// Attention of one query a sequence and head over a cache of keys and values [S, room, G, HEAD_SIZE] of bfloat16, of which the
// first min(positions[s] + 1, room) rows are there. Its rows are read once for all heads of a group, at the speed of memory.
//
// A block has the rows `rowsPerBlock` of one sequence and group and up to 8 of its heads; its four warps take 16 rows in turn,
// straight into registers: a lane's 16 bytes of a row of keys are channels of its own share of a product, since the sum over
// channels may go in any order, and two rows of values are woven into the pairs that the product wants. With the rows on the
// long side of the product and heads on the short one, scores [16 rows, 8 heads] = keys queries^T and outputs^T [channels, 8
// heads] = values^T weights^T. What blocks find is joined by `joinCacheParts` (Caches.cu), in order.
#include "Rows.cuh"

constexpr int CHUNKS = HEAD_SIZE / 32, HALVES = HEAD_SIZE / 64;
/// Below all scores.
constexpr float NONE = -1e30f;

DEVICE Quad loadQuad(const bf16 *p) { return *reinterpret_cast<const Quad *>(p); }
/// The lower halves of two registers, and the upper ones.
DEVICE u32 lowerHalves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
DEVICE u32 upperHalves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }

/// 16 rows of keys and values as lanes hold them.
struct Tile {
  Quad keys[2][CHUNKS], values[4][HALVES];

  /// Rows from `row` on of `count`; those behind the end are the last one again. Rows are `stride` apart.
  DEVICE void load(const bf16 *k, const bf16 *v, int row, int count, long long stride, int lane) {
    const int last = count - 1, group = lane / 4, member = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + group + 8 * half;
      const bf16 *p = k + (r < last ? r : last) * stride + member * 8;
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk) keys[half][chunk] = loadQuad(p + chunk * 32);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + member * 2 + i % 2 + i / 2 * 8;
      const bf16 *p = v + (r < last ? r : last) * stride + group * 8;
#pragma unroll
      for (int half = 0; half < HALVES; ++half) values[i][half] = loadQuad(p + half * 64);
    }
  }
};

/// q [S, H, HEAD_SIZE]; of every part `outputs` [S, H, parts, HEAD_SIZE], the weighted sum of values, and `sums` [S, H, parts, 2],
/// the largest score and the sum of weights beside it. grid (parts, groups x packs of 8 heads, S), 128 threads; 4 x 8 x
/// HEAD_SIZE floats of shared memory
extern "C" __global__ void __launch_bounds__(128, 2) cacheAttention(
  const bf16 *q, const bf16 *k, const bf16 *v, const int *positions, int heads, int groups, int room, int rowsPerBlock,
  float scale, float *outputs, float *sums) {
  const int s = blockIdx.z, each = heads / groups, packs = (each + 7) / 8;
  const int group = blockIdx.y / packs, firstHead = group * each + blockIdx.y % packs * 8;
  const int headCount = min(8, (group + 1) * each - firstHead);
  const int filled = min(positions[s] + 1, room);
  const int begin = blockIdx.x * rowsPerBlock, end = min(begin + rowsPerBlock, filled);
  if (begin >= end) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long long stride = (long long)groups * HEAD_SIZE;
  const bf16 *ownKeys = k + (long long)s * room * stride + (long long)group * HEAD_SIZE;
  const bf16 *ownValues = v + (long long)s * room * stride + (long long)group * HEAD_SIZE;

  // The queries of head lane / 4, the channels that this lane has of keys.
  Quad queries[CHUNKS];
  const bf16 *ownQuery = q + ((long long)s * heads + firstHead + lane / 4) * HEAD_SIZE + lane % 4 * 8;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk)
    queries[chunk] = lane / 4 < headCount ? loadQuad(ownQuery + chunk * 32) : Quad{{0, 0, 0, 0}};

  // Of heads lane % 4 * 2 and the next.
  float largest[2] = {NONE, NONE}, total[2] = {0, 0};
  float sum[HALVES * 4][4] = {};
  int row = begin + warp * 16;
  // Takes the rows that `now` holds, while the next ones are on their way to `after`.
  auto take = [&](Tile &now, Tile &after) {
    if (row + 64 < end) after.load(ownKeys, ownValues, row + 64, end, stride, lane);
    float score[4] = {0, 0, 0, 0};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int step = 0; step < 2; ++step)
        multiplyAdd(
          score,
          {{now.keys[0][chunk].x[2 * step], now.keys[1][chunk].x[2 * step], now.keys[0][chunk].x[2 * step + 1],
            now.keys[1][chunk].x[2 * step + 1]}},
          queries[chunk].x[2 * step], queries[chunk].x[2 * step + 1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] = row + lane / 4 + i / 2 * 8 < end ? score[i] * scale : NONE;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = fmaxf(score[h], score[2 + h]);
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, shuffleXor(top, mask));
      top = fmaxf(top, largest[h]);
      const float shrink = exponential(largest[h] - top);
      largest[h] = top;
      score[h] = exponential(score[h] - top);
      score[2 + h] = exponential(score[2 + h] - top);
      total[h] = total[h] * shrink + score[h] + score[2 + h];
#pragma unroll
      for (int t = 0; t < HALVES * 4; ++t) sum[t][h] *= shrink, sum[t][2 + h] *= shrink;
    }
    // Weights [16 rows, 8 heads], turned into pairs of rows.
    const u32 early = transposeTile(pack(score[0], score[1])), late = transposeTile(pack(score[2], score[3]));
#pragma unroll
    for (int half = 0; half < HALVES; ++half)
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const u32 a = now.values[0][half].x[t], b = now.values[1][half].x[t];
        const u32 c = now.values[2][half].x[t], d = now.values[3][half].x[t];
        multiplyAdd(
          sum[half * 4 + t], {{lowerHalves(a, b), upperHalves(a, b), lowerHalves(c, d), upperHalves(c, d)}}, early, late);
      }
    row += 64;
  };
  Tile one, other;
  if (row < end) one.load(ownKeys, ownValues, row, end, stride, lane);
  while (row < end) {
    take(one, other);
    if (row < end) take(other, one);
  }

  // The warps' parts, joined: shared [warp][head][channel], and of each head its largest score and total.
  float *shared = reinterpret_cast<float *>(dynamicShared());
  __shared__ float tops[4][8], totals[4][8];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) total[h] += shuffleXor(total[h], mask);
    if (lane < 4) tops[warp][lane * 2 + h] = largest[h], totals[warp][lane * 2 + h] = total[h];
  }
#pragma unroll
  for (int t = 0; t < HALVES * 4; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Channels 2t and 2t + 1 of the eight of lane / 4.
      const int channel = t / 4 * 64 + lane / 4 * 8 + t % 4 * 2 + i / 2, head = lane % 4 * 2 + i % 2;
      shared[(warp * 8 + head) * HEAD_SIZE + channel] = sum[t][i];
    }
  syncBlock();
  for (int i = threadIdx.x; i < headCount * HEAD_SIZE; i += 128) {
    const int head = i / HEAD_SIZE, channel = i % HEAD_SIZE;
    const float top = fmaxf(fmaxf(tops[0][head], tops[1][head]), fmaxf(tops[2][head], tops[3][head]));
    float value = 0, all = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float weight = exponential(tops[w][head] - top);
      value += weight * shared[(w * 8 + head) * HEAD_SIZE + channel];
      all += weight * totals[w][head];
    }
    const long long place = ((long long)s * heads + firstHead + head) * gridDim.x + blockIdx.x;
    outputs[place * HEAD_SIZE + channel] = value;
    if (channel == 0) sums[place * 2] = top, sums[place * 2 + 1] = all;
  }
}
