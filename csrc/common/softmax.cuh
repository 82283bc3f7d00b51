// Online softmax on accumulators of mma m16n8k16, to base 2: see logits.cuh for what a lane has.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;
ARCH_FN float neg_inf() { return arch::as_f32(0xff800000u); }

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
