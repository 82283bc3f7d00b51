// The table of kernels (kernels.def) as types: a type has the figures of a row.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

enum class Family {
#define INFLIGHT_FAMILY(NAME, HEADER) NAME,
#include "../kernels.def"
};

// Types of a cache.
enum class Kv {
#define INFLIGHT_KV_TYPE(NAME, BYTES, SCALES) NAME,
#include "../kernels.def"
};
enum class Scales { none, per_head };

template <Kv KV>
struct KvType;
#define INFLIGHT_KV_TYPE(NAME, SIZE, GRANULARITY)             \
    template <>                                               \
    struct KvType<Kv::NAME> {                                 \
        static constexpr int BYTES = SIZE;                    \
        static constexpr Scales SCALES = Scales::GRANULARITY; \
    };
#include "../kernels.def"

// An element of a cache, where queries are of type Q.
template <class Q, Kv KV>
struct ElementOf;
template <class Q>
struct ElementOf<Q, Kv::same> {
    using Type = Q;
};
template <class Q>
struct ElementOf<Q, Kv::e4m3> {
    using Type = arch::e4m3;
};
template <class Q, Kv KV>
using Element = typename ElementOf<Q, KV>::Type;

enum class DeviceClass {
#define INFLIGHT_DEVICE_CLASS(NAME, FROM, TO, KIB) NAME,
#include "../kernels.def"
};
// Bytes of shared memory that a block can have.
template <DeviceClass CLASS>
constexpr int smem_of = 0;
#define INFLIGHT_DEVICE_CLASS(NAME, FROM, TO, KIB) \
    template <>                                    \
    constexpr int smem_of<DeviceClass::NAME> = KIB * 1024;
#include "../kernels.def"

// A row of attention kernels.
template <Family FAMILY, Kv KV, int D, int V_D = D, DeviceClass CLASS = DeviceClass::sm80>
struct KernelTraits;
#define INFLIGHT_ATTENTION(FAMILY, KV_TYPE, QK_DIM, V_DIM, Q_ROWS, TILE_KEYS, TILES, N_THREADS,    \
                           N_BLOCKS, SMEM_BYTES, CLASS)                                            \
    template <>                                                                                    \
    struct KernelTraits<Family::FAMILY, Kv::KV_TYPE, QK_DIM, V_DIM, DeviceClass::CLASS> {          \
        static constexpr Kv KV = Kv::KV_TYPE;                                                      \
        static constexpr int KV_BYTES = KvType<KV>::BYTES, D = QK_DIM, ROWS = Q_ROWS;              \
        static constexpr int KEYS = TILE_KEYS, STAGES = TILES, THREADS = N_THREADS;                \
        static constexpr int BLOCKS = N_BLOCKS, SMEM = SMEM_BYTES;                                 \
        static_assert(QK_DIM == V_DIM, "no kernel has values of another head dimension");          \
        static_assert(SMEM <= smem_of<DeviceClass::CLASS>, "a block may not have so much");        \
        static_assert(BLOCKS * (SMEM + 1024) <= 228 * 1024, "blocks do not fit a multiprocessor"); \
    };
#include "../kernels.def"

// Blocks per multiprocessor of kernels of any head dimension: append_same_blocks, merge_any_blocks.
#define INFLIGHT_ROWWISE(FAMILY, KV, BLOCKS) constexpr int FAMILY##_##KV##_blocks = BLOCKS;
#include "../kernels.def"

}  // namespace inflight

// The kernels of a row of attention, of each kind the body with `Usual` features and that with all
// (see common/logits.cuh).
#define INFLIGHT_ATTENTION_KERNELS(family, Usual, Params, name, q, kv, d, v_d, device)          \
    using name##_traits = inflight::KernelTraits<inflight::Family::family, inflight::Kv::kv, d, \
                                                 v_d, inflight::DeviceClass::device>;           \
    ARCH_KERNEL(name, name##_traits::THREADS, name##_traits::BLOCKS, Params,                    \
                inflight::family<arch::q, name##_traits, inflight::Usual>)                      \
    ARCH_KERNEL(name##_general, name##_traits::THREADS, name##_traits::BLOCKS, Params,          \
                inflight::family<arch::q, name##_traits, inflight::EveryFeature>)
