// CUDA's driver, opened when the program runs: memory, copies and a stream. Nothing of CUDA is
// needed to build.
#ifndef SERVE_CUDA_DRIVER_HPP
#define SERVE_CUDA_DRIVER_HPP

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace serve::cuda {

// As in cuda.h.
using address = unsigned long long;
using context_handle = struct CUctx_st*;
using stream_handle = struct CUstream_st*;

/// The functions that this program calls, under their names without "cu".
struct driver {
    int (*Init)(unsigned flags);
    int (*GetErrorName)(int result, const char** name);
    int (*DeviceGet)(int* device, int ordinal);
    int (*DevicePrimaryCtxRetain)(context_handle* context, int device);
    int (*DevicePrimaryCtxRelease)(int device);
    int (*CtxSetCurrent)(context_handle context);
    int (*MemAlloc)(address* memory, std::size_t bytes);
    int (*MemFree)(address memory);
    int (*MemHostAlloc)(void** memory, std::size_t bytes, unsigned flags);
    int (*MemFreeHost)(void* memory);
    int (*MemHostGetDevicePointer)(address* on_device, void* memory, unsigned flags);
    int (*MemcpyHtoDAsync)(address to, const void* from, std::size_t bytes, stream_handle stream);
    int (*MemcpyDtoHAsync)(void* to, address from, std::size_t bytes, stream_handle stream);
    int (*StreamCreate)(stream_handle* stream, unsigned flags);
    int (*StreamDestroy)(stream_handle stream);
    int (*StreamSynchronize)(stream_handle stream);

    /// Opened once, and never closed: its threads run its code.
    static const driver& get() {
        static const driver opened;
        return opened;
    }

    /// Throws where a call has failed.
    void check(const char* call, int result) const {
        if (result != 0) {
            const char* name = nullptr;
            GetErrorName(result, &name);
            throw std::runtime_error(std::string(call) + ": " +
                                     (name != nullptr ? name : std::to_string(result)));
        }
    }

   private:
    driver() {
        // In the order in which inflight looks, so that both have the same.
        void* library = dlopen("libcuda.so", RTLD_NOW);
        if (library == nullptr) {
            library = dlopen("libcuda.so.1", RTLD_NOW);
        }
        if (library == nullptr) {
            throw std::runtime_error(dlerror());
        }
        const auto find = [library](const char* name, auto& function) {
            void* found = dlsym(library, name);
            if (found == nullptr) {
                throw std::runtime_error(std::string("the CUDA driver lacks ") + name);
            }
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
        };
        find("cuInit", Init);
        find("cuGetErrorName", GetErrorName);
        find("cuDeviceGet", DeviceGet);
        find("cuDevicePrimaryCtxRetain", DevicePrimaryCtxRetain);
        find("cuDevicePrimaryCtxRelease_v2", DevicePrimaryCtxRelease);
        find("cuCtxSetCurrent", CtxSetCurrent);
        find("cuMemAlloc_v2", MemAlloc);
        find("cuMemFree_v2", MemFree);
        find("cuMemHostAlloc", MemHostAlloc);
        find("cuMemFreeHost", MemFreeHost);
        find("cuMemHostGetDevicePointer_v2", MemHostGetDevicePointer);
        find("cuMemcpyHtoDAsync_v2", MemcpyHtoDAsync);
        find("cuMemcpyDtoHAsync_v2", MemcpyDtoHAsync);
        find("cuStreamCreate", StreamCreate);
        find("cuStreamDestroy_v2", StreamDestroy);
        find("cuStreamSynchronize", StreamSynchronize);
        check("cuInit", Init(0));
    }
};

/// A GPU's primary context, the one that inflight's device of the same number has.
class context {
   public:
    explicit context(std::uint32_t ordinal) : driver_(driver::get()) {
        driver_.check("cuDeviceGet", driver_.DeviceGet(&device_, static_cast<int>(ordinal)));
        driver_.check("cuDevicePrimaryCtxRetain",
                      driver_.DevicePrimaryCtxRetain(&handle_, device_));
    }
    context(const context&) = delete;
    context& operator=(const context&) = delete;
    ~context() { driver_.DevicePrimaryCtxRelease(device_); }

    /// The driver, with this context current on the calling thread. It stays so: the program has no
    /// other.
    const driver& enter() const {
        driver_.check("cuCtxSetCurrent", driver_.CtxSetCurrent(handle_));
        return driver_;
    }
    /// For destructors, which can do nothing about a failure.
    const driver& try_enter() const noexcept {
        driver_.CtxSetCurrent(handle_);
        return driver_;
    }

   private:
    const driver& driver_;
    int device_ = 0;
    context_handle handle_ = nullptr;
};

/// What is made in a context keeps it.
using shared_context = std::shared_ptr<const context>;

/// Memory and what frees it.
using owned = std::unique_ptr<void, std::function<void(void*)>>;

/// Memory of the GPU: the pointer is for its kernels alone.
inline owned device_memory(const shared_context& in, std::size_t bytes) {
    const driver& calls = in->enter();
    address at = 0;
    calls.check("cuMemAlloc", calls.MemAlloc(&at, bytes));
    return owned(reinterpret_cast<void*>(at), [in](void* memory) {
        in->try_enter().MemFree(reinterpret_cast<address>(memory));
    });
}

/// Page-locked memory of the host, which copies need to be asynchronous and kernels to reach it.
inline owned pinned_memory(const shared_context& in, std::size_t bytes) {
    const driver& calls = in->enter();
    constexpr unsigned portable = 1, device_map = 2;
    void* at = nullptr;
    calls.check("cuMemHostAlloc", calls.MemHostAlloc(&at, bytes, portable | device_map));
    return owned(at, [in](void* memory) { in->try_enter().MemFreeHost(memory); });
}

/// Where kernels find page-locked memory.
inline void* on_device(const context& in, void* pinned) {
    const driver& calls = in.enter();
    address at = 0;
    calls.check("cuMemHostGetDevicePointer", calls.MemHostGetDevicePointer(&at, pinned, 0));
    return reinterpret_cast<void*>(at);
}

/// Work in order, apart from the default stream's.
class stream {
   public:
    explicit stream(shared_context in) : in_(std::move(in)) {
        const driver& calls = in_->enter();
        constexpr unsigned non_blocking = 1;
        calls.check("cuStreamCreate", calls.StreamCreate(&handle_, non_blocking));
    }
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;
    ~stream() { in_->try_enter().StreamDestroy(handle_); }

    /// For calls of inflight.
    void* handle() const { return handle_; }

    /// Host memory must stay as it is until the stream has been waited for.
    void upload(void* to, const void* from, std::size_t bytes) const {
        const driver& calls = in_->enter();
        calls.check("cuMemcpyHtoDAsync",
                    calls.MemcpyHtoDAsync(reinterpret_cast<address>(to), from, bytes, handle_));
    }
    void download(void* to, const void* from, std::size_t bytes) const {
        const driver& calls = in_->enter();
        calls.check("cuMemcpyDtoHAsync",
                    calls.MemcpyDtoHAsync(to, reinterpret_cast<address>(from), bytes, handle_));
    }
    void wait() const {
        const driver& calls = in_->enter();
        calls.check("cuStreamSynchronize", calls.StreamSynchronize(handle_));
    }

   private:
    shared_context in_;
    stream_handle handle_ = nullptr;
};

}  // namespace serve::cuda

#endif
