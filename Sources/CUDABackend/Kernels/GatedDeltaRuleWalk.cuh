// What the two walks over the chunks of a sequence share: stages in shared memory, and ways in and out of registers.
#pragma once
#include "GatedDeltaRule.cuh"

/// Two stages that are filled by turns while the other is worked on.
struct WalkStages {
  bf16 *stages;
  u64 *barriers;
  int thread, count, stride;

  /// - source: the first channel of the first row of values or dO   count: blocks of 16 channels of them
  DEVICE WalkStages(bf16 *memory, int count, int stride) : stages(memory), count(count), stride(stride) {
    barriers = reinterpret_cast<u64 *>(memory + 2 * WALK_STAGE + 4 * CHUNK * STAGING_STRIDE);
    thread = threadIdx.x;
#ifdef HAS_BULK_COPIES
    if (thread == 0) {
      initializeBarrier(barriers);
      initializeBarrier(barriers + 1);
    }
    syncBlock();
#endif
  }

  DEVICE bf16 *operator[](int turn) const { return stages + turn % 2 * WALK_STAGE; }

  /// Begins to fill the stage of a turn. The block must have synchronized since its last use.
  DEVICE void load(int turn, const bf16 *record, const bf16 *rows, int length) const {
    bf16 *stage = (*this)[turn], *values = stage + RECORD;
#ifdef HAS_BULK_COPIES
    // The record is one piece. Rows are not: a bulk copy is issued lane by lane.
    if (thread == 0) {
      expectBytes(barriers + turn % 2, RECORD * 2);
      copyBulk(stage, record, RECORD * 2, barriers + turn % 2);
    }
#else
    copyLinear<RECORD, 128>(stage, record, thread);
#endif
    copyValues(values, rows, count, length, stride, thread, 128);
    commitCopies();
  }

  /// Waits for the stage of a turn, and for the block to have left the other.
  DEVICE void wait(int turn) const {
#ifdef HAS_BULK_COPIES
    waitBarrier(barriers + turn % 2, turn / 2 % 2);
#endif
    waitCopies<0>();
    syncBlock();
  }
};

/// A transposed result [16 channels, CHUNK] of a warp to rows [token][channel] of device memory.
DEVICE void storeTransposed(
  bf16 *rows, const float (&x)[8][4], bf16 *staging, int length, int stride, int lane) {
  u32 *words = reinterpret_cast<u32 *>(staging);
  syncWarp();
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      words[(n * 8 + lane / 4) * (STAGING_STRIDE / 2) + half * 4 + lane % 4] =
        transposeTile(pack(x[n][2 * half], x[n][2 * half + 1]));
  syncWarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = i * 16 + lane / 2;
    if (token < length)
      *reinterpret_cast<Quad *>(rows + token * (long long)stride + lane % 2 * 8) =
        *reinterpret_cast<const Quad *>(staging + token * STAGING_STRIDE + lane % 2 * 8);
  }
}

/// A state or its gradient of float32 [KEYS, VALUES] in device memory, as the transposed accumulators of a warp.
DEVICE void loadState(float (&s)[2 * KEY_BLOCKS][4], const float *state, int channel, int lane) {
#pragma unroll
  for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      s[n][e] = state[(n * 8 + lane % 4 * 2 + e % 2) * VALUES + channel + lane / 4 + e / 2 * 8];
}
DEVICE void storeState(float *state, const float (&s)[2 * KEY_BLOCKS][4], int channel, int lane) {
#pragma unroll
  for (int n = 0; n < 2 * KEY_BLOCKS; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      state[(n * 8 + lane % 4 * 2 + e % 2) * VALUES + channel + lane / 4 + e / 2 * 8] = s[n][e];
}
