// Root-mean-square norms, with and without a gate, and SiLU to length one. grid (rows / 8 rounded up), 256 threads.
#include "Rows.cuh"

DEVICE int ownRow() { return blockIdx.x * 8 + threadIdx.x / 32; }

/// Where a row of a view begins: rows are heads, of which `heads` follow each other in a token, tokens `stride` apart.
struct Heads {
  int heads, stride;
};
DEVICE long long placeOf(Heads view, int row, int columns) {
  return (long long)(row / view.heads) * view.stride + row % view.heads * columns;
}

/// Eight elements on their way from device memory.
struct Eight {
  Quad parts[sizeof(ELEMENT) / 2];
};
DEVICE void fetch(Eight &e, const ELEMENT *p) {
#pragma unroll
  for (int i = 0; i < (int)sizeof(ELEMENT) / 2; ++i) e.parts[i] = reinterpret_cast<const Quad *>(p)[i];
}
DEVICE void unpack(float (&x)[8], const Eight &e) { read(x, reinterpret_cast<const ELEMENT *>(&e)); }

template <int n, bool gated>
DEVICE void normalizeRow(
  const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, int row, int columns, float epsilon,
  ELEMENT *y, float *inverse) {
  const int lane = threadIdx.x % 32;
  const long long first = (long long)row * columns;
  float sum = 0;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float v[n];
    read(v, x + first + c);
#pragma unroll
    for (int i = 0; i < n; ++i) sum += v[i] * v[i];
  }
  const float scale = rsqrtf(laneTotal(sum) / columns + epsilon);
  if (lane == 0) inverse[row] = scale;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float v[n], w[n], z[n];
    read(v, x + first + c);
    read(w, weight + c);
    if (gated) read(z, gate + placeOf(view, row, columns) + c);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] *= scale * w[i] * (gated ? silu(z[i]) : 1.0f);
    write(y + first + c, v);
  }
}

/// The same for `few` rows at a time of at most 256 · steps columns, a multiple of 8: all of them are fetched before anything is
/// waited for, and once.
template <int few, int steps, bool gated>
DEVICE void normalizeRows(
  const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, int row, int rows, int columns,
  float epsilon, ELEMENT *y, float *inverse) {
  const int lane = threadIdx.x % 32;
  Eight held[few][steps] = {}, gates[gated ? few : 1][gated ? steps : 1] = {};
#pragma unroll
  for (int r = 0; r < few; ++r)
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int c = (step * 32 + lane) * 8;
      if (row + r >= rows || c >= columns) continue;
      fetch(held[r][step], x + (long long)(row + r) * columns + c);
      if (gated) fetch(gates[r][step], gate + placeOf(view, row + r, columns) + c);
    }
#pragma unroll
  for (int r = 0; r < few; ++r) {
    float sum = 0;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      if (row + r >= rows || (step * 32 + lane) * 8 >= columns) continue;
      float v[8];
      unpack(v, held[r][step]);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += v[i] * v[i];
    }
    const float scale = rsqrtf(laneTotal(sum) / columns + epsilon);
    if (row + r >= rows) return;
    if (lane == 0) inverse[row + r] = scale;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int c = (step * 32 + lane) * 8;
      if (c >= columns) continue;
      float v[8], w[8], z[8];
      unpack(v, held[r][step]);
      read(w, weight + c);
      if (gated) unpack(z, gates[r][step]);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= scale * w[i] * (gated ? silu(z[i]) : 1.0f);
      write(y + (long long)(row + r) * columns + c, v);
    }
  }
}

/// Rows that a warp of `normalize` takes.
DEVICE int rowsOfWarp(int columns) { return columns <= 256 ? 4 : 1; }

template <bool gated>
DEVICE void normalizeAny(
  const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, int rows, int columns, float epsilon,
  ELEMENT *y, float *inverse) {
  const int few = rowsOfWarp(columns), row = ownRow() * few;
  if (row >= rows) return;
  const bool isEven = view.stride % 8 == 0 && movesEight(columns, x, gate, weight, y);
  if (isEven && columns <= 256)
    return normalizeRows<4, 1, gated>(x, gate, view, weight, row, rows, columns, epsilon, y, inverse);
  if (isEven && columns <= 2048 && !gated)
    return normalizeRows<1, 8, false>(x, gate, view, weight, row, rows, columns, epsilon, y, inverse);
#pragma unroll 1
  for (int r = row; r < row + few && r < rows; ++r)
    isEven ? normalizeRow<8, gated>(x, gate, view, weight, r, columns, epsilon, y, inverse)
           : normalizeRow<1, gated>(x, gate, view, weight, r, columns, epsilon, y, inverse);
}

