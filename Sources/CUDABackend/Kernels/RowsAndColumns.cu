// The core of operations over rows and columns, of float32 and bfloat16 in any mixture; sums; products where the library has
// none. Where nothing else is said a thread takes an element.
#include "Values.cuh"

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
