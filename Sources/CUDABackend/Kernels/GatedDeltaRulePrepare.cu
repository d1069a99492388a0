// The part of every chunk that needs no state, all chunks at once (formulas in GatedDeltaRule.cuh).
#include "GatedDeltaRule.cuh"

/// Row `t` of the inverse of a unit lower triangle [32, 32]: a row a thread, columns from the last to the first. `a` is
/// the triangle without its diagonal, transposed, [column][row] with A_STRIDE a row.
DEVICE void invert(float (&row)[32], const float *a, int t) {
#pragma unroll
  for (int j = 31; j >= 0; --j) {
    float sums[4] = {0, 0, 0, 0};
#pragma unroll
    for (int k = 28; k >= 0; k -= 4) {
      if (k + 3 <= j) continue;
      const Quad x = *reinterpret_cast<const Quad *>(a + j * A_STRIDE + k);
#pragma unroll
      for (int i = 3; i >= 0; --i)
        if (k + i > j) sums[i] -= row[k + i] * asFloat(x.x[i]);
    }
    row[j] = (t == j ? 1.0f : 0.0f) + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

/// Eight columns of a row of the inverse, from column `j` on, as bfloat16 into blocks: times beta into `plain`, times
/// e^gamma too into `decayed`.
DEVICE void storeInverse(const float *x, int t, int j, const float *gates, bf16 *plain, bf16 *decayed) {
  Quad p, d;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = x[2 * i] * gates[3 * CHUNK + j + 2 * i], high = x[2 * i + 1] * gates[3 * CHUNK + j + 2 * i + 1];
    p.x[i] = pack(low, high);
    d.x[i] = pack(low * gates[CHUNK + j + 2 * i], high * gates[CHUNK + j + 2 * i + 1]);
  }
  const int place = triangle(t / 16, j / 16) + (t / 8 % 2 * 2 + j / 8 % 2) * 64 + t % 8 * 8;
  *reinterpret_cast<Quad *>(plain + place) = p;
  *reinterpret_cast<Quad *>(decayed + place) = d;
}

/// Running sums of g of one chunk and head, and what follows from them, by one warp. Beyond `length` g and beta are 0.
DEVICE void computeGates(float *gates, const float *g, const float *beta, int length, int heads, int lane) {
  const int t = 2 * lane;
  const float a = t < length ? g[t * heads] : 0, b = t + 1 < length ? g[(t + 1) * heads] : 0;
  gates[3 * CHUNK + t] = t < length ? beta[t * heads] : 0;
  gates[3 * CHUNK + t + 1] = t + 1 < length ? beta[(t + 1) * heads] : 0;
  float sum = a + b;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const float below = shuffleUp(sum, delta);
    if (lane >= delta) sum += below;
  }
  gates[t] = sum - b;
  gates[t + 1] = sum;
  syncWarp();
  const float last = gates[CHUNK - 1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    gates[CHUNK + t + i] = exponential(gates[t + i]);
    gates[2 * CHUNK + t + i] = exponential(last - gates[t + i]);
  }
}

