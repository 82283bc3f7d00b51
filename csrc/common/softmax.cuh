// Logits and online softmax on accumulators of mma m16n8k16, to base 2.
//
// Of a 16 x 8 block of logits a lane has s[0], s[1]: row lane / 4, columns lane % 4 * 2 and the
// next; s[2], s[3]: the same of row lane / 4 + 8. Rows are queries times the heads of a group: row
// r is query r / group and query head r % group. Columns are keys.
#pragma once

#include "../arch/arch.cuh"
#include "../kernel_params.h"
#include "step.cuh"

namespace inflight {

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;
ARCH_FN float neg_inf() { return arch::as_f32(0xff800000u); }

// What turns products into logits to base 2, the same for all rows of a part.
struct LogitScale {
    float scale;    // of attention, times k_scale, times log2 e
    float cap_in;   // with a cap: what turns a product into log2 of e^2x, for tanh x
    float cap_out;  // what tanh is multiplied with: cap times log2 e; 0 without a cap

    static ARCH_MEMBER LogitScale of(const inflight_attention_params& p, float k_scale) {
        const float scale = p.scale * k_scale;
        if (p.soft_cap == 0.0f) return {scale * LOG2_E, 0.0f, 0.0f};
        return {scale * LOG2_E, scale / p.soft_cap * 2.0f * LOG2_E, p.soft_cap * LOG2_E};
    }
};

// Which keys a query sees, and how. Causality and window are a range of keys.
struct QueryRow {
    uint32_t first, end;
    // Of the general body only.
    int32_t position;
    float slope;          // of ALiBi, times log2 e
    const uint8_t* mask;  // of its keys from mask_start on; null: none
    uint32_t mask_start;
};

// Rows that are not there see nothing.
ARCH_FN QueryRow no_query() { return {0, 0, 0, 0.0f, nullptr, 0}; }

// Query `query` of the row and query head `head`.
template <bool GENERAL>
ARCH_FN QueryRow query_row(const inflight_attention_params& p, const inflight_plan* plan,
                           const Row& row, uint32_t row_index, uint32_t query, uint32_t head) {
    QueryRow q = no_query();
    // Lengths are below 2^31, so positions fit.
    q.position = static_cast<int32_t>(row.kv_len - row.q_len + query);
    q.end = row.kv_len;
    if (p.flags & INFLIGHT_CAUSAL) q.end = q.position < 0 ? 0 : q.position + 1;
    if (p.window_left != INFLIGHT_NO_WINDOW) {
        const int64_t first = static_cast<int64_t>(q.position) - p.window_left;
        q.first = first < 0 ? 0 : static_cast<uint32_t>(first);
    }
    if (GENERAL) {
        if (p.alibi_slopes != 0) {
            const auto slopes = reinterpret_cast<const float*>(p.alibi_slopes);
            q.slope = arch::load_global(slopes + head) * LOG2_E;
        }
        if (plan->mask_bits != 0) {
            const uint32_t width = at<uint32_t>(plan, plan->mask_widths)[row_index];
            if (width != 0) {
                const uint32_t bytes = (width + 7) / 8;
                q.mask = at<uint8_t>(plan, plan->mask_bits) +
                         at<uint32_t>(plan, plan->mask_indptr)[row_index] +
                         static_cast<uint64_t>(query) * bytes;
                q.mask_start = row.kv_len - width;
            }
        }
    }
    return q;
}

// A product's logit to base 2, -inf if the key is not seen.
template <bool GENERAL>
ARCH_FN float logit(float product, uint32_t key, const QueryRow& q, const LogitScale& scale) {
    float s;
    if (GENERAL) {
        s = product * scale.scale;
        // tanh x = 1 - 2 / (1 + e^2x): right at both ends, where the power is 0 or infinite.
        if (scale.cap_out != 0.0f)
            s = scale.cap_out * (1.0f - 2.0f * arch::rcp(1.0f + arch::ex2(product * scale.cap_in)));
        const int32_t distance = q.position - static_cast<int32_t>(key);
        s -= q.slope * static_cast<float>(distance < 0 ? -distance : distance);
        if (q.mask != nullptr && key >= q.mask_start && key >= q.first && key < q.end) {
            const uint32_t bit = key - q.mask_start;
            if (!(q.mask[bit >> 3] >> (bit & 7) & 1)) return neg_inf();
        }
    } else {
        s = product * scale.scale;
    }
    return key >= q.first && key < q.end ? s : neg_inf();
}

// Products of N blocks of eight keys, the first of them first_key, into logits. `all_seen`: every
// row of the warp sees all these keys, so that the plain body need not compare.
template <bool GENERAL, int N>
ARCH_FN void logits(float (&s)[N][4], uint32_t first_key, const QueryRow (&rows)[2],
                    const LogitScale& scale, bool all_seen) {
    if (!GENERAL && all_seen) {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] *= scale.scale;
        return;
    }
    const uint32_t lane_key = first_key + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = logit<GENERAL>(s[n][i], lane_key + n * 8 + (i & 1), rows[i >> 1], scale);
}

// The softmax so far of a lane's two rows: largest of what is given to it, -inf before any key is
// seen, and the lane's share of the sum of 2^(factor * (x - largest)).
struct Softmax {
    float max[2] = {neg_inf(), neg_inf()};
    float sum[2] = {0.0f, 0.0f};

    // Turns x into weights, the largest being that of all keys so far. What was summed before,
    // outputs too, is to be multiplied with `correction`; true if any lane of the warp has one that
    // is not 1. `factor` is above 0: 1 for logits, and for products what makes logits of them.
    template <int N>
    ARCH_MEMBER bool update(float (&s)[N][4], float factor, float (&correction)[2]) {
        bool changed = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
            for (int n = 1; n < N; n++)
                largest = fmaxf(largest, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            largest = fmaxf(largest, arch::shfl_xor(largest, 1));
            largest = fmaxf(largest, arch::shfl_xor(largest, 2));
            largest = fmaxf(largest, max[r]);
            // Nothing seen yet: weights are 2^-inf, and -inf - -inf is not computed.
            const float base = largest == neg_inf() ? 0.0f : largest * factor;
            correction[r] = arch::ex2(max[r] * factor - base);
            changed |= max[r] != largest;
            // Not 1 by a rounding, where nothing changed.
            if (max[r] == largest) correction[r] = 1.0f;
            max[r] = largest;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    s[n][i] = arch::ex2(s[n][i] * factor - base);
                    total += s[n][i];
                }
            sum[r] = sum[r] * correction[r] + total;
        }
        return arch::ballot(changed) != 0;
    }

    // Sums over the four lanes of a row; once, at the end.
    ARCH_MEMBER void reduce() {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += arch::shfl_xor(sum[r], 1);
            sum[r] += arch::shfl_xor(sum[r], 2);
        }
    }
};

}  // namespace inflight
