// The model with the library: whole steps of many requests, keys and values in paged caches.
#ifndef SERVE_PAGED_HPP
#define SERVE_PAGED_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <inflight.hpp>
#include <utility>
#include <vector>

#include "model.hpp"

namespace serve {

/// The sizes that scheduler and caches agree on.
struct capacity {
    std::uint32_t num_blocks = 72;
    std::uint32_t num_host_blocks = 24;
    std::uint32_t block_size = 8;
    std::uint32_t max_rows = 16;
    std::uint32_t max_tokens = 64;
    std::uint32_t max_model_len = 256;
};

/// Copies of blocks that were made, by kind.
struct moved_blocks {
    std::uint64_t copied = 0, swapped_out = 0, swapped_in = 0;
};

class paged_model {
   public:
    paged_model(const model& of, const inflight::device& device, const capacity& room)
        : model_(of),
          num_blocks_(room.num_blocks),
          max_position_(room.max_model_len),
          rope_table_(std::size_t{room.max_model_len} * shape::head_dim),
          device_memory_(room.num_blocks, room.block_size),
          host_memory_(room.num_host_blocks, room.block_size),
          mover_(device, device_memory_.layers,
                 room.num_host_blocks > 0
                     ? inflight::span<const inflight::kv_cache>(host_memory_.layers)
                     : inflight::span<const inflight::kv_cache>()) {
        inflight::rope_table(inflight::rope_config(shape::head_dim, shape::rope_theta),
                             room.max_model_len, rope_table_);
        const std::uint32_t blocks_a_row =
            (room.max_model_len + room.block_size - 1) / room.block_size;
        const inflight::step_limits limits(room.max_rows, room.max_tokens,
                                           room.max_rows * blocks_a_row, room.max_model_len);
        const inflight::attention_config heads(shape::q_heads, shape::kv_heads, shape::head_dim,
                                               inflight::dtype::f32);
        // All layers have the same attention: one plan a step serves them.
        attention_ = inflight::attention(device, heads, limits);
        buffer_ = inflight::step_buffer(device, limits, attention_);

        const std::size_t tokens = room.max_tokens;
        x_.resize(tokens * shape::hidden);
        q_.resize(tokens * shape::q_width);
        k_.resize(tokens * shape::kv_width);
        v_.resize(tokens * shape::kv_width);
        attended_.resize(tokens * shape::q_width);
        logits_.resize(std::size_t{room.max_rows} * shape::vocabulary);
        sampled_.resize(room.max_rows);
    }

    /// Runs a step. One token for each row that samples; their logits are `logits(i)` until the
    /// next.
    inflight::tokens_view run(const inflight::step& step) {
        // Copies come first: kernels read and write the blocks they are about. An empty step may
        // have some.
        mover_.run(step.block_ops());
        count(step.block_ops());
        if (step.empty()) {
            return {};
        }
        const inflight::batch batch = inflight::batch::from(step);
        attention_.plan(batch, num_blocks_);
        buffer_.upload(batch);

        const inflight::tokens_view tokens = step.tokens();
        for (std::size_t t = 0; t < tokens.size(); t++) {
            model_.embed(tokens[t], &x_[t * shape::hidden]);
        }
        for (std::uint32_t l = 0; l < shape::layers; l++) {
            run_layer(model_.layers()[l], device_memory_.layers[l], tokens.size());
        }
        const auto at = step.logits_indices();
        for (std::size_t i = 0; i < at.size(); i++) {
            float* logits = &logits_[i * shape::vocabulary];
            model_.logits(&x_[std::size_t{at[i]} * shape::hidden], logits);
            sampled_[i] = model::largest(logits);
        }
        return inflight::tokens_view(sampled_.data(), at.size());
    }

    /// Those that token `i` of the last step was sampled from, `[vocabulary]`.
    inflight::span<const float> logits(std::size_t i) const {
        return {&logits_[i * shape::vocabulary], shape::vocabulary};
    }

    const moved_blocks& moved() const { return moved_; }

   private:
    /// A pool of blocks, with K and V for every layer.
    struct pool {
        struct alignas(64) line {
            float at[16];
        };

        pool(std::uint32_t num_blocks, std::uint32_t block_size) {
            const std::size_t elements = std::size_t{num_blocks} * block_size * shape::kv_width;
            for (std::uint32_t l = 0; l < shape::layers; l++) {
                for (int kv = 0; kv < 2; kv++) {
                    memory.emplace_back((elements + 15) / 16);
                }
                layers.push_back(inflight::make_kv_cache(
                    memory[2 * l].data(), memory[2 * l + 1].data(), num_blocks, block_size,
                    shape::kv_heads, shape::head_dim, inflight::dtype::f32));
            }
        }

        std::vector<std::vector<line>> memory;
        std::vector<inflight::kv_cache> layers;
    };

    void run_layer(const layer& at, const inflight::kv_cache& cache, std::size_t tokens) {
        for (std::size_t t = 0; t < tokens; t++) {
            model::project(at, &x_[t * shape::hidden], &q_[t * shape::q_width],
                           &k_[t * shape::kv_width], &v_[t * shape::kv_width]);
        }
        const auto q = heads_of(q_, tokens, shape::q_heads);
        const inflight::rope rope(rope_table_.data(), max_position_, shape::head_dim, &q);
        buffer_.append(inflight::append_args(heads_of(k_, tokens, shape::kv_heads),
                                             heads_of(v_, tokens, shape::kv_heads), cache, &rope));
        attention_.run(buffer_, inflight::attention_args(
                                    q, heads_of(attended_, tokens, shape::q_heads), cache));
        for (std::size_t t = 0; t < tokens; t++) {
            model::finish_layer(at, &attended_[t * shape::q_width], &x_[t * shape::hidden]);
        }
    }

    static inflight::tensor heads_of(std::vector<float>& data, std::size_t tokens,
                                     std::uint32_t heads) {
        return inflight::make_tensor(data.data(), tokens, heads, shape::head_dim,
                                     inflight::dtype::f32);
    }

    void count(inflight::span<const inflight_block_op> ops) {
        for (const inflight_block_op& op : ops) {
            switch (inflight::kind_of(op)) {
                case inflight::block_op_kind::copy:
                    moved_.copied++;
                    break;
                case inflight::block_op_kind::swap_out:
                    moved_.swapped_out++;
                    break;
                case inflight::block_op_kind::swap_in:
                    moved_.swapped_in++;
                    break;
            }
        }
    }

    const model& model_;
    std::uint32_t num_blocks_, max_position_;
    std::vector<float> rope_table_;
    pool device_memory_, host_memory_;
    inflight::block_mover mover_;
    inflight::attention attention_;
    inflight::step_buffer buffer_;
    std::vector<float> x_, q_, k_, v_, attended_, logits_;
    std::vector<token> sampled_;
    moved_blocks moved_;
};

}  // namespace serve

#endif
