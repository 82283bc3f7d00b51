// The one place that knows two worlds: nvcc for GPUs, and a host compiler for the emulator.
//
// Kernels use what is declared here and plain C++, nothing else: no cuda_bf16.h, no cooperative
// groups, no static __shared__, no inline assembly of their own. Each hand-written PTX instruction
// is one function, with a body in cuda.cuh and one in host.cuh.
#pragma once

#include <stdint.h>

namespace arch {

// Own types: the host has none of CUDA's.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
struct e4m3 {
    uint8_t bits;
};

// 16 bytes, loaded and stored at once.
struct alignas(16) vec4 {
    uint32_t x, y, z, w;
};
struct alignas(8) vec2 {
    uint32_t x, y;
};

}  // namespace arch

#ifdef __CUDACC__
#include "cuda.cuh"
#else
#include "host.cuh"
#endif
