// From products to what the softmax takes, a tile at a time: soft cap, ALiBi, which keys are seen.
// Rules and results are those of common/softmax.cuh; what differs is that nothing is done for tiles
// that need it not, and that the plain body leaves scaling to the softmax.
#pragma once

#include "../../common/softmax.cuh"
#include "../../common/step.cuh"

namespace inflight {

// What a part's logits are made with. Products are multiplied with `factor` when their powers are
// taken; it is above 0, so that the largest product has the largest logit. For that the sign of the
// scale goes to the queries, as does a scale of 0.
struct LogitRules {
    float factor;
    uint32_t q_keep, q_flip;  // bits of a pair of queries' elements
    LogitScale scale;         // general body: its logits are complete, factor is 1

    template <bool GENERAL>
    static ARCH_MEMBER LogitRules of(const inflight_attention_params& p, float k_scale) {
        LogitRules rules = {1.0f, 0xffffffffu, 0u, {0.0f, 0.0f, 0.0f}};
        if (GENERAL) {
            rules.scale = LogitScale::of(p, k_scale);
            return rules;
        }
        const float factor = p.scale * k_scale * LOG2_E;
        if (factor < 0.0f) rules.q_flip = 0x80008000u;
        // Smaller ones are flushed to 0 by what multiplies with them.
        if (fabsf(factor) >= 1.17549435e-38f) {
            rules.factor = fabsf(factor);
        } else {
            rules.q_keep = 0;
        }
        return rules;
    }
};

// The mask of a row of the batch.
struct MaskBits {
    const uint8_t* bits;  // of query 0; null without a mask
    uint32_t bytes;       // of a query
    int32_t start;        // its first key

    static ARCH_MEMBER MaskBits of(const inflight_plan* plan, uint32_t kv_len, uint32_t row) {
        if (plan->mask_bits == 0) return {nullptr, 0, 0};
        const uint32_t width = at<uint32_t>(plan, plan->mask_widths)[row];
        if (width == 0) return {nullptr, 0, 0};
        return {at<uint8_t>(plan, plan->mask_bits) + at<uint32_t>(plan, plan->mask_indptr)[row],
                (width + 7) / 8, static_cast<int32_t>(kv_len - width)};
    }
    ARCH_MEMBER bool sees(uint32_t query, int32_t key) const {
        if (bits == nullptr || key < start) return true;
        const uint32_t bit = static_cast<uint32_t>(key - start);
        return bits[static_cast<uint64_t>(query) * bytes + bit / 8] >> (bit % 8) & 1;
    }
};

// The keys of a part for the query rows of a block. Lengths are below 2^31, so positions fit.
struct SeenKeys {
    int32_t start, end;            // keys that any of the rows sees
    int32_t free_start, free_end;  // keys that all of them see
    int32_t first_position;        // of query 0 of the batch's row

    // Queries first..last of the row.
    template <bool GENERAL>
    static ARCH_MEMBER SeenKeys of(const inflight_attention_params& p, const inflight_plan* plan,
                                   const Row& row, const inflight_part& part, uint32_t first,
                                   uint32_t last) {
        SeenKeys keys = {};
        const int32_t kv_len = static_cast<int32_t>(row.kv_len);
        keys.first_position = kv_len - static_cast<int32_t>(row.q_len);
        keys.start = keys.free_start = static_cast<int32_t>(part.kv_start);
        keys.end = keys.free_end = static_cast<int32_t>(part.kv_end);
        const int32_t lowest = keys.first_position + static_cast<int32_t>(first);
        const int32_t highest = keys.first_position + static_cast<int32_t>(last);
        if (p.flags & INFLIGHT_CAUSAL) {
            if (keys.end > highest + 1) keys.end = highest + 1;
            if (keys.free_end > lowest + 1) keys.free_end = lowest + 1;
        }
        if (!GENERAL) {
            if (keys.end < keys.start) keys.end = keys.start;
            return keys;
        }
        const int64_t window = p.window_left == INFLIGHT_NO_WINDOW ? INT32_MAX : p.window_left;
        if (keys.start < lowest - window) keys.start = static_cast<int32_t>(lowest - window);
        if (keys.end < keys.start) keys.end = keys.start;
        if (keys.free_start < highest - window)
            keys.free_start = static_cast<int32_t>(highest - window);
        const MaskBits mask = MaskBits::of(plan, row.kv_len, part.row);
        if (mask.bits != nullptr && keys.free_end > mask.start) keys.free_end = mask.start;
        return keys;
    }
    // Whether all rows see all keys of a tile.
    template <bool GENERAL>
    ARCH_MEMBER bool free(int32_t first, int32_t count) const {
        return (!GENERAL || first >= free_start) && first + count <= free_end;
    }
};

// Products of a warp's 16 rows, of keys from first_key on, to logits. queries[h]: of the lane's row
// h, counted in the batch's row; slopes[h]: of its head, times log2 e.
template <int N>
ARCH_FN void bend(float (&s)[N][4], int32_t first_key, const inflight_attention_params& p,
                  const SeenKeys& keys, const LogitScale& scale, const uint32_t (&queries)[2],
                  const float (&slopes)[2]) {
    if (scale.cap_out != 0.0f) {
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
    if (p.alibi_slopes == 0) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t ahead = first_key + static_cast<int32_t>(threadIdx.x % 4 * 2) -
                              keys.first_position - static_cast<int32_t>(queries[h]);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float distance = fabsf(static_cast<float>(ahead + n * 8 + i));
                s[n][2 * h + i] -= slopes[h] * distance;
            }
    }
}

// Logits of keys that are not seen are -inf.
template <bool GENERAL, int N>
ARCH_FN void hide(float (&s)[N][4], int32_t first_key, const inflight_attention_params& p,
                  const SeenKeys& keys, const MaskBits& mask, const uint32_t (&queries)[2]) {
    const int32_t lane_key = first_key + static_cast<int32_t>(threadIdx.x % 4 * 2);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t position = keys.first_position + static_cast<int32_t>(queries[h]);
        int32_t start = keys.start, end = keys.end;
        if (p.flags & INFLIGHT_CAUSAL && end > position + 1) end = position + 1;
        if (GENERAL && p.window_left != INFLIGHT_NO_WINDOW &&
            start < position - static_cast<int64_t>(p.window_left))
            start = position - static_cast<int32_t>(p.window_left);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int32_t key = lane_key + n * 8 + i;
                bool seen = key < end;
                if (GENERAL) seen = seen && key >= start && mask.sees(queries[h], key);
                if (!seen) s[n][2 * h + i] = neg_inf();
            }
    }
}

}  // namespace inflight
