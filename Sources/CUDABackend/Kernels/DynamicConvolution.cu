// The causal convolution whose four taps are computed per token and channel, with bias and SiLU:
//
//   u[t, c] = sum over w of (taps[t, c, w] + bias[c, w]) x[t - 3 + w, c],  y = SiLU(u)
//
// within the document that begins at starts[t]. A thread takes a channel and RUN tokens, and keeps the last inputs in
// registers.
#include "Rows.cuh"

constexpr int RUN = 32;

/// Tokens whose numbers are fetched before anything is waited for.
constexpr int FEW = 4;

struct Taps {
  float w[4];
};
/// The bias of a channel's taps; zeros where there is none.
DEVICE Taps readBias(const float *bias) {
  const Quad b = bias ? *reinterpret_cast<const Quad *>(bias) : Quad{{0, 0, 0, 0}};
  return {{asFloat(b.x[0]), asFloat(b.x[1]), asFloat(b.x[2]), asFloat(b.x[3])}};
}
DEVICE Taps readTaps(const float *taps, const Taps &bias) {
  const Quad a = *reinterpret_cast<const Quad *>(taps);
  Taps k;
#pragma unroll
  for (int i = 0; i < 4; ++i) k.w[i] = asFloat(a.x[i]) + bias.w[i];
  return k;
}
DEVICE Taps readTaps(const bf16 *taps, const Taps &bias) {
  const u64 a = *reinterpret_cast<const u64 *>(taps);
  Taps k;
#pragma unroll
  for (int i = 0; i < 4; ++i) k.w[i] = widened((bf16)(a >> (16 * i))) + bias.w[i];
  return k;
}
DEVICE void writeTaps(float *taps, const float (&x)[4]) {
  *reinterpret_cast<Quad *>(taps) = {{asBits(x[0]), asBits(x[1]), asBits(x[2]), asBits(x[3])}};
}
DEVICE void writeTaps(bf16 *taps, const float (&x)[4]) {
  *reinterpret_cast<u64 *>(taps) = (u64)pack(x[0], x[1]) | (u64)pack(x[2], x[3]) << 32;
}

/// The input of token t, or zero before its document.
DEVICE float inputAt(const ELEMENT *x, int t, int start, int stride, int c) {
  return t >= start ? readElement(x + (long long)t * stride + c) : 0.0f;
}

/// Tokens of x are `stride` elements apart, those of dx `dStride`. grid (channels / 256 rounded up, tokens / RUN rounded up),
/// 256 threads
extern "C" __global__ void __launch_bounds__(256) dynamicConvolution(
  const ELEMENT *x, int stride, const ELEMENT *taps, const float *bias, const int *starts, int tokens, int channels,
  ELEMENT *y) {
  const int c = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * RUN;
  if (c >= channels) return;
  const int end = first + RUN < tokens ? first + RUN : tokens;
  float window[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 3; ++i) window[i + 1] = inputAt(x, first - 3 + i, starts[first], stride, c);
  const Taps fixed = readBias(bias ? bias + c * 4 : nullptr);
  for (int t = first; t < end; t += FEW) {
    int start[FEW];
    float in[FEW];
    Taps k[FEW];
#pragma unroll
    for (int i = 0; i < FEW; ++i) {
      const int at = t + i < end ? t + i : end - 1;
      start[i] = starts[at];
      in[i] = readElement(x + (long long)at * stride + c);
      k[i] = readTaps(taps + ((long long)at * channels + c) * 4, fixed);
    }
#pragma unroll
    for (int i = 0; i < FEW; ++i) {
      if (t + i >= end) break;
#pragma unroll
      for (int w = 0; w < 3; ++w) window[w] = t + i - 3 + w >= start[i] ? window[w + 1] : 0.0f;
      window[3] = in[i];
      const float u = k[i].w[0] * window[0] + k[i].w[1] * window[1] + k[i].w[2] * window[2] + k[i].w[3] * window[3];
      writeElement(y + (long long)(t + i) * channels + c, silu(u));
    }
  }
}

/// dBiasParts: [tokens / RUN rounded up, channels, 4]   the same grid
extern "C" __global__ void __launch_bounds__(256) dynamicConvolutionBackward(
  const ELEMENT *dy, const ELEMENT *x, int stride, const ELEMENT *taps, const float *bias, const int *starts, int tokens,
  int channels, ELEMENT *dx, int dStride, ELEMENT *dTaps, float *dBiasParts) {
  const int c = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * RUN;
  if (c >= channels) return;
  const int end = first + RUN < tokens ? first + RUN : tokens;
  float window[4] = {0, 0, 0, 0}, sums[4] = {0, 0, 0, 0};
  // What the inputs of the last three tokens have gathered so far; complete once the fourth token has been seen.
  float gathered[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 3; ++i) window[i + 1] = inputAt(x, first - 3 + i, starts[first], stride, c);
  const Taps fixed = readBias(bias ? bias + c * 4 : nullptr);
  // Three tokens more than the run: their outputs see its last inputs.
  for (int group = first; group < end + 3; group += FEW) {
    int start[FEW];
    float in[FEW], dOut[FEW];
    Taps k[FEW];
#pragma unroll
    for (int i = 0; i < FEW; ++i) {
      const int at = group + i < tokens ? group + i : tokens - 1;
      const long long place = (long long)at * channels + c;
      start[i] = starts[at];
      in[i] = readElement(x + (long long)at * stride + c);
      dOut[i] = readElement(dy + place);
      k[i] = readTaps(taps + place * 4, fixed);
    }
#pragma unroll
    for (int i = 0; i < FEW; ++i) {
      const int t = group + i;
#pragma unroll
      for (int w = 0; w < 3; ++w) gathered[w] = gathered[w + 1];
      gathered[3] = 0;
      // A token of a later document sees nothing of the run.
      if (t < tokens && t < end + 3 && (t < end || start[i] < end)) {
#pragma unroll
        for (int w = 0; w < 3; ++w) window[w] = t - 3 + w >= start[i] ? window[w + 1] : 0.0f;
        window[3] = in[i];
        const float u = k[i].w[0] * window[0] + k[i].w[1] * window[1] + k[i].w[2] * window[2] + k[i].w[3] * window[3];
        const float du = dOut[i] * siluSlope(u);
        float d[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          d[w] = du * window[w];
          if (t - 3 + w >= start[i]) gathered[w] += du * k[i].w[w];
        }
        if (t < end) {
          writeTaps(dTaps + ((long long)t * channels + c) * 4, d);
#pragma unroll
          for (int w = 0; w < 4; ++w) sums[w] += d[w];
        }
      }
      const int done = t - 3;
      if (done >= first && done < end) writeElement(dx + (long long)done * dStride + c, gathered[0]);
    }
  }
  if (!dBiasParts) return;
#pragma unroll
  for (int w = 0; w < 4; ++w) dBiasParts[((long long)blockIdx.y * channels + c) * 4 + w] = sums[w];
}
