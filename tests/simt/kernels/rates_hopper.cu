// Of rates: products of warpgroups, and what else runs while they do; for 9.0 alone.
#include "rates_params.cuh"

namespace {

// Products of a warpgroup, of 64 x 16 and 16 x 128 numbers in shared memory, as many per turn as d
// = 128 has for a tile of 128 keys. While they run each thread computes STEPS exponentials or
// products of its own, or both, which is what softmax has for such a tile.
[[maybe_unused]] constexpr int PER_TURN = 16;
template <bool EX2, bool FMUL>
ARCH_FN void warpgroups(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    ARCH_DYN_SMEM(smem);
    const uint32_t x = given(p), base = arch::smem_u32(smem);
    const float one = arch::as_f32(arch::opaque(0x3f800000));
    for (uint32_t i = threadIdx.x; i < 3 * BOX / 4; i += blockDim.x)
        reinterpret_cast<uint32_t*>(smem)[i] = x;
    hopper::fence_proxy_async();
    arch::sync_threads();
    const uint64_t a = hopper::descriptor(base, 16, 1024);
    const uint64_t b = hopper::descriptor(base + BOX, 16, 1024);
    float d[64];
#pragma unroll
    for (int i = 0; i < 64; i++) d[i] = 0;
    uint32_t e[MANY], f[MANY];
#pragma unroll
    for (int c = 0; c < MANY; c++) e[c] = f[c] = arch::opaque(0x3f800000);
    const uint64_t start = rates::clock();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
        hopper::wgmma_fence();
#pragma unroll
        for (int i = 0; i < PER_TURN; i++) hopper::wgmma_ss_n128(d, a, b, 1);
        hopper::wgmma_commit();
        // Always so: the assembler moves nothing over a branch.
        if (x != 0) {
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                if (EX2) e[i % MANY] = arch::as_u32(arch::ex2(arch::as_f32(e[i % MANY])));
                if (FMUL) f[i % MANY] = arch::as_u32(arch::mul_rn(arch::as_f32(f[i % MANY]), one));
            }
        }
        hopper::wgmma_wait<0>();
    }
    const uint64_t stop = rates::clock();
    float most = d[0];
#pragma unroll
    for (int i = 1; i < 64; i++) most = fmaxf(most, d[i]);
    uint32_t others = 0;
#pragma unroll
    for (int c = 0; c < MANY; c++) others |= e[c] | f[c];
    result(p, arch::as_u32(most) ^ others);
    readings(p, start, stop);
#endif
}

}  // namespace

ARCH_KERNEL(rates_wgmma, 256, 1, Params, warpgroups<false, false>)
ARCH_KERNEL(rates_wgmma_ex2, 256, 1, Params, warpgroups<true, false>)
ARCH_KERNEL(rates_wgmma_fmul, 256, 1, Params, warpgroups<false, true>)
ARCH_KERNEL(rates_wgmma_ex2_fmul, 256, 1, Params, warpgroups<true, true>)
