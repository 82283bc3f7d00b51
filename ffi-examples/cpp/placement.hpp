// Where steps run: the choice of a device, and of the type of what its kernels read and write.
#ifndef SERVE_PLACEMENT_HPP
#define SERVE_PLACEMENT_HPP

#include <cstdint>
#include <inflight.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_driver.hpp"
#include "model.hpp"
#include "rounding.hpp"

namespace serve {

struct placement {
    inflight::device device;
    inflight::dtype type;
    /// Null on a processor.
    cuda::shared_context gpu;
    /// Device, type and why these, in a line.
    std::string line;
};

/// The model's attention, the same in all layers.
inline inflight::attention_config attention_config(inflight::dtype type) {
    return inflight::attention_config(shape::q_heads, shape::kv_heads, shape::head_dim, type);
}

/// `type` is empty for the default: f32, which GPUs have no attention for.
inline placement on_processor(const std::string& type, const std::string& why) {
    placement made{inflight::device::cpu(), type.empty() ? inflight::dtype::f32 : type_of(type),
                   nullptr, ""};
    const auto info = made.device.info();
    made.line = std::string(info.name) + ", " + std::to_string(info.threads) + " threads, " +
                name_of(made.type) + ": " + why;
    return made;
}

/// A GPU, or why it cannot be used.
inline inflight::result<placement> try_on_gpu(std::uint32_t ordinal, const std::string& type,
                                              const std::string& why) {
    auto device = inflight::device::try_cuda(ordinal);
    if (!device) {
        return device.why();
    }
    placement made{*std::move(device), type.empty() ? inflight::dtype::f16 : type_of(type), nullptr,
                   ""};
    // The smallest attention of the model's: whether this build has its kernels for this GPU.
    const auto kernels = inflight::attention::try_create(made.device, attention_config(made.type),
                                                         inflight::step_limits(1, 1, 1, 1));
    if (!kernels) {
        return kernels.why();
    }
    made.gpu = std::make_shared<cuda::context>(ordinal);
    made.line = "cuda:" + std::to_string(ordinal) + ", " + made.device.info().name + ", " +
                name_of(made.type) + ": " + why;
    return made;
}

/// The first GPU that can be used, else the processor. A GPU that fails in another way than having
/// no kernels here is told, not passed over.
inline placement first_device(const std::string& type) {
    if (type == "f32") {
        return on_processor(type, "GPUs have no attention in f32");
    }
    const auto count = inflight::device::try_cuda_count();
    if (!count) {
        if (count.code() != inflight::status::no_cuda) {
            throw inflight::error(count.why());
        }
        return on_processor(type, inflight::error(count.why()).what());
    }
    std::string why;
    for (std::uint32_t ordinal = 0; ordinal < *count; ordinal++) {
        auto gpu = try_on_gpu(ordinal, type, "the first GPU that this build has kernels for");
        if (gpu) {
            return *std::move(gpu);
        }
        if (gpu.code() != inflight::status::no_kernel_image) {
            throw inflight::error(gpu.why());
        }
        why = inflight::error(gpu.why()).what();
    }
    return on_processor(type, why);
}

/// As the option `--device` says: auto, cpu, cuda or cuda:N.
inline placement place(const std::string& device, const std::string& type) {
    if (device == "auto") {
        return first_device(type);
    }
    if (device == "cpu") {
        return on_processor(type, "asked for");
    }
    const std::string kind = device.substr(0, 5),
                      number = device == "cuda" ? "0" : device.substr(kind.size());
    const bool is_number = !number.empty() && number.size() < 4 &&
                           number.find_first_not_of("0123456789") == std::string::npos;
    if ((device != "cuda" && kind != "cuda:") || !is_number) {
        throw std::invalid_argument("--device: auto, cpu, cuda or cuda:N");
    }
    return try_on_gpu(static_cast<std::uint32_t>(std::stoul(number)), type, "asked for").value();
}

}  // namespace serve

#endif
