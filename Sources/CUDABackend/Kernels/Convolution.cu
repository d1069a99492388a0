// The causal convolution of four taps and the token shift, of float32 and bfloat16 in any mixture: taps of every kind, with
// histories. What a JetBlock trains with is in DynamicConvolution.cu.
#include "Values.cuh"

DEVICE float inputBefore(
  u64 x, u64 history, const int *starts, const int *segments, int t, int from, int channels, int c) {
  const int start = starts[t];
  if (from >= start) return loadValue(x, (long long)from * channels + c);
  return history ? loadValue(history, ((long long)segments[t] * 4 + from - start + 4) * channels + c) : 0.0f;
}

/// u[t, c] before its activation; taps [C, 4] of every token, `tapStride` apart, zero where all tokens share them.
DEVICE float convolved(
  u64 x, u64 taps, long long tapStride, u64 bias, u64 history, const int *starts, const int *segments, int t,
  int channels, int c) {
  float u = bias ? loadValue(bias, c) : 0.0f;
#pragma unroll
  for (int w = 0; w < 4; ++w)
    u += loadValue(taps, t * tapStride + c * 4 + w) *
         inputBefore(x, history, starts, segments, t, t - 3 + w, channels, c);
  return u;
}

/// y = u, or SiLU(u) where it `activates`. An element a thread.
extern "C" __global__ void __launch_bounds__(256) convolve(
  u64 x, u64 taps, long long tapStride, u64 bias, u64 history, const int *starts, const int *segments, u32 count,
  int channels, int activates, u64 y) {
  const long long i = ownElement();
  if (i >= count) return;
  const int t = (u32)i / channels, c = (u32)i % channels;
  const float u = convolved(x, taps, tapStride, bias, history, starts, segments, t, channels, c);
  storeValue(y, i, activates ? u * exactSigmoid(u) : u);
}

/// du = dy times the slope of SiLU at u.
extern "C" __global__ void __launch_bounds__(256) convolutionSlope(
  u64 dy, u64 x, u64 taps, long long tapStride, u64 bias, const int *starts, const int *segments, u32 count,
  int channels, float *du) {
  const long long i = ownElement();
  if (i >= count) return;
  const int t = (u32)i / channels, c = (u32)i % channels;
  const float u = convolved(x, taps, tapStride, bias, 0, starts, segments, t, channels, c);
  du[i] = loadValue(dy, i) * exactSiluSlope(u);
}

/// dx, and where taps are of the token their gradient.
extern "C" __global__ void __launch_bounds__(256) convolveBackward(
  u64 du, u64 x, u64 taps, long long tapStride, const int *starts, u32 count, int tokens, int channels, u64 dx,
  u64 dTaps) {
  const long long i = ownElement();
  if (i >= count) return;
  const int t = (u32)i / channels, c = (u32)i % channels, start = starts[t];
  if (dTaps) {
    const float d = loadValue(du, i);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int from = t - 3 + w;
      storeValue(dTaps, i * 4 + w, from >= start ? d * loadValue(x, (long long)from * channels + c) : 0.0f);
    }
  }
  float sum = 0;
#pragma unroll
  for (int w = 3; w >= 0; --w) {
    const int to = t + 3 - w;
    if (to < tokens && starts[to] == start)
      sum += loadValue(taps, to * tapStride + c * 4 + w) * loadValue(du, (long long)to * channels + c);
  }
  storeValue(dx, i, sum);
}

/// partial[part][c][w] = the sum over the tokens of a part of du[t, c] x[t - 3 + w, c].
/// grid (channels / 256 rounded up, parts)
extern "C" __global__ void __launch_bounds__(256) convolutionTapParts(
  u64 du, u64 x, const int *starts, int tokens, int channels, int tokensPerPart, float *partial) {
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c >= channels) return;
  const int begin = blockIdx.y * tokensPerPart;
  const int end = begin + tokensPerPart < tokens ? begin + tokensPerPart : tokens;
  float sums[4] = {0, 0, 0, 0};
  for (int t = begin; t < end; ++t) {
    const float d = loadValue(du, (long long)t * channels + c);
#pragma unroll
    for (int w = 0; w < 4; ++w)
      if (t - 3 + w >= starts[t]) sums[w] += d * loadValue(x, (long long)(t - 3 + w) * channels + c);
  }
#pragma unroll
  for (int w = 0; w < 4; ++w) partial[((long long)blockIdx.y * channels + c) * 4 + w] = sums[w];
}

/// y[t] = x[t - 1] - x[t]; before a first token is its row of `history` [segments, C], or zero.
extern "C" __global__ void __launch_bounds__(256) shiftTokens(
  u64 x, u64 history, const int *starts, const int *segments, u32 count, int channels, u64 y) {
  const long long i = ownElement();
  if (i >= count) return;
  const int t = (u32)i / channels, c = (u32)i % channels;
  const float before = t > starts[t] ? loadValue(x, i - channels)
                       : history     ? loadValue(history, (long long)segments[t] * channels + c)
                                     : 0.0f;
  storeValue(y, i, before - loadValue(x, i));
}
extern "C" __global__ void __launch_bounds__(256) shiftTokensBackward(
  u64 dy, const int *starts, u32 count, int tokens, int channels, u64 dx) {
  const long long i = ownElement();
  if (i >= count) return;
  const int t = (u32)i / channels;
  const float after = t + 1 < tokens && starts[t + 1] == starts[t] ? loadValue(dy, i + channels) : 0.0f;
  storeValue(dx, i, after - loadValue(dy, i));
}
