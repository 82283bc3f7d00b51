#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(bf16_same_d192, arch::bf16, arch::bf16, 192)
