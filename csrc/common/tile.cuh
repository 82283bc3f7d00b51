// Tiles of rows in shared memory, and their loading from a paged cache.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

// A tile of rows of ROW_BYTES, for ldmatrix: the 16-byte chunks of a row are permuted, by an
// exclusive or, so that chunk c of eight consecutive rows lies in eight different groups of four
// banks.
template <int ROW_BYTES>
struct Swizzle {
    static constexpr int CHUNKS = ROW_BYTES / 16;
    static_assert(ROW_BYTES % 16 == 0, "rows are made of 16-byte chunks");
    // Chunks are permuted within the largest power of two that divides the row's (eight are all
    // banks). Where it is below eight, rows themselves begin in other banks.
    static constexpr int BITS = CHUNKS % 8 == 0 ? 3 : CHUNKS % 4 == 0 ? 2 : CHUNKS % 2 == 0 ? 1 : 0;
    static constexpr int PERMUTED = 1 << BITS;

    // What the chunks of a row are exchanged by: of the exclusive or of two rows that of both.
    static ARCH_MEMBER uint32_t permutation(uint32_t row) { return row % 8 >> (3 - BITS); }
};

// The same for lanes that read words of their own: those of two neighbouring rows read 64 bytes of
// each, so these are to lie in different halves of the banks.
template <int ROW_BYTES>
struct WordSwizzle : Swizzle<ROW_BYTES> {
    static ARCH_MEMBER uint32_t permutation(uint32_t row) {
        if (ROW_BYTES % 128 != 0) return Swizzle<ROW_BYTES>::permutation(row);
        return row % 2 << 2 | row / 2 % 4;
    }
};

// Byte offset of a chunk in the tile.
template <class Tile>
ARCH_FN uint32_t tile_offset(uint32_t row, uint32_t chunk) {
    const uint32_t x = Tile::permutation(row);
    return row * (Tile::CHUNKS * 16) + ((chunk ^ x) << 4);
}

// A lane's place in a tile, and others that lie a known number of chunks and rows from it. Rows
// begin at multiples of what the swizzle permutes, so it can be undone in the address: one register
// does for all of a tile, where the swizzled offsets themselves take many.
template <class Tile>
struct TilePlace {
    uint32_t address;

    ARCH_MEMBER TilePlace(uint32_t tile, uint32_t row, uint32_t chunk)
        : address(tile + tile_offset<Tile>(row, chunk)) {}
    // `rows` rows on, where the first row's number has none of the lowest three bits of `rows`, and
    // `chunks` on, where the first chunk's number has none of theirs among those permuted.
    ARCH_MEMBER uint32_t at(int rows, int chunks) const {
        const uint32_t x = static_cast<uint32_t>(chunks % Tile::PERMUTED) ^
                           Tile::permutation(static_cast<uint32_t>(rows));
        const int on = rows * Tile::CHUNKS + chunks / Tile::PERMUTED * Tile::PERMUTED;
        return (address ^ x << 4) + static_cast<uint32_t>(on * 16);
    }
};

// One warp copies ROWS rows (at most 32), asynchronously, to rows first_row.. of the tile at `to`.
// Lane r has the address of row r: so each lane computes one address, and lanes exchange them. Rows
// from `rows` on, and elements from head_dim on, are zeros: nothing is read of them. The caller
// commits.
template <class Tile, int ROWS, int ELEMENT_BYTES>
ARCH_FN void copy_rows(uint32_t to, uint32_t first_row, uint64_t own, int32_t rows,
                       uint32_t head_dim) {
    // Lanes next to each other copy the chunks of a row: as many as are permuted, or more where a
    // warp has few rows.
    constexpr int LANES = Tile::PERMUTED > 32 / ROWS ? Tile::PERMUTED : 32 / ROWS;
    constexpr int PASS_ROWS = 32 / LANES, CHUNK_ELEMENTS = 16 / ELEMENT_BYTES;
    static_assert(ROWS <= 32 && ROWS % PASS_ROWS == 0, "a warp copies whole passes");
    const uint32_t lane = threadIdx.x % 32, row = lane / LANES, chunk = lane % LANES;
    const TilePlace<Tile> place(to, first_row + row, chunk);
    const int32_t left = rows - static_cast<int32_t>(row);
    const int32_t elements = static_cast<int32_t>(head_dim - chunk * CHUNK_ELEMENTS);
#pragma unroll
    for (int pass = 0; pass < ROWS / PASS_ROWS; pass++) {
        const int from_row = pass * PASS_ROWS + static_cast<int>(row);
        const uint64_t from = arch::shfl(own, from_row) + chunk * 16;
#pragma unroll
        for (int i = 0; i < (Tile::CHUNKS + LANES - 1) / LANES; i++) {
            if (Tile::CHUNKS % LANES != 0 && chunk + i * LANES >= Tile::CHUNKS) continue;
            arch::cp_async_16<Tile::CHUNKS * 16 >= 128>(
                place.at(pass * PASS_ROWS, i * LANES),
                reinterpret_cast<const void*>(from + static_cast<uint32_t>(i * LANES * 16)),
                pass * PASS_ROWS < left && i * LANES * CHUNK_ELEMENTS < elements);
        }
    }
}

}  // namespace inflight
