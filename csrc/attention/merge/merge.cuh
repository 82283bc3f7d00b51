// Merging the attention of the same queries over different keys: cascades, shared prefixes, keys on
// several devices. The meaning is that of src/kernels/cpu/merge.rs.
#pragma once

#include "../../common/dtype.cuh"
#include "../../common/items.cuh"
#include "../../common/traits.cuh"
#include "../../kernel_params.h"

namespace inflight {

constexpr int merge_threads = INFLIGHT_MERGE_THREADS;

// Vectors of outputs that a thread has under way.
constexpr int merge_unroll = 4;

// The states' shares of a row.
struct MergeShares {
    float share[INFLIGHT_MERGE_MAX]; /* they add up to 1 */
    float lse;
    int seen; /* states that have keys */
    int last; /* of them */
};

ARCH_FN MergeShares merge_shares(const inflight_merge_params& p, uint64_t row) {
    const float minus_infinity = arch::as_f32(0xff800000u);
    constexpr float log2_e = 1.44269504f;
    constexpr float ln_2 = 0.693147181f;
    MergeShares m;
    m.seen = 0;
    m.last = 0;
    float most = minus_infinity, only = minus_infinity;
#pragma unroll
    for (int i = 0; i < INFLIGHT_MERGE_MAX; i++) {
        m.share[i] = minus_infinity;
        if (i < static_cast<int>(p.count)) {
            const float lse = arch::load_global(reinterpret_cast<const float*>(p.lse[i]) + row);
            // FlashAttention says so of a row without keys.
            m.share[i] = lse == -minus_infinity ? minus_infinity : lse;
        }
    }
#pragma unroll
    for (int i = 0; i < INFLIGHT_MERGE_MAX; i++) {
        if (m.share[i] != minus_infinity) {
            m.seen++;
            m.last = i;
            only = m.share[i];
        }
        most = fmaxf(most, m.share[i]);
    }
    m.lse = only; /* which may be NaN */
    if (m.seen < 2) return m;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < INFLIGHT_MERGE_MAX; i++) {
        m.share[i] = arch::ex2((m.share[i] - most) * log2_e);
        sum += m.share[i];
    }
    // Shares add up to 1: no sum of finite outputs overflows on the way.
    const float by = arch::div_rn(1.0f, sum);
#pragma unroll
    for (int i = 0; i < INFLIGHT_MERGE_MAX; i++) m.share[i] *= by;
    m.lse = most + arch::lg2(sum) * ln_2;
    return m;
}

// Eight elements, `offset` into each state's outputs, summed in the order of the states.
template <class T>
ARCH_FN vec4 merge_outputs(const inflight_merge_params& p, const MergeShares& m, int64_t offset) {
    const auto load = [&p, offset](int i) {
        return load_vec4_global(reinterpret_cast<const T*>(p.o[i]) + offset);
    };
    if (m.seen == 0) return vec4{0, 0, 0, 0};
    // Its bits, whatever they are.
    if (m.seen == 1) return load(m.last);
    // Less than any number: a sum that starts at 0 would lose the sign of -0.
    float sum[8] = {-0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f};
#pragma unroll
    for (int first = 0; first < INFLIGHT_MERGE_MAX; first += merge_unroll) {
        if (first >= static_cast<int>(p.count)) break;
        vec4 v[merge_unroll];
#pragma unroll
        for (int i = 0; i < merge_unroll; i++) {
            // Without keys, or too small to count: outputs may be anything then.
            v[i] = vec4{0, 0, 0, 0};
            // Where an LSE is NaN all shares are, those of states that are not there too.
            const bool is_there = first + i < static_cast<int>(p.count);
            if (is_there && m.share[first + i] != 0.0f) v[i] = load(first + i);
        }
#pragma unroll
        for (int i = 0; i < merge_unroll; i++) {
            float x[8];
            unpack(v[i], x, T{});
            if (m.share[first + i] == 0.0f) continue;
            for (int d = 0; d < 8; d++) sum[d] += m.share[first + i] * x[d];
        }
    }
    return pack(sum, T{});
}

template <class T>
ARCH_FN void merge(const inflight_merge_params& p) {
    arch::wait_for_prior_kernel();
    arch::let_next_kernel_start();

    const uint32_t a_head = p.head_dim / 8;
    const uint32_t items = p.num_heads * a_head;
    const TokenItems work = token_items(items, merge_threads);
    for (uint32_t item = work.item; item < items; item += work.item_step) {
        const uint32_t head = item / a_head;
        const uint32_t at = 8 * (item - head * a_head);
        for (uint64_t token = work.token; token < p.num_tokens; token += work.token_step) {
            const uint64_t row = token * p.num_heads + head;
            const MergeShares shares = merge_shares(p, row);
            const auto offset = [token, head, at](int64_t a_token, int64_t a_head) {
                return static_cast<int64_t>(token) * a_token + head * a_head + at;
            };
            const vec4 merged = merge_outputs<T>(p, shares, offset(p.o_token, p.o_head));
            store_vec(reinterpret_cast<T*>(p.out) + offset(p.out_token, p.out_head), merged);
            if (at == 0 && p.out_lse) reinterpret_cast<float*>(p.out_lse)[row] = shares.lse;
        }
    }
}

}  // namespace inflight

#define INFLIGHT_MERGE_KERNELS(name, q)                                                           \
    ARCH_KERNEL(name, inflight::merge_threads, inflight::merge_any_blocks, inflight_merge_params, \
                inflight::merge<arch::q>)
