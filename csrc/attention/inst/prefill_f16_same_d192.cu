#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(f16_same_d192, arch::f16, arch::f16, 192)
