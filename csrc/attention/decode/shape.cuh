// Sizes of the decode kernel, by a row of kernels.def.
#pragma once

#include "../../common/traits.cuh"

namespace inflight {

constexpr int DECODE_PART_BYTES = 48;

template <class Traits>
struct DecodeShape {
    static constexpr int D = Traits::D, KV_BYTES = Traits::KV_BYTES, STAGES = Traits::STAGES;
    static constexpr int ROWS = Traits::ROWS, THREADS = Traits::THREADS, WARPS = THREADS / 32;
    static constexpr int TILE_KEYS = Traits::KEYS, WARP_KEYS = TILE_KEYS / WARPS;
    static constexpr int HALF_BYTES = WARP_KEYS * D * KV_BYTES;  // K or V of a warp's stage
    static constexpr int STAGE_BYTES = 2 * HALF_BYTES;
    // Loading is at most STAGES parts ahead of computing, so half of the parts that a warp keeps
    // can be looked up at once.
    static constexpr int PARTS = 8;

    // A warp's shared memory: stages, then parts.
    static constexpr int LOOKED_UP = STAGES * STAGE_BYTES;
    static constexpr int WARP_BYTES = LOOKED_UP + PARTS * DECODE_PART_BYTES;
    // The block's: largest logits and sums of the warps' rows, and a flag.
    static constexpr int MAX_SUM = WARPS * WARP_BYTES;
    static constexpr int FLAG = MAX_SUM + WARPS * ROWS * 8;
    // Queries, where these and accumulators do not fit 255 registers.
    static constexpr bool SHARED_QUERIES = D == 256;
    static constexpr int QUERIES = FLAG + 16;
    static constexpr int BYTES = QUERIES + (SHARED_QUERIES ? D / 16 * 32 * 16 : 0);

    static_assert(STAGES < PARTS / 2, "parts are replaced while they are computed");
    static_assert(STAGE_BYTES >= ROWS * D * 4, "a stage holds a warp's outputs");
    static_assert(ROWS == 16, "of an operand of mma");
    static_assert(BYTES == Traits::SMEM, "kernels.def has another number of bytes");
};

}  // namespace inflight
