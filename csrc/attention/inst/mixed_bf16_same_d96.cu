#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(bf16_same_d96, arch::bf16, arch::bf16, 96)
