#include "KernelSources.h"

// clang records what #embed reads as a dependency, so that an edit of a kernel is built in by the next build.
static const char primitives[] = {
#embed "Primitives.cuh"
  , 0};
static const char gatedDeltaRule[] = {
#embed "GatedDeltaRule.cu"
  , 0};
static const char gatedDeltaRuleExact[] = {
#embed "GatedDeltaRuleExact.cu"
  , 0};

jettrain_kernel_source jettrain_kernel_source_at(int index) {
  static const jettrain_kernel_source sources[] = {
    {"Primitives.cuh", primitives, sizeof primitives - 1},
    {"GatedDeltaRule.cu", gatedDeltaRule, sizeof gatedDeltaRule - 1},
    {"GatedDeltaRuleExact.cu", gatedDeltaRuleExact, sizeof gatedDeltaRuleExact - 1},
  };
  static const jettrain_kernel_source none = {0, 0, 0};
  return index >= 0 && index < (int)(sizeof sources / sizeof sources[0]) ? sources[index] : none;
}
