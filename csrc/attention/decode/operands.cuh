// Operands of the decode kernel's products, by type of the cache: how queries are laid out in
// registers, how keys and values get from shared memory into fragments of mma m16n8k16, and which
// elements of the output a lane then has.
//
// lane = 4 g + t: rows g and g + 8 of the 16 query rows, columns 2 t and 2 t + 1 of a block of 8.
#pragma once

#include "../../arch/arch.cuh"
#include "../../common/dtype.cuh"
#include "../../common/tile.cuh"

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

// A cache of the queries' type: ldmatrix gives fragments as they are.
template <class Q, int D, int KEYS>
struct SameOperands {
    static constexpr int ROW_BYTES = D * 2;
    using KeyTile = Swizzle<ROW_BYTES>;
    using ValueTile = Swizzle<ROW_BYTES>;
    // Type of the weights in the product with V.
    using Weight = Q;
    // What products and outputs lack.
    static constexpr float KEY_SCALE = 1.0f, VALUE_SCALE = 1.0f;

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
    static ARCH_MEMBER void score(float (&s)[KEYS / 8][4], const Queries& q, const uint8_t*,
                                  uint32_t keys) {
        const uint32_t lane = threadIdx.x & 31;
        const uint32_t row = (lane & 7) + ((lane >> 4) << 3), half = (lane >> 3) & 1;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t a[4];
            q.fragment(a, k);
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t b[4];
                arch::ldmatrix_x4(b, keys + KeyTile::at(16 * j + row, 2 * k + half));
                arch::mma(s[2 * j], a, b[0], b[1], Q{});
                arch::mma(s[2 * j + 1], a, b[2], b[3], Q{});
            }
        }
    }

    static ARCH_MEMBER void weigh(float (&o)[D / 8][4], const uint32_t (&p)[KEYS / 16][4],
                                  const uint8_t*, uint32_t values) {
        const uint32_t lane = threadIdx.x & 31, row = lane & 15, half = lane >> 4;
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                uint32_t b[4];
                arch::ldmatrix_x4_trans(b, values + ValueTile::at(16 * j + row, 2 * n + half));
                arch::mma(o[2 * n], p[j], b[0], b[1], Q{});
                arch::mma(o[2 * n + 1], p[j], b[2], b[3], Q{});
            }
    }

    // Calls f(r, d, a, b) for pairs of neighbouring elements d, d + 1 of rows r = 0 (g) and 1.
    template <class F>
    static ARCH_MEMBER void each_pair(const float (&o)[D / 8][4], F f) {
        const uint32_t t = threadIdx.x & 3;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) f(r, 8 * n + 2 * t, o[n][2 * r], o[n][2 * r + 1]);
    }
};

// Keys of bytes: lanes of two neighbouring rows read 64 bytes of each, so these are to lie in
// different halves of the banks.
template <int ROW_BYTES>
struct ByteKeySwizzle : Swizzle<ROW_BYTES> {
    static ARCH_MEMBER uint32_t at(uint32_t row, uint32_t chunk) {
        if (ROW_BYTES % 128 != 0) return Swizzle<ROW_BYTES>::at(row, chunk);
        return row * ROW_BYTES + ((chunk ^ ((row & 1) << 2 | (row >> 1 & 3))) << 4);
    }
};

// A cache of e4m3. There is no ldmatrix for bytes, and none is needed: the order of dimensions in a
// dot product is free, so a lane takes neighbouring ones where the fragment wants them apart, from
// keys and queries alike. Likewise a column of the product with V may be any dimension.
//
// V is widened to f16 whatever the queries are: e4m3 fits, weights are at most 1, sums are f32, and
// bf16 would take two more instructions a pair.
template <class Q, int D, int KEYS>
struct E4m3Operands {
    static constexpr int ROW_BYTES = D;
    using KeyTile = ByteKeySwizzle<ROW_BYTES>;
    using ValueTile = Swizzle<ROW_BYTES>;
    using Weight = f16;
    static constexpr float KEY_SCALE = same_type<Q, f16> ? e4m3_in_f16 : 1.0f;
    static constexpr float VALUE_SCALE = e4m3_in_f16;

