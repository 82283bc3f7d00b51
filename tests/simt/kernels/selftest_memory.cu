// Self-test: small kernels, each right or wrong in one way.
#include "hopper_ops.cuh"

namespace {

struct Params {
    uint64_t in, out, counter;
    uint32_t n, wild;
};

// Each block writes a partial sum; the last one to arrive adds them up.
enum Merge { GOOD, NO_ATOMIC, NO_BARRIER, TOO_EARLY, RELAXED, ACQUIRE, RELEASE };
template <Merge M>
ARCH_FN void merge(const Params& p) {
    ARCH_DYN_SMEM(smem);
    float* partials = reinterpret_cast<float*>(p.in);
    uint32_t* counter = reinterpret_cast<uint32_t*>(p.counter);
    uint32_t* before = reinterpret_cast<uint32_t*>(smem);
    partials[blockIdx.x * 64 + threadIdx.x] = float(blockIdx.x + 1);
    if constexpr (M != NO_BARRIER) arch::sync_threads();
    if (threadIdx.x == 0) {
        if constexpr (M == NO_ATOMIC)
            before[0] = blockIdx.x;
        else if constexpr (M >= RELAXED)
            before[0] = hopper::atomic_add<M - RELAXED>(counter, 1);
        else
            before[0] = arch::atomic_add_acq_rel(counter, 1);
    }
    arch::sync_threads();
    const bool last = M == TOO_EARLY ? before[0] == 1 : before[0] == gridDim.x - 1;
    if (!last) return;
    float sum = 0.f;
    for (unsigned i = 0; i < gridDim.x; i++) sum += partials[i * 64 + threadIdx.x];
    reinterpret_cast<float*>(p.out)[threadIdx.x] = sum;
    if (M == GOOD && threadIdx.x == 0) *counter = 0;
}

// Neighbouring bytes by different threads, then whole words: no race, whatever the granule.
ARCH_FN void bytes_good(const Params& p) {
    ARCH_DYN_SMEM(smem);
    uint8_t* out = reinterpret_cast<uint8_t*>(p.out);
    smem[threadIdx.x] = uint8_t(threadIdx.x);
    out[blockIdx.x * blockDim.x + threadIdx.x] = uint8_t(threadIdx.x);
    arch::sync_threads();
    if (threadIdx.x < 16) {
        const uint32_t w = reinterpret_cast<const uint32_t*>(smem)[threadIdx.x];
        const uint32_t first = blockIdx.x * blockDim.x / 4;
        reinterpret_cast<uint32_t*>(out)[first + threadIdx.x] = w + 0x01010101;
    }
}
// A thread writes its byte and its neighbour's.
ARCH_FN void bytes_race(const Params& p) {
    uint8_t* out = reinterpret_cast<uint8_t*>(p.out);
    out[threadIdx.x] = 1;
    out[threadIdx.x + 1] = 2;
}
ARCH_FN void blocks_race(const Params& p) {
    if (threadIdx.x == 0) *reinterpret_cast<uint32_t*>(p.out) = blockIdx.x;
}
ARCH_FN void copy_words(const Params& p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) reinterpret_cast<uint32_t*>(p.out)[i] = reinterpret_cast<uint32_t*>(p.in)[i];
}
ARCH_FN void shared_uninit(const Params& p) {
    ARCH_DYN_SMEM(smem);
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] =
        reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
}
ARCH_FN void shared_outside(const Params& p) {
    ARCH_DYN_SMEM(smem);
    smem[p.n + threadIdx.x] = 1;
}
ARCH_FN void wild_pointer(const Params& p) {
    if (threadIdx.x == 7) *reinterpret_cast<uint32_t*>(p.out + p.wild) = 1;
}
ARCH_FN void deadlock(const Params&) {
    if (threadIdx.x < 32) arch::named_sync(1, 64);
}
ARCH_FN void divergent(const Params& p) {
    uint32_t x;
    if (threadIdx.x & 1)
        x = arch::shfl_xor(threadIdx.x, 1);
    else
        x = arch::ballot(true);
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = x;
}
// What is read as constant is written by no one.
template <bool WRITTEN>
ARCH_FN void read_const(const Params& p) {
    uint32_t* words = reinterpret_cast<uint32_t*>(p.in);
    if (WRITTEN) words[threadIdx.x] = threadIdx.x;
    arch::sync_threads();
    const uint32_t* from = words + (threadIdx.x ^ 1);
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = arch::load_const(from);
}
// As dependents: each thread waits for the kernel before, or all but one.
template <bool WAITS>
ARCH_FN void dependent(const Params& p) {
    if (WAITS || threadIdx.x != 9) arch::wait_for_prior_kernel();
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = p.n;
}
// Copies of what the kernel before has written, right and with mistakes; of the kernel after too.
enum Dependent {
    COPY,         // waits first
    TABLE,        // but for a table, which no kernel writes
    LETS_NEXT,    // start before it waits
    READS_CONST,  // what it copies, by the cache that is not coherent
    READS_EARLY,  // what it copies
    ASKS_EARLY,   // for it, by cp.async
    STORES_EARLY,
    ADDS_EARLY,
    FAULTS_EARLY,  // beyond what it copies
    ENDS_EARLY,    // blocks from n on
};
template <Dependent D>
ARCH_FN void dependent_copy(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    const uint32_t* in = reinterpret_cast<const uint32_t*>(p.in);
    uint32_t* out = reinterpret_cast<uint32_t*>(p.out);
    uint32_t from = i, x = 0;
    if (D == TABLE) from = arch::load_const(reinterpret_cast<const uint32_t*>(p.counter) + i);
    if (D == LETS_NEXT) arch::let_next_kernel_start();
    if (D == READS_EARLY) x = arch::load_global(in + i);
    if (D == ASKS_EARLY && t % 4 == 0)
        arch::cp_async_16(arch::smem_u32(smem) + 4 * t, in + i, true);
    if (D == STORES_EARLY) out[i] = 0;
    if (D == ADDS_EARLY && t == 0)
        arch::atomic_add_acq_rel(reinterpret_cast<uint32_t*>(p.counter), 1);
    if (D == FAULTS_EARLY) x = arch::load_global(in + p.wild);
    if (D == ENDS_EARLY && blockIdx.x >= p.n) return;
    arch::wait_for_prior_kernel();
    if (D == ASKS_EARLY) {
        arch::cp_async_commit();
        arch::cp_async_wait<0>();
        arch::sync_threads();
        x = reinterpret_cast<const uint32_t*>(smem)[t];
    } else if (D == READS_CONST) {
        x = arch::load_const(in + i);
    } else if (D != READS_EARLY && D != FAULTS_EARLY) {
        x = arch::load_global(in + from);
    }
    out[i] = x;
}
// Stride 1: none; stride 32: every lane in the same bank.
template <int STRIDE>
ARCH_FN void banks(const Params& p) {
    ARCH_DYN_SMEM(smem);
    uint32_t* words = reinterpret_cast<uint32_t*>(smem);
    words[threadIdx.x * STRIDE] = threadIdx.x;
    arch::sync_threads();
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = threadIdx.x;
}
// A shuffle orders no memory; a warp's barrier does.
template <bool ORDERED>
ARCH_FN void warp_exchange(const Params& p) {
    ARCH_DYN_SMEM(smem);
    uint32_t* words = reinterpret_cast<uint32_t*>(smem);
    words[threadIdx.x] = threadIdx.x;
    const uint32_t other = arch::shfl_xor(threadIdx.x, 1);
    if (ORDERED) arch::sync_warp();
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = words[other];
}
// One warp fills by cp.async, arrives by mbarrier; the other one waits for that only.
template <bool WAITS>
ARCH_FN void copy_by_mbarrier(const Params& p) {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    ARCH_DYN_SMEM(smem);
    const uint32_t at = arch::smem_u32(smem), bar = at + 512;
    if (threadIdx.x == 0) hopper::mbar_init(bar, 32);
    arch::sync_threads();
    if (threadIdx.x < 32) {
        arch::cp_async_16(at + threadIdx.x * 16,
                          reinterpret_cast<uint8_t*>(p.in) + threadIdx.x * 16, true);
        hopper::cp_async_mbar_arrive_noinc(bar);
    } else {
        if (WAITS) hopper::mbar_wait(bar, 0);
        const uint32_t lane = threadIdx.x - 32;
        reinterpret_cast<uint32_t*>(p.out)[lane] = reinterpret_cast<uint32_t*>(smem)[lane * 4];
    }
#endif
}
// One warp asks for a copy to where the other one reads, which it does not wait for.
ARCH_FN void overwritten(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t lane = threadIdx.x % 32;
    uint32_t* word = reinterpret_cast<uint32_t*>(smem) + lane * 4;
    if (threadIdx.x < 32) *word = ~0u;
    arch::sync_threads();
    if (threadIdx.x < 32) {
        reinterpret_cast<uint32_t*>(p.out)[lane] = *word;
    } else {
        arch::cp_async_16(arch::smem_u32(word), reinterpret_cast<uint8_t*>(p.in) + lane * 16, true);
        arch::cp_async_commit();
    }
    // A thread's copies land before it ends.
    arch::sync_threads();
}
// Each thread waits for its copy and reads that of another one. What they know of each other is
// older than the wait.
template <bool ORDERED>
ARCH_FN void copy_exchange(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t lane = threadIdx.x, at = arch::smem_u32(smem) + lane * 16;
    arch::cp_async_16(at, reinterpret_cast<uint8_t*>(p.in) + lane * 16, true);
    arch::cp_async_commit();
    arch::sync_warp();
    arch::cp_async_wait<0>();
    const uint32_t other = arch::shfl_xor(lane, 1);
    if (ORDERED) arch::sync_warp();
    reinterpret_cast<uint32_t*>(p.out)[lane] = reinterpret_cast<uint32_t*>(smem)[other * 4];
}
// A fragment stored by stmatrix and read by ldmatrix is the same.
ARCH_FN void matrix_round_trip(const Params& p) {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    ARCH_DYN_SMEM(smem);
    const uint32_t at = arch::smem_u32(smem) + threadIdx.x * 16;
    uint32_t r[4], back[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = threadIdx.x * 4 + i;
    hopper::stmatrix_x4(r, at);
    arch::sync_warp();
    arch::ldmatrix_x4(back, at);
    for (uint32_t i = 0; i < 4; i++)
        reinterpret_cast<uint32_t*>(p.out)[threadIdx.x * 4 + i] = back[i];
#endif
}
// Producer and consumer by named barriers: arrive does not wait.
template <bool WAITS>
ARCH_FN void named_barriers(const Params& p) {
    ARCH_DYN_SMEM(smem);
    uint32_t* words = reinterpret_cast<uint32_t*>(smem);
    if (threadIdx.x < 32) {
        words[threadIdx.x] = threadIdx.x + 100;
        arch::named_arrive(3, 64);
    } else {
        if (WAITS)
            arch::named_sync(3, 64);
        else
            arch::named_arrive(3, 64);
        reinterpret_cast<uint32_t*>(p.out)[threadIdx.x - 32] = words[threadIdx.x - 32];
    }
}
ARCH_FN void mma_speed(const Params& p) {
    float d[4] = {};
    uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    for (uint32_t i = 0; i < p.n; i++) arch::mma(d, a, 0x3f803f80, 0x3f803f80, arch::bf16{});
    if (p.out) reinterpret_cast<float*>(p.out)[threadIdx.x] = d[0];
}
ARCH_FN void barrier_speed(const Params& p) {
    for (uint32_t i = 0; i < p.n; i++) arch::sync_threads();
}

}  // namespace