/// y = x / rms(x) weight, with `gate` times SiLU(gate); `inverse` keeps 1 / rms. grid (rows / 8 / rowsOfWarp rounded up)
extern "C" __global__ void __launch_bounds__(256) normalize(
  const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, int rows, int columns, float epsilon,
  ELEMENT *y, float *inverse) {
  gate ? normalizeAny<true>(x, gate, view, weight, rows, columns, epsilon, y, inverse)
       : normalizeAny<false>(x, gate, view, weight, rows, columns, epsilon, y, inverse);
}

template <int n, bool gated>
DEVICE void normalizeRowBackward(
  const ELEMENT *dy, const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, const float *inverse,
  int row, int columns, ELEMENT *dx, const ELEMENT *base, ELEMENT *dGate, Heads dView) {
  const int lane = threadIdx.x % 32;
  const long long first = (long long)row * columns;
  const float scale = inverse[row];
  float sum = 0;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float d[n], v[n], w[n], z[n];
    read(d, dy + first + c);
    read(v, x + first + c);
    read(w, weight + c);
    if (gated) read(z, gate + placeOf(view, row, columns) + c);
#pragma unroll
    for (int i = 0; i < n; ++i) sum += d[i] * w[i] * v[i] * (gated ? silu(z[i]) : 1.0f);
  }
  const float mean = laneTotal(sum) / columns * scale * scale;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float d[n], v[n], w[n], z[n];
    read(d, dy + first + c);
    read(v, x + first + c);
    read(w, weight + c);
    if (gated) {
      read(z, gate + placeOf(view, row, columns) + c);
      float dz[n];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        dz[i] = d[i] * w[i] * v[i] * scale * siluSlope(z[i]);
        d[i] *= silu(z[i]);
      }
      write(dGate + placeOf(dView, row, columns) + c, dz);
    }
    if (base) read(z, base + first + c);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = scale * (d[i] * w[i] - v[i] * mean) + (base ? z[i] : 0.0f);
    write(dx + first + c, v);
  }
}

/// dx = the gradient of `normalize`, on top of `base` where that is not null: dx itself, or what is to stay.
extern "C" __global__ void __launch_bounds__(256) normalizeBackward(
  const ELEMENT *dy, const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, const float *inverse,
  int rows, int columns, ELEMENT *dx, const ELEMENT *base, ELEMENT *dGate, Heads dView) {
  const int row = ownRow();
  if (row >= rows) return;
  if (view.stride % 8 || dView.stride % 8 || !movesEight(columns, dy, x, gate, weight, dx, base, dGate))
    gate ? normalizeRowBackward<1, true>(dy, x, gate, view, weight, inverse, row, columns, dx, base, dGate, dView)
         : normalizeRowBackward<1, false>(dy, x, gate, view, weight, inverse, row, columns, dx, base, dGate, dView);
  else
    gate ? normalizeRowBackward<8, true>(dy, x, gate, view, weight, inverse, row, columns, dx, base, dGate, dView)
         : normalizeRowBackward<8, false>(dy, x, gate, view, weight, inverse, row, columns, dx, base, dGate, dView);
}

