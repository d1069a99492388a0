// Gates of the delta rule, SwiGLU, AdamW and the sums of squares of gradients.
#include "Rows.cuh"

/// log(1 + e^x)
DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(exactExponential(-fabsf(x))); }

/// g = -e^aLog softplus(a + dtBias), beta = sigmoid(b). grid (count / 256 rounded up), 256 threads; count = N heads; tokens
/// of a and b so far apart.
extern "C" __global__ void __launch_bounds__(256) decayGate(
  const ELEMENT *a, int aStride, const ELEMENT *b, int bStride, const float *aLog, const float *dtBias, int count,
  int heads, float *g, float *beta) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= count) return;
  const int h = i % heads;
  const long long n = i / heads;
  g[i] = -exactExponential(aLog[h]) * softplus(readElement(a + n * aStride + h) + dtBias[h]);
  beta[i] = sigmoid(readElement(b + n * bStride + h));
}

/// grid (heads), 1024 threads: a block sums over the tokens of a head, each thread in order, then the threads in order.
extern "C" __global__ void __launch_bounds__(1024) decayGateBackward(
  const float *__restrict__ dG, const float *__restrict__ dBeta, const ELEMENT *__restrict__ a, int aStride,
  const float *__restrict__ beta, const float *aLog, const float *dtBias, int tokens, int heads,
  ELEMENT *__restrict__ dA, int dAStride, ELEMENT *__restrict__ dB, int dBStride, float *dALog, float *dDtBias) {
  __shared__ float logs[1024], biases[1024];
  const int h = blockIdx.x;
  const float rate = -exactExponential(aLog[h]), bias = dtBias[h];
  float sumLog = 0, sumBias = 0;
#pragma unroll 4
  for (long long n = threadIdx.x; n < tokens; n += 1024) {
    const long long i = n * heads + h;
    const float z = readElement(a + n * aStride + h) + bias;
    sumLog += dG[i] * rate * softplus(z);
    const float d = dG[i] * rate * sigmoid(z);
    sumBias += d;
    writeElement(dA + n * dAStride + h, d);
    writeElement(dB + n * dBStride + h, dBeta[i] * beta[i] * (1.0f - beta[i]));
  }
  logs[threadIdx.x] = sumLog;
  biases[threadIdx.x] = sumBias;
  syncBlock();
  for (int half = 512; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) {
      logs[threadIdx.x] += logs[threadIdx.x + half];
      biases[threadIdx.x] += biases[threadIdx.x + half];
    }
    syncBlock();
  }
  if (threadIdx.x == 0) {
    dALog[h] = logs[0];
    dDtBias[h] = biases[0];
  }
}

template <int n>
DEVICE void swiGLUAt(const ELEMENT *gate, const ELEMENT *up, ELEMENT *y) {
  float a[n], b[n];
  read(a, gate);
  read(b, up);
#pragma unroll
  for (int i = 0; i < n; ++i) a[i] = silu(a[i]) * b[i];
  write(y, a);
}
template <int n>
DEVICE void swiGLUBackwardAt(
  const ELEMENT *dy, const ELEMENT *gate, const ELEMENT *up, ELEMENT *dGate, ELEMENT *dUp) {
  float d[n], a[n], b[n];
  read(d, dy);
  read(a, gate);
  read(b, up);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float g = d[i] * b[i] * siluSlope(a[i]);
    b[i] = d[i] * silu(a[i]);
    a[i] = g;
  }
  write(dGate, a);
  write(dUp, b);
}

/// y = SiLU(gate) up, [rows, columns]; rows of gate and up are `stride` apart, as in one packed product. grid (rows),
/// 256 threads.
extern "C" __global__ void __launch_bounds__(256) swiGLU(
  const ELEMENT *gate, const ELEMENT *up, int columns, int stride, ELEMENT *y) {
  const long long from = (long long)blockIdx.x * stride, to = (long long)blockIdx.x * columns;
  if (stride % 8 || !movesEight(columns, gate, up, y))
    for (int c = threadIdx.x; c < columns; c += 256) swiGLUAt<1>(gate + from + c, up + from + c, y + to + c);
  else
    for (int c = threadIdx.x * 8; c < columns; c += 2048) swiGLUAt<8>(gate + from + c, up + from + c, y + to + c);
}

