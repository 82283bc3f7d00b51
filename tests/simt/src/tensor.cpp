// Tensor cores: fragments, products, wgmma; and the numbers they are made of.
#include <emmintrin.h>

#include <algorithm>

#include "machine.h"

namespace simt {

// ---- numbers

uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint16_t to_f16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;
    if (u >= 0x477ff000) return sign | 0x7c00;  // rounds to more than the largest
    if (u < 0x38800000) {
        // Below the least normal number: adding 0.5 leaves the rounded significand in the low bits.
        float f;
        memcpy(&f, &u, 4);
        f += 0.5f;
        memcpy(&u, &f, 4);
        return static_cast<uint16_t>(sign | (u - 0x3f000000));
    }
    u += 0xfff + (u >> 13 & 1);
    return static_cast<uint16_t>(sign | (u - 0x38000000) >> 13);
}

static float bf16_value(uint32_t u) {
    u <<= 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

// Exponents are moved by a product, which gets subnormal numbers right without a branch.
float from_f16(uint16_t x) {
    uint32_t u = (x & 0x7fffu) << 13;
    float f;
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    memcpy(&u, &f, 4);
    if ((x & 0x7c00) == 0x7c00) u |= 0x7f800000;
    u |= (x & 0x8000u) << 16;
    memcpy(&f, &u, 4);
    return f;
}

// ---- fragments: 8 x 8 tiles of 16-bit numbers

struct MatrixArgs {
    uint32_t* r;
    int n;
    bool trans;
    uint32_t at;
    const char* file;
    int line;
};

static void check_rows(void* const* lanes, int m, bool write) {
    const unsigned first = cur->warp * 32;
    uint8_t hits[8] = {};
    unsigned worst = 0;
    for (int i = 0; i < 8; i++) {
        auto& x = *static_cast<MatrixArgs*>(lanes[m * 8 + i]);
        check_shared(x.at, 16, write, static_cast<int>(first) + m * 8 + i, x.file, x.line);
        bool same = false;
        for (int k = 0; k < i; k++) same |= static_cast<MatrixArgs*>(lanes[m * 8 + k])->at == x.at;
        if (!same) worst = std::max<unsigned>(worst, ++hits[x.at >> 4 & 7]);
    }
    auto& x = *static_cast<MatrixArgs*>(lanes[0]);
    count_bank_phase(location(x.file, x.line), worst - 1);
}

void ldmatrix(uint32_t* r, int n, bool trans, uint32_t at, const char* file, int line) {
    MatrixArgs a{r, n, trans, at, file, line};
    if (at & 15) fail(file, line, "ldmatrix: row address 0x%x is not a multiple of 16", at);
    if (static_cast<int>(cur->lane) < 8 * n) from_shared(at, 16, file, line);
    const WarpFn load = [](void* const* lanes, uint32_t) {
        const MatrixArgs& z = *static_cast<MatrixArgs*>(lanes[0]);
        for (int m = 0; m < z.n; m++) {
            if (CHECK) check_rows(lanes, m, false);
            uint16_t t[8][8];
            for (int i = 0; i < 8; i++) {
                const uint32_t row = static_cast<MatrixArgs*>(lanes[m * 8 + i])->at;
                memcpy(t[i], S->block.smem + (row - SMEM_BASE), 16);
            }
            for (int l = 0; l < 32; l++) {
                const int i = l >> 2, j = (l & 3) * 2;
                uint32_t& to = static_cast<MatrixArgs*>(lanes[l])->r[m];
                if (z.trans)
                    to = t[j][i] | static_cast<uint32_t>(t[j + 1][i]) << 16;
                else
                    memcpy(&to, &t[i][j], 4);
            }
        }
    };
    warp_collective(~0u, load, &a, file, line);
}

void stmatrix(const uint32_t* r, int n, bool trans, uint32_t at, const char* file, int line) {
    MatrixArgs a{const_cast<uint32_t*>(r), n, trans, at, file, line};
    if (at & 15) fail(file, line, "stmatrix: row address 0x%x is not a multiple of 16", at);
    if (static_cast<int>(cur->lane) < 8 * n) from_shared(at, 16, file, line);
    const WarpFn store = [](void* const* lanes, uint32_t) {
        const MatrixArgs& z = *static_cast<MatrixArgs*>(lanes[0]);
        for (int m = 0; m < z.n; m++) {
            if (CHECK) check_rows(lanes, m, true);
            uint16_t t[8][8];
            for (int l = 0; l < 32; l++) {
                const int i = l >> 2, j = (l & 3) * 2;
                const uint32_t from = static_cast<MatrixArgs*>(lanes[l])->r[m];
                (z.trans ? t[j][i] : t[i][j]) = static_cast<uint16_t>(from);
                (z.trans ? t[j + 1][i] : t[i][j + 1]) = static_cast<uint16_t>(from >> 16);
            }
            for (int i = 0; i < 8; i++) {
                const uint32_t row = static_cast<MatrixArgs*>(lanes[m * 8 + i])->at;
                memcpy(S->block.smem + (row - SMEM_BASE), t[i], 16);
            }
        }
    };
    warp_collective(~0u, store, &a, file, line);
}

// ---- mma.m16n8k16

// One 32-bit register of two numbers, as two floats.
template <bool BF16>
static inline void unpack(uint32_t u, float& lo, float& hi) {
    if (BF16) {
        lo = bf16_value(u & 0xffff);
        u &= 0xffff0000;
        memcpy(&hi, &u, 4);
    } else {
        lo = from_f16(static_cast<uint16_t>(u));
        hi = from_f16(static_cast<uint16_t>(u >> 16));
    }
}

struct MmaArgs {
    float* d;
    const uint32_t *a, *b;
};

// Sums in f32, k ascending: not the hardware's rounding, which truncates wider sums.
template <bool BF16>
static void mma_warp(void* const* lanes, uint32_t) {
    alignas(16) float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; l++) {
        const MmaArgs& x = *static_cast<MmaArgs*>(lanes[l]);
        const int r = l >> 2, c = (l & 3) * 2;
        for (int i = 0; i < 4; i++) {
            float* to = &a[r + (i & 1) * 8][c + (i >> 1) * 8];
            unpack<BF16>(x.a[i], to[0], to[1]);
        }
        for (int i = 0; i < 2; i++) unpack<BF16>(x.b[i], b[c + i * 8][r], b[c + i * 8 + 1][r]);
        memcpy(&d[r][c], x.d, 8);
        memcpy(&d[r + 8][c], x.d + 2, 8);
    }
    for (int i = 0; i < 16; i++) {
        __m128 lo = _mm_load_ps(d[i]), hi = _mm_load_ps(d[i] + 4);
        for (int k = 0; k < 16; k++) {
            const __m128 x = _mm_set1_ps(a[i][k]);
            lo = _mm_add_ps(lo, _mm_mul_ps(x, _mm_load_ps(b[k])));
            hi = _mm_add_ps(hi, _mm_mul_ps(x, _mm_load_ps(b[k] + 4)));
        }
        _mm_store_ps(d[i], lo);
        _mm_store_ps(d[i] + 4, hi);
    }
    for (int l = 0; l < 32; l++) {
        const MmaArgs& x = *static_cast<MmaArgs*>(lanes[l]);
        const int r = l >> 2, c = (l & 3) * 2;
        memcpy(x.d, &d[r][c], 8);
        memcpy(x.d + 2, &d[r + 8][c], 8);
    }
}