/// dx, dGate, and the sums of a part of the rows that dWeight is made of: a lane has eight columns, whose weights and sums
/// it keeps. `sums`: shared memory for a row.
template <bool gated>
DEVICE void normalizePartBackward(
  const ELEMENT *dy, const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, const float *inverse,
  int rows, int columns, int rowsPerPart, ELEMENT *dx, const ELEMENT *base, ELEMENT *dGate, Heads dView, float *partial,
  float *sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane * 8;
  const int begin = blockIdx.x * rowsPerPart, end = begin + rowsPerPart < rows ? begin + rowsPerPart : rows;
  const bool isOwn = c < columns;
  float own[8] = {}, w[8] = {};
  if (isOwn) read(w, weight + c);
#pragma unroll 2
  for (int row = begin + warp; row < end; row += 8) {
    const long long place = (long long)row * columns + c;
    const float scale = inverse[row];
    float d[8] = {}, v[8] = {}, z[8] = {};
    if (isOwn) {
      read(d, dy + place);
      read(v, x + place);
      if (gated) read(z, gate + placeOf(view, row, columns) + c);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float open = gated ? silu(z[i]) : 1.0f;
      if (gated) z[i] = d[i] * w[i] * v[i] * scale * siluSlope(z[i]);
      d[i] *= open;
      own[i] += d[i] * v[i] * scale;
      sum += d[i] * w[i] * v[i];
    }
    const float mean = laneTotal(sum) / columns * scale * scale;
    if (!isOwn) continue;
    if (gated) write(dGate + placeOf(dView, row, columns) + c, z);
    if (base) read(z, base + place);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = scale * (d[i] * w[i] - v[i] * mean) + (base ? z[i] : 0.0f);
    write(dx + place, v);
  }
  // One warp after the other adds its rows.
  for (int turn = 0; turn < 8; ++turn) {
    if (turn == warp && isOwn) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[c + i] = turn == 0 ? own[i] : sums[c + i] + own[i];
    }
    syncBlock();
  }
  for (int c = threadIdx.x; c < columns; c += 256) partial[(long long)blockIdx.x * columns + c] = sums[c];
}

/// normalizeBackward and normalizeWeightParts in one, for rows of a multiple of 8 columns, at most 256.
/// grid (parts), 256 threads.
extern "C" __global__ void __launch_bounds__(256) normalizeBackwardWithParts(
  const ELEMENT *dy, const ELEMENT *x, const ELEMENT *gate, Heads view, const float *weight, const float *inverse,
  int rows, int columns, int rowsPerPart, ELEMENT *dx, const ELEMENT *base, ELEMENT *dGate, Heads dView, float *partial) {
  __shared__ float sums[256];
  gate ? normalizePartBackward<true>(
           dy, x, gate, view, weight, inverse, rows, columns, rowsPerPart, dx, base, dGate, dView, partial, sums)
       : normalizePartBackward<false>(
           dy, x, gate, view, weight, inverse, rows, columns, rowsPerPart, dx, base, dGate, dView, partial, sums);
}

/// normalizeBackward and normalizeWeightParts in one, for rows too long for a warp's registers: a thread has eight columns,
/// whose weights and sums it keeps, a block takes two rows at a time and fetches the next two meanwhile.
/// grid (parts), columns / 8 threads rounded up to 32.
extern "C" __global__ void __launch_bounds__(256) normalizeBackwardByColumns(
  const ELEMENT *dy, const ELEMENT *x, const float *weight, const float *inverse, int rows, int columns,
  int rowsPerPart, ELEMENT *dx, const ELEMENT *base, float *partial) {
  constexpr int FEW = 2;
  __shared__ float shares[2][8][FEW];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, c = threadIdx.x * 8;
  const int begin = blockIdx.x * rowsPerPart, end = begin + rowsPerPart < rows ? begin + rowsPerPart : rows;
  const bool isOwn = c < columns;
  float w[8] = {}, own[8] = {};
  if (isOwn) read(w, weight + c);
  Eight nextD[FEW] = {}, nextV[FEW] = {}, nextZ[FEW] = {};
  auto fetchRows = [&](int first) {
#pragma unroll
    for (int r = 0; r < FEW; ++r) {
      if (!isOwn || first + r >= end) continue;
      const long long place = (long long)(first + r) * columns + c;
      fetch(nextD[r], dy + place);
      fetch(nextV[r], x + place);
      if (base) fetch(nextZ[r], base + place);
    }
  };
  fetchRows(begin);
  int turn = 0;
  for (int first = begin; first < end; first += FEW, turn ^= 1) {
    float d[FEW][8], v[FEW][8];
    Eight z[FEW];
#pragma unroll
    for (int r = 0; r < FEW; ++r) {
      unpack(d[r], nextD[r]);
      unpack(v[r], nextV[r]);
      z[r] = nextZ[r];
    }
    fetchRows(first + FEW);
#pragma unroll
    for (int r = 0; r < FEW; ++r) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += d[r][i] * w[i] * v[r][i];
      sum = laneTotal(sum);
      if (lane == 0) shares[turn][warp][r] = sum;
    }
    syncBlock();
#pragma unroll
    for (int r = 0; r < FEW; ++r) {
      if (!isOwn || first + r >= end) continue;
      float sum = 0;
      for (int i = 0; i < warps; ++i) sum += shares[turn][i][r];
      const float scale = inverse[first + r], mean = sum / columns * scale * scale;
      float past[8];
      unpack(past, z[r]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own[i] += d[r][i] * v[r][i] * scale;
        v[r][i] = scale * (d[r][i] * w[i] - v[r][i] * mean) + past[i];
      }
      write(dx + (long long)(first + r) * columns + c, v[r]);
    }
  }
  if (!isOwn) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) partial[(long long)blockIdx.x * columns + c + i] = own[i];
}

