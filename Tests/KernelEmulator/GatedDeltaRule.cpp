#define KERNEL(name) emulated##name
#define EMULATE emulate_gated_delta_rule
#include "GatedDeltaRule.inc"