void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool bf16, const char* file,
               int line) {
    MmaArgs x{d, a, b};
    warp_collective(~0u, bf16 ? mma_warp<true> : mma_warp<false>, &x, file, line);
}

// ---- wgmma: m64nNk16, bf16, operands in SWIZZLE_128B layouts

static float operand(uint64_t desc, int mn, int k, bool transposed, const WgOp& o) {
    const auto field = [&](int at) { return static_cast<uint32_t>(desc >> at & 0x3fff) << 4; };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    const uint32_t m = static_cast<uint32_t>(mn), kk = static_cast<uint32_t>(k);
    const uint32_t off = transposed ? m % 64 * 2 + m / 64 * leading + kk % 8 * 128 + kk / 8 * stride
                                    : m / 8 * stride + m % 8 * 128 + kk * 2;
    const uint32_t at = swizzle(start + off - SMEM_BASE, 3);
    if (at + 2 > S->block.smem_bytes) fail(o.file, o.line, "wgmma reads outside shared memory");
    if (CHECK) check_shared(at + SMEM_BASE, 2, false, o.agent, o.file, o.line);
    uint16_t v;
    memcpy(&v, S->block.smem + at, 2);
    return bf16_value(v);
}

static void execute(WgOp& o) {
    static float a[64][16], b[16][256], d[64][256];
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < o.n; n++) b[k][n] = operand(o.b_desc, n, k, o.transpose_b, o);
    for (int t = 0; t < 128 && o.a_in_regs; t++)
        for (int i = 0; i < 4; i++) {
            const int r = t / 32 * 16 + t % 32 / 4 + (i & 1) * 8, c = t % 4 * 2 + (i >> 1) * 8;
            unpack<true>(o.a[t][i], a[r][c], a[r][c + 1]);
        }
    for (int i = 0; i < 64 && !o.a_in_regs; i++)
        for (int k = 0; k < 16; k++) a[i][k] = operand(o.a_desc, i, k, false, o);
    const auto each = [&](auto f) {
        for (int t = 0; t < 128; t++)
            for (int j = 0; j < o.n / 8; j++)
                for (int i = 0; i < 4; i++)
                    f(o.d[t][j * 4 + i],
                      d[t / 32 * 16 + t % 32 / 4 + (i >> 1) * 8][j * 8 + t % 4 * 2 + (i & 1)]);
    };
    each([&](float& reg, float& x) { x = o.scale_d ? reg : 0.f; });
    for (int i = 0; i < 64; i++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < o.n; n++) d[i][n] += a[i][k] * b[k][n];
    each([&](float& reg, float& x) { reg = x; });
}