    // Of 64 dimensions lane t takes 16 t .. 16 t + 15, four for each of four products. Of the 32
    // that remain with D 96, eight, for two.
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

    // The products of four bytes of each of N blocks of keys with the queries' 16 dimensions k.
    template <int N, class Queries>
    static ARCH_MEMBER void score_word(float (&s)[N][4], const Queries& q, int k,
                                       const uint32_t (&four)[N]) {
        uint32_t a[4];
        q.fragment(a, k);
#pragma unroll
        for (int n = 0; n < N; n++) {
            uint32_t lo, hi;
            unpack_e4m3x4(four[n], lo, hi, Q{});
            arch::mma(s[n], a, lo, hi, Q{});
        }
    }

    template <class Queries>
    static ARCH_MEMBER void score(float (&s)[KEYS / 8][4], const Queries& q, const uint8_t* keys,
                                  uint32_t) {
        const uint32_t g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
        for (int first = 0; first < D; first += 64) {
            uint32_t x[4][KEYS / 8];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                if (first + 64 <= D) {
                    const vec4 v = *reinterpret_cast<const vec4*>(
                        keys + KeyTile::at(8 * n + g, first / 16 + t));
                    x[0][n] = v.x;
                    x[1][n] = v.y;
                    x[2][n] = v.z;
                    x[3][n] = v.w;
                } else {
                    const vec2 v = *reinterpret_cast<const vec2*>(
                        keys + KeyTile::at(8 * n + g, first / 16 + t / 2) + t % 2 * 8);
                    x[0][n] = v.x;
                    x[1][n] = v.y;
                }
            }
#pragma unroll
            for (int i = 0; i < (first + 64 <= D ? 4 : 2); i++)
                score_word(s, q, first / 16 + i, x[i]);
        }
    }

    // Of 32 dimensions lane g reads 4 g .. 4 g + 3 of the four keys that its fragments hold: byte i
    // is column g of product i.
    static ARCH_MEMBER void weigh(float (&o)[D / 8][4], const uint32_t (&p)[KEYS / 16][4],
                                  const uint8_t* values, uint32_t) {
        const uint32_t g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
            for (int n = 0; n < D / 32; n++) {
                uint32_t x[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t key = 16 * j + 2 * t + (i & 1) + (i >> 1) * 8;
                    x[i] = *reinterpret_cast<const uint32_t*>(
                        values + ValueTile::at(key, 2 * n + g / 4) + g % 4 * 4);
                }
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    // Bytes i and i + 1 of a key and the next one.
                    const uint32_t order = i == 0 ? 0x5140 : 0x7362;
                    uint32_t b0[2], b1[2];
                    unpack_e4m3x4(arch::byte_perm(x[0], x[1], order), b0[0], b0[1], Weight{});
                    unpack_e4m3x4(arch::byte_perm(x[2], x[3], order), b1[0], b1[1], Weight{});
                    arch::mma(o[4 * n + i], p[j], b0[0], b1[0], Weight{});
                    arch::mma(o[4 * n + i + 1], p[j], b0[1], b1[1], Weight{});
                }
            }
    }

    template <class F>
    static ARCH_MEMBER void each_pair(const float (&o)[D / 8][4], F f) {
        const uint32_t t = threadIdx.x & 3;
#pragma unroll
        for (int n = 0; n < D / 32; n++)
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int c = 0; c < 2; c++)
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        f(r, 32 * n + 8 * t + 4 * c + i, o[4 * n + i][2 * r + c],
                          o[4 * n + i + 1][2 * r + c]);
    }
};

template <class Q, class Cache, int D, int KEYS>
struct DecodeOperandsOf {
    using Type = SameOperands<Q, D, KEYS>;
};
template <class Q, int D, int KEYS>
struct DecodeOperandsOf<Q, e4m3, D, KEYS> {
    using Type = E4m3Operands<Q, D, KEYS>;
};
template <class Q, class Cache, int D, int KEYS>
using DecodeOperands = typename DecodeOperandsOf<Q, Cache, D, KEYS>::Type;

}  // namespace inflight
