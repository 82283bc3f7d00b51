#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(bf16_e4m3_d96, arch::bf16, arch::e4m3, 96)
