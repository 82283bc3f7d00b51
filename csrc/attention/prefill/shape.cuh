// How a block of the prefill kernel is cut: rows and keys of a tile, warps, shared memory.
#pragma once

#include "../../arch/arch.cuh"
#include "../../common/tile.cuh"
#include "../../kernel_params.h"

namespace inflight {

// A block computes 128 query rows, tile of keys after tile of keys. Up to head_dim 128 four warps
// have 32 rows each, so that what is read of K and V from shared memory is used twice; beyond, the
// outputs of 32 rows would not fit a warp's registers, and eight warps have 16 each.
//
// Tiles of K and V, in turn, go through a ring of slots: with three, a tile is asked for two
// half steps before it is used; two are what 99 KB hold where the queries need most of it.
template <class KV, int D>
struct PrefillShape {
    static constexpr int ROWS = INFLIGHT_PREFILL_ROWS;
    static constexpr int WARPS = D <= 128 ? 4 : 8;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int WARP_ROWS = ROWS / WARPS;
    static constexpr int M = WARP_ROWS / 16;
    // As many as registers hold; converting e4m3 takes some.
    static constexpr bool FEW = D == 256 || (D == 128 && sizeof(KV) == 1);
    static constexpr int KEYS = D == 64 ? 96 : FEW ? 32 : 64;
    static constexpr int SLOTS = 3;
    // Queries stay in registers where a warp has few rows, else in shared memory.
    static constexpr bool REGISTER_Q = D > 128;
    static constexpr int BLOCKS = D <= 128 ? 2 : 1;

    using KvTile = Swizzle<D* static_cast<int>(sizeof(KV))>;
    using QTile = Swizzle<D * 2>;
    static constexpr int SLOT_BYTES = KEYS * D * static_cast<int>(sizeof(KV));
    static constexpr int Q_BYTES = REGISTER_Q ? 0 : ROWS * D * 2;
    static constexpr int Q_AT = SLOTS * SLOT_BYTES;
    static constexpr int QUERIES_AT = Q_AT + Q_BYTES;
    static constexpr int SMEM = QUERIES_AT + ROWS * 4;
    static_assert(SMEM <= 99 * 1024, "what a block may have on sm_86, 89 and 120");
};

// What host code knows of these shapes.
#define INFLIGHT_PREFILL_CHECK(d)                                                             \
    static_assert(PrefillShape<arch::bf16, d>::THREADS == INFLIGHT_PREFILL_THREADS_D##d &&    \
                      PrefillShape<arch::bf16, d>::KEYS == INFLIGHT_PREFILL_KEYS_D##d &&      \
                      PrefillShape<arch::e4m3, d>::KEYS == INFLIGHT_PREFILL_KEYS_E4M3_D##d && \
                      PrefillShape<arch::bf16, d>::SMEM == INFLIGHT_PREFILL_SMEM_D##d &&      \
                      PrefillShape<arch::e4m3, d>::SMEM == INFLIGHT_PREFILL_SMEM_E4M3_D##d,   \
                  "kernel_params.h")
INFLIGHT_PREFILL_CHECK(64);
INFLIGHT_PREFILL_CHECK(96);
INFLIGHT_PREFILL_CHECK(128);
INFLIGHT_PREFILL_CHECK(192);
INFLIGHT_PREFILL_CHECK(256);
#undef INFLIGHT_PREFILL_CHECK

}  // namespace inflight
