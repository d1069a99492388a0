// The core of operations over elements, rows and columns, of float32 and bfloat16 in any mixture: correct for every shape.
// Arithmetic is float32. What the training step spends its time in has kernels of its own.
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
DEVICE float exactSigmoid(float x) { return 1.0f / (1.0f + exactExponential(-x)); }

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
  case silu_: {
    const float s = exactSigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
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

// MARK: Rows and columns. An element a thread; grid (count / 256 rounded up).

DEVICE long long ownElement() { return (long long)blockIdx.x * 256 + threadIdx.x; }

/// y[m] = scales[m] x[m], or added.
extern "C" __global__ void __launch_bounds__(256) scaleRows(
  u64 x, u64 scales, u64 y, u32 count, u32 columns, int adds) {
  const long long i = ownElement();
  if (i >= count) return;
  const float v = loadValue(scales, (u32)i / columns) * loadValue(x, i);
  storeValue(y, i, v + (adds ? loadValue(y, i) : 0.0f));
}

/// y[n, c] = scales[c / group] x[n, c], or added.
extern "C" __global__ void __launch_bounds__(256) scaleColumns(
  u64 x, u64 scales, u64 y, u32 count, u32 columns, u32 group, int adds) {
  const long long i = ownElement();
  if (i >= count) return;
  const float v = loadValue(scales, (u32)i % columns / group) * loadValue(x, i);
  storeValue(y, i, v + (adds ? loadValue(y, i) : 0.0f));
}

/// y[n, c] += bias[c], rows of y `stride` apart.
extern "C" __global__ void __launch_bounds__(256) addBias(u64 bias, u64 y, u32 count, u32 columns, u32 stride) {
  const u32 i = (u32)ownElement() * 8;
  if (i >= count) return;
  if (((columns | stride) & 7) == 0 && ((y | bias) & 15) == 0) {
    const long long at = (long long)(i / columns) * stride + i % columns;
    float v[8], b[8];
    loadValues(y, at, v);
    loadValues(bias, i % columns, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] += b[j];
    storeValues(y, at, v);
  } else {
    for (u32 j = i; j < i + 8 && j < count; ++j) {
      const long long at = (long long)(j / columns) * stride + j % columns;
      storeValue(y, at, loadValue(y, at) + loadValue(bias, j % columns));
    }
  }
}

/// out[m] = x[m] . y[m], a warp a row. grid (rows / 8 rounded up)
extern "C" __global__ void __launch_bounds__(256) rowProducts(u64 x, u64 y, u64 out, int rows, int columns) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const long long first = (long long)row * columns;
  float sum = 0;
  for (int c = threadIdx.x % 32; c < columns; c += 32) sum += loadValue(x, first + c) * loadValue(y, first + c);
  sum = laneTotal(sum);
  if (threadIdx.x % 32 == 0) storeValue(out, row, sum);
}

/// partial[part][c] = the sum over the rows of a part of x[n, c] y[n, c], of x[n, c] alone without y; rows of x are `stride`
/// apart.
/// grid (columns / 256 rounded up, parts)
extern "C" __global__ void __launch_bounds__(256) columnParts(
  u64 x, u64 y, int rows, int columns, int stride, int rowsPerPart, float *partial) {
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c >= columns) return;
  const int begin = blockIdx.y * rowsPerPart, end = begin + rowsPerPart < rows ? begin + rowsPerPart : rows;
  float sum = 0;
#pragma unroll 4
  for (int n = begin; n < end; ++n) {
    sum += loadValue(x, (long long)n * stride + c) * (y ? loadValue(y, (long long)n * columns + c) : 1.0f);
  }
  partial[(long long)blockIdx.y * columns + c] = sum;
}

