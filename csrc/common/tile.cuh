// Tiles of rows in shared memory, and their loading from a paged cache.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

// A tile of rows of ROW_BYTES, for ldmatrix: the 16-byte chunks of a row are permuted, so that
// chunk c of eight consecutive rows lies in eight different groups of four banks.
template <int ROW_BYTES>
struct Swizzle {
    static constexpr int CHUNKS = ROW_BYTES / 16;
    static_assert(ROW_BYTES % 16 == 0, "rows are made of 16-byte chunks");
    // The permutation is an exclusive or, within the largest power of two that divides the row's
    // chunks (eight are all banks). Where it is below eight, rows themselves begin in other banks.
    static constexpr int BITS = CHUNKS % 8 == 0 ? 3 : CHUNKS % 4 == 0 ? 2 : CHUNKS % 2 == 0 ? 1 : 0;

    // Byte offset of a chunk in the tile.
    static ARCH_MEMBER uint32_t at(uint32_t row, uint32_t chunk) {
        const uint32_t x = (row >> (3 - BITS)) & ((1u << BITS) - 1);
        return row * ROW_BYTES + ((chunk ^ x) << 4);
    }
};

// One warp copies ROWS rows (at most 32), asynchronously, to rows first_row.. of the tile at `to`.
// Lane first_lane + r holds the address of row r, or 0 if the row is to be zeros: so each lane
// computes one address, and lanes exchange them. Chunks from `chunks` on are zeros, too: no byte
// beyond a row's is read. The caller commits.
template <class Layout, int ROWS>
ARCH_FN void load_rows(uint32_t to, uint32_t first_row, uint64_t address, uint32_t first_lane,
                       uint32_t chunks) {
    constexpr int CHUNKS = Layout::CHUNKS;
    static_assert(ROWS <= 32 && ROWS * CHUNKS % 32 == 0, "a warp copies 32 chunks at a time");
    const uint32_t lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / 32; i++) {
        const uint32_t at = i * 32 + lane, row = at / CHUNKS, chunk = at % CHUNKS;
        const uint64_t from = arch::shfl(address, static_cast<int>(first_lane + row));
        arch::cp_async_16<CHUNKS * 16 >= 128>(to + Layout::at(first_row + row, chunk),
                                              reinterpret_cast<const void*>(from + chunk * 16),
                                              from != 0 && chunk < chunks);
    }
}

}  // namespace inflight
