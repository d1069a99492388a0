// The gated delta rule by chunks of 64 tokens, operands bfloat16, sums float32, on tensor cores. Compiled for one head
// size at a time: KEY_SIZE (a multiple of 16, at most 128) and VALUE_SIZE (a multiple of 16).
//
// With gamma the running sum of g in a chunk, D[t, i] = e^(gamma_t - gamma_i) for i <= t, S0 the state before it:
//
//   A = diag(beta) (K K^T o D), strictly lower        T = (I + A)^-1 diag(beta)      W = T diag(e^gamma) K
//   P = scale (Q K^T o D), lower                      U = T V - W S0
//   O = scale diag(e^gamma) Q S0 + P U                S = e^gamma_C S0 + (diag(e^(gamma_C - gamma)) K)^T U
//
// `prepare` makes T, P and -W of all chunks at once and lays them, with keys, queries and gates, in a record that is read
// as it lies. `forward` walks the chunks of a sequence and head; a warp owns 16
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
/// What `prepare` leaves of a chunk and head: -W, K, Q, T, P in blocks; then gamma, e^gamma, e^(gamma_C - gamma) and beta
/// as float32. K, Q and the gates are what `backward` reads.
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

// ---------------------------------------------------------------------------------------------------------- prepare

/// Row `t` of the inverse of a unit lower triangle [32, 32]: a row a thread, columns from the last to the first. `a` is
/// the triangle without its diagonal, transposed, [column][row] with A_STRIDE a row.
constexpr int A_STRIDE = CHUNK + 4;
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

constexpr int PREPARE_SHARED = (2 * CHUNK * KEY_STRIDE + 2 * TRIANGLE) * 2 + (CHUNK * A_STRIDE + 4 * CHUNK) * 4;

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

// ---------------------------------------------------------------------------------------------------------- forward

/// One chunk in shared memory while states are walked: the record, and values or dO of 64 channels.
constexpr int WALK_STAGE = RECORD + CHUNK * VALUE_STRIDE;
/// A warp's results [CHUNK, 16] on their way out, rows 48 bytes apart.
constexpr int STAGING_STRIDE = 24;
constexpr int WALK_SHARED = (2 * WALK_STAGE + 4 * CHUNK * STAGING_STRIDE) * 2 + 16;

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

// --------------------------------------------------------------------------------------------------------- backward

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

DEVICE float total(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffleXor(x, mask);
  return x;
}

/// The inner product of row `row` of a matrix in blocks with accumulators of that row, complete in every lane of a quad.
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
        multiplyAdd(x[2 * n], x[2 * n + 1], left, loadMatrixTransposed(keys + (kk * KEY_BLOCKS + n) * BLOCK + crossed(lane)));
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
          multiplyAdd(z[2 * n], z[2 * n + 1], a, loadMatrixTransposed(queries + (kk * KEY_BLOCKS + n) * BLOCK + crossed(lane)));
          multiplyAdd(z[2 * n], z[2 * n + 1], b, loadMatrixTransposed(keys + (kk * KEY_BLOCKS + n) * BLOCK + crossed(lane)));
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

/// What the host must know: elements of a record, a state and U; bytes of shared memory of prepare, the walks, backward.
extern "C" __device__ int gatedDeltaRuleSizes[6] = {RECORD, STATE, CORRECTED, PREPARE_SHARED, WALK_SHARED,
                                                    BACKWARD_SHARED};
