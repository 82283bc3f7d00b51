#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(f16_same_d96, arch::f16, arch::f16, 96)
