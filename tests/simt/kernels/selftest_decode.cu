// Self-test: decode attention over pages (sm_80 instructions), right and with mistakes put in.
#include "arch/arch.cuh"

namespace {

using arch::bf16;
using arch::vec4;

enum Mistake {
    NONE,
    NO_BARRIER_AFTER_WAIT,
    NO_BARRIER_BEFORE_REUSE,
    NO_BARRIER_IN_MERGE,
    BAD_PAGE
};

struct Params {
    const bf16 *q, *k, *v;
    float* o;
    const int *table, *kv_len;
    int q_heads, kv_heads, max_pages;
    float scale_log2;
};

constexpr int DIM = 128, TILE = 64, PAGE = 16, WARPS = 4, STAGES = 2;
constexpr int TILE_BYTES = TILE * DIM * 2;

ARCH_FN uint32_t swizzled(uint32_t row, uint32_t chunk) {
    return row * (DIM * 2) + ((chunk ^ (row & 7)) << 4);
}

template <Mistake M>
ARCH_FN void load_tile(uint32_t ks, uint32_t vs, const Params& p, const int* table, int head,
                       int first, int len) {
    for (int i = threadIdx.x; i < TILE * 16; i += WARPS * 32) {
        const int row = i >> 4, chunk = i & 15, token = first + row;
        bool ok = token < len;
        int page = ok ? table[token / PAGE] : 0;
        if constexpr (M == BAD_PAGE) {
            if (!ok) page = table[0] + (1 << 16);
            ok = true;
        }
        const size_t at =
            ((size_t(page) * PAGE + token % PAGE) * p.kv_heads + head) * DIM + chunk * 8;
        arch::cp_async_16(ks + swizzled(row, chunk), p.k + at, ok);
        arch::cp_async_16(vs + swizzled(row, chunk), p.v + at, ok);
    }
}

template <Mistake M>
ARCH_FN void decode(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const int b = blockIdx.y, head = blockIdx.x, group = p.q_heads / p.kv_heads;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int len = p.kv_len[b], tiles = (len + TILE - 1) / TILE;
    const int* table = p.table + b * p.max_pages;
    const uint32_t qs = arch::smem_u32(smem), kv = qs + 16 * DIM * 2;
    for (int i = threadIdx.x; i < 16 * 16; i += WARPS * 32) {
        const int row = i >> 4, chunk = i & 15;
        vec4 x = {0, 0, 0, 0};
        if (row < group)
            x = *reinterpret_cast<const vec4*>(
                p.q + (size_t(b) * p.q_heads + head * group + row) * DIM + chunk * 8);
        *reinterpret_cast<vec4*>(smem + swizzled(row, chunk)) = x;
    }
    if (tiles > 0) load_tile<M>(kv, kv + TILE_BYTES, p, table, head, 0, len);
    arch::cp_async_commit();
    arch::sync_threads();
    uint32_t qf[8][4];
#pragma unroll
    for (int k = 0; k < 8; k++)
        arch::ldmatrix_x4(qf[k], qs + swizzled(lane & 15, k * 2 + (lane >> 4)));
    float o[16][4] = {}, m[2] = {-1e30f, -1e30f}, l[2] = {0.f, 0.f};
    for (int t = 0; t < tiles; t++) {
        const uint32_t ks = kv + (t % STAGES) * 2 * TILE_BYTES, vs = ks + TILE_BYTES;
        if (t + 1 < tiles) {
            const uint32_t next = kv + ((t + 1) % STAGES) * 2 * TILE_BYTES;
            load_tile<M>(next, next + TILE_BYTES, p, table, head, (t + 1) * TILE, len);
        }
        arch::cp_async_commit();
        arch::cp_async_wait<1>();
        if constexpr (M != NO_BARRIER_AFTER_WAIT) arch::sync_threads();
        float s[2][4] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            uint32_t kf[4];
            arch::ldmatrix_x4(kf, ks + swizzled(warp * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                k * 2 + ((lane >> 3) & 1)));
            arch::mma(s[0], qf[k], kf[0], kf[1], bf16{});
            arch::mma(s[1], qf[k], kf[2], kf[3], bf16{});
        }
        const int c0 = t * TILE + warp * 16 + (lane & 3) * 2;
        float top[2] = {m[0], m[1]}, shrink[2];
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = c0 + j * 8 + (i & 1) >= len ? -1e30f : s[j][i] * p.scale_log2;
                top[i >> 1] = fmaxf(top[i >> 1], s[j][i]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], arch::shfl_xor(top[r], 1));
            top[r] = fmaxf(top[r], arch::shfl_xor(top[r], 2));
            shrink[r] = arch::ex2(m[r] - top[r]);
            m[r] = top[r];
            l[r] *= shrink[r];
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = s[j][i] <= -1e30f ? 0.f : arch::ex2(s[j][i] - m[i >> 1]);
                l[i >> 1] += s[j][i];
            }
        const uint32_t pf[4] = {
            arch::pack(s[0][0], s[0][1], bf16{}), arch::pack(s[0][2], s[0][3], bf16{}),
            arch::pack(s[1][0], s[1][1], bf16{}), arch::pack(s[1][2], s[1][3], bf16{})};
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] *= shrink[i >> 1];
#pragma unroll
        for (int n = 0; n < 8; n++) {
            uint32_t vf[4];
            arch::ldmatrix_x4_trans(vf,
                                    vs + swizzled(warp * 16 + (lane & 15), n * 2 + (lane >> 4)));
            arch::mma(o[2 * n], pf, vf[0], vf[1], bf16{});
            arch::mma(o[2 * n + 1], pf, vf[2], vf[3], bf16{});
        }
        if constexpr (M != NO_BARRIER_BEFORE_REUSE) arch::sync_threads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += arch::shfl_xor(l[r], 1);
        l[r] += arch::shfl_xor(l[r], 2);
    }
    arch::cp_async_wait<0>();
    arch::sync_threads();
    // The four warps' parts are merged through shared memory.
    float* acc = reinterpret_cast<float*>(smem);
    float* ml = acc + WARPS * 16 * DIM;
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[(warp * 16 + (lane >> 2) + (i >> 1) * 8) * DIM + n * 8 + (lane & 3) * 2 + (i & 1)] =
                o[n][i];
    for (int r = 0; r < 2 && (lane & 3) == 0; r++) {
        ml[(warp * 16 + (lane >> 2) + r * 8) * 2] = m[r];
        ml[(warp * 16 + (lane >> 2) + r * 8) * 2 + 1] = l[r];
    }
    if constexpr (M != NO_BARRIER_IN_MERGE) arch::sync_threads();
    for (int i = threadIdx.x; i < group * DIM; i += WARPS * 32) {
        const int row = i / DIM, c = i % DIM;
        float top = -1e30f, sum = 0.f, a = 0.f;
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, ml[(w * 16 + row) * 2]);
        for (int w = 0; w < WARPS; w++) {
            const float e = arch::ex2(ml[(w * 16 + row) * 2] - top);
            sum += e * ml[(w * 16 + row) * 2 + 1];
            a += e * acc[(w * 16 + row) * DIM + c];
        }
        p.o[(size_t(b) * p.q_heads + head * group + row) * DIM + c] = sum > 0.f ? a / sum : 0.f;
    }
}

}  // namespace

ARCH_KERNEL(selftest_decode, 128, 1, Params, decode<NONE>)
ARCH_KERNEL(selftest_decode_no_barrier_after_wait, 128, 1, Params, decode<NO_BARRIER_AFTER_WAIT>)
ARCH_KERNEL(selftest_decode_no_barrier_before_reuse, 128, 1, Params,
            decode<NO_BARRIER_BEFORE_REUSE>)
ARCH_KERNEL(selftest_decode_no_barrier_in_merge, 128, 1, Params, decode<NO_BARRIER_IN_MERGE>)
ARCH_KERNEL(selftest_decode_bad_page, 128, 1, Params, decode<BAD_PAGE>)
