// How a block of the prefill kernel is cut: rows and keys of a tile, warps, shared memory.
#pragma once

#include "../../arch/arch.cuh"
#include "../../common/tile.cuh"
#include "../../common/traits.cuh"

namespace inflight {

// A block computes the query rows of a tile, tile of keys after tile of keys.
//
// Tiles of K and V, in turn, go through a ring of slots: with three, a tile is asked for two
// half steps before it is used; two are what 99 KB hold where the queries need most of it.
template <class Traits>
struct PrefillShape {
    static constexpr int D = Traits::D, KV_BYTES = Traits::KV_BYTES;
    static constexpr int ROWS = Traits::ROWS, KEYS = Traits::KEYS, SLOTS = Traits::STAGES;
    static constexpr int THREADS = Traits::THREADS, WARPS = THREADS / 32;
    static constexpr int WARP_ROWS = ROWS / WARPS;
    static constexpr int M = WARP_ROWS / 16;
    // Queries stay in registers where a warp has few rows, else in shared memory.
    static constexpr bool REGISTER_Q = M == 1;

    using KvTile = Swizzle<D * KV_BYTES>;
    using QTile = Swizzle<D * 2>;
    static constexpr int SLOT_BYTES = KEYS * D * KV_BYTES;
    static constexpr int Q_BYTES = REGISTER_Q ? 0 : ROWS * D * 2;
    static constexpr int Q_AT = SLOTS * SLOT_BYTES;
    static constexpr int QUERIES_AT = Q_AT + Q_BYTES;
    static constexpr int SMEM = QUERIES_AT + ROWS * 4;
    static_assert(SMEM == Traits::SMEM, "kernels.def has another number of bytes");
};

}  // namespace inflight
