#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(f16_same_d64, arch::f16, arch::f16, 64)
