// From products to what the softmax takes, for decode and prefill: scale, soft cap, ALiBi, and
// which keys a query sees.
//
// Logits are to base 2. Of a 16 x 8 block of them a lane has s[0], s[1]: row lane / 4, columns
// lane % 4 * 2 and the next; s[2], s[3]: the same of row lane / 4 + 8. Rows are queries times the
// heads of a group: row r is query r / group and query head r % group. Columns are keys. Lengths
// are below 2^31, so positions fit.
#pragma once

#include "../arch/arch.cuh"
#include "../kernel_params.h"
#include "softmax.cuh"
#include "step.cuh"

namespace inflight {

// What a kernel knows of logits beyond the scale and causality. There are two bodies of each: that
// without ALiBi, soft cap and masks leaves scaling to the softmax, or to one multiplication.
template <bool WINDOW, bool SOFT_CAP, bool ALIBI, bool MASK>
struct Features {
    static constexpr bool HAS_WINDOW = WINDOW, HAS_SOFT_CAP = SOFT_CAP;
    static constexpr bool HAS_ALIBI = ALIBI, HAS_MASK = MASK;
    // Whether logits are something else than multiples of products.
    static constexpr bool HAS_BIAS = SOFT_CAP || ALIBI;
};
using NoFeature = Features<false, false, false, false>;
using WindowOnly = Features<true, false, false, false>;
using EveryFeature = Features<true, true, true, true>;

// What turns products into logits, the same for all rows of a part.
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

// How prefill scales. Products are multiplied with `factor` when their powers are taken; it is
// above 0, so that the largest product has the largest logit. For that the sign of the scale goes
// to the queries, as does a scale of 0.
struct QueryScale {
    float factor;
    uint32_t q_and_mask, q_xor_mask;  // of a pair of queries' elements
    LogitScale scale;                 // with a bias: logits are complete, factor is 1

    template <class Has>
    static ARCH_MEMBER QueryScale of(const inflight_attention_params& p, float k_scale) {
        QueryScale found = {1.0f, 0xffffffffu, 0u, {0.0f, 0.0f, 0.0f}};
        if (Has::HAS_BIAS) {
            found.scale = LogitScale::of(p, k_scale);
            return found;
        }
        const float factor = p.scale * k_scale * LOG2_E;
        if (factor < 0.0f) found.q_xor_mask = 0x80008000u;
        // Smaller ones are flushed to 0 by what multiplies with them.
        if (fabsf(factor) >= 1.17549435e-38f) {
            found.factor = fabsf(factor);
        } else {
            found.q_and_mask = 0;
        }
        return found;
    }
};

// The mask of a row of the batch.
struct RowMask {
    const uint8_t* bits;  // of query 0; null without a mask
    uint32_t bytes;       // of a query
    int32_t start;        // its first key

    static ARCH_MEMBER RowMask of(const inflight_plan* plan, uint32_t kv_len, uint32_t row) {
        if (plan->mask_bits == 0) return {nullptr, 0, 0};
        const uint32_t width = at<uint32_t>(plan, plan->mask_widths)[row];
        if (width == 0) return {nullptr, 0, 0};
        return {at<uint8_t>(plan, plan->mask_bits) + at<uint32_t>(plan, plan->mask_indptr)[row],
                (width + 7) / 8, static_cast<int32_t>(kv_len - width)};
    }
    ARCH_MEMBER const uint8_t* of_query(uint32_t query) const {
        return bits == nullptr ? nullptr : bits + static_cast<uint64_t>(query) * bytes;
    }
};

// The first key that the window of a query shows. INFLIGHT_NO_WINDOW is beyond any position.
ARCH_FN int32_t window_start(const inflight_attention_params& p, int32_t position) {
    const bool is_inside = position < 0 || static_cast<uint32_t>(position) <= p.window_left;
    return is_inside ? 0 : position - static_cast<int32_t>(p.window_left);
}

// Which keys a query sees, and how. Causality and window are a range of keys.
struct QueryRow {
    int32_t first, end;
    // With a bias or a mask only.
    int32_t position;
    float slope;          // of ALiBi, times log2 e
    const uint8_t* mask;  // of its keys from mask_start on; null: none
    int32_t mask_start;

