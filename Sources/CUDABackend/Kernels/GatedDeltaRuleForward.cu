// States from chunk to chunk, and the outputs on the way (formulas in GatedDeltaRule.cuh).
#include "GatedDeltaRuleWalk.cuh"

/// grid (SLICES, heads, segments), 128 threads
///
/// segments: first chunk of each, and the count of chunks   initial, final: [segments, heads, KEYS, VALUES] or null
/// starts: the states before each chunk, transposed, [chunks, heads, STATE], and corrected: U transposed, [chunks,
/// heads, CORRECTED], in blocks; null where no backward pass follows
extern "C" __global__ void __launch_bounds__(128, 1) gatedDeltaRuleForward(
  const bf16 *v, const bf16 *records, const int *chunks, const int *segments, int heads, float scale,
  const float *initial, bf16 *o, float *final, bf16 *starts, bf16 *corrected) {
  bf16 *memory = reinterpret_cast<bf16 *>(dynamicShared());
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
  bf16 *staging = memory + 2 * WALK_STAGE + warp * CHUNK * STAGING_STRIDE;
  const int firstBlock = blockIdx.x * SLICE, head = blockIdx.y, segment = blockIdx.z;
  const int block = firstBlock + warp, blocks = VALUE_BLOCKS - firstBlock < SLICE ? VALUE_BLOCKS - firstBlock : SLICE;
  const bool active = warp < blocks;
  const int begin = segments[segment], end = segments[segment + 1], stride = heads * VALUES;
  const long long sequence = ((long long)segment * heads + head) * KEYS * VALUES;
  if (begin == end) {
    if (active && final)
      for (int i = lane; i < KEYS * 16; i += 32) {
        const long long place = sequence + i / 16 * VALUES + block * 16 + i % 16;
        final[place] = initial ? initial[place] : 0;
      }
    return;
  }
  // Chunks of a segment lie one behind the other; only the last may be shorter.
  const int token = chunks[2 * begin], lastLength = chunks[2 * end - 1];
  const long long channels = ((long long)token * heads + head) * VALUES + firstBlock * 16;
  const WalkStages stages(memory, blocks, stride);
  auto load = [&](int chunk) {
    stages.load(
      chunk - begin, records + ((long long)chunk * heads + head) * RECORD,
      v + channels + (chunk - begin) * (long long)CHUNK * stride, chunk + 1 == end ? lastLength : CHUNK);
  };

  float s[2 * KEY_BLOCKS][4] = {};
  if (active && initial) loadState(s, initial + sequence, block * 16, lane);
  const int own = straightRows(lane, VALUE_STRIDE) + warp * 16;
  load(begin);
  for (int chunk = begin; chunk < end; ++chunk) {
    const bf16 *stage = stages[chunk - begin], *w = stage + straight(lane), *across = stage + crossed(lane);
    const bf16 *values = stage + RECORD + own;
    const float *gates = reinterpret_cast<const float *>(stage + RECORD_GATES) + CHUNK + lane % 4 * 2;
    stages.wait(chunk - begin);
    if (chunk + 1 < end) load(chunk + 1);
    if (!active) continue;
    const long long record = (long long)chunk * heads + head;
    bf16 *start = starts ? starts + record * STATE + block * KEY_BLOCKS * BLOCK : nullptr;
    bf16 *change = corrected ? corrected + record * CORRECTED + block * 4 * BLOCK : nullptr;

    // Groups: W and Q by turns for every block of key channels; V and T for every block of tokens; P and then K for
    // every block of tokens.
    constexpr int states = 2 * KEY_BLOCKS, inputs = states + 4, groups = inputs + 4 * (1 + KEY_GROUPS);
    Quad f[2][5];
    auto fetch = [&](int g, Quad (&f)[5]) {
      if (g < states) {
#pragma unroll
        for (int n = 0; n < 4; ++n)
          f[n] = loadMatrix(w + (g % 2 ? RECORD_QUERIES : 0) + (n * KEY_BLOCKS + g / 2) * BLOCK);
      } else if (g < inputs) {
        const int kk = g - states;
        f[4] = loadMatrixTransposed(values + kk * 16 * VALUE_STRIDE);
#pragma unroll
        for (int n = kk; n < 4; ++n) f[n] = loadMatrix(w + RECORD_T + triangle(n, kk));
      } else if (g < groups) {
        const int kk = (g - inputs) / (1 + KEY_GROUPS), part = (g - inputs) % (1 + KEY_GROUPS);
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (part == 0) {
            if (n >= kk) f[n] = loadMatrix(w + RECORD_P + triangle(n, kk));
          } else if ((part - 1) * 4 + n < KEY_BLOCKS) {
            f[n] = loadMatrixTransposed(across + RECORD_KEYS + (kk * KEY_BLOCKS + (part - 1) * 4 + n) * BLOCK);
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
        if (g % 2 == 0) {
          x = packed(s[g], s[g + 1]);
          if (start) storeOperand(start + g / 2 * BLOCK, x, lane);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiplyAdd(g % 2 ? y[2 * n] : u[2 * n], g % 2 ? y[2 * n + 1] : u[2 * n + 1], x, b[n]);
        }
      } else if (g < inputs) {
        const int kk = g - states;
#pragma unroll
        for (int n = kk; n < 4; ++n) {
          multiplyAdd(u[2 * n], u[2 * n + 1], b[4], b[n]);
        }
        if (kk == 0) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const float even = scale * gates[n * 8], odd = scale * gates[n * 8 + 1];
            y[n][0] *= even, y[n][1] *= odd, y[n][2] *= even, y[n][3] *= odd;
          }
        } else if (kk == 1) {
          const float decay = gates[CHUNK - 1 - lane % 4 * 2];
#pragma unroll
          for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[n][e] *= decay;
        }
      } else {
        const int kk = (g - inputs) / (1 + KEY_GROUPS), part = (g - inputs) % (1 + KEY_GROUPS);
        if (part == 0) {
          x = packed(u[2 * kk], u[2 * kk + 1]);
          if (change) storeOperand(change + kk * BLOCK, x, lane);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float even = gates[CHUNK + kk * 16 + half * 8], odd = gates[CHUNK + kk * 16 + half * 8 + 1];
            z.x[2 * half] = pack(u[2 * kk + half][0] * even, u[2 * kk + half][1] * odd);
            z.x[2 * half + 1] = pack(u[2 * kk + half][2] * even, u[2 * kk + half][3] * odd);
          }
#pragma unroll
          for (int n = kk; n < 4; ++n) {
            multiplyAdd(y[2 * n], y[2 * n + 1], x, b[n]);
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
      o + channels + warp * 16 + (chunk - begin) * (long long)CHUNK * stride, y, staging,
      chunk + 1 == end ? lastLength : CHUNK, stride, lane);
  }
  if (active && final) storeState(final + sequence, s, block * 16, lane);
}
