// Gradients of the states from chunk to chunk backward, and dV on the way (formulas in GatedDeltaRule.cuh).
#include "GatedDeltaRuleWalk.cuh"

/// grid (SLICES, heads, segments), 128 threads
///
/// dFinal, dInitial: [segments, heads, KEYS, VALUES] or null
/// ends: the gradients of the states after each chunk, laid out as `starts`
extern "C" __global__ void __launch_bounds__(128, 1) gatedDeltaRuleBackwardStates(
  const bf16 *dO, const bf16 *records, const int *chunks, const int *segments, int heads, float scale,
  const float *dFinal, bf16 *dV, float *dInitial, bf16 *ends) {
  bf16 *memory = reinterpret_cast<bf16 *>(dynamicShared());
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
  bf16 *staging = memory + 2 * WALK_STAGE + warp * CHUNK * STAGING_STRIDE;
  const int firstBlock = blockIdx.x * SLICE, head = blockIdx.y, segment = blockIdx.z;
  const int block = firstBlock + warp, blocks = VALUE_BLOCKS - firstBlock < SLICE ? VALUE_BLOCKS - firstBlock : SLICE;
  const bool active = warp < blocks;
  const int begin = segments[segment], end = segments[segment + 1], stride = heads * VALUES;
  const long long sequence = ((long long)segment * heads + head) * KEYS * VALUES;
  if (begin == end) {
    if (active && dInitial)
      for (int i = lane; i < KEYS * 16; i += 32) {
        const long long place = sequence + i / 16 * VALUES + block * 16 + i % 16;
        dInitial[place] = dFinal ? dFinal[place] : 0;
      }
    return;
  }
  const int token = chunks[2 * begin], lastLength = chunks[2 * end - 1];
  const long long channels = ((long long)token * heads + head) * VALUES + firstBlock * 16;
  const WalkStages stages(memory, blocks, stride);
  auto load = [&](int chunk) {
    stages.load(
      end - 1 - chunk, records + ((long long)chunk * heads + head) * RECORD,
      dO + channels + (chunk - begin) * (long long)CHUNK * stride, chunk + 1 == end ? lastLength : CHUNK);
  };

  float s[2 * KEY_BLOCKS][4] = {};
  if (active && dFinal) loadState(s, dFinal + sequence, block * 16, lane);
  const int own = straightRows(lane, VALUE_STRIDE) + warp * 16;
  load(end - 1);
  for (int chunk = end - 1; chunk >= begin; --chunk) {
    const bf16 *stage = stages[end - 1 - chunk], *w = stage + straight(lane), *across = stage + crossed(lane);
    const bf16 *values = stage + RECORD + own;
    const float *gates = reinterpret_cast<const float *>(stage + RECORD_GATES) + CHUNK + lane % 4 * 2;
    stages.wait(end - 1 - chunk);
    if (chunk > begin) load(chunk - 1);
    if (!active) continue;
    bf16 *stop = ends + ((long long)chunk * heads + head) * STATE + block * KEY_BLOCKS * BLOCK;

    // Groups: K for every block of key channels; dO and P, then Q, for every block of tokens; T and then W likewise.
    constexpr int states = KEY_BLOCKS, outputs = states + 4 * (1 + KEY_GROUPS), groups = outputs + 4 * (1 + KEY_GROUPS);
    Quad f[2][5];
    auto fetch = [&](int g, Quad (&f)[5]) {
      if (g < states) {
#pragma unroll
        for (int n = 0; n < 4; ++n) f[n] = loadMatrix(w + RECORD_KEYS + (n * KEY_BLOCKS + g) * BLOCK);
      } else if (g < groups) {
        const int from = g < outputs ? states : outputs;
        const int kk = (g - from) / (1 + KEY_GROUPS), part = (g - from) % (1 + KEY_GROUPS);
        if (g < outputs && part == 0) f[4] = loadMatrixTransposed(values + kk * 16 * VALUE_STRIDE);
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (part == 0) {
            if (n <= kk) f[n] = loadMatrixTransposed(across + (g < outputs ? RECORD_P : RECORD_T) + triangle(kk, n));
          } else if ((part - 1) * 4 + n < KEY_BLOCKS) {
            f[n] = loadMatrixTransposed(
              across + (g < outputs ? RECORD_QUERIES : 0) + (kk * KEY_BLOCKS + (part - 1) * 4 + n) * BLOCK);
          }
      }
    };
    float u[8][4] = {}, y[8][4] = {};
    Quad x = {}, z = {};
    fetch(0, f[0]);
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      fetch(g + 1, f[(g + 1) % 2]);
      Quad(&b)[5] = f[g % 2];
      if (g < states) {
        x = packed(s[2 * g], s[2 * g + 1]);
        storeOperand(stop + g * BLOCK, x, lane);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiplyAdd(u[2 * n], u[2 * n + 1], x, b[n]);
        }
        if (g == states - 1) {
          const float decay = gates[CHUNK - 1 - lane % 4 * 2];
#pragma unroll
          for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[n][e] *= decay;
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const float even = gates[CHUNK + n * 8], odd = gates[CHUNK + n * 8 + 1];
            u[n][0] *= even, u[n][1] *= odd, u[n][2] *= even, u[n][3] *= odd;
          }
        }
      } else {
        const int from = g < outputs ? states : outputs;
        const int kk = (g - from) / (1 + KEY_GROUPS), part = (g - from) % (1 + KEY_GROUPS);
        if (part == 0) {
          if (g < outputs) {
            x = b[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const float even = scale * gates[kk * 16 + half * 8], odd = scale * gates[kk * 16 + half * 8 + 1];
#pragma unroll
              for (int i = 2 * half; i < 2 * half + 2; ++i)
                z.x[i] = pack(lower(x.x[i]) * even, upper(x.x[i]) * odd);
            }
          } else {
            x = z = packed(u[2 * kk], u[2 * kk + 1]);
          }
#pragma unroll
          for (int n = 0; n <= kk; ++n) {
            multiplyAdd(g < outputs ? u[2 * n] : y[2 * n], g < outputs ? u[2 * n + 1] : y[2 * n + 1], x, b[n]);
          }
        } else {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int block = (part - 1) * 4 + n;
            if (block >= KEY_BLOCKS) continue;
            multiplyAdd(s[2 * block], s[2 * block + 1], z, b[n]);
          }
        }
      }
    }
    storeTransposed(
      dV + channels + warp * 16 + (chunk - begin) * (long long)CHUNK * stride, y, staging,
      chunk + 1 == end ? lastLength : CHUNK, stride, lane);
  }
  if (active && dInitial) storeState(dInitial + sequence, s, block * 16, lane);
}
