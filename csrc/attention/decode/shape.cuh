// Sizes of the decode kernel: what kernel_params.h tells the host is checked here.
#pragma once

#include "../../kernel_params.h"

namespace inflight {

constexpr int DECODE_PART_BYTES = 48;

// What kernel_params.h says, by head_dim and element size of the cache.
struct DecodeLimits {
    int tile_keys, blocks, smem;
};
template <int D, int KV_BYTES>
constexpr DecodeLimits decode_limits = {};
#define INFLIGHT_DECODE_LIMITS(D)                                                      \
    template <>                                                                        \
    constexpr DecodeLimits decode_limits<D, 2> = {INFLIGHT_DECODE_TILE_KEYS_SAME_D##D, \
                                                  INFLIGHT_DECODE_BLOCKS_SAME_D##D,    \
                                                  INFLIGHT_DECODE_SMEM_SAME_D##D};     \
    template <>                                                                        \
    constexpr DecodeLimits decode_limits<D, 1> = {INFLIGHT_DECODE_TILE_KEYS_E4M3_D##D, \
                                                  INFLIGHT_DECODE_BLOCKS_E4M3_D##D,    \
                                                  INFLIGHT_DECODE_SMEM_E4M3_D##D};
INFLIGHT_DECODE_LIMITS(64)
INFLIGHT_DECODE_LIMITS(96)
INFLIGHT_DECODE_LIMITS(128)
INFLIGHT_DECODE_LIMITS(192)
INFLIGHT_DECODE_LIMITS(256)
#undef INFLIGHT_DECODE_LIMITS

template <int HEAD_DIM, int ELEMENT_BYTES>
struct DecodeShape {
    static constexpr int D = HEAD_DIM, KV_BYTES = ELEMENT_BYTES;
    static constexpr int WARPS = 4, THREADS = 32 * WARPS;
    static constexpr int ROWS = 16;  // of mma
    // Short rows of the cache are taken 32 keys at a time: a step's fixed work (the search for
    // pages, shuffles of the softmax) is then spread over as many bytes.
    static constexpr int ROW_BYTES = D * KV_BYTES;
    static constexpr int WARP_KEYS = KV_BYTES == 1 || ROW_BYTES <= 128 ? 32 : 16;
    static constexpr int TILE_KEYS = WARPS * WARP_KEYS;
    static constexpr int HALF_BYTES = WARP_KEYS * ROW_BYTES;  // K or V of a warp's stage
    static constexpr int STAGE_BYTES = 2 * HALF_BYTES;
    // Two or three blocks a multiprocessor, of 48 to 96 KB: together they keep at least 64 KB under
    // way, and one reads while the other finishes a part. So each fits the 99 KB that a block can
    // have on sm_86, 89 and 120, too.
    static constexpr int STAGES = D == 256 ? 1 : D == 192 ? 2 : 3;
    static constexpr int BLOCKS = decode_limits<D, KV_BYTES>.blocks;
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
    static_assert(THREADS == INFLIGHT_DECODE_THREADS, "kernel_params.h says otherwise");
    static_assert(ROWS == INFLIGHT_DECODE_ROWS, "kernel_params.h says otherwise");
    static_assert(TILE_KEYS == decode_limits<D, KV_BYTES>.tile_keys, "kernel_params.h differs");
    static_assert(BYTES == decode_limits<D, KV_BYTES>.smem, "kernel_params.h differs");
    static_assert(BLOCKS * (BYTES + 1024) <= 228 * 1024, "blocks do not fit a multiprocessor");
};

}  // namespace inflight
