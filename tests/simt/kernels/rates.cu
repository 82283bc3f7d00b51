// What instructions take: for a warp that waits for each (one chain) and for one that need not
// (many). tests/rates.rs runs them, and scripts/gpu_round/sass.py looks at what nvcc made of it.
#include "rates_params.cuh"

namespace {

using arch::bf16;
using arch::f16;

// An instruction from a register to the same: a chain. `fixed` is the same in every turn.
struct F2fpBf16 {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t fixed) {
        return arch::pack(arch::as_f32(x), arch::as_f32(fixed), bf16{});
    }
};
struct F2fpF16 {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t fixed) {
        return arch::pack(arch::as_f32(x), arch::as_f32(fixed), f16{});
    }
};
struct F2fpFromE4m3 {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t) { return rates::from_e4m3x2(x); }
};
struct Ex2 {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t) {
        return arch::as_u32(arch::ex2(arch::as_f32(x)));
    }
};
struct Ffma {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t fixed) {
        return arch::as_u32(
            arch::fma_rn(arch::as_f32(x), arch::as_f32(fixed), arch::as_f32(fixed)));
    }
};
struct Hfma2Bf16 {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t fixed) {
        return arch::fma2(x, fixed, fixed, bf16{});
    }
};
struct Shfl {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t) { return arch::shfl_xor(x, 1); }
};
struct Movm {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t) { return rates::movmatrix(x); }
};
// What is loaded says where to load from next.
template <bool TRANS>
struct Ldsm {
    ARCH_MEMBER static uint32_t step(uint32_t x, uint32_t) {
        uint32_t r[4];
        if constexpr (TRANS)
            arch::ldmatrix_x4_trans(r, x);
        else
            arch::ldmatrix_x4(r, x);
        return r[0];
    }
};

// Shared memory in which a lane's first register is the lane's own address again.
template <bool TRANS>
ARCH_FN uint32_t own_address(uint8_t* smem) {
    const uint32_t lane = threadIdx.x % 32, base = arch::smem_u32(smem);
    if (threadIdx.x < 32) {
        for (uint32_t i = 0; i < 4; i++) reinterpret_cast<uint32_t*>(smem)[32 * i + lane] = 0;
        arch::sync_warp();
        if constexpr (TRANS)
            reinterpret_cast<uint16_t*>(smem)[lane % 4 * 16 + lane / 4] =
                static_cast<uint16_t>(base + 16 * lane);
        else
            reinterpret_cast<uint32_t*>(smem)[lane] = base + 16 * lane;
    }
    arch::sync_threads();
    return base + 16 * lane;
}

template <class Op, int CHAINS>
ARCH_FN void chains(const Params& p, uint32_t first) {
    const uint32_t fixed = given(p);
    uint32_t x[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; c++) x[c] = arch::opaque(first);
    arch::sync_threads();
    const uint64_t start = rates::clock();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) x[i % CHAINS] = Op::step(x[i % CHAINS], fixed);
    }
    const uint64_t stop = rates::clock();
    uint32_t all = x[0];
#pragma unroll
    for (int c = 1; c < CHAINS; c++) all |= x[c];
    result(p, all);
    readings(p, start, stop);
}
template <class Op, int CHAINS>
ARCH_FN void registers(const Params& p) {
    chains<Op, CHAINS>(p, given(p));
}
template <bool TRANS, int CHAINS>
ARCH_FN void matrices(const Params& p) {
    ARCH_DYN_SMEM(smem);
    chains<Ldsm<TRANS>, CHAINS>(p, own_address<TRANS>(smem));
}

// d += a b: a chain goes through the sums.
template <class T, int CHAINS>
ARCH_FN void products(const Params& p) {
    const uint32_t x = given(p);
    const uint32_t a[4] = {x, x, x, x};
    float d[CHAINS][4];
#pragma unroll
    for (int c = 0; c < CHAINS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[c][i] = arch::as_f32(arch::opaque(0));
    arch::sync_threads();
    const uint64_t start = rates::clock();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) arch::mma(d[i % CHAINS], a, x, x, T{});
    }
    const uint64_t stop = rates::clock();
    float all = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) all = fmaxf(all, d[c][i]);
    result(p, arch::as_u32(all));
    readings(p, start, stop);
}

