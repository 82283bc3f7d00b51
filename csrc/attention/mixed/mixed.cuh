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

// The figures of both kinds.
template <class Traits>
struct MixedTraits;
template <Kv KV, int D, int V_D, DeviceClass CLASS>
struct MixedTraits<KernelTraits<Family::mixed, KV, D, V_D, CLASS>> {
    using Mixed = KernelTraits<Family::mixed, KV, D, V_D, CLASS>;
    using Decode = KernelTraits<Family::decode, KV, D, V_D, CLASS>;
    using Prefill = KernelTraits<Family::prefill, KV, D, V_D, CLASS>;
    static_assert(Mixed::THREADS == Decode::THREADS && Mixed::THREADS == Prefill::THREADS,
                  "blocks of both kinds are alike");
    static_assert(Decode::BLOCKS >= Mixed::BLOCKS && Prefill::BLOCKS >= Mixed::BLOCKS,
                  "one block of each kind fits a multiprocessor's registers");
    static constexpr int SMEM = Decode::SMEM > Prefill::SMEM ? Decode::SMEM : Prefill::SMEM;
    static_assert(Mixed::SMEM == SMEM, "kernels.def has another number of bytes");
};

template <class Q, class Traits, class Has>
ARCH_FN void mixed(const inflight_mixed_params& p) {
    using Both = MixedTraits<Traits>;
    // Of the plan, which no kernel writes; both kinds wait before they go on.
    const uint32_t prefills = plan_of(step_of(p.prefill.step), p.prefill.plan)->num_shares;
    if (blockIdx.x < prefills) {
        prefill<Q, typename Both::Prefill, Has>(p.prefill);
    } else {
        decode<Q, typename Both::Decode, Has>(p.decode, blockIdx.x - prefills);
    }
}

}  // namespace inflight

#define INFLIGHT_MIXED_KERNELS(...) \
    INFLIGHT_ATTENTION_KERNELS(mixed, NoFeature, inflight_mixed_params, __VA_ARGS__)
