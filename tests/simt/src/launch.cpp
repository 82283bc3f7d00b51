// libcuda's functions: launches, and how many blocks fit a multiprocessor.
#include <algorithm>

#include "stream.h"

using namespace simt;

// By threads and shared memory alone: registers are not known here.
static int occupancy(int threads, size_t smem) {
    const int by_threads = 2048 / ((threads + 31) / 32 * 32);
    const int by_smem = static_cast<int>((smem_optin() + 1024) / (smem + 1024));
    return std::min({by_threads, by_smem, 32});
}
CU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction f, int threads,
                                                   size_t smem) {
    CU_ENTER;
    if (!out || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    if (!is_kernel(f)) return CUDA_ERROR_INVALID_HANDLE;
    *out = threads > 1024 ? 0 : occupancy(threads, smem);
    return CUDA_SUCCESS;
}

// ---- launches

static CUresult make_launch(const KernelHandle& k, const CUlaunchConfig& c, void** params,
                            Work& out) {
    const uint64_t threads = uint64_t(c.blockDimX) * c.blockDimY * c.blockDimZ;
    if (!c.gridDimX || !c.gridDimY || !c.gridDimZ || !threads) return CUDA_ERROR_INVALID_VALUE;
    if (c.gridDimX > 0x7fffffff || c.gridDimY > 65535 || c.gridDimZ > 65535)
        return CUDA_ERROR_INVALID_VALUE;
    if (threads > 1024 || c.blockDimZ > 64) return CUDA_ERROR_INVALID_VALUE;
    if (c.sharedMemBytes > static_cast<uint32_t>(k.max_dynamic_smem))
        return CUDA_ERROR_INVALID_VALUE;
    // More threads than __launch_bounds__ names.
    if (threads > k.kernel->threads) return CUDA_ERROR_INVALID_VALUE;
    bool dependent = false;
    for (unsigned i = 0; i < c.numAttrs; i++) {
        const CUlaunchAttribute& a = c.attrs[i];
        if (a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION &&
            (a.cluster.x > 1 || a.cluster.y > 1 || a.cluster.z > 1))
            return CUDA_ERROR_NOT_SUPPORTED;
        if (a.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && a.value) return CUDA_ERROR_NOT_SUPPORTED;
        if (a.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION && a.value)
            dependent = true;
    }
    if (!params || !params[0]) return CUDA_ERROR_INVALID_VALUE;
    // No device before 9.0 has such launches: there it is one like any other.
    dependent = device_cc() >= 90 ? dependent : cfg.dependent && !PTX;
    if (device_cc() >= 90 && dependent && !code_waits())
        add_report(RACE, std::string(k.kernel->name) +
                             " is launched as a dependent, and its code, " + "of compute_" +
                             std::to_string(code_for_device().ptx) + ", never waits");
    const auto* bytes = static_cast<const uint8_t*>(params[0]);
    const std::vector<uint8_t> copy(bytes, bytes + k.kernel->param_bytes);
    const dim3 grid{c.gridDimX, c.gridDimY, c.gridDimZ};
    const dim3 block{c.blockDimX, c.blockDimY, c.blockDimZ};
    const ptx_kernel* const code = PTX ? find_code(*k.kernel) : nullptr;
    if (PTX && !code) return CUDA_ERROR_NOT_FOUND;
    const bool waits = code_waits() || (cfg.dependent && device_cc() < 90);
    // What fits the device; beyond that many, more show nothing new and cost memory.
    constexpr int MOST = 16;
    const int resident =
        std::min(occupancy(static_cast<int>(threads), c.sharedMemBytes) * multiprocessors(), MOST);
    out.dependent = dependent;
    out.launch = [=, kernel = k.kernel, smem = c.sharedMemBytes] {
        auto launch = std::make_shared<Grid>();
        launch->fn = reinterpret_cast<void*>(kernel->entry);
        launch->trampoline = [](void* fn, void** p) {
            reinterpret_cast<void (*)(void* const*)>(fn)(p);
        };
        launch->params_of_kernel.resize(copy.size() / sizeof(ParamChunk) + 1);
        memcpy(launch->params_of_kernel.data(), copy.data(), copy.size());
        launch->params = launch->args;
        launch->args[0] = launch->params_of_kernel.data();
        launch->blocks = grid;
        launch->threads = block;
        launch->smem = smem;
        launch->code = code;
        launch->dependent = dependent;
        launch->waits = waits;
        launch->resident = static_cast<unsigned>(resident);
        return launch;
    };
    return CUDA_SUCCESS;
}

CU_API cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** params, void** extra) {
    CU_ENTER;
    if (!c) return CUDA_ERROR_INVALID_VALUE;
    if (!is_kernel(f) || !is_stream(c->hStream)) return CUDA_ERROR_INVALID_HANDLE;
    if (extra) return CUDA_ERROR_NOT_SUPPORTED;
    Work launch;
    CU_TRY(make_launch(*f, *c, params, launch));
    return enqueue(c->hStream, std::move(launch));
}