/// out[s] = the sum over the parts and over the `group` columns of s, or added: a warp each. grid (sums / 8 rounded up)
extern "C" __global__ void __launch_bounds__(256) addColumnParts(
  const float *partial, int parts, int columns, int group, u64 out, int adds) {
  const int s = blockIdx.x * 8 + threadIdx.x / 32;
  if (s >= columns / group) return;
  float sum = 0;
  for (int i = threadIdx.x % 32; i < parts * group; i += 32)
    sum += partial[(long long)(i / group) * columns + s * group + i % group];
  sum = laneTotal(sum);
  if (threadIdx.x % 32 == 0) storeValue(out, s, sum + (adds ? loadValue(out, s) : 0.0f));
}

/// y [N, width] = the columns of x [N, columns] from `first` on.
extern "C" __global__ void __launch_bounds__(256) copyColumns(
  u64 x, u64 y, u32 count, u32 columns, u32 first, u32 width) {
  const long long i = ownElement();
  if (i >= count) return;
  storeValue(y, i, loadValue(x, (long long)((u32)i / width) * columns + first + (u32)i % width));
}

/// Those columns of dx = dy, and zero elsewhere; or added. An element of dx a thread.
extern "C" __global__ void __launch_bounds__(256) addColumns(
  u64 dy, u64 dx, u32 count, u32 columns, u32 first, u32 width, int adds) {
  const long long i = ownElement();
  if (i >= count) return;
  const u32 row = (u32)i / columns, c = (u32)i % columns;
  const bool inside = c >= first && c < first + width;
  if (adds && !inside) return;
  const float v = inside ? loadValue(dy, (long long)row * width + c - first) : 0.0f;
  storeValue(dx, i, v + (adds ? loadValue(dx, i) : 0.0f));
}

/// y [N, heads, size] of x [N, groups, size]
extern "C" __global__ void __launch_bounds__(256) repeatHeads(u64 x, u64 y, u32 count, int heads, int groups, int size) {
  const long long i = ownElement();
  if (i >= count) return;
  const u32 n = (u32)i / (heads * size), h = (u32)i / size % heads;
  storeValue(y, i, loadValue(x, ((long long)n * groups + h * groups / heads) * size + (u32)i % size));
}
/// Rows of dx are `stride` apart.
extern "C" __global__ void __launch_bounds__(256) repeatHeadsBackward(
  u64 dy, u64 dx, u32 count, int heads, int groups, int size, int stride) {
  const long long i = ownElement();
  if (i >= count) return;
  const u32 n = (u32)i / (groups * size), g = (u32)i / size % groups;
  float sum = 0;
  for (int h = 0; h < heads; ++h)
    if (h * groups / heads == (int)g) sum += loadValue(dy, ((long long)n * heads + h) * size + (u32)i % size);
  storeValue(dx, (long long)n * stride + (u32)i % (groups * size), sum);
}

// MARK: Tables

/// out[n] = table[ids[n]]. grid (N), 256 threads; an id without a row ends the process.
extern "C" __global__ void __launch_bounds__(256) gatherRows(
  u64 table, const int *ids, u64 out, int tableRows, int columns) {
  const int id = ids[blockIdx.x];
  if (id < 0 || id >= tableRows) __trap();
  const long long from = (long long)id * columns, to = (long long)blockIdx.x * columns;
  for (int c = threadIdx.x; c < columns; c += 256) storeValue(out, to + c, loadValue(table, from + c));
}

/// table[ids[n]] += x[n], in the order of n: the block of the first token of an id adds up all of that id. grid (N)
extern "C" __global__ void __launch_bounds__(256) scatterAddRows(
  u64 x, const int *ids, u64 table, int tokens, int tableRows, int columns) {
  __shared__ int earlier, found[257];
  const int own = blockIdx.x, id = ids[own];
  if (id < 0 || id >= tableRows) __trap();
  if (threadIdx.x == 0) earlier = 0;
  __syncthreads();
  for (int n = threadIdx.x; n < own; n += 256)
    if (ids[n] == id) earlier = 1;
  __syncthreads();
  if (earlier) return;
  for (int begin = own; begin < tokens; begin += 256) {
    const int n = begin + threadIdx.x;
    const bool isOne = n < tokens && ids[n] == id;
    found[threadIdx.x] = isOne;
    if (!__syncthreads_or(isOne)) continue;
    for (int c = threadIdx.x; c < columns; c += 256) {
      float sum = loadValue(table, (long long)id * columns + c);
      for (int i = 0; i < 256; ++i)
        if (found[i]) sum += loadValue(x, (long long)(begin + i) * columns + c);
      storeValue(table, (long long)id * columns + c, sum);
    }
    __syncthreads();
  }
}