void wgmma(float* d, int n, const uint32_t* a, uint64_t a_desc, uint64_t b_desc, bool transpose_b,
           bool scale_d, const char* file, int line) {
    if (b_desc >> 62 != 1 || (!a && a_desc >> 62 != 1))
        fail(file, line, "wgmma: only SWIZZLE_128B descriptors are emulated");
    struct Args {
        float* d;
        const uint32_t* a;
        uint64_t a_desc, b_desc;
        int n;
        bool transpose_b, scale_d;
        const char* file;
        int line;
    } x{d, a, a_desc, b_desc, n, transpose_b, scale_d, file, line};
    const WarpFn issue = [](void* const* lanes, uint32_t) {
        static WgOp o;
        const Args& z = *static_cast<Args*>(lanes[0]);
        o.a_in_regs = z.a;
        o.n = z.n;
        o.a_desc = z.a_desc;
        o.b_desc = z.b_desc;
        o.transpose_b = z.transpose_b;
        o.scale_d = z.scale_d;
        o.file = z.file;
        o.line = z.line;
        for (int i = 0; i < 128; i++) {
            const Args& y = *static_cast<Args*>(lanes[i]);
            o.d[i] = y.d;
            if (y.a) memcpy(o.a[i], y.a, 16);
            if (y.b_desc != z.b_desc || y.a_desc != z.a_desc || y.scale_d != z.scale_d)
                fail(y.file, y.line, "wgmma: operands differ within the warpgroup");
        }
        if (CHECK) {
            const int first = static_cast<int>(cur->lin) / 128 * 128;
            o.agent = new_agent(first);
            for (int i = 1; i < 128; i++) join(ck(o.agent), ck(first + i));
        }
        S->wg[cur->lin / 128].open.push_back(o);
    };
    group_collective(issue, &x, file, line);
}

void wgmma_commit() {
    const WarpFn commit = [](void* const*, uint32_t) {
        Warpgroup& w = S->wg[cur->lin / 128];
        w.groups.push_back(std::move(w.open));
        w.open.clear();
    };
    group_collective(commit, nullptr, "wgmma.commit_group", 0);
}

// Results appear only here: accumulators read early hold what they held before.
void wgmma_wait(int n) {
    struct Args {
        int n;
    } a{n};
    const WarpFn wait = [](void* const* lanes, uint32_t) {
        Warpgroup& w = S->wg[cur->lin / 128];
        const int left = static_cast<Args*>(lanes[0])->n;
        const int first = static_cast<int>(cur->lin) / 128 * 128;
        while (static_cast<int>(w.groups.size()) > left) {
            for (WgOp& o : w.groups.front()) {
                execute(o);
                if (!CHECK) continue;
                const uint32_t done = ck(o.agent).v[o.agent];
                for (int i = 0; i < 128; i++) {
                    Clk& c = ck(first + i);
                    c.v[o.agent] = std::max(c.v[o.agent], done);
                    c.p[o.agent] = std::max(c.p[o.agent], done);
                }
            }
            w.groups.pop_front();
        }
    };
    group_collective(wait, &a, "wgmma.wait_group", n);
}

void setmaxnreg(int n, bool, const char* file, int line) {
    if (n < 24 || n > 256 || n % 8) fail(file, line, "setmaxnreg %d", n);
    group_collective([](void* const*, uint32_t) {}, nullptr, file, line);
}

}  // namespace simt
