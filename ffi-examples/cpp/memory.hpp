// Memory that a placement's kernels reach: pools of blocks, and the arrays of a step.
#ifndef SERVE_MEMORY_HPP
#define SERVE_MEMORY_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <inflight.hpp>
#include <new>
#include <vector>

#include "placement.hpp"

namespace serve {

/// Of the process on a processor, page-locked on a GPU.
inline cuda::owned host_memory(const placement& on, std::size_t bytes) {
    if (on.gpu) {
        return cuda::pinned_memory(on.gpu, bytes);
    }
    constexpr std::align_val_t line{64};
    return cuda::owned(std::memset(::operator new(bytes, line), 0, bytes),
                       [line](void* memory) { ::operator delete(memory, line); });
}

/// A processor's is the host's.
inline cuda::owned device_memory(const placement& on, std::size_t bytes) {
    return on.gpu ? cuda::device_memory(on.gpu, bytes) : host_memory(on, bytes);
}

/// Blocks of KV with K and V for every layer, in the device's memory or the host's.
class kv_pool {
   public:
    enum class where { device, host };

    /// Has no layers where it has no blocks.
    kv_pool(const placement& on, where at, std::uint32_t num_blocks, std::uint32_t block_size) {
        const std::size_t bytes =
            std::size_t{num_blocks} * block_size * shape::kv_width * size_of(on.type);
        for (std::uint32_t l = 0; num_blocks > 0 && l < shape::layers; l++) {
            void* kv[2];
            for (void*& each : kv) {
                memory_.push_back(at == where::device ? device_memory(on, bytes)
                                                      : host_memory(on, bytes));
                each = memory_.back().get();
                if (on.gpu && at == where::host) {
                    // Kernels make the copies that swap.
                    each = cuda::on_device(*on.gpu, each);
                }
            }
            layers_.push_back(inflight::make_kv_cache(kv[0], kv[1], num_blocks, block_size,
                                                      shape::kv_heads, shape::head_dim, on.type));
        }
    }

    const std::vector<inflight::kv_cache>& layers() const { return layers_; }

   private:
    std::vector<cuda::owned> memory_;
    std::vector<inflight::kv_cache> layers_;
};

/// Heads of a step's tokens: numbers of the host's, and what kernels see of them, in their type and
/// the device's memory. `stream` is null on a processor.
class step_array {
   public:
    step_array(const placement& on, std::size_t max_tokens, std::uint32_t heads)
        : type_(on.type),
          heads_(heads),
          numbers_(max_tokens * heads * shape::head_dim),
          stored_(host_memory(on, numbers_.size() * size_of(type_))) {
        if (on.gpu) {
            on_device_ = cuda::device_memory(on.gpu, numbers_.size() * size_of(type_));
        }
    }

    float* token(std::size_t t) { return &numbers_[t * heads_ * shape::head_dim]; }

    /// For kernels.
    inflight::tensor tensor(std::size_t tokens) const {
        return inflight::make_tensor(on_device_ ? on_device_.get() : stored_.get(), tokens, heads_,
                                     shape::head_dim, type_);
    }

    /// To the device. The next is for after `receive` of what was computed with it.
    void send(std::size_t tokens, const cuda::stream* stream) {
        encode(type_, numbers_.data(), tokens * heads_ * shape::head_dim, stored_.get());
        if (stream != nullptr) {
            stream->upload(on_device_.get(), stored_.get(), bytes(tokens));
        }
    }

    /// From the device, when all before it on the stream is done.
    void receive(std::size_t tokens, const cuda::stream* stream) {
        if (stream != nullptr) {
            stream->download(stored_.get(), on_device_.get(), bytes(tokens));
            stream->wait();
        }
        decode(type_, stored_.get(), tokens * heads_ * shape::head_dim, numbers_.data());
    }

   private:
    std::size_t bytes(std::size_t tokens) const {
        return tokens * heads_ * shape::head_dim * size_of(type_);
    }

    inflight::dtype type_;
    std::uint32_t heads_;
    std::vector<float> numbers_;
    cuda::owned stored_, on_device_;
};

}  // namespace serve

#endif