// MARK: Rotary positions

/// Cosines and sines of the angles position · frequency, radians a position and pair, for all positions: [positions, half] each. In double
/// precision: float32 loses a turn at large positions. grid (count / 256 rounded up)
extern "C" __global__ void __launch_bounds__(256) rotaryTables(
  float *cosines, float *sines, long long count, int half, const double *frequencies) {
  const long long i = ownElement();
  if (i >= count) return;
  const double angle = (double)(i / half) * frequencies[i % half];
  double s, c;
  sincos(angle, &s, &c);
  cosines[i] = (float)c;
  sines[i] = (float)s;
}

/// Rotates pairs (i, i + half) of every head of x [N, heads, size], tokens of x and y so far apart. A pair a thread, or
/// eight neighbours.
extern "C" __global__ void __launch_bounds__(256) rotate(
  u64 x, u64 y, const int *positions, const float *cosines, const float *sines, u32 pairs, int heads, int size,
  long long xStride, long long yStride, float direction) {
  const u32 half = size / 2;
  const bool isEven = half % 8 == 0 && ((x | y | (u64)xStride * 8 | (u64)yStride * 8) & 15) == 0 && xStride % 8 == 0 &&
                      yStride % 8 == 0;
  const u32 first = (u32)ownElement() * (isEven ? 8 : 1);
  if (first >= pairs) return;
  const u32 row = first / half, i = first % half, n = row / heads, h = row % heads;
  const long long from = n * xStride + h * size + i, to = n * yStride + h * size + i;
  const long long angle = (long long)positions[n] * half + i;
  auto turn = [&](auto count) {
    float a[count.count], b[count.count];
    loadValues(x, from, a);
    loadValues(x, from + half, b);
#pragma unroll
    for (int j = 0; j < count.count; ++j) {
      const float c = cosines[angle + j], s = sines[angle + j] * direction, old = a[j];
      a[j] = old * c - b[j] * s;
      b[j] = b[j] * c + old * s;
    }
    storeValues(y, to, a);
    storeValues(y, to + half, b);
  };
  if (isEven)
    turn(Number<8>());
  else
    turn(Number<1>());
}

// MARK: Sums in double precision

/// sum = scale times the sum of x, float32, bfloat16 or float64. grid (1), 1024 threads: each adds every 1024th in order.
extern "C" __global__ void __launch_bounds__(1024) sumElements(u64 x, long long count, double scale, double *sum) {
  __shared__ double parts[1024];
  double own = 0;
  for (long long i = threadIdx.x; i < count; i += 1024)
    own += typeOf(x) == FLOAT64 ? reinterpret_cast<const double *>(addressOf(x))[i] : (double)loadValue(x, i);
  parts[threadIdx.x] = own;
  __syncthreads();
  for (int half = 512; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *sum = parts[0] * scale;
}

// MARK: Products, where the library has none

/// c [m, n] = alpha op(a) op(b), or added; an element a thread, in order of k.
extern "C" __global__ void __launch_bounds__(256) plainProduct(
  u64 a, u64 b, u64 c, int m, int n, int k, long long aRow, long long aInner, long long bInner, long long bColumn,
  float alpha, int adds) {
  const long long e = ownElement();
  if (e >= (long long)m * n) return;
  const int i = e / n, j = e % n;
  float sum = 0;
  for (int t = 0; t < k; ++t) sum += loadValue(a, i * aRow + t * aInner) * loadValue(b, t * bInner + j * bColumn);
  storeValue(c, e, alpha * sum + (adds ? loadValue(c, e) : 0.0f));
}

// MARK: The causal convolution of four taps

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
  du[i] = loadValue(dy, i) * slopeOf(silu_, u, u, 1.0f);
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