/// grid (heads, chunks), 128 threads
///
/// q, k: [N, heads, KEYS]   g, beta: [N, heads]   chunks: first token and length of each
/// records: [chunks, heads, RECORD]
extern "C" __global__ void __launch_bounds__(128) gatedDeltaRulePrepare(
  const bf16 *q, const bf16 *k, const float *g, const float *beta, const int *chunks, int heads, float scale,
  bf16 *records) {
  bf16 *keys = reinterpret_cast<bf16 *>(dynamicShared());
  bf16 *queries = keys + CHUNK * KEY_STRIDE;
  bf16 *plain = queries + CHUNK * KEY_STRIDE, *decayed = plain + TRIANGLE;
  float *a = reinterpret_cast<float *>(decayed + TRIANGLE);
  float *gates = a + CHUNK * A_STRIDE;
  const int thread = threadIdx.x, lane = thread % 32, warp = uniform(thread / 32);
  const int head = blockIdx.x, chunk = blockIdx.y;
  const int first = chunks[2 * chunk], length = chunks[2 * chunk + 1];
  const long long tokenHead = (long long)first * heads + head;
  bf16 *record = records + ((long long)chunk * heads + head) * RECORD;

  constexpr int pieces = KEYS / 8;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const bf16 *source = (which ? q : k) + tokenHead * KEYS;
    for (int i = thread; i < CHUNK * pieces; i += 128) {
      const int row = i / pieces, c = i % pieces;
      const bool valid = row < length;
      copyAsync(
        keys + which * CHUNK * KEY_STRIDE + row * KEY_STRIDE + c * 8,
        source + (valid ? row * (long long)(heads * KEYS) + c * 8 : 0), valid);
    }
    commitCopies();
  }
  if (warp == 0) computeGates(gates, g + tokenHead, beta + tokenHead, length, heads, lane);
  waitCopies<1>();
  syncBlock();

  const int byRows = straightRows(lane, KEY_STRIDE), byColumns = crossedRows(lane, KEY_STRIDE);
  const int row = lane / 4, column = lane % 4 * 2;
  {
    float sums[8][4] = {};
#pragma unroll
    for (int kk = 0; kk < KEY_BLOCKS; ++kk) {
      const Quad x = loadMatrix(keys + warp * 16 * KEY_STRIDE + kk * 16 + byColumns);
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (n <= warp)
          multiplyAdd(sums[2 * n], sums[2 * n + 1], x, loadMatrix(keys + n * 16 * KEY_STRIDE + kk * 16 + byRows));
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      if (n / 2 > warp) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int t = warp * 16 + row + e / 2 * 8, i = n * 8 + column + e % 2;
        a[i * A_STRIDE + t] = i < t ? sums[n][e] * gates[3 * CHUNK + t] * exponential(gates[t] - gates[i]) : 0;
      }
    }
  }
  waitCopies<0>();
  syncBlock();

  // Two warps invert the halves of the diagonal; the other two multiply queries and keys meanwhile.
  if (warp < 2) {
    float inverse[32];
    invert(inverse, a + warp * 32 * (A_STRIDE + 1), lane);
    syncWarp();
    // Both inverses go side by side to the lower half of `a`: the upper triangle of A is not read, and the last
    // triangle only by this warp. The first stays in place.
    float *place = a + (32 + lane) * A_STRIDE + warp * 32;
#pragma unroll
    for (int j = 0; j < 32; j += 4)
      *reinterpret_cast<Quad *>(place + j) = {
        {asBits(inverse[j]), asBits(inverse[j + 1]), asBits(inverse[j + 2]), asBits(inverse[j + 3])}};
#pragma unroll
    for (int j = 0; j < 32; j += 8)
      if (j / 16 <= lane / 16)
        storeInverse(inverse + j, warp * 32 + lane, warp * 32 + j, gates, plain, decayed);
  } else {
    for (int turn = 0; turn < 2; ++turn) {
      // Rows of blocks 3 and 0 by one warp, 2 and 1 by the other.
      const int m = turn == 0 ? 5 - warp : warp - 2;
      float sums[8][4] = {};
#pragma unroll
      for (int kk = 0; kk < KEY_BLOCKS; ++kk) {
        const Quad x = loadMatrix(queries + m * 16 * KEY_STRIDE + kk * 16 + byColumns);
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (n <= m)
            multiplyAdd(sums[2 * n], sums[2 * n + 1], x, loadMatrix(keys + n * 16 * KEY_STRIDE + kk * 16 + byRows));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (n > m) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int t = m * 16 + row + e / 2 * 8, i = n * 16 + half * 8 + column + e % 2;
            float &x = sums[2 * n + half][e];
            x = i <= t ? x * scale * exponential(gates[t] - gates[i]) : 0;
          }
        storeOperand(record + RECORD_P + triangle(m, n), packed(sums[2 * n], sums[2 * n + 1]), lane);
      }
    }
  }
  syncBlock();

  // The rest of the inverse, rows 32 to 63 of columns 0 to 31: -T11 (A10 T00), a row and eight columns a thread.
  {
    const int r = thread / 4, c = thread % 4 * 8;
    float sums[8] = {};
#pragma unroll 8
    for (int k = 0; k < 32; ++k) {
      const float x = a[k * A_STRIDE + 32 + r];
      const float *y = a + (32 + k) * A_STRIDE + c;
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += x * y[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) a[r * A_STRIDE + c + i] = sums[i];
    syncBlock();
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = 0;
#pragma unroll 8
    for (int k = 0; k < 32; ++k) {
      const float x = a[(32 + r) * A_STRIDE + 32 + k];
      const float *y = a + k * A_STRIDE + c;
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] -= x * y[i];
    }
    storeInverse(sums, 32 + r, c, gates, plain, decayed);
  }
  syncBlock();

  float sums[2 * KEY_BLOCKS][4] = {};
#pragma unroll
  for (int kk = 0; kk < 4; ++kk) {
    if (kk > warp) continue;
    const Quad x = loadMatrix(decayed + triangle(warp, kk) + crossed(lane));
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; ++n)
      multiplyAdd(
        sums[2 * n], sums[2 * n + 1], x, loadMatrixTransposed(keys + kk * 16 * KEY_STRIDE + n * 16 + byColumns));
  }
#pragma unroll
  for (int n = 0; n < KEY_BLOCKS; ++n) {
    Quad x = packed(sums[2 * n], sums[2 * n + 1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) x.x[i] ^= 0x80008000u;
    storeOperand(record + (warp * KEY_BLOCKS + n) * BLOCK, x, lane);
    // Keys and queries in blocks.
    const int from = warp * 16 * KEY_STRIDE + n * 16 + byRows, to = (warp * KEY_BLOCKS + n) * BLOCK + lane * 8;
    *reinterpret_cast<Quad *>(record + RECORD_KEYS + to) = *reinterpret_cast<const Quad *>(keys + from);
    *reinterpret_cast<Quad *>(record + RECORD_QUERIES + to) = *reinterpret_cast<const Quad *>(queries + from);
  }
  for (int i = thread * 8; i < TRIANGLE; i += 128 * 8)
    *reinterpret_cast<Quad *>(record + RECORD_T + i) = *reinterpret_cast<const Quad *>(plain + i);
  if (thread < CHUNK)
    reinterpret_cast<Quad *>(record + RECORD_GATES)[thread] = reinterpret_cast<const Quad *>(gates)[thread];
}

/// What the host must know: elements of a record, a state and U; bytes of shared memory of prepare, walks, backward.
extern "C" __device__ int gatedDeltaRuleSizes[6] = {RECORD, STATE, CORRECTED, PREPARE_SHARED, WALK_SHARED,
                                                    BACKWARD_SHARED};
