#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_f16_same_d192, arch::f16, arch::f16, 192)
