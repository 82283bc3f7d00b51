// Fragments of mma m16n8k16 from tiles in shared memory, for decode and prefill, by type of the
// cache.
//
// lane = 4 g + t. Operand A: rows g and g + 8 of 16, and of 16 elements 2 t, 2 t + 1, 2 t + 8 and
// 2 t + 9. Operand B: column g, and the same elements. Of the product a lane has rows g and g + 8,
// columns 2 t and 2 t + 1 of a block of eight.
#pragma once

#include "dtype.cuh"
#include "tile.cuh"

namespace inflight {

// The type of probabilities in the product with V. e4m3 is widened to f16 whatever the queries are,
// in one instruction a pair where bf16 takes three: it fits, probabilities are at most 1, and sums
// are f32.
template <class Q, class KV>
struct ProbabilityOf {
    using Type = Q;
};
template <class Q>
struct ProbabilityOf<Q, e4m3> {
    using Type = f16;
};
template <class Q, class KV>
using Probability = typename ProbabilityOf<Q, KV>::Type;

// What unpack_e4m3x4 gives of keys and values is to be multiplied by these.
template <class Q, class KV>
constexpr float key_scale = same_type<KV, e4m3> && same_type<Q, f16> ? e4m3_in_f16 : 1.0f;
template <class KV>
constexpr float value_scale = same_type<KV, e4m3> ? e4m3_in_f16 : 1.0f;

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
// Of e4m3 a lane reads elements 4 t.. + 4, which stand in one word: operand A then has its elements
// in the same order, and products are summed up all the same.
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

// Values as operand B, of type P: 16 keys by eight elements of the head.
//
// ldmatrix transposes pairs of bytes. Of e4m3 a fragment therefore has the even or the odd ones of
// 16 elements, and a lane's outputs of a pair of fragments are four elements in a row.
template <class P, class KV, class Tile>
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
            unpack_e4m3x4(four, b0, b1, P{});
        }
    }
};

// Calls f(d, x, y) for neighbouring elements d, d + 1 of a lane's row `half` (g or g + 8), of the
// outputs `a` and `b` that a pair of value fragments gives, of elements 16 pair.. + 16.
template <class KV, class F>
ARCH_FN void each_output(const float (&a)[4], const float (&b)[4], int pair, int half, uint32_t t,
                         F f) {
    if (sizeof(KV) == 1) {
        f(16 * pair + 4 * t, a[2 * half], b[2 * half]);
        f(16 * pair + 4 * t + 2, a[2 * half + 1], b[2 * half + 1]);
    } else {
        f(16 * pair + 2 * t, a[2 * half], a[2 * half + 1]);
        f(16 * pair + 8 + 2 * t, b[2 * half], b[2 * half + 1]);
    }
}

}  // namespace inflight
