#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_bf16_e4m3_d96, arch::bf16, arch::e4m3, 96)
