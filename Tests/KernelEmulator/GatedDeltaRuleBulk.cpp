#define HAS_BULK_COPIES 1
#define KERNEL(name) emulatedBulk##name
#define EMULATE emulate_gated_delta_rule_bulk
#include "GatedDeltaRule.inc"