/// partial[part] = sums over the rows of a part of dy x / rms(x), with `gate` times SiLU(gate). The parts are cut by
/// the number of rows alone. grid (columns / 256 rounded up, parts), 256 threads.
extern "C" __global__ void __launch_bounds__(256) normalizeWeightParts(
  const ELEMENT *dy, const ELEMENT *x, const ELEMENT *gate, Heads view, const float *inverse, int rows, int columns,
  int rowsPerPart, float *partial) {
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c >= columns) return;
  const int begin = blockIdx.y * rowsPerPart, end = begin + rowsPerPart < rows ? begin + rowsPerPart : rows;
  float sum = 0;
#pragma unroll 4
  for (int row = begin; row < end; ++row) {
    const long long place = (long long)row * columns + c;
    const float z = gate ? silu(readElement(gate + placeOf(view, row, columns) + c)) : 1.0f;
    sum += readElement(dy + place) * readElement(x + place) * inverse[row] * z;
  }
  partial[(long long)blockIdx.y * columns + c] = sum;
}

/// sums[c] = the sum of partial[part][c] over all parts, or added: 32 threads a column take every 32nd part each, in order,
/// and are added in order. grid (columns / 32 rounded up), 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) addParts(
  const float *partial, int parts, int columns, int adds, float *sums) {
  __shared__ float shares[32][32];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
  float sum = 0;
  if (c < columns) {
#pragma unroll 4
    for (int part = group; part < parts; part += 32) sum += partial[(long long)part * columns + c];
  }
  shares[group][lane] = sum;
  syncBlock();
  if (group > 0 || c >= columns) return;
  sum = adds ? sums[c] : 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) sum += shares[i][lane];
  sums[c] = sum;
}

template <int n>
DEVICE void siluNormalizeRow(const ELEMENT *x, Heads view, int row, int columns, float epsilon, ELEMENT *y) {
  const int lane = threadIdx.x % 32;
  const long long first = (long long)row * columns, from = placeOf(view, row, columns);
  float sum = 0;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float v[n];
    read(v, x + from + c);
#pragma unroll
    for (int i = 0; i < n; ++i) sum += silu(v[i]) * silu(v[i]);
  }
  const float scale = rsqrtf(laneTotal(sum) + epsilon);
  for (int c = lane * n; c < columns; c += 32 * n) {
    float v[n];
    read(v, x + from + c);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = silu(v[i]) * scale;
    write(y + first + c, v);
  }
}

/// Rows that half a warp takes at a time: all of them are fetched before anything is waited for.
constexpr int HALVES = 4;

