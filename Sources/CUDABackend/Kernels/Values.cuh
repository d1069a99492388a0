// Arrays whose element type a kernel is told when it runs: an address with the type in its two highest bits.
#pragma once
#include "Rows.cuh"

constexpr int FLOAT32 = 0, BFLOAT16 = 1, INT32 = 2, FLOAT64 = 3;

DEVICE int typeOf(u64 x) { return (int)(x >> 62); }
DEVICE u64 addressOf(u64 x) { return x & 0x3fffffffffffffffull; }

DEVICE float loadValue(u64 x, long long i) {
  return typeOf(x) == BFLOAT16 ? widened(reinterpret_cast<const bf16 *>(addressOf(x))[i])
                               : reinterpret_cast<const float *>(addressOf(x))[i];
}
DEVICE void storeValue(u64 x, long long i, float value) {
  if (typeOf(x) == BFLOAT16)
    reinterpret_cast<bf16 *>(addressOf(x))[i] = rounded(value);
  else
    reinterpret_cast<float *>(addressOf(x))[i] = value;
}

/// How many neighbours a thread takes, as a type.
template <int n> struct Number {
  static constexpr int count = n;
};

/// n = 1, or 8 elements of which the first is at a multiple of 16 bytes.
template <int n> DEVICE void loadValues(u64 x, long long i, float (&v)[n]) {
  if (typeOf(x) == BFLOAT16)
    read(v, reinterpret_cast<const bf16 *>(addressOf(x)) + i);
  else
    read(v, reinterpret_cast<const float *>(addressOf(x)) + i);
}
template <int n> DEVICE void storeValues(u64 x, long long i, const float (&v)[n]) {
  if (typeOf(x) == BFLOAT16)
    write(reinterpret_cast<bf16 *>(addressOf(x)) + i, v);
  else
    write(reinterpret_cast<float *>(addressOf(x)) + i, v);
}

/// Of a kernel whose threads take an element each: grid (count / 256 rounded up), 256 threads.
DEVICE long long ownElement() { return (long long)blockIdx.x * 256 + threadIdx.x; }

/// As the functions of elements have it.
DEVICE float exactSigmoid(float x) { return 1.0f / (1.0f + exactExponential(-x)); }
DEVICE float exactSiluSlope(float x) {
  const float s = exactSigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}
