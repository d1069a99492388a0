// The choice of the next token (Tensors/Sampling.swift). Tokens stand in the order of their logits, the largest first; where a
// count of tokens or an amount of probability ends is found by halving the range of logits, bit by bit, instead of sorting
// them. Probabilities are whole numbers, so that sums are the same in any order.
#include "Values.cuh"

constexpr int SAMPLING_THREADS = 512;

/// Bits that stand in the order of the numbers.
DEVICE u32 orderOf(float x) {
  // Zeros of both signs are one.
  const u32 bits = x == 0.0f ? 0 : asBits(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// How many tokens, and how much probability.
struct Measure {
  u64 tokens, mass;
};

struct Row {
  u64 logits;
  long long first;
  int size;
  float largest, sharpness;

  DEVICE float at(int i) const { return loadValue(logits, first + i); }
  /// In units of 2^-40.
  DEVICE u64 weight(float x) const { return (u64)(exactExponential((x - largest) * sharpness) * 1099511627776.0f); }
};

/// The sum of x over the block, in every thread.
DEVICE u64 blockTotal(u64 x, u64 *shared) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  u64 all = 0;
  for (int w = 0; w < SAMPLING_THREADS / 32; ++w) all += shared[w];
  __syncthreads();
  return all;
}

/// Of the tokens whose logits are `order` or more.
DEVICE Measure above(const Row &row, u32 order, bool counts, u64 *shared) {
  Measure m = {0, 0};
  for (int i = threadIdx.x; i < row.size; i += SAMPLING_THREADS) {
    const float x = row.at(i);
    if (orderOf(x) < order) continue;
    m.tokens += 1;
    if (!counts) m.mass += row.weight(x);
  }
  m.tokens = counts ? blockTotal(m.tokens, shared) : 0;
  m.mass = counts ? 0 : blockTotal(m.mass, shared);
  return m;
}

/// The largest order from which on there are at least so many tokens, or is at least so much probability.
DEVICE u32 find(const Row &row, u64 target, bool counts, u64 *shared) {
  u32 order = 0;
  // Logits in bfloat16 that are not negative have no bits below the upper half.
  for (int bit = 31; bit >= 0; --bit) {
    const Measure m = above(row, order | 1u << bit, counts, shared);
    if ((counts ? m.tokens : m.mass) >= target) order |= 1u << bit;
  }
  return order;
}

/// tokens[s] = the token of row s of the logits [S, size] that uniforms[s] draws; -1 where one is not finite. Sharpness 0: the
/// most likely one, else it is the inverse of a temperature. grid (S), 512 threads
extern "C" __global__ void __launch_bounds__(SAMPLING_THREADS) chooseTokens(
  u64 logits, const float *uniforms, int *tokens, int size, float sharpness, int topK, double topP) {
  __shared__ u64 shared[SAMPLING_THREADS / 32];
  const int s = blockIdx.x;
  Row row = {logits, (long long)s * size, size, 0, sharpness};
  // The most likely token, of equal ones the first: order in the upper half, what is left of ids in the lower.
  u64 best = 0;
  bool isFinite = true;
  for (int i = threadIdx.x; i < size; i += SAMPLING_THREADS) {
    const float x = row.at(i);
    isFinite = isFinite && (asBits(x) & 0x7f800000u) != 0x7f800000u;
    const u64 key = (u64)orderOf(x) << 32 | (0xffffffffu - i);
    best = key > best ? key : best;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const u64 other = __shfl_xor_sync(0xffffffffu, best, mask);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  if (!__syncthreads_and(isFinite)) {
    if (threadIdx.x == 0) tokens[s] = -1;
    return;
  }
  for (int w = 0; w < SAMPLING_THREADS / 32; ++w) best = shared[w] > best ? shared[w] : best;
  __syncthreads();
  const int likeliest = (int)(0xffffffffu - (u32)best);
  if (sharpness == 0.0f) {
    if (threadIdx.x == 0) tokens[s] = likeliest;
    return;
  }
  row.largest = row.at(likeliest);

  /// The logit of an order.
  auto valueOf = [](u32 order) { return asFloat(order >> 31 ? order & 0x7fffffffu : ~order); };
  u64 mass;
  if (topK > 0 && topK < size) {
    const u32 order = find(row, topK, true, shared);
    const u64 more = order == 0xffffffffu ? 0 : above(row, order + 1, true, shared).tokens;
    mass = (order == 0xffffffffu ? 0 : above(row, order + 1, false, shared).mass) +
           (topK - more) * row.weight(valueOf(order));
  } else {
    mass = above(row, 0, false, shared).mass;
  }
  if (topP < 1) {
    u64 least = (u64)(topP * (double)mass);
    least = least > 1 ? least : 1;
    const u32 order = find(row, least, false, shared);
    const u64 more = above(row, order + 1, false, shared).mass, each = row.weight(valueOf(order));
    // As many whole shares as reach it; a division would be a call.
    u64 shares = 0;
    for (int bit = 22; bit >= 0; --bit)
      if ((shares | 1ull << bit) * each < least - more) shares |= 1ull << bit;
    mass = more + (shares + 1) * each;
  }
  u64 target = (u64)((double)uniforms[s] * (double)mass);
  target = target < mass ? target : mass - 1;
  const u32 order = find(row, target + 1, false, shared);
  const u64 more = above(row, order + 1, false, shared).mass;
  // Of the tokens of this order the one in whose share the target lies.
  const u64 each = row.weight(valueOf(order)), place = target - more;
  u64 passed = 0;
  for (int begin = 0; begin < size; begin += SAMPLING_THREADS) {
    const int i = begin + threadIdx.x;
    const bool isOne = i < size && orderOf(row.at(i)) == order;
    const u32 mine = __ballot_sync(0xffffffffu, isOne);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = __popc(mine);
    __syncthreads();
    u64 before = __popc(mine & ((1u << threadIdx.x % 32) - 1)), all = 0;
    for (int w = 0; w < SAMPLING_THREADS / 32; ++w) {
      if (w < threadIdx.x / 32) before += shared[w];
      all += shared[w];
    }
    before += passed;
    if (isOne && before * each <= place && place < (before + 1) * each) tokens[s] = i;
    __syncthreads();
    passed += all;
    if (place < passed * each) return;
  }
}
