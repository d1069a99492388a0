#include "Emulator.h"
#include "KernelEmulator.h"
#define HEAD_SIZE EMULATED_HEAD_SIZE
#define KEY_SIZE EMULATED_STEP_KEY_SIZE
#define VALUE_SIZE EMULATED_STEP_VALUE_SIZE
#define ELEMENT bf16
#define STATE float
static inline int min(int a, int b) { return a < b ? a : b; }
namespace {
#include "CacheAttention.cu"
#include "DeltaRuleStep.cu"
#include "JetStep.cu"
}  // namespace

extern "C" void emulate_cache_attention(
  const void *q, const void *keys, const void *values, const int *positions, int sequences, int heads, int groups,
  int room, int rowsPerBlock, float scale, float *outputs, float *sums) {
  const unsigned parts = (room + rowsPerBlock - 1) / rowsPerBlock, packs = (heads / groups + 7) / 8;
  emulation::launch({parts, groups * packs, (unsigned)sequences}, 128, 32 * HEAD_SIZE * 4, [&] {
    cacheAttention(
      (const bf16 *)q, (const bf16 *)keys, (const bf16 *)values, positions, heads, groups, room, rowsPerBlock, scale,
      outputs, sums);
  });
}

extern "C" void emulate_delta_rule_step(
  const void *q, const void *k, const void *v, const float *g, const float *beta, float scale, int sequences, int heads,
  float *state, void *o) {
  emulation::launch({(unsigned)(VALUE_SIZE + 127) / 128, (unsigned)heads, (unsigned)sequences}, STEP_WARPS * 32, 0, [&] {
    deltaRuleStep((const bf16 *)q, (const bf16 *)k, (const bf16 *)v, g, beta, scale, state, (bf16 *)o);
  });
}

extern "C" void emulate_jet_step(
  const void *projected, const void *taps, const float *tapBias, const float *aLog, const float *dtBias, float epsilon,
  float scale, int sequences, int heads, void *history, float *state, void *o) {
  const int keys = heads * KEY_SIZE, stride = 2 * keys + heads * VALUE_SIZE + 2 * heads;
  const bf16 *q = (const bf16 *)projected, *v = q + 2 * keys, *a = v + heads * VALUE_SIZE;
  emulation::launch({(unsigned)(VALUE_SIZE + 127) / 128, (unsigned)heads, (unsigned)sequences}, STEP_WARPS * 32, 0, [&] {
    jetStep(
      q, q + keys, v, a, a + heads, stride, (const bf16 *)taps, tapBias, aLog, dtBias, epsilon, scale, (bf16 *)history, state, (bf16 *)o);
  });
}
