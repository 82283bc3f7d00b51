#include "../mixed/mixed.cuh"

INFLIGHT_MIXED(f16_e4m3_d64, arch::f16, arch::e4m3, 64)
