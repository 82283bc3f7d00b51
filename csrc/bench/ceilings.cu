#include "ceilings.cuh"

using namespace inflight;

ARCH_KERNEL(inflight_ceiling_read, ceiling_threads, 4, ceiling_params, ceiling_read)
ARCH_KERNEL(inflight_ceiling_copy, ceiling_threads, 4, ceiling_params, ceiling_copy)
ARCH_KERNEL(inflight_ceiling_mma, ceiling_threads, 2, ceiling_params, ceiling_mma)
