#include "merge.cuh"

using namespace inflight;

ARCH_KERNEL(inflight_merge_f16, merge_threads, 8, inflight_merge_params, merge<arch::f16>)
