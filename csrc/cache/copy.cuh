// Copies of whole blocks: many blocks of many arrays (K and V of every layer) in one launch, within
// a device and to or from page-locked host memory.
#pragma once

#include "../common/dtype.cuh"
#include "../kernel_params.h"

namespace inflight {

constexpr int copy_threads = INFLIGHT_COPY_THREADS;

// Vectors a thread has under way.
constexpr int copy_unroll = 4;

// A piece of a block for `lanes` threads, a warp at least: small blocks are copied several at a
// time, since threads without a vector of theirs do nothing.
ARCH_FN uint32_t copy_lanes(uint64_t vectors) {
    uint32_t lanes = 32;
    while (lanes < copy_threads && lanes * copy_unroll < vectors) lanes *= 2;
    return lanes;
}

ARCH_FN void copy_piece(const vec4* from, vec4* to, uint64_t first, uint64_t step, uint64_t end) {
    vec4 v[copy_unroll];
#pragma unroll
    for (int i = 0; i < copy_unroll; i++) {
        const uint64_t at = first + i * step;
        if (at < end) v[i] = arch::load_global(from + at);
    }
#pragma unroll
    for (int i = 0; i < copy_unroll; i++) {
        const uint64_t at = first + i * step;
        if (at < end) arch::store_global(to + at, v[i]);
    }
}

// Pieces follow each other within a block, blocks within an array. Any grid copies all of them.
ARCH_FN void copy_blocks(const inflight_copy_params& p) {
    arch::wait_for_prior_kernel();
    arch::let_next_kernel_start();

    const auto* arrays = reinterpret_cast<const inflight_copy_array*>(p.arrays);
    const auto* pairs = reinterpret_cast<const uint32_t*>(p.pairs);
    const uint64_t vectors = p.block_bytes / 16;
    const uint32_t lanes = copy_lanes(vectors);
    const uint32_t at_once = copy_threads / lanes;
    const uint32_t lane = threadIdx.x % lanes;
    const uint64_t a_piece = static_cast<uint64_t>(lanes) * copy_unroll;
    const uint64_t pieces = (vectors + a_piece - 1) / a_piece;
    const uint64_t all = pieces * p.num_pairs * p.num_arrays;

    uint64_t piece = static_cast<uint64_t>(blockIdx.x) * at_once + threadIdx.x / lanes;
    for (; piece < all; piece += static_cast<uint64_t>(gridDim.x) * at_once) {
        const uint64_t copy = piece / pieces;
        const uint64_t nth = piece - copy * pieces;
        const uint64_t array = copy / p.num_pairs;
        const uint64_t pair = copy - array * p.num_pairs;
        const inflight_copy_array sides = arrays[array];
        const uint64_t from = sides.from + pairs[2 * pair] * sides.from_block;
        const uint64_t to = sides.to + pairs[2 * pair + 1] * sides.to_block;
        copy_piece(reinterpret_cast<const vec4*>(from), reinterpret_cast<vec4*>(to),
                   nth * a_piece + lane, lanes, vectors);
    }
}

}  // namespace inflight
