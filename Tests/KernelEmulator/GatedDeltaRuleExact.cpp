#include "Emulator.h"
#include "KernelEmulator.h"
namespace {
#include "GatedDeltaRuleExact.cu"
}

extern "C" void emulate_gated_delta_rule_exact(emulated_inputs x, emulated_outputs y, int keySize, int valueSize) {
  std::vector<float> starts((size_t)x.chunkCount * x.heads * keySize * valueSize, NAN);
  std::vector<float> corrected((size_t)x.tokens * x.heads * valueSize, NAN);
  std::vector<float> workspace((size_t)x.segmentCount * x.heads * workspaceFloats(keySize, valueSize), NAN);
  const Dimensions grid = {(unsigned)x.heads, (unsigned)x.segmentCount, 1};
  emulation::launch(grid, THREADS, 0, [&] {
    gatedDeltaRuleExactForward(
      (const float *)x.q, (const float *)x.k, (const float *)x.v, x.g, x.beta, x.chunks, x.segments, x.heads, keySize,
      valueSize, x.scale, x.initial, (float *)y.o, y.final, starts.data(), corrected.data(), workspace.data());
  });
  std::fill(workspace.begin(), workspace.end(), NAN);
  emulation::launch(grid, THREADS, 0, [&] {
    gatedDeltaRuleExactBackward(
      (const float *)x.q, (const float *)x.k, (const float *)x.v, x.g, x.beta, (const float *)x.dO, x.dFinal,
      starts.data(), corrected.data(), x.chunks, x.segments, x.heads, keySize, valueSize, x.scale, (float *)y.dQ,
      (float *)y.dK, (float *)y.dV, y.dG, y.dBeta, y.dInitial, workspace.data());
  });
}
