// The core of operations over elements, of float32 and bfloat16 in any mixture: correct for every shape. Arithmetic is float32.
// What the training step spends its time in has kernels of its own.
#include "Values.cuh"

/// How arrays of one shape lie: rows of `columns` elements at distances of their own; columns = 0: all one behind the other.
struct Rows3 {
  u32 columns, x, y, z;
};

/// Calls f(places in the three arrays, n) over all elements, for n = 8 neighbours at a time where every operand is aligned
/// for that, else 1. grid (count / 2048 rounded up), 256 threads.
template <typename F> DEVICE void forEach(long long count, Rows3 rows, u64 addresses, F f) {
  const long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  const bool isEven = ((rows.columns | rows.x | rows.y | rows.z) & 7) == 0 && (addresses & 15) == 0;
  const int step = i + 8 <= count && isEven ? 8 : 1;
  for (long long j = i; j < i + 8 && j < count; j += step) {
    long long x = j, y = j, z = j;
    if (rows.columns) {
      const u32 row = (u32)j / rows.columns, c = (u32)j % rows.columns;
      x = (long long)row * rows.x + c;
      y = (long long)row * rows.y + c;
      z = (long long)row * rows.z + c;
    }
    if (step == 8)
      f(x, y, z, Number<8>());
    else
      f(x, y, z, Number<1>());
  }
}

extern "C" __global__ void __launch_bounds__(256) fill(u64 x, long long count, Rows3 rows, float value) {
  forEach(count, rows, x, [&](long long i, long long, long long, auto n) {
    float v[n.count];
#pragma unroll
    for (int j = 0; j < n.count; ++j) v[j] = value;
    storeValues(x, i, v);
  });
}

extern "C" __global__ void __launch_bounds__(256) copyValues(u64 x, u64 y, long long count, Rows3 rows) {
  forEach(count, rows, x | y, [&](long long i, long long j, long long, auto n) {
    float v[n.count];
    loadValues(x, i, v);
    storeValues(y, j, v);
  });
}

/// out = y + scale x
extern "C" __global__ void __launch_bounds__(256) addScaled(
  u64 x, u64 y, u64 out, long long count, Rows3 rows, float scale) {
  forEach(count, rows, x | y | out, [&](long long i, long long k, long long l, auto n) {
    float v[n.count], w[n.count];
    loadValues(x, i, v);
    loadValues(y, k, w);
#pragma unroll
    for (int j = 0; j < n.count; ++j) w[j] += scale * v[j];
    storeValues(out, l, w);
  });
}

extern "C" __global__ void __launch_bounds__(256) product(
  u64 x, u64 y, u64 out, long long count, Rows3 rows, int adds) {
  forEach(count, rows, x | y | out, [&](long long i, long long k, long long l, auto n) {
    float v[n.count], w[n.count], z[n.count];
    loadValues(x, i, v);
    loadValues(y, k, w);
    if (adds) loadValues(out, l, z);
#pragma unroll
    for (int j = 0; j < n.count; ++j) v[j] = v[j] * w[j] + (adds ? z[j] : 0.0f);
    storeValues(out, l, v);
  });
}

// As Tensors/Kernels.swift numbers them in CUDABackend/CoreKernels.swift.
enum Function {
  silu_ = 0, sigmoid_, logSigmoid_, softplus_, tanh_, negativeExponential_, scaledSigmoid_, sigmoidMinusOne_,
  inverseRoot_, gelu_
};

DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(exactExponential(-fabsf(x))); }

/// √(2/π) (x + 0.044715 x³), u of gelu: ½ x (1 + tanh u) = x · sigmoid(2u).
DEVICE float geluArgument(float x) { return 0.7978845608028654f * (x + 0.044715f * x * x * x); }

DEVICE float valueOf(int function, float x, float scale, float epsilon) {
  switch (function) {
  case silu_: return x * exactSigmoid(x);
  case sigmoid_: return exactSigmoid(x);
  case logSigmoid_: return -scale * softplus(-x);
  case softplus_: return softplus(x);
  case tanh_: return tanhf(x);
  case negativeExponential_: return -exactExponential(x);
  case scaledSigmoid_: return scale * exactSigmoid(x);
  case sigmoidMinusOne_: return -exactSigmoid(-x);
  case gelu_: return x * exactSigmoid(2.0f * geluArgument(x));
  default: return 1.0f / sqrtf(scale * x + epsilon);
  }
}
DEVICE float slopeOf(int function, float x, float y, float scale) {
  switch (function) {
  case silu_: return exactSiluSlope(x);
  case gelu_: {
    const float s = exactSigmoid(2.0f * geluArgument(x));
    return s + 2.0f * x * s * (1.0f - s) * 0.7978845608028654f * (1.0f + 3 * 0.044715f * x * x);
  }
  case sigmoid_: return y * (1.0f - y);
  case logSigmoid_: return scale * exactSigmoid(-x);
  case softplus_: return exactSigmoid(x);
  case tanh_: return 1.0f - y * y;
  case negativeExponential_: return y;
  case scaledSigmoid_: return y * (1.0f - y / scale);
  case sigmoidMinusOne_: return -y * (1.0f + y);
  default: return -0.5f * scale * y * y * y;
  }
}

extern "C" __global__ void __launch_bounds__(256) applyFunction(
  u64 x, u64 y, long long count, Rows3 rows, int function, float scale, float epsilon) {
  forEach(count, rows, x | y, [&](long long i, long long k, long long, auto n) {
    float v[n.count];
    loadValues(x, i, v);
#pragma unroll
    for (int j = 0; j < n.count; ++j) v[j] = valueOf(function, v[j], scale, epsilon);
    storeValues(y, k, v);
  });
}

/// dx = dy f' at `read`: y where ElementFunction.slopeReadsOutput says so, else x.
extern "C" __global__ void __launch_bounds__(256) applyFunctionBackward(
  u64 dy, u64 read, u64 dx, long long count, Rows3 rows, int function, float scale) {
  forEach(count, rows, dy | read | dx, [&](long long i, long long k, long long l, auto n) {
    float d[n.count], v[n.count];
    loadValues(dy, i, d);
    loadValues(read, k, v);
#pragma unroll
    for (int j = 0; j < n.count; ++j) d[j] *= slopeOf(function, v[j], v[j], scale);
    storeValues(dx, l, d);
  });
}
