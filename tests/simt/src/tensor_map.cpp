// libcuda's tensor maps: a struct of our own, with the driver's conditions.
#include <cstring>

#include "stream.h"

using namespace simt;

CU_API cuTensorMapEncodeTiled(void* out, int type, uint32_t rank, void* base, const uint64_t* dim,
                              const uint64_t* strides, const uint32_t* box,
                              const uint32_t* element_strides, int interleave, int swizzle_mode,
                              int l2, int fill) {
    CU_LOCKED;
    // u8 u16 u32 s32 u64 s64 f16 f32 f64 bf16
    static const uint32_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    if (!out || !base || !dim || !box || !element_strides) return CUDA_ERROR_INVALID_VALUE;
    if (type < 0 || type > 9 || rank < 1 || rank > 5) return CUDA_ERROR_INVALID_VALUE;
    if (interleave || swizzle_mode < 0 || swizzle_mode > 3 || l2 < 0 || l2 > 3 || fill < 0 ||
        fill > 1)
        return CUDA_ERROR_INVALID_VALUE;
    // Zeros are what the emulator fills with, and not NaN.
    if (fill) return CUDA_ERROR_NOT_SUPPORTED;
    if (reinterpret_cast<uintptr_t>(out) % 64 || reinterpret_cast<uintptr_t>(base) % 16)
        return CUDA_ERROR_INVALID_VALUE;
    TensorMap m{};
    m.magic = TENSOR_MAP_MAGIC;
    m.rank = rank;
    m.elt = sizes[type];
    m.swz = static_cast<uint32_t>(swizzle_mode);
    m.base = reinterpret_cast<uint64_t>(base);
    for (uint32_t i = 0; i < rank; i++) {
        if (!dim[i] || dim[i] > 1ull << 32 || !box[i] || box[i] > 256 || element_strides[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
        m.dim[i] = static_cast<uint32_t>(std::min<uint64_t>(dim[i], 0xffffffff));
        m.box[i] = box[i];
        if (!i) continue;
        if (!strides || strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40)
            return CUDA_ERROR_INVALID_VALUE;
        m.stride[i] = strides[i - 1];
    }
    const uint32_t inner = box[0] * m.elt;
    if (inner % 16 || (swizzle_mode && inner > 16u << swizzle_mode))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(out, &m, sizeof m);
    return CUDA_SUCCESS;
}
static_assert(sizeof(TensorMap) == 128);
