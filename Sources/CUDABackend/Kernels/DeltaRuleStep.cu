// One token of the gated delta rule for each of many sequences, on states [S, H, K, V] in place, of float32 or bfloat16:
//   S <- e^g S + k u^T,  u = beta (v - e^g S^T k),  o = scale (e^g S^T q + (k . q) u)  with the S of before.
#include "DeltaRuleStep.cuh"

/// q, k [S, H, K], v, o [S, H, V], g, beta [S, H]; V a multiple of 4. grid (V / 128 rounded up, H, S)
extern "C" __global__ void __launch_bounds__(STEP_WARPS * 32) deltaRuleStep(
  const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const float *g, const float *beta, float scale, STATE *state, ELEMENT *o) {
  __shared__ float keys[KEY_SIZE], queries[KEY_SIZE], parts[STEP_WARPS][2][128];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 128 + lane * 4;
  const bool isIn = column < VALUE_SIZE;
  const long long item = (long long)blockIdx.z * gridDim.y + blockIdx.y;
  STATE *own = state + item * KEY_SIZE * VALUE_SIZE + column;
  StateRows rows;
  rows.load(own, warp, isIn);
  for (int c = threadIdx.x; c < KEY_SIZE; c += STEP_WARPS * 32) {
    keys[c] = readElement(k + item * KEY_SIZE + c);
    queries[c] = readElement(q + item * KEY_SIZE + c);
  }
  syncBlock();
  float overlap = 0;
  for (int c = lane; c < KEY_SIZE; c += 32) overlap += keys[c] * queries[c];
  overlap = laneTotal(overlap);
  rows.multiply(keys, queries, parts, warp, lane);
  syncBlock();
  if (!isIn) return;
  const float decay = exactExponential(g[item]), rate = beta[item];
  float update[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float known, seen;
    addParts(parts, lane * 4 + i, known, seen);
    update[i] = rate * (readElement(v + item * VALUE_SIZE + column + i) - decay * known);
    if (warp == 0) writeElement(o + item * VALUE_SIZE + column + i, scale * (decay * seen + overlap * update[i]));
  }
  rows.update(own, warp, decay, keys, update);
}
