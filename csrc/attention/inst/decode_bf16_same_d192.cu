#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_bf16_same_d192, arch::bf16, arch::bf16, 192)
