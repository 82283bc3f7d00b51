// The end of a part: outputs divided by their sums, LSE, or states, which the block that arrives
// last at their merge puts together.
#pragma once

#include "../arch/arch.cuh"
#include "../kernel_params.h"
#include "softmax.cuh"
#include "step.cuh"

namespace inflight {

// What a part or a merge writes: query rows r = query * group + head of the group, counted from
// query q_start of a row, of one KV head.
struct Target {
    uint32_t first_token;  // of query q_start
    uint32_t first_head;   // query head: KV head times group
    uint32_t group;
    float out_scale;  // of outputs once divided: v_scale

    ARCH_MEMBER uint64_t token(uint32_t r) const { return first_token + r / group; }
    ARCH_MEMBER uint32_t head(uint32_t r) const { return first_head + r % group; }
};

// Largest logit and sum of a query row, the sink included: what outputs are multiplied with, and
// the LSE.
struct Normal {
    float factor, lse;
};
ARCH_FN Normal normal(const inflight_attention_params& p, const Target& target, uint32_t head,
                      float max, float sum) {
    float largest = max, weight = 1.0f;
    if (p.sinks != 0) {
        const float logit = arch::load_global(reinterpret_cast<const float*>(p.sinks) + head);
        const float sink = logit * LOG2_E;
        largest = fmaxf(max, sink);
        // To base 2 a finite sink may be infinite: all there is, or nothing next to any key.
        if (largest == neg_inf() || sink == -neg_inf()) return {0.0f, logit};
        weight = arch::ex2(max - largest);
        sum = sum * weight + arch::ex2(sink - largest);
    }
    // A query that sees no key, and has no sink: output 0, LSE -inf.
    if (largest == neg_inf()) return {0.0f, neg_inf()};
    return {weight * target.out_scale * arch::rcp(sum), (largest + arch::lg2(sum)) * LN_2};
}

ARCH_FN void write_lse(const inflight_attention_params& p, const Target& target, uint32_t r,
                       float lse) {
    if (p.lse == 0) return;
    const uint64_t at = target.token(r) * p.num_q_heads + target.head(r);
    reinterpret_cast<float*>(p.lse)[at] = lse;
}

// The output of query row r from its element d on.
template <class Q>
ARCH_FN uint8_t* output_at(const inflight_attention_params& p, const Target& target, uint32_t r,
                           uint32_t d) {
    const int64_t at = static_cast<int64_t>(target.token(r)) * p.o_token +
                       static_cast<int64_t>(target.head(r)) * p.o_head + d;
    return reinterpret_cast<uint8_t*>(p.o) + at * static_cast<int64_t>(sizeof(Q));
}
template <class Q>
ARCH_FN void write_output_4(const inflight_attention_params& p, const Target& target, uint32_t r,
                            uint32_t d, float a, float b, float c, float e) {
    *reinterpret_cast<arch::vec2*>(output_at<Q>(p, target, r, d)) = {arch::pack(a, b, Q{}),
                                                                     arch::pack(c, e, Q{})};
}

// Query row r of the states that begin at `partial` (the part's or merge's, in queries).
ARCH_FN float* state_o(const inflight_attention_params& p, uint32_t partial, uint32_t group,
                       uint32_t r) {
    const uint64_t row = static_cast<uint64_t>(partial) * group + r;
    return reinterpret_cast<float*>(p.state_o) + row * p.head_dim;
}
ARCH_FN arch::vec2* state_ml(const inflight_attention_params& p, uint32_t partial, uint32_t group,
                             uint32_t r) {
    return reinterpret_cast<arch::vec2*>(p.state_ml) + (static_cast<uint64_t>(partial) * group + r);
}
ARCH_FN void write_state_ml(const inflight_attention_params& p, uint32_t partial, uint32_t group,
                            uint32_t r, float max, float sum) {
    *state_ml(p, partial, group, r) = {arch::as_u32(max), arch::as_u32(sum)};
}

// To be called by all threads that `sync` waits for, their states written: whether all `count`
// parts of the merge have written theirs, which is true of one block, the last. That block sees
// what the others wrote, and the counter is ready for the next launch. `flag` is a word of shared
// memory.
template <class Sync>
ARCH_FN bool arrives_last(const inflight_attention_params& p, uint32_t merge, uint32_t count,
                          uint32_t thread, uint32_t* flag, Sync sync) {
    sync();
    if (thread == 0) {
        uint32_t* arrived = reinterpret_cast<uint32_t*>(p.arrived) + merge;
        const bool last = arch::atomic_add_acq_rel(arrived, 1) == count - 1;
        if (last) *arrived = 0;
        *flag = last;
    }
    sync();
    return *flag != 0;
}

// Puts the states of a merge together and writes its outputs. A warp takes a query row: its lanes
// read largest logits and sums of 32 parts at once, then all of them a part's output. Parts count
// in their order, so results do not depend on which block arrives last.
template <class Q, int WARPS>
ARCH_FN void merge_states(const inflight_attention_params& p, const inflight_merge& merge,
                          const Target& target, uint32_t warp) {
    const uint32_t lane = threadIdx.x & 31, group = target.group;
    const uint32_t quads = p.head_dim / 4;
    for (uint32_t r = warp; r < merge.q_len * group; r += WARPS) {
        float largest = neg_inf();
        for (uint32_t part = lane; part < merge.count; part += 32) {
            const arch::vec2 ml = *state_ml(p, merge.partial + part * merge.q_len, group, r);
            largest = fmaxf(largest, arch::as_f32(ml.x));
        }
#pragma unroll
        for (int i = 16; i > 0; i /= 2) largest = fmaxf(largest, arch::shfl_xor(largest, i));
        const float base = largest == neg_inf() ? 0.0f : largest;

        float o[2][4] = {}, sum = 0.0f;
        for (uint32_t first = 0; first < merge.count; first += 32) {
            float weight = 0.0f, part_sum = 0.0f;
            if (first + lane < merge.count) {
                const uint32_t partial = merge.partial + (first + lane) * merge.q_len;
                const arch::vec2 ml = *state_ml(p, partial, group, r);
                weight = arch::ex2(arch::as_f32(ml.x) - base);
                part_sum = weight * arch::as_f32(ml.y);
            }
            const uint32_t parts = merge.count - first < 32 ? merge.count - first : 32;
#pragma unroll 8
            for (uint32_t i = 0; i < parts; i++) {
                const float w = arch::shfl(weight, static_cast<int>(i));
                sum += arch::shfl(part_sum, static_cast<int>(i));
                const float* from = state_o(p, merge.partial + (first + i) * merge.q_len, group, r);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const uint32_t quad = half * 32 + lane;
                    if (quad >= quads) continue;
                    const arch::vec4 x = reinterpret_cast<const arch::vec4*>(from)[quad];
                    o[half][0] += w * arch::as_f32(x.x);
                    o[half][1] += w * arch::as_f32(x.y);
                    o[half][2] += w * arch::as_f32(x.z);
                    o[half][3] += w * arch::as_f32(x.w);
                }
            }
        }
        const Normal n = normal(p, target, target.head(r), largest, sum);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t quad = half * 32 + lane;
            if (quad >= quads) continue;
            write_output_4<Q>(p, target, r, quad * 4, o[half][0] * n.factor, o[half][1] * n.factor,
                              o[half][2] * n.factor, o[half][3] * n.factor);
        }
        if (lane == 0) write_lse(p, target, r, n.lse);
    }
}

}  // namespace inflight
