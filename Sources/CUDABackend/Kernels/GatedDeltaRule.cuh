// The gated delta rule by chunks of 64 tokens, operands bfloat16, sums float32, on tensor cores. Compiled for one head
// size at a time: KEY_SIZE (a multiple of 16, at most 128) and VALUE_SIZE (a multiple of 16).
//
// With gamma the running sum of g in a chunk, D[t, i] = e^(gamma_t - gamma_i) for i <= t, S0 the state before it:
//
//   A = diag(beta) (K K^T o D), strictly lower        T = (I + A)^-1 diag(beta)      W = T diag(e^gamma) K
//   P = scale (Q K^T o D), lower                      U = T V - W S0
//   O = scale diag(e^gamma) Q S0 + P U                S = e^gamma_C S0 + (diag(e^(gamma_C - gamma)) K)^T U
//
// `prepare` makes T, P and -W of all chunks at once and lays them, with keys, queries and gates, in a record that is
// read as it lies. `forward` walks the chunks of a sequence and head; a warp owns 16
// value channels and keeps their state, transposed [16, KEY_SIZE], in registers as float32: accumulators of one product
// are left operands of the next, so nothing of U, S or O is exchanged between warps. `backwardStates` walks back:
//
//   dU = diag(e^(gamma_C - gamma)) K dS + P^T dO      dV = T^T dU
//   dS0 = e^gamma_C dS + (scale diag(e^gamma) Q)^T dO - W^T dU
//
// and `backward` makes the other gradients of all chunks at once, from S0, dS, U, dO and dV alone:
//
//   dP = (dO U^T) o scale D    dA = -(dV U^T) o D, strictly lower
//   dQ = scale diag(e^gamma) dO S0^T + dP K
//   dK = left + right:  left = -diag(e^gamma) dV S0^T + dA K
//                       right = diag(e^(gamma_C - gamma)) U dS^T + dP^T Q + dA^T K
//   dgamma_t = q_t . dQ_t + k_t . (left_t - right_t), at the last token also e^gamma_C <S0, dS> + sum of what of
//   k . right goes through dS; dg is the sum of dgamma from t on. q enters only as e^gamma q, k as e^gamma k on the
//   left of A and of S0 and as e^-gamma k on the right.
//   dbeta_t = dV_t . U_t / beta_t^2, because U_t = beta_t (V_t - ...) and dV_t = beta_t times the gradient of the
//   bracket; where beta_t is 0 it is given as 0 (a sigmoid has no slope left there).
//
// Only differences of gamma that are <= 0 are exponentiated. No sum depends on the order in which blocks run.
#pragma once
#include "Primitives.cuh"

constexpr int KEYS = KEY_SIZE;
constexpr int VALUES = VALUE_SIZE;
constexpr int CHUNK = 64;
/// Blocks of 16 channels.
constexpr int KEY_BLOCKS = KEYS / 16;
constexpr int VALUE_BLOCKS = VALUES / 16;
static_assert(KEYS % 16 == 0 && KEYS <= 128 && VALUES % 16 == 0, "head sizes");

