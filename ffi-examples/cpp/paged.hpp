// The model with the library: whole steps of many requests, keys and values in paged caches.
#ifndef SERVE_PAGED_HPP
#define SERVE_PAGED_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <inflight.hpp>
#include <optional>
#include <vector>

#include "memory.hpp"
#include "model.hpp"
#include "placement.hpp"

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
    /// Takes what it needs of the placement.
    paged_model(const model& of, const placement& on, const capacity& room)
        : model_(of),
          num_blocks_(room.num_blocks),
          max_position_(room.max_model_len),
          device_pool_(on, kv_pool::where::device, room.num_blocks, room.block_size),
          host_pool_(on, kv_pool::where::host, room.num_host_blocks, room.block_size),
          q_(on, room.max_tokens, shape::q_heads),
          k_(on, room.max_tokens, shape::kv_heads),
          v_(on, room.max_tokens, shape::kv_heads),
          attended_(on, room.max_tokens, shape::q_heads),
          mover_(on.device, device_pool_.layers(), host_pool_.layers()) {
        if (on.gpu) {
            stream_.emplace(on.gpu);
        }
        make_rope_table(on);
        const std::uint32_t blocks_a_row =
            (room.max_model_len + room.block_size - 1) / room.block_size;
        const inflight::step_limits limits(room.max_rows, room.max_tokens,
                                           room.max_rows * blocks_a_row, room.max_model_len);
        // All layers have the same attention: one plan a step serves them.
        attention_ = inflight::attention(on.device, attention_config(on.type), limits);
        buffer_ = inflight::step_buffer(on.device, limits, attention_);

        x_.resize(std::size_t{room.max_tokens} * shape::hidden);
        logits_.resize(std::size_t{room.max_rows} * shape::vocabulary);
        sampled_.resize(room.max_rows);
    }

    /// Runs a step. One token for each row that samples; their logits are `logits(i)` until the
    /// next.
    inflight::tokens_view run(const inflight::step& step) {
        // Copies come first: kernels read and write the blocks they are about. An empty step may
        // have some.
        mover_.run(step.block_ops(), stream());
        count(step.block_ops());
        if (step.empty()) {
            return {};
        }
        const inflight::batch batch = inflight::batch::from(step);
        attention_.plan(batch, num_blocks_);
        buffer_.upload(batch, stream());

        const inflight::tokens_view tokens = step.tokens();
        for (std::size_t t = 0; t < tokens.size(); t++) {
            model_.embed(tokens[t], &x_[t * shape::hidden]);
        }
        for (std::uint32_t l = 0; l < shape::layers; l++) {
            run_layer(model_.layers()[l], device_pool_.layers()[l], tokens.size());
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
    void make_rope_table(const placement& on) {
        std::vector<float> table(std::size_t{max_position_} * shape::head_dim);
        inflight::rope_table(inflight::rope_config(shape::head_dim, shape::rope_theta),
                             max_position_, table);
        const std::size_t bytes = table.size() * sizeof(float);
        rope_table_ = device_memory(on, bytes);
        if (stream_) {
            stream_->upload(rope_table_.get(), table.data(), bytes);
            stream_->wait();
        } else {
            std::copy(table.begin(), table.end(), static_cast<float*>(rope_table_.get()));
        }
    }

    void run_layer(const layer& at, const inflight::kv_cache& cache, std::size_t tokens) {
        for (std::size_t t = 0; t < tokens; t++) {
            model::project(at, &x_[t * shape::hidden], q_.token(t), k_.token(t), v_.token(t));
        }
        const cuda::stream* on = stream_ ? &*stream_ : nullptr;
        q_.send(tokens, on);
        k_.send(tokens, on);
        v_.send(tokens, on);
        const auto q = q_.tensor(tokens), new_k = k_.tensor(tokens), new_v = v_.tensor(tokens);
        const auto attended = attended_.tensor(tokens);
        const inflight::rope rope(static_cast<const float*>(rope_table_.get()), max_position_,
                                  shape::head_dim, &q);
        buffer_.append(inflight::append_args(new_k, new_v, cache, &rope), stream());
        attention_.run(buffer_, inflight::attention_args(q, attended, cache), stream());
        attended_.receive(tokens, on);
        for (std::size_t t = 0; t < tokens; t++) {
            model::finish_layer(at, attended_.token(t), &x_[t * shape::hidden]);
        }
    }

    /// For calls of inflight: null on a processor.
    void* stream() const { return stream_ ? stream_->handle() : nullptr; }

    void count(inflight::strided<inflight_block_op> ops) {
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
    std::optional<cuda::stream> stream_;
    cuda::owned rope_table_;
    kv_pool device_pool_, host_pool_;
    step_array q_, k_, v_, attended_;
    inflight::block_mover mover_;
    inflight::attention attention_;
    inflight::step_buffer buffer_;
    std::vector<float> x_, logits_;
    std::vector<token> sampled_;
    moved_blocks moved_;
};

}  // namespace serve

#endif
