// What a GPU can do at most, for benches: reading, copying, products of tensor cores by mma.sync.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

using arch::vec4;

constexpr int ceiling_threads = 256;

// benches/gpu/ceilings.rs has the same.
struct ceiling_params {
    uint64_t from;     // vec4 [vectors]
    uint64_t to;       // copy: vec4 [vectors]; others: u32, one per warp of the grid
    uint64_t vectors;  // a product: turns of its loop
};

ARCH_FN uint64_t ceiling_thread() {
    return static_cast<uint64_t>(blockIdx.x) * ceiling_threads + threadIdx.x;
}

// A word for each warp, so that nothing computed is left out, and a test can look at it.
ARCH_FN void ceiling_result(const ceiling_params& p, uint32_t x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) x ^= arch::shfl_xor(x, step);
    if (threadIdx.x % 32 == 0) reinterpret_cast<uint32_t*>(p.to)[ceiling_thread() / 32] = x;
}

// The exclusive or of all words.
ARCH_FN void ceiling_read(const ceiling_params& p) {
    constexpr int unroll = 8;
    const auto* from = reinterpret_cast<const vec4*>(p.from);
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * ceiling_threads;
    uint32_t x = 0;
    uint64_t at = ceiling_thread();
    for (; at + (unroll - 1) * step < p.vectors; at += unroll * step) {
        vec4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; i++) v[i] = arch::load_const(from + at + i * step);
#pragma unroll
        for (int i = 0; i < unroll; i++) x ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    for (; at < p.vectors; at += step) {
        const vec4 v = arch::load_const(from + at);
        x ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    ceiling_result(p, x);
}

ARCH_FN void ceiling_copy(const ceiling_params& p) {
    constexpr int unroll = 4;
    const auto* from = reinterpret_cast<const vec4*>(p.from);
    auto* to = reinterpret_cast<vec4*>(p.to);
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * ceiling_threads;
    uint64_t at = ceiling_thread();
    for (; at + (unroll - 1) * step < p.vectors; at += unroll * step) {
        vec4 v[unroll];
#pragma unroll
        for (int i = 0; i < unroll; i++) v[i] = arch::load_const(from + at + i * step);
#pragma unroll
        for (int i = 0; i < unroll; i++) arch::store_global(to + at + i * step, v[i]);
    }
    for (; at < p.vectors; at += step) arch::store_global(to + at, arch::load_const(from + at));
}

// Products of registers, 8 independent ones a warp: 16 x 8 x 16 each, of numbers near 1.
ARCH_FN void ceiling_mma(const ceiling_params& p) {
    constexpr int independent = 8;
    float sums[independent][4] = {};
    const float near_one = 1.0f + static_cast<float>(threadIdx.x % 32) / 64.0f;
    const uint32_t two = arch::pack(near_one, -near_one, arch::bf16{});
    const uint32_t a[4] = {two, two ^ 0x10u, two ^ 0x20u, two ^ 0x30u};
    for (uint64_t turn = 0; turn < p.vectors; turn++) {
#pragma unroll
        for (int i = 0; i < independent; i++)
            arch::mma(sums[i], a, two ^ static_cast<uint32_t>(i), two, arch::bf16{});
    }
    uint32_t x = 0;
#pragma unroll
    for (int i = 0; i < independent; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) x ^= arch::as_u32(sums[i][j]);
    }
    ceiling_result(p, x);
}

}  // namespace inflight
