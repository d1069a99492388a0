// The kernels of the gated delta rule, run on the CPU (Emulator.h). Arrays as the kernels take them, chunks and segments
// as `ChunkTable` makes them; bfloat16 as its bits.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const void *q, *k, *v, *dO;
  const float *g, *beta, *initial, *dFinal;
  const int *chunks, *segments;
  int tokens, chunkCount, segmentCount, heads;
  float scale;
} emulated_inputs;

typedef struct {
  void *o, *dQ, *dK, *dV;
  float *final, *dG, *dBeta, *dInitial;
} emulated_outputs;

/// Head sizes that the tensor-core kernels are emulated with.
enum { EMULATED_KEY_SIZE = 48, EMULATED_VALUE_SIZE = 80 };

/// GatedDeltaRule.cu on bfloat16, with the copies of sm_80 or with the bulk copies of sm_90.
void emulate_gated_delta_rule(emulated_inputs, emulated_outputs);
void emulate_gated_delta_rule_bulk(emulated_inputs, emulated_outputs);
/// GatedDeltaRuleExact.cu on float32, with any head sizes.
void emulate_gated_delta_rule_exact(emulated_inputs, emulated_outputs, int keySize, int valueSize);

/// Sizes that the kernels of decoding are emulated with.
enum { EMULATED_HEAD_SIZE = 64, EMULATED_STEP_KEY_SIZE = 40, EMULATED_STEP_VALUE_SIZE = 132 };

/// CacheAttention.cu: the parts that blocks find, [S, H, parts, HEAD_SIZE] and [S, H, parts, 2].
void emulate_cache_attention(
  const void *q, const void *keys, const void *values, const int *positions, int sequences, int heads, int groups,
  int room, int rowsPerBlock, float scale, float *outputs, float *sums);
/// DeltaRuleStep.cu on states in float32.
void emulate_delta_rule_step(
  const void *q, const void *k, const void *v, const float *g, const float *beta, float scale, int sequences, int heads,
  float *state, void *o);
/// JetStep.cu on rows of q, k, v, a and b, states in float32.
void emulate_jet_step(
  const void *projected, const void *taps, const float *tapBias, const float *aLog, const float *dtBias, float epsilon,
  float scale, int sequences, int heads, void *history, float *state, void *o);

#ifdef __cplusplus
}
#endif
