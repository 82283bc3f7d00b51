// Tiles of keys and values from the paged cache to shared memory, and their fragments for mma.
#pragma once

#include "../../common/dtype.cuh"
#include "../../common/step.cuh"
#include "shape.cuh"

namespace inflight {

// A lane's place in a tile, and others that lie a known number of chunks and rows from it. Rows
// begin at multiples of what the swizzle permutes, so it can be undone in the address: one register
// does for all of a tile, where the swizzled offsets themselves take many.
template <class Tile>
struct TilePlace {
    uint32_t address;

    ARCH_MEMBER TilePlace(uint32_t tile, uint32_t row, uint32_t chunk)
        : address(tile + Tile::at(row, chunk)) {}
    // `rows` rows on, where the first row's number has none of the lowest bits of `rows`, and
    // `chunks` on, where the first chunk's number has none of theirs.
    ARCH_MEMBER uint32_t at(int rows, int chunks) const {
        constexpr int PERMUTED = 1 << Tile::BITS;
        const int x = (chunks % PERMUTED) ^ (rows % 8 >> (3 - Tile::BITS));
        return (address ^ static_cast<uint32_t>(x << 4)) +
               static_cast<uint32_t>(rows * Tile::CHUNKS + chunks / PERMUTED * PERMUTED) * 16;
    }
};

// Asks for one tile after another of a row's keys and values: K of a tile, then its V.
template <class Shape>
class TileLoader {
    using Tile = typename Shape::KvTile;
    static constexpr int CHUNKS = Tile::CHUNKS;
    static constexpr int CHUNK_ELEMENTS = 16 / Shape::KV_BYTES;
    // Lanes beside each other copy the chunks of a row: a power of two of them, at most eight.
    static constexpr int LANES = 1 << Tile::BITS;
    static constexpr int WARP_KEYS = Shape::KEYS / Shape::WARPS;
    static constexpr int PASS_KEYS = 32 / LANES;
    static_assert(WARP_KEYS <= 32, "a lane looks one key up");
    static_assert(WARP_KEYS % PASS_KEYS == 0, "a warp copies whole passes");

    const inflight_attention_params& p;
    const uint32_t* const table;
    const BlockSize block_size;
    const uint32_t head;
    Slot slot;  // of this lane's key of the tile that is asked for next

    static ARCH_MEMBER uint32_t lane() { return threadIdx.x % 32; }
    static ARCH_MEMBER uint32_t warp_key() { return threadIdx.x / 32 * WARP_KEYS; }

    // Strides are read from the parameters each time: registers are dear.
    ARCH_MEMBER uint64_t address(uint64_t cache, int64_t block, int64_t token,
                                 int64_t head_stride) const {
        const int64_t elements = block * static_cast<int64_t>(slot.block) +
                                 token * static_cast<int64_t>(slot.offset) +
                                 head_stride * static_cast<int64_t>(head);
        return cache + static_cast<uint64_t>(elements * Shape::KV_BYTES);
    }

    ARCH_MEMBER void copy(uint32_t to, uint64_t own, int32_t first, int32_t end) const {
        const uint32_t row = warp_key() + lane() / LANES, chunk = lane() % LANES;
        const TilePlace<Tile> place(to, row, chunk);
        const int32_t keys = end - first - static_cast<int32_t>(row);
        const int32_t elements = static_cast<int32_t>(p.head_dim - chunk * CHUNK_ELEMENTS);
#pragma unroll
        for (int pass = 0; pass < WARP_KEYS / PASS_KEYS; pass++) {
            const int from_row = pass * PASS_KEYS + static_cast<int>(lane() / LANES);
            const uint64_t from = arch::shfl(own, from_row) + chunk * 16;
#pragma unroll
            for (int i = 0; i < CHUNKS / LANES; i++)
                arch::cp_async_16<CHUNKS * 16 >= 128>(
                    place.at(pass * PASS_KEYS, i * LANES),
                    reinterpret_cast<const void*>(from + static_cast<uint32_t>(i * LANES * 16)),
                    pass * PASS_KEYS < keys && i * LANES * CHUNK_ELEMENTS < elements);
        }
    }

   public:
    ARCH_MEMBER TileLoader(const inflight_attention_params& p, const Row& row,
                           const BlockSize& block_size, uint32_t head)
        : p(p), table(row.table), block_size(block_size), head(head), slot{0, 0} {}

