// A transformer of two layers: grouped queries, rotary positions, RMS norms, a gated MLP. The
// weights are random, and the same for the same seed. Here is all of it but attention, which is
// done in two ways: paged.hpp and dense.hpp.
#ifndef SERVE_MODEL_HPP
#define SERVE_MODEL_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace serve {

using token = std::uint32_t;

struct shape {
    static constexpr std::uint32_t vocabulary = 256;
    static constexpr std::uint32_t layers = 2;
    static constexpr std::uint32_t hidden = 64;
    static constexpr std::uint32_t q_heads = 4;
    static constexpr std::uint32_t kv_heads = 2;
    /// The smallest that GPUs have kernels for.
    static constexpr std::uint32_t head_dim = 64;
    static constexpr std::uint32_t mlp = 128;
    static constexpr std::uint32_t q_width = q_heads * head_dim;
    static constexpr std::uint32_t kv_width = kv_heads * head_dim;
    static constexpr float rope_theta = 10000.0f;
};

/// `[outputs, inputs]`, rows contiguous.
struct matrix {
    std::uint32_t outputs = 0, inputs = 0;
    std::vector<float> weights;

    void apply(const float* x, float* y) const {
        for (std::uint32_t o = 0; o < outputs; o++) {
            const float* row = weights.data() + std::size_t{o} * inputs;
            float sum = 0;
            for (std::uint32_t i = 0; i < inputs; i++) {
                sum += row[i] * x[i];
            }
            y[o] = sum;
        }
    }
};

struct layer {
    matrix q, k, v, out, gate, up, down;
};

class model {
   public:
    explicit model(std::uint64_t seed) : state_(seed) {
        // Queries and keys are drawn larger, so that attention picks some keys over others: with
        // all alike a wrong block would hardly show.
        embedding_ = draw(shape::vocabulary, shape::hidden, 8.0f);
        unembedding_ = draw(shape::vocabulary, shape::hidden, 1.0f);
        for (std::uint32_t l = 0; l < shape::layers; l++) {
            layers_.push_back(layer{
                draw(shape::q_width, shape::hidden, 2.0f),
                draw(shape::kv_width, shape::hidden, 2.0f),
                draw(shape::kv_width, shape::hidden, 1.0f),
                draw(shape::hidden, shape::q_width, 2.0f), draw(shape::mlp, shape::hidden, 1.0f),
                draw(shape::mlp, shape::hidden, 1.0f), draw(shape::hidden, shape::mlp, 1.0f)});
        }
    }

    const std::vector<layer>& layers() const { return layers_; }

    /// The input of the first layer.
    void embed(token id, float* x) const {
        const float* row = embedding_.weights.data() + std::size_t{id} * shape::hidden;
        for (std::uint32_t i = 0; i < shape::hidden; i++) {
            x[i] = row[i];
        }
    }

    /// Queries, keys and values of a token, not rotated yet.
    static void project(const layer& of, const float* x, float* q, float* k, float* v) {
        float normed[shape::hidden];
        norm(x, normed);
        of.q.apply(normed, q);
        of.k.apply(normed, k);
        of.v.apply(normed, v);
    }

    /// What a layer adds to a token once its attention is known.
    static void finish_layer(const layer& of, const float* attended, float* x) {
        float added[shape::hidden], normed[shape::hidden], gate[shape::mlp], up[shape::mlp];
        of.out.apply(attended, added);
        add(added, x);
        norm(x, normed);
        of.gate.apply(normed, gate);
        of.up.apply(normed, up);
        for (std::uint32_t i = 0; i < shape::mlp; i++) {
            up[i] *= gate[i] / (1 + std::exp(-gate[i]));
        }
        of.down.apply(up, added);
        add(added, x);
    }

    /// The logits of the token after one, `[vocabulary]`.
    void logits(const float* x, float* out) const {
        float normed[shape::hidden];
        norm(x, normed);
        unembedding_.apply(normed, out);
    }

    /// Greedy sampling.
    static token largest(const float* logits) {
        token best = 0;
        for (token id = 1; id < shape::vocabulary; id++) {
            best = logits[id] > logits[best] ? id : best;
        }
        return best;
    }

   private:
    static void norm(const float* x, float* y) {
        float squares = 0;
        for (std::uint32_t i = 0; i < shape::hidden; i++) {
            squares += x[i] * x[i];
        }
        const float scale = 1 / std::sqrt(squares / shape::hidden + 1e-6f);
        for (std::uint32_t i = 0; i < shape::hidden; i++) {
            y[i] = x[i] * scale;
        }
    }

    static void add(const float* from, float* x) {
        for (std::uint32_t i = 0; i < shape::hidden; i++) {
            x[i] += from[i];
        }
    }

    /// Uniform, of a variance of `gain^2 / inputs`.
    matrix draw(std::uint32_t outputs, std::uint32_t inputs, float gain) {
        matrix made{outputs, inputs, std::vector<float>(std::size_t{outputs} * inputs)};
        const float bound = gain * std::sqrt(3.0f / static_cast<float>(inputs));
        for (float& weight : made.weights) {
            weight = bound * (2 * unit() - 1);
        }
        return made;
    }

    /// SplitMix64, in [0, 1).
    float unit() {
        std::uint64_t x = state_ += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        return static_cast<float>((x ^ (x >> 31)) >> 40) * 0x1p-24f;
    }

    std::uint64_t state_;
    matrix embedding_, unembedding_;
    std::vector<layer> layers_;
};

}  // namespace serve

#endif
