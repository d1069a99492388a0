// One token of each of many sequences through a JetBlock, from its projections to the output of the delta rule, in one pass over
// the states: queries and keys through SiLU to length one, values through the convolution with their own taps, gates, and the
// step itself (DeltaRuleStep.cu has its formulas).
#include "DeltaRuleStep.cuh"

/// q, k [S, H K], v [S, H V], a, b [S, H] lie in rows `stride` apart; taps [S, H V, 4] lack their bias; history [S, 4, H V], newest
/// last, takes v in. V a multiple of 4. What is small is asked for before the state, so that it is there first. grid (V / 128
/// rounded up, H, S)
extern "C" __global__ void __launch_bounds__(STEP_WARPS * 32) jetStep(
  const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const ELEMENT *a, const ELEMENT *b, long long stride,
  const ELEMENT *taps, const float *tapBias, const float *aLog, const float *dtBias, float epsilon, float scale,
  ELEMENT *history, STATE *state, ELEMENT *o) {
  __shared__ float keys[KEY_SIZE], queries[KEY_SIZE], parts[STEP_WARPS][2][128], inputs[128];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 128 + lane * 4;
  const bool isIn = column < VALUE_SIZE;
  const long long s = blockIdx.z, h = blockIdx.y, heads = gridDim.y, item = s * heads + h;

  // A column of the convolution for each of the first 128 threads.
  const int own = blockIdx.x * 128 + threadIdx.x;
  const bool convolves = threadIdx.x < 128 && own < VALUE_SIZE;
  const long long channels = heads * VALUE_SIZE, channel = h * VALUE_SIZE + own;
  ELEMENT *past = history + s * 4 * channels + channel;
  float x[4] = {}, tap[4] = {}, bias[4] = {};
  if (convolves) {
#pragma unroll
    for (int row = 0; row < 3; ++row) x[row] = readElement(past + (row + 1) * channels);
    x[3] = readElement(v + s * stride + channel);
    readFour(tap, taps + (s * channels + channel) * 4);
#pragma unroll
    for (int row = 0; row < 4; ++row) bias[row] = tapBias[channel * 4 + row];
  }
  STATE *place = state + item * KEY_SIZE * VALUE_SIZE + column;
  StateRows rows;
  rows.load(place, warp, isIn);

  for (int c = threadIdx.x; c < KEY_SIZE; c += STEP_WARPS * 32) {
    keys[c] = silu(readElement(k + s * stride + h * KEY_SIZE + c));
    queries[c] = silu(readElement(q + s * stride + h * KEY_SIZE + c));
  }
  if (convolves) {
    float sum = 0;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      sum += (tap[row] + bias[row]) * x[row];
      writeElement(past + row * channels, x[row]);
    }
    inputs[threadIdx.x] = silu(sum);
  }
  const float step = readElement(a + s * stride + h) + dtBias[h];
  const float softplus = fmaxf(step, 0.0f) + log1pf(exactExponential(-fabsf(step)));
  const float decay = exactExponential(-exactExponential(aLog[h]) * softplus);
  const float rate = 1.0f / (1.0f + exactExponential(-readElement(b + s * stride + h)));
  syncBlock();
  float overlap = 0, keyLength = 0, queryLength = 0;
  for (int c = lane; c < KEY_SIZE; c += 32) {
    overlap += keys[c] * queries[c];
    keyLength += keys[c] * keys[c];
    queryLength += queries[c] * queries[c];
  }
  const float byKey = 1.0f / sqrtf(laneTotal(keyLength) + epsilon);
  const float byQuery = 1.0f / sqrtf(laneTotal(queryLength) + epsilon);
  overlap = laneTotal(overlap);
  rows.multiply(keys, queries, parts, warp, lane);
  syncBlock();
  if (!isIn) return;
  float update[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float known, seen;
    addParts(parts, lane * 4 + i, known, seen);
    update[i] = rate * (inputs[lane * 4 + i] - decay * byKey * known) * byKey;
    if (warp == 0)
      writeElement(
        o + item * VALUE_SIZE + column + i, scale * byQuery * (decay * seen + overlap * update[i]));
  }
  rows.update(place, warp, decay, keys, update);
}
