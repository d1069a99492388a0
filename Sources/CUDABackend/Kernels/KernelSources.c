#include "KernelSources.h"

// clang records what #embed reads as a dependency, so that an edit of a kernel is built in by the next build.
static const char attention[] = {
#embed "Attention.cu"
  , 0};
static const char attentionExact[] = {
#embed "AttentionExact.cu"
  , 0};
static const char attentionHopper[] = {
#embed "AttentionHopper.cu"
  , 0};
static const char attentionHopperHeader[] = {
#embed "AttentionHopper.cuh"
  , 0};
static const char attentionHopperBackward[] = {
#embed "AttentionHopperBackward.cu"
  , 0};
static const char cacheAttention[] = {
#embed "CacheAttention.cu"
  , 0};
static const char caches[] = {
#embed "Caches.cu"
  , 0};
static const char convolution[] = {
#embed "Convolution.cu"
  , 0};
static const char deltaRuleStep[] = {
#embed "DeltaRuleStep.cu"
  , 0};
static const char deltaRuleStepHeader[] = {
#embed "DeltaRuleStep.cuh"
  , 0};
static const char dynamicConvolution[] = {
#embed "DynamicConvolution.cu"
  , 0};
static const char elements[] = {
#embed "Elements.cu"
  , 0};
static const char elementwise[] = {
#embed "Elementwise.cu"
  , 0};
static const char gatedDeltaRuleHeader[] = {
#embed "GatedDeltaRule.cuh"
  , 0};
static const char gatedDeltaRuleBackward[] = {
#embed "GatedDeltaRuleBackward.cu"
  , 0};
static const char gatedDeltaRuleBackwardStates[] = {
#embed "GatedDeltaRuleBackwardStates.cu"
  , 0};
static const char gatedDeltaRuleExact[] = {
#embed "GatedDeltaRuleExact.cu"
  , 0};
static const char gatedDeltaRuleForward[] = {
#embed "GatedDeltaRuleForward.cu"
  , 0};
static const char gatedDeltaRulePrepare[] = {
#embed "GatedDeltaRulePrepare.cu"
  , 0};
static const char gatedDeltaRuleWalkHeader[] = {
#embed "GatedDeltaRuleWalk.cuh"
  , 0};
static const char jetStep[] = {
#embed "JetStep.cu"
  , 0};
static const char losses[] = {
#embed "Losses.cu"
  , 0};
static const char normalization[] = {
#embed "Normalization.cu"
  , 0};
static const char primitivesHeader[] = {
#embed "Primitives.cuh"
  , 0};
static const char recurrence[] = {
#embed "Recurrence.cu"
  , 0};
static const char rowsHeader[] = {
#embed "Rows.cuh"
  , 0};
static const char rowsAndColumns[] = {
#embed "RowsAndColumns.cu"
  , 0};
static const char sampling[] = {
#embed "Sampling.cu"
  , 0};
static const char spansHeader[] = {
#embed "Spans.cuh"
  , 0};
static const char tables[] = {
#embed "Tables.cu"
  , 0};
static const char valuesHeader[] = {
#embed "Values.cuh"
  , 0};

jettrain_kernel_source jettrain_kernel_source_at(int index) {
  static const jettrain_kernel_source sources[] = {
    {"Attention.cu", attention, sizeof attention - 1},
    {"AttentionExact.cu", attentionExact, sizeof attentionExact - 1},
    {"AttentionHopper.cu", attentionHopper, sizeof attentionHopper - 1},
    {"AttentionHopper.cuh", attentionHopperHeader, sizeof attentionHopperHeader - 1},
    {"AttentionHopperBackward.cu", attentionHopperBackward, sizeof attentionHopperBackward - 1},
    {"CacheAttention.cu", cacheAttention, sizeof cacheAttention - 1},
    {"Caches.cu", caches, sizeof caches - 1},
    {"Convolution.cu", convolution, sizeof convolution - 1},
    {"DeltaRuleStep.cu", deltaRuleStep, sizeof deltaRuleStep - 1},
    {"DeltaRuleStep.cuh", deltaRuleStepHeader, sizeof deltaRuleStepHeader - 1},
    {"DynamicConvolution.cu", dynamicConvolution, sizeof dynamicConvolution - 1},
    {"Elements.cu", elements, sizeof elements - 1},
    {"Elementwise.cu", elementwise, sizeof elementwise - 1},
    {"GatedDeltaRule.cuh", gatedDeltaRuleHeader, sizeof gatedDeltaRuleHeader - 1},
    {"GatedDeltaRuleBackward.cu", gatedDeltaRuleBackward, sizeof gatedDeltaRuleBackward - 1},
    {"GatedDeltaRuleBackwardStates.cu", gatedDeltaRuleBackwardStates, sizeof gatedDeltaRuleBackwardStates - 1},
    {"GatedDeltaRuleExact.cu", gatedDeltaRuleExact, sizeof gatedDeltaRuleExact - 1},
    {"GatedDeltaRuleForward.cu", gatedDeltaRuleForward, sizeof gatedDeltaRuleForward - 1},
    {"GatedDeltaRulePrepare.cu", gatedDeltaRulePrepare, sizeof gatedDeltaRulePrepare - 1},
    {"GatedDeltaRuleWalk.cuh", gatedDeltaRuleWalkHeader, sizeof gatedDeltaRuleWalkHeader - 1},
    {"JetStep.cu", jetStep, sizeof jetStep - 1},
    {"Losses.cu", losses, sizeof losses - 1},
    {"Normalization.cu", normalization, sizeof normalization - 1},
    {"Primitives.cuh", primitivesHeader, sizeof primitivesHeader - 1},
    {"Recurrence.cu", recurrence, sizeof recurrence - 1},
    {"Rows.cuh", rowsHeader, sizeof rowsHeader - 1},
    {"RowsAndColumns.cu", rowsAndColumns, sizeof rowsAndColumns - 1},
    {"Sampling.cu", sampling, sizeof sampling - 1},
    {"Spans.cuh", spansHeader, sizeof spansHeader - 1},
    {"Tables.cu", tables, sizeof tables - 1},
    {"Values.cuh", valuesHeader, sizeof valuesHeader - 1},
  };
  static const jettrain_kernel_source none = {0, 0, 0};
  return index >= 0 && index < (int)(sizeof sources / sizeof sources[0]) ? sources[index] : none;
}
