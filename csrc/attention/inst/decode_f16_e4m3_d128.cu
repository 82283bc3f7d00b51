#include "../decode/decode.cuh"

INFLIGHT_DECODE_KERNELS(inflight_decode_f16_e4m3_d128, arch::f16, arch::e4m3, 128)
