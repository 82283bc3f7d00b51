#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_f16_same_d64, arch::f16, arch::f16, 64)
