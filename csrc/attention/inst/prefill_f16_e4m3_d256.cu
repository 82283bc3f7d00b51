#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(f16_e4m3_d256, arch::f16, arch::e4m3, 256)
