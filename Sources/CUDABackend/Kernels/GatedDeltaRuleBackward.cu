// The gradients of queries, keys, gates and betas, all chunks at once (formulas in GatedDeltaRule.cuh).
#include "GatedDeltaRule.cuh"

DEVICE float total(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffleXor(x, mask);
  return x;
}

/// The inner product of a row of a matrix in blocks with accumulators of that row, complete in every lane of a quad.
DEVICE float rowProduct(const bf16 *rows, int m, int half, const float (&x)[2 * KEY_BLOCKS][4], int lane) {
  float sum = 0;
#pragma unroll
  for (int n = 0; n < 2 * KEY_BLOCKS; ++n) {
    const u32 pair = reinterpret_cast<const u32 *>(
      rows + (m * KEY_BLOCKS + n / 2) * BLOCK + (half * 2 + n % 2) * 64)[lane];
    sum += lower(pair) * x[n][2 * half] + upper(pair) * x[n][2 * half + 1];
  }
  sum += shuffleXor(sum, 1);
  return sum + shuffleXor(sum, 2);
}

/// Rows of accumulators [16, KEYS] to rows of device memory.
DEVICE void storeRows(
  bf16 *rows, const float (&x)[2 * KEY_BLOCKS][4], int firstRow, int length, int stride, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = firstRow + lane / 4 + half * 8;
    if (row >= length) continue;
#pragma unroll
    for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
      *reinterpret_cast<u32 *>(rows + row * (long long)stride + n * 8 + lane % 4 * 2) =
        pack(x[n][2 * half], x[n][2 * half + 1]);
  }
}

