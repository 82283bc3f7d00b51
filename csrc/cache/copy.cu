#include "copy.cuh"

using namespace inflight;

ARCH_KERNEL(inflight_copy_blocks, copy_threads, 6, inflight_copy_params, copy_blocks)
