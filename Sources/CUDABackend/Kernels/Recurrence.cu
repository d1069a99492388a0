// The diagonal plus low rank recurrence token by token in float32, of which all linear attention is a kind:
//
//   S' = diag(e^g) S + beta (alpha^T S) + k v^T,  o = scale S'^T q
//
// KEY_SIZE is the size of a key. A block walks 32 value channels of a sequence and head: a lane has a channel, a warp every
// eighth key, their part of the state is in registers. States at the starts of chunks of 64 tokens are kept; the backward
// pass makes those between again.
#include "Values.cuh"

constexpr int KEYS = KEY_SIZE, WARPS = 8, OWN = (KEYS + WARPS - 1) / WARPS, CHUNK = 64;

struct Token {
  float q[KEYS], k[KEYS], alpha[KEYS], beta[KEYS], decay[KEYS];
};

DEVICE void loadToken(Token &s, u64 q, u64 k, u64 alpha, u64 beta, u64 g, long long row) {
  for (int i = threadIdx.x; i < KEYS; i += 256) {
    s.q[i] = q ? loadValue(q, row * KEYS + i) : 0.0f;
    s.k[i] = loadValue(k, row * KEYS + i);
    s.alpha[i] = loadValue(alpha, row * KEYS + i);
    s.beta[i] = loadValue(beta, row * KEYS + i);
    s.decay[i] = exactExponential(loadValue(g, row * KEYS + i));
  }
}

/// The sum over all keys of what the warps have of a channel, in every thread of it.
DEVICE float keyTotal(float x, float (&parts)[WARPS][32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  parts[warp][lane] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) sum += parts[w][lane];
  return sum;
}

/// grid (value channels / 32 rounded up, heads, segments), 256 threads
extern "C" __global__ void __launch_bounds__(256) recurrenceForward(
  u64 q, u64 k, u64 v, u64 alpha, u64 beta, u64 g, float scale, const int *chunks, const int *firstChunks, int heads,
  int values, const float *initial, u64 o, float *final, float *starts) {
  __shared__ Token s;
  __shared__ float parts[WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, j = blockIdx.x * 32 + lane;
  const int h = blockIdx.y, segment = blockIdx.z;
  const bool isOwn = j < values;
  const long long place = ((long long)segment * heads + h) * KEYS * values + j;
  float state[OWN];
#pragma unroll
  for (int m = 0; m < OWN; ++m) {
    const int i = m * WARPS + warp;
    state[m] = initial && isOwn && i < KEYS ? initial[place + (long long)i * values] : 0.0f;
  }
  for (int chunk = firstChunks[segment]; chunk < firstChunks[segment + 1]; ++chunk) {
    if (starts && isOwn) {
#pragma unroll
      for (int m = 0; m < OWN; ++m) {
        const int i = m * WARPS + warp;
        if (i < KEYS) starts[(((long long)chunk * heads + h) * KEYS + i) * values + j] = state[m];
      }
    }
    const int first = chunks[2 * chunk], length = chunks[2 * chunk + 1];
    for (int t = first; t < first + length; ++t) {
      const long long row = (long long)t * heads + h;
      __syncthreads();
      loadToken(s, q, k, alpha, beta, g, row);
      const float value = isOwn ? loadValue(v, row * values + j) : 0.0f;
      __syncthreads();
      float own = 0;
#pragma unroll
      for (int m = 0; m < OWN; ++m) {
        const int i = m * WARPS + warp;
        if (i < KEYS) own += s.alpha[i] * state[m];
      }
      const float read = keyTotal(own, parts);
      own = 0;
#pragma unroll
      for (int m = 0; m < OWN; ++m) {
        const int i = m * WARPS + warp;
        if (i >= KEYS) continue;
        state[m] = s.decay[i] * state[m] + s.beta[i] * read + s.k[i] * value;
        own += s.q[i] * state[m];
      }
      const float out = keyTotal(own, parts);
      if (warp == 0 && isOwn) storeValue(o, row * values + j, scale * out);
    }
  }
  if (final && isOwn) {
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
      const int i = m * WARPS + warp;
      if (i < KEYS) final[place + (long long)i * values] = state[m];
    }
  }
}

