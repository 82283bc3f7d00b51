#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(bf16_same_d64, arch::bf16, arch::bf16, 64)
