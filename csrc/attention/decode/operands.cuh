// The decode kernel's products, by type of the cache: how queries are laid out in registers, and
// what they are multiplied with (see common/fragments.cuh).
#pragma once

#include "../../common/fragments.cuh"

namespace inflight {

// Fragments of the queries, 16 dimensions each: in registers; or, where accumulators leave too few
// of these, in shared memory, the same for all warps of the block.
template <int D, bool SHARED>
struct DecodeQueries {
    uint32_t registers[D / 16][4];

    ARCH_MEMBER void fragment(uint32_t (&a)[4], int k) const {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = registers[k][i];
    }
    template <class Operands>
    ARCH_MEMBER void load(const uint8_t* (&rows)[2], uint32_t head_dim) {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                Operands::load_query(registers[k][i], registers[k][i + 2], rows[i], k, head_dim);
    }
};
template <int D>
struct DecodeQueries<D, true> {
    vec4* shared;  // [D / 16][32]

    ARCH_MEMBER void fragment(uint32_t (&a)[4], int k) const {
        const vec4 x = shared[k * 32 + (threadIdx.x & 31)];
        a[0] = x.x;
        a[1] = x.y;
        a[2] = x.z;
        a[3] = x.w;
    }
    // By all threads of the block: each warp loads its share.
    template <class Operands>
    ARCH_MEMBER void load(const uint8_t* (&rows)[2], uint32_t head_dim) {
        const int warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
        for (int k = 0; k < D / 16; k += 4) {
            vec4 x;
            Operands::load_query(x.x, x.z, rows[0], k + warp, head_dim);
            Operands::load_query(x.y, x.w, rows[1], k + warp, head_dim);
            shared[(k + warp) * 32 + (threadIdx.x & 31)] = x;
        }
        arch::sync_threads();
    }
};

// The product with V: fragments are those of prefill.
template <class Q, class KV, int D, int KEYS>
struct ValueOperands {
    using ValueTile = Swizzle<D* static_cast<int>(sizeof(KV))>;
    using Values = ValueFragments<Probability<Q, KV>, KV, ValueTile>;

    static ARCH_MEMBER void pv(float (&o)[D / 8][4], const uint32_t (&p)[KEYS / 16][4],
                               uint32_t tile) {
        Values values(tile);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
            for (int n = 0; n < D / 16; n += Values::PAIRS) {
                values.load(16 * j, n);
#pragma unroll
                for (int i = 0; i < 2 * Values::PAIRS; i++) {
                    uint32_t b0, b1;
                    values.get(i / 2, i % 2, b0, b1);
                    arch::mma(o[2 * n + i], p[j], b0, b1, Probability<Q, KV>{});
                }
            }
    }
};

// A cache of the queries' type: ldmatrix gives fragments as they are.
template <class Q, class KV, int D, int KEYS>
struct DecodeOperands : ValueOperands<Q, KV, D, KEYS> {
    using KeyTile = Swizzle<D * 2>;

    // Queries of 16 dimensions from 16 k on, of one row: elements of both halves of the fragment.
    // `row` is null for a row that is not there.
    static ARCH_MEMBER void load_query(uint32_t& lo, uint32_t& hi, const uint8_t* row, int k,
                                       uint32_t head_dim) {
        const uint32_t d = 16 * k + 2 * (threadIdx.x & 3);
        lo = row != nullptr && d < head_dim ? *reinterpret_cast<const uint32_t*>(row + 2 * d) : 0;
        hi = row != nullptr && d + 8 < head_dim
                 ? *reinterpret_cast<const uint32_t*>(row + 2 * d + 16)
                 : 0;
    }

    template <class Queries>
    static ARCH_MEMBER void qk(float (&s)[KEYS / 8][4], const Queries& q, const uint8_t*,
                               uint32_t tile) {
        KeyFragments<Q, KV, KeyTile> keys(tile);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t a[4];
            q.fragment(a, k);
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                keys.load(16 * j, k);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    uint32_t b0, b1;
                    keys.get(i, b0, b1);
                    arch::mma(s[2 * j + i], a, b0, b1, Q{});
                }
            }
        }
    }
};

// A cache of e4m3. The order of dimensions in a dot product is free, so a lane takes neighbouring
// ones where the fragment wants them apart, from keys and queries alike: of 64 dimensions lane t
// takes 16 t .. 16 t + 15, four for each of four products, which one load gives. Of the 32 that
// remain with D 96, eight, for two.
template <class Q, int D, int KEYS>
struct DecodeOperands<Q, e4m3, D, KEYS> : ValueOperands<Q, e4m3, D, KEYS> {
    using KeyTile = WordSwizzle<D>;

    static ARCH_MEMBER uint32_t dimension(int k) {
        const uint32_t t = threadIdx.x & 3, first = k / 4 * 64;
        return first + (first + 64 <= D ? 16 : 8) * t + k % 4 * 4;
    }

    static ARCH_MEMBER void load_query(uint32_t& lo, uint32_t& hi, const uint8_t* row, int k,
                                       uint32_t head_dim) {
        const uint32_t d = dimension(k);
        vec2 four = {0, 0};
        if (row != nullptr && d < head_dim) four = *reinterpret_cast<const vec2*>(row + 2 * d);
        lo = four.x;
        hi = four.y;
    }

    // The products of four bytes of each block of keys with the queries' 16 dimensions k.
    template <class Queries>
    static ARCH_MEMBER void qk_word(float (&s)[KEYS / 8][4], const Queries& q, int k,
                                    const uint32_t (&four)[KEYS / 8]) {
        uint32_t a[4];
        q.fragment(a, k);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            uint32_t lo, hi;
            unpack_e4m3x4(four[n], lo, hi, Q{});
            arch::mma(s[n], a, lo, hi, Q{});
        }
    }

    template <class Queries>
    static ARCH_MEMBER void qk(float (&s)[KEYS / 8][4], const Queries& q, const uint8_t* tile,
                               uint32_t) {
        const uint32_t g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
        const TilePlace<KeyTile> place(0, g, t), half_place(0, g, t / 2);
#pragma unroll
        for (int first = 0; first < D; first += 64) {
            uint32_t x[4][KEYS / 8];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                if (first + 64 <= D) {
                    const vec4 v =
                        *reinterpret_cast<const vec4*>(tile + place.at(8 * n, first / 16));
                    x[0][n] = v.x;
                    x[1][n] = v.y;
                    x[2][n] = v.z;
                    x[3][n] = v.w;
                } else {
                    const vec2 v = *reinterpret_cast<const vec2*>(
                        tile + half_place.at(8 * n, first / 16) + t % 2 * 8);
                    x[0][n] = v.x;
                    x[1][n] = v.y;
                }
            }
#pragma unroll
            for (int i = 0; i < (first + 64 <= D ? 4 : 2); i++) qk_word(s, q, first / 16 + i, x[i]);
        }
    }
};

}  // namespace inflight