/// One warp's products of a slice: x += rows S0^T, p += rows U^T where it is lower, and with `withEnd` z += U dS^T.
template <bool withEnd>
DEVICE void multiplySlice(
  float (&x)[2 * KEY_BLOCKS][4], float (&p)[8][4], float (&z)[2 * KEY_BLOCKS][4], const bf16 *state,
  const bf16 *dState, const bf16 *u, const bf16 *rows, int count, int m, int lane) {
  constexpr int perBlock = KEY_GROUPS + 1 + (withEnd ? KEY_GROUPS : 0), groups = SLICE * perBlock;
  const bf16 *own = rows + m * 16 * VALUE_STRIDE + crossedRows(lane, VALUE_STRIDE), *ahead = u + straight(lane);
  state += crossed(lane), dState += crossed(lane), u += crossed(lane);
  Quad f[2][5];
  auto fetch = [&](int g, Quad (&f)[5]) {
    if (g >= groups) return;
    const int kk = g / perBlock, part = g % perBlock;
    if (part == 0) {
      f[4] = loadMatrix(own + kk * 16);
    } else if (part == KEY_GROUPS && withEnd) {
      f[4] = loadMatrixTransposed(ahead + (kk * 4 + m) * BLOCK);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (part == KEY_GROUPS) {
        if (n <= m) f[n] = loadMatrixTransposed(u + (kk * 4 + n) * BLOCK);
      } else {
        const int block = (part < KEY_GROUPS ? part : part - KEY_GROUPS - 1) * 4 + n;
        if (block < KEY_BLOCKS)
          f[n] = loadMatrixTransposed((part < KEY_GROUPS ? state : dState) + (kk * KEY_BLOCKS + block) * BLOCK);
      }
  };
  Quad left = {}, right = {};
  fetch(0, f[0]);
#pragma unroll
  for (int g = 0; g < groups; ++g) {
    const int kk = g / perBlock, part = g % perBlock;
    fetch(g + 1, f[(g + 1) % 2]);
    if (kk >= count) continue;
    Quad(&b)[5] = f[g % 2];
    if (part == 0) left = b[4];
    if (part == KEY_GROUPS && withEnd) right = b[4];
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (part == KEY_GROUPS) {
        if (n <= m) {
          multiplyAdd(p[2 * n], p[2 * n + 1], left, b[n]);
        }
      } else {
        const int block = (part < KEY_GROUPS ? part : part - KEY_GROUPS - 1) * 4 + n;
        if (block < KEY_BLOCKS) {
          multiplyAdd(
            part < KEY_GROUPS ? x[2 * block] : z[2 * block], part < KEY_GROUPS ? x[2 * block + 1] : z[2 * block + 1],
            part < KEY_GROUPS ? left : right, b[n]);
        }
      }
  }
}

/// any grid, 256 threads: blocks share out the chunks and heads; warps 0 to 3 make dQ of 16 tokens each, 4 to 7 dK.
extern "C" __global__ void __launch_bounds__(256, 1) gatedDeltaRuleBackward(
  const bf16 *dO, const bf16 *dV, const bf16 *records, const bf16 *starts, const bf16 *corrected, const bf16 *ends,
  const int *chunks, int chunkCount, int heads, float scale, bf16 *dQ, bf16 *dK, float *dG, float *dBeta) {
  bf16 *stages = reinterpret_cast<bf16 *>(dynamicShared());
  bf16 *keys = stages + BACKWARD_STAGES * BACKWARD_STAGE, *queries = keys + ROWS;
  bf16 *dP = queries + ROWS, *dA = dP + TRIANGLE;
  float *gamma = reinterpret_cast<float *>(dA + TRIANGLE);
  const float *gates = gamma + CHUNK, *tails = gates + CHUNK, *betas = tails + CHUNK;
  float *fromQueries = gamma + 4 * CHUNK, *fromKeys = fromQueries + CHUNK, *throughEnd = fromKeys + CHUNK;
  float *diagonal = throughEnd + CHUNK, *partial = diagonal + CHUNK;
  const int thread = threadIdx.x, lane = thread % 32, warp = uniform(thread / 32), m = warp % 4;
  const bool forQueries = warp < 4;
  const int row = lane / 4, column = lane % 4 * 2;

  const int items = chunkCount * heads, stride = heads * VALUES;
  // What is loaded next: which item, where its tokens begin, how many, and which slice of it.
  int loadItem = blockIdx.x, loadSlice = 0, stage = 0;
  int loadToken = 0, loadLength = 0;
  if (loadItem < items) loadToken = chunks[loadItem / heads * 2], loadLength = chunks[loadItem / heads * 2 + 1];
  auto load = [&]() {
    if (loadItem < items) {
      bf16 *place = stages + stage * BACKWARD_STAGE;
      const int first = loadSlice * SLICE;
      const int count = VALUE_BLOCKS - first < SLICE ? VALUE_BLOCKS - first : SLICE;
      const bf16 *start = starts + (long long)loadItem * STATE + first * KEY_BLOCKS * BLOCK;
      const bf16 *stop = ends + (long long)loadItem * STATE + first * KEY_BLOCKS * BLOCK;
      const bf16 *change = corrected + (long long)loadItem * CORRECTED + first * 4 * BLOCK;
      bf16 *u = place + 2 * SLICE_STATE;
      if (count == SLICE) {
        copyLinear<SLICE_STATE, 256>(place, start, thread);
        copyLinear<SLICE_STATE, 256>(place + SLICE_STATE, stop, thread);
        copyLinear<SLICE_CORRECTED, 256>(u, change, thread);
      } else {
        for (int i = thread * 8; i < count * KEY_BLOCKS * BLOCK; i += 2048) {
          copyAsync(place + i, start + i, true);
          copyAsync(place + SLICE_STATE + i, stop + i, true);
        }
        for (int i = thread * 8; i < count * 4 * BLOCK; i += 2048) copyAsync(u + i, change + i, true);
      }
      const long long values = ((long long)loadToken * heads + loadItem % heads) * VALUES + first * 16;
      copyValues(
        u + SLICE_CORRECTED + (forQueries ? 0 : SLICE_ROWS), (forQueries ? dO : dV) + values, count, loadLength, stride,
        thread % 128, 128);
      if (++loadSlice == SLICES) {
        loadSlice = 0;
        loadItem += gridDim.x;
        if (loadItem < items) loadToken = chunks[loadItem / heads * 2], loadLength = chunks[loadItem / heads * 2 + 1];
      }
    }
    commitCopies();
    stage = stage + 1 == BACKWARD_STAGES ? 0 : stage + 1;
  };

#pragma unroll
  for (int i = 0; i < BACKWARD_STAGES - 1; ++i) load();
  int current = 0;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int chunk = item / heads, head = item % heads;
    const int first = chunks[2 * chunk], length = chunks[2 * chunk + 1];
    const long long tokenHead = (long long)first * heads + head;
    // x: dO S0^T or dV S0^T; p: dO U^T or dV U^T, lower; z: U dS^T.
    float x[2 * KEY_BLOCKS][4] = {}, p[8][4] = {}, z[2 * KEY_BLOCKS][4] = {};
    float overlap = 0;
    for (int slice = 0; slice < SLICES; ++slice) {
      waitCopies<BACKWARD_STAGES - 2>();
      syncBlock();
      if (slice == 0) {
        const bf16 *record = records + (long long)item * RECORD;
        copyLinear<2 * ROWS, 256>(keys, record + RECORD_KEYS, thread);
        copyLinear<2 * BLOCK, 256>(reinterpret_cast<bf16 *>(gamma), record + RECORD_GATES, thread);
      }
      load();
      const bf16 *state = stages + current * BACKWARD_STAGE, *dState = state + SLICE_STATE;
      const bf16 *u = dState + SLICE_STATE, *rows = u + SLICE_CORRECTED;
      const int count = VALUE_BLOCKS - slice * SLICE < SLICE ? VALUE_BLOCKS - slice * SLICE : SLICE;
      if (forQueries)
        multiplySlice<false>(x, p, z, state, dState, u, rows, count, m, lane);
      else
        multiplySlice<true>(x, p, z, state, dState, u, rows + SLICE_ROWS, count, m, lane);
      for (int i = thread; i < count * KEY_BLOCKS * (BLOCK / 8); i += 256) {
        const Quad a = reinterpret_cast<const Quad *>(state)[i], b = reinterpret_cast<const Quad *>(dState)[i];
#pragma unroll
        for (int e = 0; e < 4; ++e) overlap += lower(a.x[e]) * lower(b.x[e]) + upper(a.x[e]) * upper(b.x[e]);
      }
      current = current + 1 == BACKWARD_STAGES ? 0 : current + 1;
    }

    // Keys, queries and gates were asked for with the group `SLICES - 1` before the last.
    waitCopies<(SLICES < BACKWARD_STAGES ? SLICES - 1 : BACKWARD_STAGES - 1)>();
    syncBlock();
    overlap = total(overlap);
    if (lane == 0) partial[warp] = overlap;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      if (n / 2 > m) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int t = m * 16 + row + e / 2 * 8, i = n * 8 + column + e % 2;
        if (!forQueries && n / 2 == m && i == t) diagonal[t] = p[n][e];
        const float decay = forQueries ? scale : -1.0f;
        const bool kept = forQueries ? i <= t : i < t;
        p[n][e] = kept ? p[n][e] * decay * exponential(gamma[t] - gamma[i]) : 0;
      }
    }
    bf16 *square = forQueries ? dP : dA;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int t = m * 16 + row + e * 8;
      const float decay = (forQueries ? scale : -1.0f) * gates[t];