/// Rows of dGate and dUp are `dStride` apart.
extern "C" __global__ void __launch_bounds__(256) swiGLUBackward(
  const ELEMENT *dy, const ELEMENT *gate, const ELEMENT *up, int columns, int stride, ELEMENT *dGate, ELEMENT *dUp,
  int dStride) {
  const long long row = blockIdx.x, from = row * stride, to = row * columns, out = row * dStride;
  if ((stride | dStride) % 8 || !movesEight(columns, dy, gate, up, dGate, dUp))
    for (int c = threadIdx.x; c < columns; c += 256)
      swiGLUBackwardAt<1>(dy + to + c, gate + from + c, up + from + c, dGate + out + c, dUp + out + c);
  else
    for (int c = threadIdx.x * 8; c < columns; c += 2048)
      swiGLUBackwardAt<8>(dy + to + c, gate + from + c, up + from + c, dGate + out + c, dUp + out + c);
}

struct AdamWStep {
  float gradientScale, beta1, beta2, correction1, correction2, epsilon, learningRate, weightDecay;
};

template <int n>
DEVICE void adamWAt(
  float *parameters, const float *gradients, float *moment1, float *moment2, bf16 *copy, const AdamWStep &s) {
  float w[n], g[n], m[n], v[n];
  read(w, parameters);
  read(g, gradients);
  read(m, moment1);
  read(v, moment2);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    // Rounding is spelled out: how many elements a thread takes depends on where ranks cut, and must not show.
    const float gradient = __fmul_rn(g[i], s.gradientScale);
    m[i] = __fmaf_rn(m[i], s.beta1, __fmul_rn(gradient, 1 - s.beta1));
    v[i] = __fmaf_rn(v[i], s.beta2, __fmul_rn(__fmul_rn(gradient, gradient), 1 - s.beta2));
    const float root = __fadd_rn(__fsqrt_rn(__fdiv_rn(v[i], s.correction2)), s.epsilon);
    const float update = __fdiv_rn(__fdiv_rn(m[i], s.correction1), root);
    const float kept = __fmaf_rn(w[i], -__fmul_rn(s.learningRate, s.weightDecay), w[i]);
    w[i] = __fmaf_rn(update, -s.learningRate, kept);
  }
  write(parameters, w);
  write(moment1, m);
  write(moment2, v);
  if (copy) write(copy, w);
}

/// One step of AdamW on float32 masters and moments; `copy`, where given, receives the masters rounded to bfloat16.
/// grid (count / 2048 rounded up), 256 threads.
extern "C" __global__ void __launch_bounds__(256) adamW(
  float *parameters, const float *gradients, float *moment1, float *moment2, bf16 *copy, long long count,
  float gradientScale, float beta1, float beta2, float correction1, float correction2, float epsilon,
  float learningRate, float weightDecay) {
  const AdamWStep s = {gradientScale, beta1, beta2, correction1, correction2, epsilon, learningRate, weightDecay};
  const long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  if (i + 8 <= count && movesEight(8, parameters, gradients, moment1, moment2, copy))
    adamWAt<8>(parameters + i, gradients + i, moment1 + i, moment2 + i, copy ? copy + i : nullptr, s);
  else
    for (long long j = i; j < i + 8 && j < count; ++j)
      adamWAt<1>(parameters + j, gradients + j, moment1 + j, moment2 + j, copy ? copy + j : nullptr, s);
}

/// sums[b] = sum of x^2 over the b-th run of `blockSize`, in double precision. grid (runs), 256 threads.
extern "C" __global__ void __launch_bounds__(256) sumsOfSquares(
  const float *x, long long count, int blockSize, double *sums) {
  __shared__ double parts[256];
  const long long begin = (long long)blockIdx.x * blockSize;
  const long long end = begin + blockSize < count ? begin + blockSize : count;
  double sum = 0;
#pragma unroll 8
  for (long long i = begin + threadIdx.x; i < end; i += 256) sum += (double)x[i] * x[i];
  parts[threadIdx.x] = sum;
  syncBlock();
  for (int half = 128; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    syncBlock();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}
