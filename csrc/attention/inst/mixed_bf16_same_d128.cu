#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(bf16_same_d128, arch::bf16, arch::bf16, 128)