#pragma unroll
      for (int n = 0; n < 2 * KEY_BLOCKS; ++n) {
        x[n][2 * e] *= decay;
        x[n][2 * e + 1] *= decay;
        z[n][2 * e] *= tails[t];
        z[n][2 * e + 1] *= tails[t];
      }
    }
    // dQ, or the left part of dK.
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      if (kk > m) continue;
      const Quad left = packed(p[2 * kk], p[2 * kk + 1]);
      storeOperand(square + triangle(m, kk), left, lane);
#pragma unroll
      for (int n = 0; n < KEY_BLOCKS; ++n)
        multiplyAdd(
          x[2 * n], x[2 * n + 1], left, loadMatrixTransposed(keys + (kk * KEY_BLOCKS + n) * BLOCK + crossed(lane)));
    }
    syncBlock();
    if (forQueries) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = rowProduct(queries, m, half, x, lane);
        if (lane % 4 == 0) fromQueries[m * 16 + row + half * 8] = sum;
      }
      storeRows(dQ + tokenHead * KEYS, x, m * 16, length, heads * KEYS, lane);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = rowProduct(keys, m, half, z, lane);
        if (lane % 4 == 0) throughEnd[m * 16 + row + half * 8] = sum;
      }
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        if (kk < m) continue;
        const Quad a = loadMatrixTransposed(dP + triangle(kk, m) + straight(lane));
        const Quad b = loadMatrixTransposed(dA + triangle(kk, m) + straight(lane));
#pragma unroll
        for (int n = 0; n < KEY_BLOCKS; ++n) {
          const int block = (kk * KEY_BLOCKS + n) * BLOCK + crossed(lane);
          multiplyAdd(z[2 * n], z[2 * n + 1], a, loadMatrixTransposed(queries + block));
          multiplyAdd(z[2 * n], z[2 * n + 1], b, loadMatrixTransposed(keys + block));
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = rowProduct(keys, m, half, x, lane) - rowProduct(keys, m, half, z, lane);
        if (lane % 4 == 0) fromKeys[m * 16 + row + half * 8] = sum;
      }
#pragma unroll
      for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[n][e] += z[n][e];
      storeRows(dK + tokenHead * KEYS, x, m * 16, length, heads * KEYS, lane);
    }
    syncBlock();
    if (warp == 0) {
      float whole = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) whole += partial[i];
      const int t = 2 * lane;
      const float a = fromQueries[t] + fromKeys[t];
      float b = fromQueries[t + 1] + fromKeys[t + 1];
      const float atEnd = total(throughEnd[t] + throughEnd[t + 1]) + whole * gates[CHUNK - 1];
      if (lane == 31) b += atEnd;
      float sum = a + b;
#pragma unroll
      for (int delta = 1; delta < 32; delta *= 2) {
        const float above = shuffleDown(sum, delta);
        if (lane + delta < 32) sum += above;
      }
      if (t < length) dG[tokenHead + (long long)t * heads] = sum;
      if (t + 1 < length) dG[tokenHead + (long long)(t + 1) * heads] = sum - a;
    } else if (thread - 32 < length) {
      const int t = thread - 32;
      const float b = betas[t];
      dBeta[tokenHead + (long long)t * heads] = b > 0 ? diagonal[t] / b / b : 0;
    }
  }
}