    // Each lane looks a key up of the tile that is asked for next, well before its address is
    // needed.
    ARCH_MEMBER void look_up(int32_t first, int32_t end) {
        const uint32_t key = static_cast<uint32_t>(first) + warp_key() + lane();
        slot = {0, 0};
        if (lane() < WARP_KEYS && key < static_cast<uint32_t>(end))
            slot = slot_of(table, block_size, key);
    }

    // A group of copies each, an empty one after the last tile: keys from `first` on, zeros from
    // `end` on.
    ARCH_MEMBER void load_keys(uint32_t to, int32_t first, int32_t end) const {
        if (first < end) copy(to, address(p.k, p.k_block, p.k_token, p.k_head), first, end);
        arch::cp_async_commit();
    }
    ARCH_MEMBER void load_values(uint32_t to, int32_t first, int32_t end) const {
        if (first < end) copy(to, address(p.v, p.v_block, p.v_token, p.v_head), first, end);
        arch::cp_async_commit();
    }
};

// Rows of 16-bit numbers as operand A: 16 rows from first_row on, and others `rows` on.
template <class Tile>
struct RowFragments {
    TilePlace<Tile> place;

    ARCH_MEMBER RowFragments(uint32_t tile, uint32_t first_row)
        : place(tile, first_row + threadIdx.x % 16, threadIdx.x % 32 / 16) {}
    // Elements 16 k.. + 16.
    ARCH_MEMBER void load(uint32_t (&a)[4], int rows, int k) const {
        arch::ldmatrix_x4(a, place.at(rows, 2 * k));
    }
};

// Keys as operand B: fragments of eight keys by 16 elements of the head.
//
// In a fragment a lane has, of 16 elements, 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 (t = lane % 4). Of
// e4m3 it reads 4 t.. + 4 instead, which stand in one word: operand A then has its elements in the
// same order (see permute_q), and products are summed up all the same.
template <class Q, class KV, class Tile>
struct KeyFragments {
    // That one ldmatrix gives.
    static constexpr int COUNT = 4 / static_cast<int>(sizeof(KV));
    TilePlace<Tile> place;
    uint32_t raw[4];

    ARCH_MEMBER explicit KeyFragments(uint32_t tile)
        : place(tile,
                sizeof(KV) == 2 ? threadIdx.x % 8 + threadIdx.x % 32 / 16 * 8 : threadIdx.x % 32,
                sizeof(KV) == 2 ? threadIdx.x / 8 % 2 : 0) {}
    // Elements 16 k.. + 16.
    ARCH_MEMBER void load(int first_key, int k) {
        arch::ldmatrix_x4(raw, place.at(first_key, k * static_cast<int>(sizeof(KV))));
    }
    ARCH_MEMBER void get(int i, uint32_t& b0, uint32_t& b1) const {
        if constexpr (sizeof(KV) == 2) {
            b0 = raw[2 * i];
            b1 = raw[2 * i + 1];
        } else {
            unpack_e4m3x4(raw[i], b0, b1, Q{});
        }
    }
};

// The type of weights in the product with V.
template <class Q, class KV>
struct WeightOf {
    using Type = Q;
};
template <class Q>
struct WeightOf<Q, arch::e4m3> {
    using Type = arch::f16;
};

// Values as operand B, widened to Q: 16 keys by eight elements of the head.
//
// ldmatrix transposes pairs of bytes. Of e4m3 a fragment therefore has the even or the odd ones of
// 16 elements, and a lane's outputs of a pair of fragments are four elements in a row.
template <class Q, class KV, class Tile>
struct ValueFragments {
    // Pairs of fragments that one ldmatrix gives.
    static constexpr int PAIRS = 2 / static_cast<int>(sizeof(KV));
    TilePlace<Tile> place;
    uint32_t raw[4];

    ARCH_MEMBER explicit ValueFragments(uint32_t tile)
        : place(tile, threadIdx.x % 16, threadIdx.x % 32 / 16) {}
    ARCH_MEMBER void load(int first_key, int pair) {
        arch::ldmatrix_x4_trans(raw, place.at(first_key, pair * static_cast<int>(sizeof(KV))));
    }
    ARCH_MEMBER void get(int pair, int half, uint32_t& b0, uint32_t& b1) const {
        if constexpr (sizeof(KV) == 2) {
            b0 = raw[2 * half];
            b1 = raw[2 * half + 1];
        } else {
            const uint32_t four =
                arch::byte_perm(raw[2 * pair], raw[2 * pair + 1], half == 0 ? 0x6420 : 0x7531);
            unpack_e4m3x4(four, b0, b1, Q{});
        }
    }
};

}  // namespace inflight
