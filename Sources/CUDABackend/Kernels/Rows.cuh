// What kernels over rows share. ELEMENT is float or bf16: the type of activations and their gradients; weights, sums
// and what is kept beside activations are float32. A warp takes a row; rows of a multiple of 8 columns move 16 bytes or
// more at a time.
#pragma once
#include "Primitives.cuh"

#ifndef ELEMENT
#define ELEMENT float
#endif

DEVICE float readElement(const float *p) { return *p; }
DEVICE float readElement(const bf16 *p) { return widened(*p); }
DEVICE void writeElement(float *p, float x) { *p = x; }
DEVICE void writeElement(bf16 *p, float x) { *p = rounded(x); }

DEVICE void read(float (&x)[1], const float *p) { x[0] = *p; }
DEVICE void read(float (&x)[1], const bf16 *p) { x[0] = widened(*p); }
DEVICE void write(float *p, const float (&x)[1]) { *p = x[0]; }
DEVICE void write(bf16 *p, const float (&x)[1]) { *p = rounded(x[0]); }
DEVICE void read(float (&x)[8], const bf16 *p) {
  const Quad q = *reinterpret_cast<const Quad *>(p);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[2 * i] = lower(q.x[i]), x[2 * i + 1] = upper(q.x[i]);
}
DEVICE void read(float (&x)[8], const float *p) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Quad q = reinterpret_cast<const Quad *>(p)[half];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[4 * half + i] = asFloat(q.x[i]);
  }
}
DEVICE void write(bf16 *p, const float (&x)[8]) {
  *reinterpret_cast<Quad *>(p) = {{pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])}};
}
DEVICE void write(float *p, const float (&x)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    reinterpret_cast<Quad *>(p)[half] = {
      {asBits(x[4 * half]), asBits(x[4 * half + 1]), asBits(x[4 * half + 2]), asBits(x[4 * half + 3])}};
}

/// Whether rows of `columns` elements from these addresses on, null or not, can be moved eight elements at a time:
/// parameters lie end to end, wherever that is.
template <typename... Pointers> DEVICE bool movesEight(int columns, Pointers... pointers) {
  return columns % 8 == 0 && (((u64)0 | ... | reinterpret_cast<u64>(pointers)) & 15) == 0;
}

/// 1 / (1 + e^-x), to about a unit in the last place in float32, two where activations are bfloat16. A division would
/// be a call.
DEVICE float sigmoid(float x) {
  if (sizeof(ELEMENT) == 2) return reciprocal(1.0f + exponential(-x));
  const float y = fminf(1.0f + exactExponential(-x), 1e38f), r = reciprocal(y);
  return fmaf(r, fmaf(-y, r, 1.0f), r);
}
DEVICE float silu(float x) { return x * sigmoid(x); }
DEVICE float siluSlope(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

/// The sum of x over groups of `lanes` neighbours, in each of them.
template <int lanes = 32> DEVICE float laneTotal(float x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += shuffleXor(x, mask);
  return x;
}