    // The query at `position`, of keys up to `end`.
    template <class Has>
    static ARCH_MEMBER QueryRow of(const inflight_attention_params& p, int32_t position,
                                   int32_t end) {
        QueryRow q = {0, end, position, 0.0f, nullptr, 0};
        if (p.flags & INFLIGHT_CAUSAL && end > position + 1) q.end = position + 1;
        if (Has::HAS_WINDOW) q.first = window_start(p, position);
        return q;
    }
    ARCH_MEMBER void set_slope(const inflight_attention_params& p, uint32_t head) {
        slope = LOG2_E * arch::load_global(reinterpret_cast<const float*>(p.alibi_slopes) + head);
    }
    ARCH_MEMBER void set_mask(const RowMask& row, uint32_t query) {
        mask = row.of_query(query);
        mask_start = row.start;
    }
    // Of a key of its range.
    ARCH_MEMBER bool sees(int32_t key) const {
        if (mask == nullptr || key < mask_start) return true;
        const uint32_t bit = static_cast<uint32_t>(key - mask_start);
        return mask[bit / 8] >> (bit % 8) & 1;
    }
};

// The keys of a part for query rows that are computed together.
struct VisibleKeys {
    int32_t start, end;          // keys that any of the rows sees
    int32_t all_start, all_end;  // keys that all of them see
    int32_t first_position;      // of query 0 of the batch's row

    // Queries first..last of the row.
    template <class Has>
    static ARCH_MEMBER VisibleKeys of(const inflight_attention_params& p, const inflight_plan* plan,
                                      const Row& row, const inflight_part& part, uint32_t first,
                                      uint32_t last) {
        VisibleKeys keys = {};
        keys.first_position = static_cast<int32_t>(row.kv_len) - static_cast<int32_t>(row.q_len);
        keys.start = keys.all_start = static_cast<int32_t>(part.kv_start);
        keys.end = keys.all_end = static_cast<int32_t>(part.kv_end);
        const int32_t lowest = keys.first_position + static_cast<int32_t>(first);
        const int32_t highest = keys.first_position + static_cast<int32_t>(last);
        if (p.flags & INFLIGHT_CAUSAL) {
            if (keys.end > highest + 1) keys.end = highest + 1;
            if (keys.all_end > lowest + 1) keys.all_end = lowest + 1;
        }
        if (Has::HAS_WINDOW) {
            const int32_t start = window_start(p, lowest), all_start = window_start(p, highest);
            if (keys.start < start) keys.start = start;
            if (keys.all_start < all_start) keys.all_start = all_start;
        }
        if (keys.end < keys.start) keys.end = keys.start;
        if (Has::HAS_MASK) {
            const RowMask mask = RowMask::of(plan, row.kv_len, part.row);
            if (mask.bits != nullptr && keys.all_end > mask.start) keys.all_end = mask.start;
        }
        return keys;
    }
    // Whether all rows see all keys of a tile.
    template <class Has>
    ARCH_MEMBER bool all_seen(int32_t first, int32_t count) const {
        return (!Has::HAS_WINDOW || first >= all_start) && first + count <= all_end;
    }
};

// Products of N blocks of eight keys, scaled or capped.
template <class Has, int N>
ARCH_FN void apply_soft_cap(float (&s)[N][4], const LogitScale& scale) {
    if (Has::HAS_SOFT_CAP && scale.cap_out != 0.0f) {
        // tanh x = 1 - 2 / (1 + e^2x): right at both ends, where the power is 0 or infinite.
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float power = arch::ex2(s[n][i] * scale.cap_in);
                s[n][i] = scale.cap_out * (1.0f - 2.0f * arch::rcp(1.0f + power));
            }
    } else {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] *= scale.scale;
    }
}

// The lane's key of column 0 of the first block.
ARCH_FN int32_t lane_key(int32_t first_key) {
    return first_key + static_cast<int32_t>(threadIdx.x % 4 * 2);
}

// ALiBi of the lane's row `half`.
template <int N>
ARCH_FN void apply_alibi(float (&s)[N][4], int half, int32_t first_key, const QueryRow& row) {
    const int32_t ahead = lane_key(first_key) - row.position;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float distance = fabsf(static_cast<float>(ahead + n * 8 + i));
            s[n][2 * half + i] -= row.slope * distance;
        }
}

// Logits of keys that the row does not see are -inf.
template <class Has, int N>
ARCH_FN void apply_mask(float (&s)[N][4], int half, int32_t first_key, const QueryRow& row) {
    const int32_t lane = lane_key(first_key);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int32_t key = lane + n * 8 + i;
            bool is_seen = key < row.end;
            if (Has::HAS_WINDOW) is_seen = is_seen && key >= row.first;
            if (Has::HAS_MASK) is_seen = is_seen && row.sees(key);
            if (!is_seen) s[n][2 * half + i] = neg_inf();
        }
}

}  // namespace inflight
