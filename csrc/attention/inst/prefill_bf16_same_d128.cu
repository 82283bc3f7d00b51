#include "../prefill/prefill.cuh"

INFLIGHT_PREFILL(bf16_same_d128, arch::bf16, arch::bf16, 128)
