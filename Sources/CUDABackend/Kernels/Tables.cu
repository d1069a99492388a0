// Rows of tables by token, and rotary positions, of float32 and bfloat16 in any mixture.
#include "Values.cuh"

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
