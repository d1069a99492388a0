// One token of the gated delta rule for each of many sequences, on states [S, H, K, V] in place, of float32 or bfloat16:
//   S <- e^g S + k u^T,  u = beta (v - e^g S^T k),  o = scale (e^g S^T q + (k . q) u)  with the S of before.
// It moves the states once each way and little else, and so should run at the speed of memory. A block has 128 columns of one
// head's state; a warp has some of its rows in registers, four columns a lane.
#include "Rows.cuh"

#ifndef STATE
#define STATE float
#endif

constexpr int STEP_WARPS = KEY_SIZE <= 128 ? 4 : 8;
constexpr int STEP_ROWS = (KEY_SIZE + STEP_WARPS - 1) / STEP_WARPS;

DEVICE void readFour(float (&x)[4], const float *p) {
  const Quad q = *reinterpret_cast<const Quad *>(p);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = asFloat(q.x[i]);
}
DEVICE void readFour(float (&x)[4], const bf16 *p) {
  const u64 q = *reinterpret_cast<const u64 *>(p);
  x[0] = lower((u32)q), x[1] = upper((u32)q), x[2] = lower((u32)(q >> 32)), x[3] = upper((u32)(q >> 32));
}
DEVICE void writeFour(float *p, const float (&x)[4]) {
  *reinterpret_cast<Quad *>(p) = {{asBits(x[0]), asBits(x[1]), asBits(x[2]), asBits(x[3])}};
}
DEVICE void writeFour(bf16 *p, const float (&x)[4]) {
  *reinterpret_cast<u64 *>(p) = (u64)pack(x[0], x[1]) | (u64)pack(x[2], x[3]) << 32;
}

/// q, k [S, H, K], v, o [S, H, values], g, beta [S, H]; values a multiple of 4. grid (values / 128 rounded up, H, S)
extern "C" __global__ void __launch_bounds__(STEP_WARPS * 32) deltaRuleStep(
  const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const float *g, const float *beta, float scale, int values,
  STATE *state, ELEMENT *o) {
  __shared__ float keys[KEY_SIZE], queries[KEY_SIZE], parts[STEP_WARPS][2][128];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 128 + lane * 4;
  const bool isIn = column < values;
  const long long item = (long long)blockIdx.z * gridDim.y + blockIdx.y;
  STATE *own = state + item * KEY_SIZE * values + column;
  float s[STEP_ROWS][4];
#pragma unroll
  for (int r = 0; r < STEP_ROWS; ++r) {
    const int row = warp * STEP_ROWS + r;
    if (isIn && row < KEY_SIZE)
      readFour(s[r], own + (long long)row * values);
    else
      s[r][0] = s[r][1] = s[r][2] = s[r][3] = 0.0f;
  }
  for (int c = threadIdx.x; c < KEY_SIZE; c += STEP_WARPS * 32) {
    keys[c] = readElement(k + item * KEY_SIZE + c);
    queries[c] = readElement(q + item * KEY_SIZE + c);
  }
  syncBlock();
  float overlap = 0;
  for (int c = lane; c < KEY_SIZE; c += 32) overlap += keys[c] * queries[c];
  overlap = laneTotal(overlap);
  float known[4] = {}, seen[4] = {};
#pragma unroll
  for (int r = 0; r < STEP_ROWS; ++r) {
    const int row = warp * STEP_ROWS + r < KEY_SIZE ? warp * STEP_ROWS + r : KEY_SIZE - 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) known[i] += keys[row] * s[r][i], seen[i] += queries[row] * s[r][i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[warp][0][lane * 4 + i] = known[i], parts[warp][1][lane * 4 + i] = seen[i];
  syncBlock();
  if (!isIn) return;
  const float decay = exactExponential(g[item]), rate = beta[item];
  float update[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    known[i] = seen[i] = 0;
#pragma unroll
    for (int w = 0; w < STEP_WARPS; ++w) known[i] += parts[w][0][lane * 4 + i], seen[i] += parts[w][1][lane * 4 + i];
    update[i] = rate * (readElement(v + item * values + column + i) - decay * known[i]);
    if (warp == 0) writeElement(o + item * values + column + i, scale * (decay * seen[i] + overlap * update[i]));
  }
#pragma unroll
  for (int r = 0; r < STEP_ROWS; ++r) {
    const int row = warp * STEP_ROWS + r;
    if (row >= KEY_SIZE) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) s[r][i] = decay * s[r][i] + keys[row] * update[i];
    writeFour(own + (long long)row * values, s[r]);
  }
}
