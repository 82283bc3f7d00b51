// Every function of hopper_ops.cuh, as arch_micro.cu has those of csrc/arch; for 9.0 alone.
#include "hopper_ops.cuh"

namespace {

struct Params {
    // Of 128 x 1 x 64 x 1 numbers at `in`, by boxes of 64 x 1 x 64 x 1, swizzled.
    tensor_map_t map;
    uint64_t in, out;
};

[[maybe_unused]] constexpr uint32_t BOX = 8192;

ARCH_FN const uint32_t* in(const Params& p) { return reinterpret_cast<const uint32_t*>(p.in); }
ARCH_FN uint32_t* out(const Params& p) { return reinterpret_cast<uint32_t*>(p.out); }

// A tile by the copy engine, 16 bytes per thread by cp.async, both behind mbarriers; two phases.
ARCH_FN void copies(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x, base = arch::smem_u32(smem), own = base + BOX, bar = own + 2048;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
    if (t == 0) {
        hopper::mbar_init(bar, 1);
        hopper::mbar_init(bar + 8, 128);
        hopper::mbar_init(bar + 16, 128);
        hopper::fence_mbar_init();
    }
    arch::sync_threads();
    for (uint32_t turn = 0; turn < 2; turn++) {
        if (t == 0) {
            hopper::mbar_expect_tx(bar, BOX);
            hopper::tma_load_4d(base, &p.map, static_cast<int>(64 * turn), 0, 0, 0, bar);
        }
        arch::cp_async_16(own + 16 * t, in(p) + 4 * (128 * turn + t), true);
        hopper::cp_async_mbar_arrive_noinc(bar + 8);
        hopper::mbar_wait(bar, turn);
        hopper::mbar_wait(bar + 8, turn);
        for (uint32_t i = 0; i < 4; i++) {
            // Of rows 8 i to 8 i + 7, each swizzled in its way; and of another thread's copy.
            out(p)[1024 * turn + 128 * i + t] = words[128 * i + t];
            out(p)[1024 * turn + 512 + 128 * i + t] = words[BOX / 4 + 4 * (t ^ 37) + i];
        }
        hopper::mbar_arrive(bar + 16);
        hopper::mbar_wait(bar + 16, turn);
    }
#endif
}

// Four 8 x 8 matrices from registers to shared memory.
ARCH_FN void matrices(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x;
    uint32_t r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = in(p)[4 * t + i];
    hopper::stmatrix_x4(r, arch::smem_u32(smem + 16 * t));
    arch::sync_warp();
    for (uint32_t i = 0; i < 4; i++)
        out(p)[4 * t + i] = reinterpret_cast<const uint32_t*>(smem)[4 * t + i];
#endif
}

// Numbers added twice to each thread's own words, which gives the first sum, and once to a word of
// all.
ARCH_FN void atomics(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const uint32_t t = threadIdx.x;
    uint32_t *own = out(p) + 192 + t, *shared = out(p) + 384;
    hopper::atomic_add<0>(own, in(p)[t]);
    hopper::atomic_add<1>(own + 64, in(p)[64 + t]);
    hopper::atomic_add<2>(own + 128, in(p)[128 + t]);
    out(p)[t] = hopper::atomic_add<2>(own, in(p)[64 + t]);
    out(p)[64 + t] = hopper::atomic_add<0>(own + 64, in(p)[128 + t]);
    out(p)[128 + t] = hopper::atomic_add<1>(own + 128, in(p)[t]);
    hopper::atomic_add<0>(shared, in(p)[t]);
    hopper::atomic_add<1>(shared + 1, in(p)[64 + t]);
    hopper::atomic_add<2>(shared + 2, in(p)[128 + t]);
#endif
}

// Products of warpgroups, from shared memory, the second added to the first, and of registers with
// shared memory transposed, to which one of twice the width is added. Two of them do the same, with
// registers that a third one has given up: as 384 threads begin with 168 each.
ARCH_FN void products(const Params& p) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x % 128, base = arch::smem_u32(smem);
    uint32_t* const to = out(p) + 128 * 96 * (threadIdx.x / 128 - 1) + t;
    if (threadIdx.x < 128) {
        hopper::setmaxnreg_dec<40>();
        // 64 x 64 of A, 64 x 64 of B, 64 x 128 of B by the same bytes in another order.
        for (uint32_t i = 0; i < 4 * BOX / 512; i++)
            reinterpret_cast<uint32_t*>(smem)[128 * i + t] = in(p)[(128 * i + t) % 4096];
        hopper::fence_proxy_async();
        arch::named_arrive(1, 384);
        return;
    }
    hopper::setmaxnreg_inc<232>();
    arch::named_sync(1, 384);
    float d[32], e[64];
    for (int i = 0; i < 32; i++) d[i] = 0;
    for (int i = 0; i < 64; i++) e[i] = 0;
    hopper::settle(d);
    hopper::wgmma_fence();
    hopper::wgmma_ss_n64(d, hopper::descriptor(base, 16, 1024),
                         hopper::descriptor(base + BOX, 16, 1024), 0);
    hopper::wgmma_ss_n64(d, hopper::descriptor(base + 32, 16, 1024),
                         hopper::descriptor(base + BOX + 32, 16, 1024), 1);
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();
    uint32_t a[4];
    for (uint32_t i = 0; i < 4; i++) a[i] = in(p)[4 * t + i];
    hopper::settle(a);
    hopper::settle(e);
    hopper::wgmma_fence();
    hopper::wgmma_rs_n128_tb(e, a, hopper::descriptor(base + 2 * BOX, BOX, 1024), 0);
    hopper::wgmma_ss_n128(e, hopper::descriptor(base, 16, 1024),
                          hopper::descriptor(base + 2 * BOX, 16, 1024), 1);
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();
    for (uint32_t i = 0; i < 32; i++) to[128 * i] = arch::as_u32(d[i]);
    for (uint32_t i = 0; i < 64; i++) to[128 * (32 + i)] = arch::as_u32(e[i]);
#endif
}

}  // namespace

ARCH_KERNEL(arch_hopper_copies, 128, 1, Params, copies)
ARCH_KERNEL(arch_hopper_matrices, 32, 1, Params, matrices)
ARCH_KERNEL(arch_hopper_atomics, 64, 1, Params, atomics)
ARCH_KERNEL(arch_hopper_products, 384, 1, Params, products)
