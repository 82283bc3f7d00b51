// What the model says of each request when it sees that request alone.
#ifndef SERVE_COMPARE_HPP
#define SERVE_COMPARE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "client.hpp"
#include "dense.hpp"
#include "model.hpp"
#include "rounding.hpp"

namespace serve {

/// By how much two computations may differ that round in the same places and sum in other orders.
///
/// With u the unit roundoff: were queries, keys, values and outputs not rounded at all, this
/// model's logits would be others by 3 u (root mean square) and by 31 u at most, and another token
/// the best for 6 u of the tokens. Where both round, 2 u, 16 u and 6 u are left to kernels, which
/// round the weights of the softmax too. In f32 what counts is the order of sums: logits of size 1
/// are sums of some hundred products.
struct bounds {
    explicit bounds(inflight::dtype type)
        : each(1e-3f + 16 * unit_roundoff(type)),
          mean(1e-4f + 2 * unit_roundoff(type)),
          ties(6 * unit_roundoff(type)) {}

    /// Of a logit.
    float each;
    /// Of all logits, root mean square.
    float mean;
    /// Of tokens, those sampled otherwise.
    float ties;
};

class comparison {
   public:
    comparison(const model& of, inflight::dtype type) : model_(of), type_(type), within_(type) {}

    void add(const job& of) {
        if (of.tokens.empty()) {
            return;
        }
        std::vector<token> sequence = of.prompt;
        sequence.insert(sequence.end(), of.tokens.begin(), of.tokens.end() - 1);
        const std::vector<float> expected =
            dense_logits(model_, sequence, of.prompt.size() - 1, type_);
        for (std::size_t i = 0; i < of.tokens.size(); i++) {
            add(of.tokens[i], &of.logits[i * shape::vocabulary], &expected[i * shape::vocabulary]);
        }
    }

    /// Root mean square of the differences.
    double mean() const {
        return tokens == 0 ? 0
                           : std::sqrt(squares_ / static_cast<double>(tokens * shape::vocabulary));
    }

    /// A few ties are of no frequency.
    bool good() const {
        return wrong == 0 && mean() <= within_.mean &&
               static_cast<double>(ties) <= 2 + within_.ties * static_cast<double>(tokens);
    }

    /// Ties are among the near ones.
    std::uint64_t tokens = 0, wrong = 0, near_ties = 0, ties = 0;
    float largest = 0;

   private:
    void add(token sampled, const float* got, const float* expected) {
        const token best = model::largest(expected);
        bool close = true, near = false;
        for (token id = 0; id < shape::vocabulary; id++) {
            const float difference = std::fabs(expected[id] - got[id]);
            // A NaN is in no order.
            close = close && difference <= within_.each;
            largest = std::max(largest, difference);
            squares_ += static_cast<double>(difference) * static_cast<double>(difference);
            // Two logits that both may move so far are in either order.
            near = near || (id != best && expected[best] - expected[id] <= 2 * within_.each);
        }
        const bool tie = sampled != best && expected[best] - expected[sampled] <= 2 * within_.each;
        tokens++;
        near_ties += near;
        ties += tie;
        wrong += !close || (sampled != best && !tie);
    }

    const model& model_;
    inflight::dtype type_;
    bounds within_;
    double squares_ = 0;
};

}  // namespace serve

#endif