/// The same for rows of at most 128 columns, a multiple of 8, by half a warp.
DEVICE void siluNormalizeRows(const ELEMENT *x, Heads view, int row, int rows, int columns, float epsilon, ELEMENT *y) {
  const int c = threadIdx.x % 16 * 8;
  Eight held[HALVES] = {};
#pragma unroll
  for (int r = 0; r < HALVES; ++r)
    if (row + r < rows && c < columns) fetch(held[r], x + placeOf(view, row + r, columns) + c);
#pragma unroll
  for (int r = 0; r < HALVES; ++r) {
    float v[8], sum = 0;
    unpack(v, held[r]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = silu(v[i]);
      sum += v[i] * v[i];
    }
    const float scale = rsqrtf(laneTotal<16>(sum) + epsilon);
    if (row + r >= rows || c >= columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= scale;
    write(y + (long long)(row + r) * columns + c, v);
  }
}

/// y = SiLU(x) / length of SiLU(x), a row a head; half a warp takes rows of at most 128 bfloat16. grid (rows / 64
/// rounded up), 256 threads.
extern "C" __global__ void __launch_bounds__(256) siluNormalize(
  const ELEMENT *x, Heads view, int rows, int columns, float epsilon, ELEMENT *y) {
  const bool isEven = view.stride % 8 == 0 && movesEight(columns, x, y);
  if (sizeof(ELEMENT) == 2 && isEven && columns <= 128)
    return siluNormalizeRows(
      x, view, (blockIdx.x * 16 + threadIdx.x / 16) * HALVES, rows, columns, epsilon, y);
#pragma unroll 1
  for (int row = blockIdx.x * 64 + threadIdx.x / 32, turn = 0; row < rows && turn < 8; row += 8, ++turn)
    isEven ? siluNormalizeRow<8>(x, view, row, columns, epsilon, y)
           : siluNormalizeRow<1>(x, view, row, columns, epsilon, y);
}

template <int n>
DEVICE void siluNormalizeRowBackward(
  const ELEMENT *dy, const ELEMENT *x, Heads view, int row, int columns, float epsilon, ELEMENT *dx, Heads dView) {
  const int lane = threadIdx.x % 32;
  const long long first = (long long)row * columns, from = placeOf(view, row, columns);
  const long long to = placeOf(dView, row, columns);
  float sum = 0, overlap = 0;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float d[n], v[n];
    read(d, dy + first + c);
    read(v, x + from + c);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float a = silu(v[i]);
      sum += a * a;
      overlap += a * d[i];
    }
  }
  const float scale = rsqrtf(laneTotal(sum) + epsilon), along = laneTotal(overlap) * scale * scale;
  for (int c = lane * n; c < columns; c += 32 * n) {
    float d[n], v[n];
    read(d, dy + first + c);
    read(v, x + from + c);
#pragma unroll
    for (int i = 0; i < n; ++i) d[i] = scale * (d[i] - silu(v[i]) * along) * siluSlope(v[i]);
    write(dx + to + c, d);
  }
}

DEVICE void siluNormalizeRowsBackward(
  const ELEMENT *dy, const ELEMENT *x, Heads view, int row, int rows, int columns, float epsilon, ELEMENT *dx,
  Heads dView) {
  // Earlier cards have too few registers for two.
  constexpr int PAIR = __CUDA_ARCH__ >= 900 ? 2 : 1;
  const int c = threadIdx.x % 16 * 8, end = row + HALVES;
#pragma unroll 1
  for (; row < end; row += PAIR) {
    Eight heldD[PAIR] = {}, heldV[PAIR] = {};
#pragma unroll
    for (int r = 0; r < PAIR; ++r) {
      if (row + r >= rows || c >= columns) continue;
      fetch(heldD[r], dy + (long long)(row + r) * columns + c);
      fetch(heldV[r], x + placeOf(view, row + r, columns) + c);
    }
#pragma unroll
    for (int r = 0; r < PAIR; ++r) {
      float d[8], v[8], sum = 0, overlap = 0;
      unpack(d, heldD[r]);
      unpack(v, heldV[r]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float a = silu(v[i]);
        sum += a * a;
        overlap += a * d[i];
      }
      const float scale = rsqrtf(laneTotal<16>(sum) + epsilon), along = laneTotal<16>(overlap) * scale * scale;
      if (row + r >= rows || c >= columns) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i] = scale * (d[i] - silu(v[i]) * along) * siluSlope(v[i]);
      write(dx + placeOf(dView, row + r, columns) + c, d);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) siluNormalizeBackward(
  const ELEMENT *dy, const ELEMENT *x, Heads view, int rows, int columns, float epsilon, ELEMENT *dx, Heads dView) {
  const bool isEven = (view.stride | dView.stride) % 8 == 0 && movesEight(columns, dy, x, dx);
  if (sizeof(ELEMENT) == 2 && isEven && columns <= 128)
    return siluNormalizeRowsBackward(
      dy, x, view, (blockIdx.x * 16 + threadIdx.x / 16) * HALVES, rows, columns, epsilon, dx, dView);
#pragma unroll 1
  for (int row = blockIdx.x * 64 + threadIdx.x / 32, turn = 0; row < rows && turn < 8; row += 8, ++turn)
    isEven ? siluNormalizeRowBackward<8>(dy, x, view, row, columns, epsilon, dx, dView)
           : siluNormalizeRowBackward<1>(dy, x, view, row, columns, epsilon, dx, dView);
}
