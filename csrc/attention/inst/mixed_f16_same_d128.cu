#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(f16_same_d128, arch::f16, arch::f16, 128)
