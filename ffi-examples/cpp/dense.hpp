// The model without the library: one sequence alone, all its keys in a row, softmax and rotation
// written out in binary64. What paged.hpp is compared with: queries, keys, values and outputs are
// rounded where they are stored there.
#ifndef SERVE_DENSE_HPP
#define SERVE_DENSE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "model.hpp"
#include "rounding.hpp"

namespace serve {

/// Rotates the heads of a token: pairs are elements i and i + head_dim / 2.
inline void rotate(float* heads, std::uint32_t num_heads, std::size_t position) {
    constexpr std::uint32_t half = shape::head_dim / 2;
    for (std::uint32_t i = 0; i < half; i++) {
        const double angle = static_cast<double>(position) *
                             std::pow(double{shape::rope_theta}, -static_cast<double>(i) / half);
        const double c = std::cos(angle), s = std::sin(angle);
        for (std::uint32_t h = 0; h < num_heads; h++) {
            float* head = heads + std::size_t{h} * shape::head_dim;
            const double a = head[i], b = head[i + half];
            head[i] = static_cast<float>(a * c - b * s);
            head[i + half] = static_cast<float>(b * c + a * s);
        }
    }
}

/// One query head over the keys up to its own position. `stride` is from a token to the next.
inline void attend(const float* q, const float* k, const float* v, std::size_t keys,
                   std::size_t stride, float* out) {
    std::vector<double> weight(keys);
    double most = -INFINITY, sum = 0;
    for (std::size_t t = 0; t < keys; t++) {
        double dot = 0;
        for (std::uint32_t i = 0; i < shape::head_dim; i++) {
            dot += static_cast<double>(q[i]) * static_cast<double>(k[t * stride + i]);
        }
        weight[t] = dot / std::sqrt(static_cast<double>(shape::head_dim));
        most = std::max(most, weight[t]);
    }
    for (double& w : weight) {
        w = std::exp(w - most);
        sum += w;
    }
    for (std::uint32_t i = 0; i < shape::head_dim; i++) {
        double mean = 0;
        for (std::size_t t = 0; t < keys; t++) {
            mean += weight[t] * static_cast<double>(v[t * stride + i]);
        }
        out[i] = static_cast<float>(mean / sum);
    }
}

inline void round_all(float* numbers, std::size_t count, inflight::dtype type) {
    for (std::size_t i = 0; i < count; i++) {
        numbers[i] = rounded(numbers[i], type);
    }
}

/// The logits after each token of a sequence from token `from` on, `[.., vocabulary]`.
inline std::vector<float> dense_logits(const model& of, const std::vector<token>& tokens,
                                       std::size_t from, inflight::dtype type) {
    const std::size_t count = tokens.size();
    std::vector<float> x(count * shape::hidden), q(count * shape::q_width),
        k(count * shape::kv_width), v(count * shape::kv_width), attended(shape::q_width);
    for (std::size_t t = 0; t < count; t++) {
        of.embed(tokens[t], &x[t * shape::hidden]);
    }
    for (const layer& at : of.layers()) {
        for (std::size_t t = 0; t < count; t++) {
            float *q_of = &q[t * shape::q_width], *k_of = &k[t * shape::kv_width],
                  *v_of = &v[t * shape::kv_width];
            model::project(at, &x[t * shape::hidden], q_of, k_of, v_of);
            round_all(q_of, shape::q_width, type);
            round_all(k_of, shape::kv_width, type);
            round_all(v_of, shape::kv_width, type);
            rotate(q_of, shape::q_heads, t);
            rotate(k_of, shape::kv_heads, t);
            round_all(q_of, shape::q_width, type);
            round_all(k_of, shape::kv_width, type);
        }
        for (std::size_t t = 0; t < count; t++) {
            for (std::uint32_t h = 0; h < shape::q_heads; h++) {
                const std::size_t kv = h / (shape::q_heads / shape::kv_heads) * shape::head_dim;
                attend(&q[t * shape::q_width + h * shape::head_dim], &k[kv], &v[kv], t + 1,
                       shape::kv_width, &attended[h * shape::head_dim]);
            }
            round_all(attended.data(), shape::q_width, type);
            model::finish_layer(at, attended.data(), &x[t * shape::hidden]);
        }
    }
    std::vector<float> logits((count - from) * shape::vocabulary);
    for (std::size_t t = from; t < count; t++) {
        of.logits(&x[t * shape::hidden], &logits[(t - from) * shape::vocabulary]);
    }
    return logits;
}

}  // namespace serve

#endif