/// Elements of [CHUNK, KEYS], and of a lower triangle of 16 x 16 blocks of [CHUNK, CHUNK].
constexpr int ROWS = 4 * KEY_BLOCKS * BLOCK;
constexpr int TRIANGLE = 10 * BLOCK;
/// What `prepare` leaves of a chunk and head: -W, K, Q, T, P in blocks; then gamma, e^gamma, e^(gamma_C - gamma) and
/// beta as float32. K, Q and the gates are what `backward` reads.
constexpr int RECORD_KEYS = ROWS, RECORD_QUERIES = 2 * ROWS, RECORD_T = 3 * ROWS, RECORD_P = RECORD_T + TRIANGLE;
constexpr int RECORD_GATES = RECORD_P + TRIANGLE, RECORD = RECORD_GATES + 2 * BLOCK;
/// Elements of a state and of U of a chunk and head.
constexpr int STATE = VALUE_BLOCKS * KEY_BLOCKS * BLOCK;
constexpr int CORRECTED = VALUE_BLOCKS * 4 * BLOCK;
/// Value channels that a block of threads walks with: 4 blocks of 16.
constexpr int SLICE = 4;
constexpr int SLICES = (VALUE_BLOCKS + SLICE - 1) / SLICE;
/// Rows that come from [token][channel] keep that order in shared memory, with 16 bytes between them against bank
/// conflicts.
constexpr int KEY_STRIDE = KEYS + 8, VALUE_STRIDE = SLICE * 16 + 8;
/// Fragments are fetched in groups of up to four blocks, one group ahead of the products that use them.
constexpr int KEY_GROUPS = (KEY_BLOCKS + 3) / 4;

DEVICE constexpr int triangle(int row, int column) { return (row * (row + 1) / 2 + column) * BLOCK; }

/// Value channels [CHUNK, 64] of one head from device to shared memory; `source` is the first channel of the first row.
/// Rows past `length` and channels past 16 `count` become zero.
DEVICE void copyValues(bf16 *shared, const bf16 *source, int count, int length, int stride, int thread, int threads) {
  const int c = thread % 8, step = threads / 8;
  bf16 *to = shared + thread / 8 * VALUE_STRIDE + c * 8;
  const bf16 *from = source + thread / 8 * (long long)stride + c * 8;
#pragma unroll
  for (int i = 0; i < CHUNK / step; ++i) {
    const bool valid = thread / 8 + i * step < length && c < 2 * count;
    copyAsync(to + i * step * VALUE_STRIDE, valid ? from + (long long)(i * step) * stride : source, valid);
  }
}

template <int count, int threads> DEVICE void copyLinear(bf16 *shared, const bf16 *source, int thread) {
#pragma unroll
  for (int i = 0; i < (count + threads * 8 - 1) / (threads * 8); ++i)
    if ((i + 1) * threads * 8 <= count || thread * 8 + i * threads * 8 < count)
      copyAsync(shared + thread * 8 + i * threads * 8, source + thread * 8 + i * threads * 8, true);
}

/// A lower triangle [CHUNK, CHUNK] of float32 on its way to its inverse.
constexpr int A_STRIDE = CHUNK + 4;
/// Bytes of shared memory of `prepare`.
constexpr int PREPARE_SHARED = (2 * CHUNK * KEY_STRIDE + 2 * TRIANGLE) * 2 + (CHUNK * A_STRIDE + 4 * CHUNK) * 4;

/// One chunk in shared memory while states are walked: the record, and values or dO of 64 channels.
constexpr int WALK_STAGE = RECORD + CHUNK * VALUE_STRIDE;
/// A warp's results [CHUNK, 16] on their way out, rows 48 bytes apart.
constexpr int STAGING_STRIDE = 24;
constexpr int WALK_SHARED = (2 * WALK_STAGE + 4 * CHUNK * STAGING_STRIDE) * 2 + 16;

/// 64 value channels of a chunk and head: S0, dS, U in blocks, dO and dV in rows.
constexpr int SLICE_STATE = SLICE * KEY_BLOCKS * BLOCK;
constexpr int SLICE_CORRECTED = SLICE * 4 * BLOCK;
constexpr int SLICE_ROWS = CHUNK * VALUE_STRIDE;
constexpr int BACKWARD_STAGE = 2 * SLICE_STATE + SLICE_CORRECTED + 2 * SLICE_ROWS;
#ifndef BACKWARD_STAGES
#define BACKWARD_STAGES 3
#endif
constexpr int BACKWARD_SHARED =
  (BACKWARD_STAGES * BACKWARD_STAGE + 2 * ROWS + 2 * TRIANGLE + 2 * BLOCK) * 2 + (4 * CHUNK + 8) * 4;