ARCH_FN void barriers(const Params& p) {
    arch::sync_threads();
    const uint64_t start = rates::clock();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) arch::sync_threads();
    }
    readings(p, start, rates::clock());
    result(p, given(p));
}

// N copies of 16 bytes per thread: cycles until they have been issued, or (WAITED) have landed.
// `in` has 512 bytes for each of a warp's copies.
template <int N, bool WAITED>
ARCH_FN void copies(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t lane = threadIdx.x % 32, own = threadIdx.x / 32 * 512 * N + 16 * lane;
    const uint8_t* from =
        reinterpret_cast<const uint8_t*>(p.in) + 16 * blockIdx.x * blockDim.x * N + own;
    const uint32_t to = arch::smem_u32(smem) + own;
    uint64_t cycles = 0;
    arch::sync_threads();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
        const uint64_t start = rates::clock();
#pragma unroll
        for (int i = 0; i < N; i++) arch::cp_async_16(to + 512 * i, from + 512 * i, true);
        uint64_t stop = rates::clock();
        arch::cp_async_commit();
        arch::cp_async_wait<0>();
        if (WAITED) stop = rates::clock();
        cycles += stop - start;
    }
    readings(p, 0, cycles);
    uint32_t all = 0;
    for (int i = 0; i < N; i++) all |= *reinterpret_cast<const uint32_t*>(smem + own + 512 * i);
    result(p, all);
}

// The same by the copy engine, which one thread of a warp asks for it, elected before all turns: a
// box of 64 x 64 numbers of 16 bits, or as many bytes in a row. What it takes without a copy (N of
// 0), the barrier's arrival and the clock, is in all figures.
struct BulkParams {
    tensor_map_t map;
    Params p;
};
template <int N, bool WAITED, bool TENSOR>
ARCH_FN void bulk(const BulkParams& b) {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    ARCH_DYN_SMEM(smem);
    const Params& p = b.p;
    const uint32_t turns = static_cast<uint32_t>(p.turns);
    const uint32_t to = arch::smem_u32(smem), bar = to + N * BOX;
    if (threadIdx.x == 0) {
        hopper::mbar_init(bar, 1);
        hopper::fence_mbar_init();
    }
    arch::sync_threads();
    if (rates::elect_one()) {
        uint64_t cycles = 0;
#pragma unroll 1
        for (uint32_t turn = 0; turn < turns; turn++) {
            const uint64_t start = rates::clock();
            hopper::mbar_expect_tx(bar, N * BOX);
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (TENSOR)
                    hopper::tma_load_4d(to + i * BOX, &b.map, 0, 0, 64 * i, blockIdx.x, bar);
                else
                    rates::bulk_load(to + i * BOX, p.in + uint64_t(blockIdx.x * N + i) * BOX, BOX,
                                     bar);
            }
            uint64_t stop = rates::clock();
            hopper::mbar_wait(bar, turn % 2);
            if (WAITED) stop = rates::clock();
            cycles += stop - start;
        }
        uint64_t* clocks = reinterpret_cast<uint64_t*>(p.clocks) + 2 * blockIdx.x;
        clocks[0] = 0, clocks[1] = cycles;
    }
    arch::sync_warp();
    hopper::mbar_wait(bar, (turns - 1) % 2);
    result(p, N ? reinterpret_cast<const uint32_t*>(smem)[threadIdx.x] : 0);
#endif
}

// One thread; in[0] points to what points on, and so on.
ARCH_FN void pointers(const Params& p) {
    uint64_t at = p.in;
    const uint64_t start = rates::clock();
#pragma unroll 1
    for (uint32_t turn = 0; turn < static_cast<uint32_t>(p.turns); turn++) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) at = rates::load_pointer(at);
    }
    const uint64_t stop = rates::clock();
    result(p, static_cast<uint32_t>(at - p.in));
    readings(p, start, stop);
}

