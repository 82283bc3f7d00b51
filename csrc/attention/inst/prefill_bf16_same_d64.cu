#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(bf16_same_d64, arch::bf16, arch::bf16, 64)
