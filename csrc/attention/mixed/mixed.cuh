// Attention of a step's rows of both kinds in one launch, after POD-Attention (Kamath et al.,
// 2024): prefill is bound by products and decode by reading the cache, so a multiprocessor that has
// a block of each does both at once.
//
// The first blocks compute the shares of the prefill plan, those after them the shares of the
// decode plan. Multiprocessors are given blocks in turn, so where each kind has half of the blocks
// that fit the device, each multiprocessor has one of each, without asking at run time which one it
// is on.
#pragma once

#include "../decode/decode.cuh"
#include "../prefill/prefill.cuh"

namespace inflight {

template <class KV, int D>
struct MixedShape {
    using Decoding = DecodeShape<D, sizeof(KV)>;
    using Prefilling = PrefillShape<KV, D>;
    static constexpr int THREADS = Decoding::THREADS;
    static constexpr int BLOCKS = 2;
    // The host asks for the same.
    static constexpr int SMEM =
        Decoding::BYTES > Prefilling::SMEM ? Decoding::BYTES : Prefilling::SMEM;
    static_assert(Prefilling::THREADS == THREADS, "blocks of both kinds are alike");
    static_assert(Prefilling::BLOCKS >= BLOCKS && Decoding::BLOCKS >= BLOCKS,
                  "one block of each kind fits a multiprocessor's registers");
    static_assert(BLOCKS * (SMEM + 1024) <= 228 * 1024, "blocks do not fit a multiprocessor");
};

template <class Q, class KV, int D, bool GENERAL>
ARCH_FN void mixed(const inflight_mixed_params& p) {
    // Of the plan, which no kernel writes; both kinds wait before they go on.
    const uint32_t prefills = plan_of(step_of(p.prefill.step), p.prefill.plan)->num_shares;
    if (blockIdx.x < prefills) {
        prefill<Q, KV, D, GENERAL>(p.prefill);
    } else {
        decode<Q, KV, D, GENERAL>(p.decode, blockIdx.x - prefills);
    }
}

}  // namespace inflight

// Plain and general kernels of a type of queries, one of the cache, and a head_dim.
#define INFLIGHT_MIXED(name, Q, KV, D)                                                   \
    ARCH_KERNEL(inflight_mixed_##name, (inflight::MixedShape<KV, D>::THREADS),           \
                (inflight::MixedShape<KV, D>::BLOCKS), inflight_mixed_params,            \
                inflight::mixed<Q, KV, D, false>)                                        \
    ARCH_KERNEL(inflight_mixed_##name##_general, (inflight::MixedShape<KV, D>::THREADS), \
                (inflight::MixedShape<KV, D>::BLOCKS), inflight_mixed_params,            \
                inflight::mixed<Q, KV, D, true>)