// `turns` words of 16 bytes, read by all threads there are, `passes` times, around L1.
ARCH_FN void reading(const Params& p) {
    const arch::vec4* from = reinterpret_cast<const arch::vec4*>(p.in);
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    uint32_t all = 0;
#pragma unroll 1
    for (uint64_t pass = 0; pass < p.passes; pass++) {
        uint64_t at = thread_of_all();
        for (; at + 3 * stride < p.turns; at += 4 * stride) {
            arch::vec4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = rates::load_around_l1(from + at + i * stride);
#pragma unroll
            for (int i = 0; i < 4; i++) all ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
        }
        for (; at < p.turns; at += stride) {
            const arch::vec4 v = rates::load_around_l1(from + at);
            all ^= v.x ^ v.y ^ v.z ^ v.w;
        }
    }
    result(p, all);
}

ARCH_FN void nothing(const Params&) {}
ARCH_FN void waiting(const Params&) { arch::wait_for_prior_kernel(); }
ARCH_FN void letting(const Params&) {
    arch::let_next_kernel_start();
    arch::wait_for_prior_kernel();
}

}  // namespace

#define RATES(name, ...)                                            \
    ARCH_KERNEL(rates_##name##_1, 512, 1, Params, __VA_ARGS__, 1 >) \
    ARCH_KERNEL(rates_##name##_8, 512, 1, Params, __VA_ARGS__, MANY >)
RATES(f2fp_bf16, registers < F2fpBf16)
RATES(f2fp_f16, registers < F2fpF16)
RATES(f2fp_from_e4m3, registers < F2fpFromE4m3)
RATES(ex2, registers < Ex2)
RATES(ffma, registers < Ffma)
RATES(hfma2_bf16, registers < Hfma2Bf16)
RATES(shfl, registers < Shfl)
RATES(movm, registers < Movm)
RATES(ldsm, matrices < false)
RATES(ldsm_trans, matrices < true)
RATES(hmma_bf16, products < bf16)
RATES(hmma_f16, products < f16)
ARCH_KERNEL(rates_bar_1, 512, 1, Params, barriers)
ARCH_KERNEL(rates_ldgsts_0, 512, 1, Params, copies<0, false>)
ARCH_KERNEL(rates_ldgsts_1, 512, 1, Params, copies<1, false>)
ARCH_KERNEL(rates_ldgsts_8, 512, 1, Params, copies<8, false>)
ARCH_KERNEL(rates_ldgsts_landed_1, 512, 1, Params, copies<1, true>)
ARCH_KERNEL(rates_ldgsts_landed_8, 512, 1, Params, copies<8, true>)
ARCH_KERNEL(rates_tma_0, 32, 1, BulkParams, bulk<0, false, true>)
ARCH_KERNEL(rates_tma_1, 32, 1, BulkParams, bulk<1, false, true>)
ARCH_KERNEL(rates_tma_8, 32, 1, BulkParams, bulk<8, false, true>)
ARCH_KERNEL(rates_tma_landed_1, 32, 1, BulkParams, bulk<1, true, true>)
ARCH_KERNEL(rates_tma_landed_8, 32, 1, BulkParams, bulk<8, true, true>)
ARCH_KERNEL(rates_bulk_1, 32, 1, BulkParams, bulk<1, false, false>)
ARCH_KERNEL(rates_bulk_8, 32, 1, BulkParams, bulk<8, false, false>)
ARCH_KERNEL(rates_bulk_landed_1, 32, 1, BulkParams, bulk<1, true, false>)
ARCH_KERNEL(rates_bulk_landed_8, 32, 1, BulkParams, bulk<8, true, false>)
ARCH_KERNEL(rates_pointers, 32, 1, Params, pointers)
ARCH_KERNEL(rates_reading, 256, 1, Params, reading)
ARCH_KERNEL(rates_empty, 32, 1, Params, nothing)
ARCH_KERNEL(rates_waiting, 32, 1, Params, waiting)
ARCH_KERNEL(rates_letting, 32, 1, Params, letting)
