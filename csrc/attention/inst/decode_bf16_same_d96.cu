#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_bf16_same_d96, arch::bf16, arch::bf16, 96)
