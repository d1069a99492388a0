#include "Emulator.h"
#include "KernelEmulator.h"
#define HEAD_SIZE EMULATED_HEAD_SIZE
#define KEY_SIZE EMULATED_STEP_KEY_SIZE
#define ELEMENT bf16
#define STATE float
static inline int min(int a, int b) { return a < b ? a : b; }
namespace {
#include "CacheAttention.cu"
#include "DeltaRuleStep.cu"
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
  int values, float *state, void *o) {
  emulation::launch({(unsigned)(values + 127) / 128, (unsigned)heads, (unsigned)sequences}, STEP_WARPS * 32, 0, [&] {
    deltaRuleStep((const bf16 *)q, (const bf16 *)k, (const bf16 *)v, g, beta, scale, values, state, (bf16 *)o);
  });
}