ARCH_KERNEL(selftest_merge, 64, 1, Params, merge<GOOD>)
ARCH_KERNEL(selftest_merge_no_atomic, 64, 1, Params, merge<NO_ATOMIC>)
ARCH_KERNEL(selftest_merge_no_barrier, 64, 1, Params, merge<NO_BARRIER>)
ARCH_KERNEL(selftest_merge_too_early, 64, 1, Params, merge<TOO_EARLY>)
ARCH_KERNEL(selftest_merge_relaxed, 64, 1, Params, merge<RELAXED>)
ARCH_KERNEL(selftest_merge_acquire, 64, 1, Params, merge<ACQUIRE>)
ARCH_KERNEL(selftest_merge_release, 64, 1, Params, merge<RELEASE>)
ARCH_KERNEL(selftest_read_const, 64, 1, Params, read_const<false>)
ARCH_KERNEL(selftest_read_const_written, 64, 1, Params, read_const<true>)
ARCH_KERNEL(selftest_dependent, 64, 1, Params, dependent<true>)
ARCH_KERNEL(selftest_dependent_no_wait, 64, 1, Params, dependent<false>)
ARCH_KERNEL(selftest_dependent_copy, 64, 1, Params, dependent_copy<COPY>)
ARCH_KERNEL(selftest_dependent_table, 64, 1, Params, dependent_copy<TABLE>)
ARCH_KERNEL(selftest_dependent_lets_next, 64, 1, Params, dependent_copy<LETS_NEXT>)
ARCH_KERNEL(selftest_dependent_reads_const, 64, 1, Params, dependent_copy<READS_CONST>)
ARCH_KERNEL(selftest_dependent_faults_early, 64, 1, Params, dependent_copy<FAULTS_EARLY>)
ARCH_KERNEL(selftest_dependent_reads_early, 64, 1, Params, dependent_copy<READS_EARLY>)
ARCH_KERNEL(selftest_dependent_asks_early, 64, 1, Params, dependent_copy<ASKS_EARLY>)
ARCH_KERNEL(selftest_dependent_stores_early, 64, 1, Params, dependent_copy<STORES_EARLY>)
ARCH_KERNEL(selftest_dependent_adds_early, 64, 1, Params, dependent_copy<ADDS_EARLY>)
ARCH_KERNEL(selftest_dependent_ends_early, 64, 1, Params, dependent_copy<ENDS_EARLY>)
ARCH_KERNEL(selftest_bytes, 64, 1, Params, bytes_good)
ARCH_KERNEL(selftest_bytes_race, 64, 1, Params, bytes_race)
ARCH_KERNEL(selftest_blocks_race, 64, 1, Params, blocks_race)
ARCH_KERNEL(selftest_copy, 64, 1, Params, copy_words)
ARCH_KERNEL(selftest_shared_uninit, 64, 1, Params, shared_uninit)
ARCH_KERNEL(selftest_shared_outside, 64, 1, Params, shared_outside)
ARCH_KERNEL(selftest_wild_pointer, 64, 1, Params, wild_pointer)
ARCH_KERNEL(selftest_deadlock, 64, 1, Params, deadlock)
ARCH_KERNEL(selftest_divergent, 64, 1, Params, divergent)
ARCH_KERNEL(selftest_banks_1, 64, 1, Params, banks<1>)
ARCH_KERNEL(selftest_banks_32, 64, 1, Params, banks<32>)
ARCH_KERNEL(selftest_warp_exchange, 32, 1, Params, warp_exchange<true>)
ARCH_KERNEL(selftest_warp_exchange_unordered, 32, 1, Params, warp_exchange<false>)
ARCH_KERNEL(selftest_copy_by_mbarrier, 64, 1, Params, copy_by_mbarrier<true>)
ARCH_KERNEL(selftest_copy_by_mbarrier_no_wait, 64, 1, Params, copy_by_mbarrier<false>)
ARCH_KERNEL(selftest_overwritten, 64, 1, Params, overwritten)
ARCH_KERNEL(selftest_copy_exchange, 32, 1, Params, copy_exchange<true>)
ARCH_KERNEL(selftest_copy_exchange_unordered, 32, 1, Params, copy_exchange<false>)
ARCH_KERNEL(selftest_matrix_round_trip, 32, 1, Params, matrix_round_trip)
ARCH_KERNEL(selftest_named_barriers, 64, 1, Params, named_barriers<true>)
ARCH_KERNEL(selftest_named_barriers_no_wait, 64, 1, Params, named_barriers<false>)
ARCH_KERNEL(selftest_mma_speed, 32, 1, Params, mma_speed)
ARCH_KERNEL(selftest_barrier_speed, 128, 1, Params, barrier_speed)