/// Gradients of keys are sums over the channels of a block: [slices][5][N, heads, KEYS], dQ, dK, dAlpha, dBeta, dG, which
/// addSlices adds up. `states`: [gridDim.x][CHUNK][KEYS][32]. grid (any), 256 threads: blocks take items in turn.
extern "C" __global__ void __launch_bounds__(256) recurrenceBackward(
  u64 dO, const float *dFinal, u64 q, u64 k, u64 v, u64 alpha, u64 beta, u64 g, float scale, const int *chunks,
  const int *firstChunks, int segments, int heads, int values, int tokens, const float *starts, u64 dV,
  float *dInitial, float *partial, float *states) {
  __shared__ Token s;
  __shared__ float parts[WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int slices = (values + 31) / 32;
  const long long gradient = (long long)tokens * heads * KEYS;
  float *own = states + (long long)blockIdx.x * CHUNK * KEYS * 32 + lane;
  for (int item = blockIdx.x; item < slices * heads * segments; item += gridDim.x) {
    const int slice = item % slices, h = item / slices % heads, segment = item / slices / heads;
    const int j = slice * 32 + lane;
    const bool isOwn = j < values;
    const long long place = ((long long)segment * heads + h) * KEYS * values + j;
    float *out = partial + slice * 5 * gradient;
    float dState[OWN];
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
      const int i = m * WARPS + warp;
      dState[m] = dFinal && isOwn && i < KEYS ? dFinal[place + (long long)i * values] : 0.0f;
    }
    for (int chunk = firstChunks[segment + 1] - 1; chunk >= firstChunks[segment]; --chunk) {
      const int first = chunks[2 * chunk], length = chunks[2 * chunk + 1];
      float state[OWN];
#pragma unroll
      for (int m = 0; m < OWN; ++m) {
        const int i = m * WARPS + warp;
        state[m] = isOwn && i < KEYS ? starts[(((long long)chunk * heads + h) * KEYS + i) * values + j] : 0.0f;
      }
      for (int t = first; t < first + length; ++t) {
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          if (i < KEYS) own[((t - first) * KEYS + i) * 32] = state[m];
        }
        if (t + 1 == first + length) break;
        const long long row = (long long)t * heads + h;
        __syncthreads();
        loadToken(s, 0, k, alpha, beta, g, row);
        const float value = isOwn ? loadValue(v, row * values + j) : 0.0f;
        __syncthreads();
        float sum = 0;
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          if (i < KEYS) sum += s.alpha[i] * state[m];
        }
        const float read = keyTotal(sum, parts);
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          if (i < KEYS) state[m] = s.decay[i] * state[m] + s.beta[i] * read + s.k[i] * value;
        }
      }
      for (int t = first + length - 1; t >= first; --t) {
        const long long row = (long long)t * heads + h;
        __syncthreads();
        loadToken(s, q, k, alpha, beta, g, row);
        const float value = isOwn ? loadValue(v, row * values + j) : 0.0f;
        const float d = isOwn ? loadValue(dO, row * values + j) * scale : 0.0f;
        __syncthreads();
        float sum = 0;
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          state[m] = i < KEYS ? own[((t - first) * KEYS + i) * 32] : 0.0f;
          if (i < KEYS) sum += s.alpha[i] * state[m];
        }
        const float read = keyTotal(sum, parts);
        float dRead = 0, dValue = 0;
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          if (i >= KEYS) continue;
          const float after = s.decay[i] * state[m] + s.beta[i] * read + s.k[i] * value;
          dState[m] += s.q[i] * d;
          dRead += s.beta[i] * dState[m];
          dValue += s.k[i] * dState[m];
          const float sums[4] = {
            laneTotal(after * d), laneTotal(dState[m] * value), laneTotal(dState[m] * read),
            laneTotal(dState[m] * state[m])};
          if (lane == 0) {
            float *to = out + row * KEYS + i;
            to[0] = sums[0];
            to[gradient] = sums[1];
            to[3 * gradient] = sums[2];
            to[4 * gradient] = sums[3] * s.decay[i];
          }
        }
        dRead = keyTotal(dRead, parts);
        dValue = keyTotal(dValue, parts);
        if (warp == 0 && isOwn) storeValue(dV, row * values + j, dValue);
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
          const int i = m * WARPS + warp;
          if (i >= KEYS) continue;
          const float sum = laneTotal(state[m] * dRead);
          if (lane == 0) out[2 * gradient + row * KEYS + i] = sum;
          dState[m] = s.decay[i] * dState[m] + s.alpha[i] * dRead;
        }
      }
    }
    if (dInitial && isOwn) {
#pragma unroll
      for (int m = 0; m < OWN; ++m) {
        const int i = m * WARPS + warp;
        if (i < KEYS) dInitial[place + (long long)i * values] = dState[m];
      }
    }
  }
}

/// out = the sum over the slices of partial[slice][which]. grid (count / 256 rounded up)
extern "C" __global__ void __launch_bounds__(256) addSlices(
  const float *partial, int slices, int which, long long count, u64 out) {
  const long long i = (long long)blockIdx.x * 256 + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int s = 0; s < slices; ++s) sum += partial[(s * 5 + which) * count + i];
  storeValue(out, i, sum);
}
