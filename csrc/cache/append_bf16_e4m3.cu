#include "append.cuh"

using namespace inflight;

ARCH_KERNEL(inflight_append_bf16_e4m3, append_threads, 7, inflight_append_params,
            append<arch::bf16, arch::e4m3>)
