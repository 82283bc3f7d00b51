// Self-test: causal prefill with TMA, mbarriers and wgmma (sm_90a), right and with mistakes.
#include "hopper_ops.cuh"

namespace {

using arch::bf16;
using arch::vec4;

enum Mistake { NONE, NO_FENCE, EARLY_RELEASE, PARITY, TX_COUNT, NO_WAIT };

struct Params {
    tensor_map_t k, v;
    const bf16* q;
    float* o;
    int len, q_heads, kv_heads;
    float scale_log2;
};

[[maybe_unused]] constexpr int DIM = 128, QT = 64, KT = 64;
// A K or V tile: two halves of 64 columns.
[[maybe_unused]] constexpr int HALF = KT * 64 * 2, KV_BYTES = 2 * HALF;

template <Mistake M>
ARCH_FN void produce(const Params& p, uint32_t kv, uint32_t bar, int head, int tiles) {
    for (int t = 0; t < tiles; t++) {
        const int s = t & 1;
        const uint32_t full = bar + 8 * s, k = kv + s * 2 * KV_BYTES;
        hopper::mbar_wait(bar + 16 + 8 * s, ((t >> 1) & 1) ^ (M == PARITY ? 0 : 1));
        hopper::mbar_expect_tx(full, 2 * KV_BYTES + (M == TX_COUNT ? 16 : 0));
        for (int c = 0; c < 2; c++) {
            hopper::tma_load_4d(k + c * HALF, &p.k, c * 64, head, t * KT, blockIdx.z, full);
            hopper::tma_load_4d(k + KV_BYTES + c * HALF, &p.v, c * 64, head, t * KT, blockIdx.z,
                                full);
        }
    }
}

template <Mistake M>
ARCH_FN void consume(const Params& p, uint8_t* smem, uint32_t kv, uint32_t bar, int tiles) {
    const int b = blockIdx.z, h = blockIdx.y, q0 = blockIdx.x * QT;
    const int ct = threadIdx.x - 128, w = ct >> 5, lane = ct & 31;
    const uint32_t s0 = arch::smem_u32(smem);
    // Queries come by ordinary stores, swizzled by hand.
    for (int i = ct; i < QT * 16; i += 128) {
        const int r = i >> 4, c = i & 15;
        vec4 x = {0, 0, 0, 0};
        if (q0 + r < p.len)
            x = *reinterpret_cast<const vec4*>(
                p.q + ((size_t(b) * p.len + q0 + r) * p.q_heads + h) * DIM + c * 8);
        *reinterpret_cast<vec4*>(smem + (c >> 3) * HALF + r * 128 + (((c & 7) ^ (r & 7)) << 4)) = x;
    }
    if constexpr (M != NO_FENCE) hopper::fence_proxy_async();
    arch::named_sync(1, 128);
    float o[64] = {}, m[2] = {-1e30f, -1e30f}, l[2] = {0, 0};
    for (int t = 0; t < tiles; t++) {
        const int s = t & 1;
        const uint32_t k = kv + s * 2 * KV_BYTES, v = k + KV_BYTES;
        float sc[32];
        for (int i = 0; i < 32; i++) sc[i] = 0.f;
        hopper::mbar_wait(bar + 8 * s, (t >> 1) & 1);
        hopper::settle(sc);
        hopper::wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < 8; kk++) {
            const uint32_t off = (kk >> 2) * HALF + (kk & 3) * 32;
            hopper::wgmma_ss_n64(sc, hopper::descriptor(s0 + off, 16, 1024),
                                 hopper::descriptor(k + off, 16, 1024), kk != 0);
        }
        hopper::wgmma_commit();
        if constexpr (M != NO_WAIT) hopper::wgmma_wait<0>();
        const int r0 = q0 + w * 16 + (lane >> 2), c0 = t * KT + (lane & 3) * 2;
        float top[2] = {m[0], m[1]}, shrink[2];
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int c = c0 + (i >> 2) * 8 + (i & 1), r = r0 + ((i >> 1) & 1) * 8;
            sc[i] = (c > r || c >= p.len) ? -1e30f : sc[i] * p.scale_log2;
            top[(i >> 1) & 1] = fmaxf(top[(i >> 1) & 1], sc[i]);
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
        for (int i = 0; i < 32; i++) {
            sc[i] = arch::ex2(sc[i] - m[(i >> 1) & 1]);
            l[(i >> 1) & 1] += sc[i];
        }
#pragma unroll
        for (int i = 0; i < 64; i++) o[i] *= shrink[(i >> 1) & 1];
        uint32_t a[4][4];
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[kk][i] = arch::pack(sc[kk * 8 + i * 2], sc[kk * 8 + i * 2 + 1], bf16{});
        hopper::settle(o);
#pragma unroll
        for (int kk = 0; kk < 4; kk++) hopper::settle(a[kk]);
        hopper::wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
            hopper::wgmma_rs_n128_tb(o, a[kk], hopper::descriptor(v + kk * 2048, HALF, 1024), 1);
        hopper::wgmma_commit();
        if constexpr (M == EARLY_RELEASE) hopper::mbar_arrive(bar + 16 + 8 * s);
        hopper::wgmma_wait<0>();
        if constexpr (M != EARLY_RELEASE) hopper::mbar_arrive(bar + 16 + 8 * s);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += arch::shfl_xor(l[r], 1);
        l[r] += arch::shfl_xor(l[r], 2);
    }
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int r = q0 + w * 16 + (lane >> 2) + ((i >> 1) & 1) * 8;
        const int c = (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (r < p.len)
            p.o[((size_t(b) * p.len + r) * p.q_heads + h) * DIM + c] = o[i] / l[(i >> 1) & 1];
    }
}

template <Mistake M>
ARCH_FN void prefill(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    ARCH_DYN_SMEM(smem);
    const uint32_t s0 = arch::smem_u32(smem), kv = s0 + 2 * HALF;
    const uint32_t bar = kv + 4 * KV_BYTES;  // two full, two empty
    const int head = blockIdx.y / (p.q_heads / p.kv_heads);
    const int tiles = (min(int(blockIdx.x + 1) * QT, p.len) + KT - 1) / KT;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            hopper::mbar_init(bar + 8 * i, 1);
            hopper::mbar_init(bar + 16 + 8 * i, 128);
        }
        hopper::fence_mbar_init();
    }
    arch::sync_threads();
    if (threadIdx.x < 128) {
        hopper::setmaxnreg_dec<40>();
        if (threadIdx.x == 0) produce<M>(p, kv, bar, head, tiles);
    } else {
        hopper::setmaxnreg_inc<232>();
        consume<M>(p, smem, kv, bar, tiles);
    }
#endif
}

}  // namespace

ARCH_KERNEL(selftest_hopper, 256, 1, Params, prefill<NONE>)
ARCH_KERNEL(selftest_hopper_no_fence, 256, 1, Params, prefill<NO_FENCE>)
ARCH_KERNEL(selftest_hopper_early_release, 256, 1, Params, prefill<EARLY_RELEASE>)
ARCH_KERNEL(selftest_hopper_parity, 256, 1, Params, prefill<PARITY>)
ARCH_KERNEL(selftest_hopper_tx_count, 256, 1, Params, prefill<TX_COUNT>)
ARCH_KERNEL(selftest_hopper_no_wait, 256, 1, Params, prefill<NO_WAIT>)
