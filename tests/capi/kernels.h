/* A small model's layer on the processor, and faults of its tensors and caches. */
#ifndef KERNELS_H
#define KERNELS_H

#include "check.h"

enum { BLOCKS = 6, PAGE = 4, Q_HEADS = 4, KV_HEADS = 2, DIM = 8, ROWS = 3, TOKENS = 7 };

enum { Q_SIZE = TOKENS * Q_HEADS * DIM, NEW_SIZE = TOKENS * KV_HEADS * DIM };
enum { CACHE_SIZE = BLOCKS * PAGE * KV_HEADS * DIM, LSE_SIZE = TOKENS * Q_HEADS };

/* Rows of 5, 1 and 1 queries over 7, 6 and 1 keys. */
static const uint32_t QO_INDPTR[] = {0, 5, 6, 7}, KV_INDPTR[] = {0, 2, 4, 5};
static const uint32_t KV_INDICES[] = {1, 2, 3, 4, 5}, LAST_PAGE_LEN[] = {3, 2, 1};
static const int64_t SLOTS[] = {6, 7, 8, 9, 10, 17, 20};
static const uint32_t POSITIONS[] = {2, 3, 4, 5, 6, 5, 0};

static inline inflight_device* new_device(void) {
    inflight_cpu_config config;
    inflight_cpu_config_init(&config, sizeof config);
    config.threads = 2;
    inflight_device* device;
    CHECK(inflight_device_create_cpu(&config, &device, NULL) == INFLIGHT_STATUS_OK);
    return device;
}

static inline inflight_tensor new_tensor(float* data, uint64_t tokens, uint32_t heads) {
    inflight_tensor tensor;
    inflight_tensor_init(&tensor, sizeof tensor);
    CHECK(inflight_tensor_set_contiguous(&tensor, INFLIGHT_DTYPE_F32, data, tokens, heads, DIM,
                                         NULL) == INFLIGHT_STATUS_OK);
    return tensor;
}

static inline inflight_kv_cache new_kv_cache(float* k, float* v) {
    inflight_kv_cache cache;
    inflight_kv_cache_init(&cache, sizeof cache);
    CHECK(inflight_kv_cache_set_contiguous(&cache, INFLIGHT_LAYOUT_NHD, INFLIGHT_DTYPE_F32, k, v,
                                           BLOCKS, PAGE, KV_HEADS, DIM,
                                           NULL) == INFLIGHT_STATUS_OK);
    return cache;
}

static inline inflight_group new_group(void) {
    inflight_group group;
    inflight_group_init(&group, sizeof group);
    group.kv_indptr = KV_INDPTR;
    group.kv_indices = KV_INDICES;
    group.kv_last_page_len = LAST_PAGE_LEN;
    group.slot_mapping = SLOTS;
    group.num_kv_blocks = 5;
    group.block_size = PAGE;
    return group;
}

static inline inflight_batch new_batch(const inflight_group* group) {
    inflight_batch batch;
    inflight_batch_init(&batch, sizeof batch);
    batch.qo_indptr = QO_INDPTR;
    batch.positions = POSITIONS;
    batch.groups = group;
    batch.num_rows = ROWS;
    batch.num_tokens = TOKENS;
    return batch;
}

static inline inflight_attention_config new_attention_config(void) {
    return f32_attention(Q_HEADS, KV_HEADS, DIM);
}

static inline inflight_step_limits new_limits(void) {
    inflight_step_limits limits;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = ROWS;
    limits.max_tokens = TOKENS;
    limits.max_blocks = 5;
    limits.max_kv_len = 7;
    limits.max_mask_bytes = 16;
    return limits;
}

static inline void fill(float* numbers, size_t len, uint64_t seed) {
    for (size_t i = 0; i < len; i++) {
        numbers[i] = (float)(draw(&seed) >> 40) / (1 << 23) - 1;
    }
}

/* Every fault of a tensor of F32 that a call names `name`. */
#define TENSOR_FAULTS(tensor, name, call)                                    \
    do {                                                                     \
        REFUSED_FIELD(tensor, data = NULL, name, call);                      \
        REFUSED_FIELD(tensor, data = MISALIGNED((tensor).data), name, call); \
        REFUSED_FIELD(tensor, tokens = UINT64_MAX, name, call);              \
        REFUSED_FIELD(tensor, tokens = ABOVE_MAX, name, call);               \
        REFUSED_FIELD(tensor, token_stride = -1, name, call);                \
        REFUSED_FIELD(tensor, token_stride = INT64_MIN, name, call);         \
        REFUSED_FIELD(tensor, token_stride = INT64_MAX, name, call);         \
        REFUSED_FIELD(tensor, token_stride = INT64_MAX / 3, name, call);     \
        REFUSED_FIELD(tensor, head_stride = -1, name, call);                 \
        REFUSED_FIELD(tensor, head_stride = INT64_MIN, name, call);          \
        REFUSED_FIELD(tensor, head_stride = INT64_MAX, name, call);          \
        REFUSED_FIELD(tensor, heads = 0, name, call);                        \
        REFUSED_FIELD(tensor, head_dim = 0, name, call);                     \
        REFUSED_FIELD(tensor, dtype = 0, name, call);                        \
        REFUSED_FIELD(tensor, dtype = 5, name, call);                        \
        REFUSED_FIELD(tensor, dtype = UINT32_MAX, name, call);               \
        REFUSED_FIELD(tensor, reserved = 1, "reserved", call);               \
        REFUSED_SIZES(tensor, name, call);                                   \
    } while (0)

/* The same, and what does not fit the step. */
#define STEP_TENSOR_FAULTS(tensor, name, call)                              \
    do {                                                                    \
        TENSOR_FAULTS(tensor, name, call);                                  \
        REFUSED_FIELD(tensor, tokens = 0, name, call);                      \
        REFUSED_FIELD(tensor, tokens = (tensor).tokens - 1, name, call);    \
        REFUSED_FIELD(tensor, head_dim = 2 * DIM, name, call);              \
        REFUSED_FIELD(tensor, head_dim = UINT32_MAX, name, call);           \
        REFUSED_FIELD(tensor, dtype = INFLIGHT_DTYPE_FP8_E4M3, name, call); \
    } while (0)

/* A tensor whose rows would overlap, which is for reading alone. */
#define OVERLAPS(tensor, name, call)                              \
    do {                                                          \
        REFUSED_FIELD(tensor, token_stride = 0, name, call);      \
        REFUSED_FIELD(tensor, head_stride = 0, name, call);       \
        REFUSED_FIELD(tensor, head_stride = DIM - 1, name, call); \
    } while (0)

/* Every fault of a cache of F32 that calls name `name`. */
#define KV_FAULTS(cache, name, call)                                                               \
    do {                                                                                           \
        REFUSED_SIZES(cache, name, call);                                                          \
        SIDE_FAULTS(cache, k, "cache.k", call);                                                    \
        SIDE_FAULTS(cache, v, "cache.v", call);                                                    \
        REFUSED_FIELD(cache, v.data = (cache).k.data, "cache.v", call);                            \
        REFUSED_FIELD(cache, k.head_dim = 2 * DIM, "cache.v.head_dim", call);                      \
        REFUSED_FIELD(cache, v.head_dim = 2 * DIM, "cache.v.head_dim", call);                      \
        REFUSED_FIELD(cache, v.dtype = INFLIGHT_DTYPE_F16, "cache.v.dtype", call);                 \
        REFUSED_FIELD(cache, num_blocks = 0, "cache.num_blocks", call);                            \
        REFUSED_FIELD(cache, num_blocks = ABOVE_MAX, "cache.num_blocks", call);                    \
        REFUSED_FIELD(cache, num_blocks = UINT64_MAX, "cache.num_blocks", call);                   \
        REFUSED_FIELD(cache, block_size = 0, "cache.block_size", call);                            \
        REFUSED_FIELD(cache, block_size = ABOVE_MAX, "cache.block_size", call);                    \
        REFUSED_FIELD(cache, block_size = UINT32_MAX, "cache.block_size", call);                   \
        REFUSED_FIELD(cache, num_heads = 0, "cache.num_heads", call);                              \
        REFUSED_FIELD(cache, num_heads = 65537, "cache.num_heads", call);                          \
        REFUSED_FIELD(cache, num_heads = UINT32_MAX, "cache.num_heads", call);                     \
        const uint32_t no_dims[] = {0, 4, 264, UINT32_MAX};                                        \
        for (size_t d = 0; d < sizeof no_dims / sizeof *no_dims; d++) {                            \
            REFUSED_FIELD(cache, k.head_dim = (cache).v.head_dim = no_dims[d], "cache.k.head_dim", \
                          call);                                                                   \
        }                                                                                          \
    } while (0)

/* What one array of a cache has: pointer, type, scales, and strides that are negative, no multiple
 * of 16 bytes, do not fit 64 bits or make rows overlap. */
#define SIDE_FAULTS(cache, array, name, call)                                                    \
    do {                                                                                         \
        static const float one = 1;                                                              \
        REFUSED_FIELD(cache, array.data = NULL, name, call);                                     \
        REFUSED_FIELD(cache, array.data = (float*)(cache).array.data + 1, name, call);           \
        REFUSED_FIELD(cache, array.data = MISALIGNED((cache).array.data), name, call);           \
        STRIDE_FAULTS(cache, array.block_stride, name, call);                                    \
        STRIDE_FAULTS(cache, array.token_stride, name, call);                                    \
        STRIDE_FAULTS(cache, array.head_stride, name, call);                                     \
        REFUSED_FIELD(cache, array.dtype = 0, name ".dtype", call);                              \
        REFUSED_FIELD(cache, array.dtype = 5, name ".dtype", call);                              \
        REFUSED_FIELD(cache, array.dtype = UINT32_MAX, name ".dtype", call);                     \
        REFUSED_FIELD(cache, array.scales = &one, name ".scales", call);                         \
        REFUSED_FIELD(cache, array.scale_block_stride = 1, name ".scales", call);                \
        REFUSED_FIELD(cache, array.scale_token_stride = -1, name ".scales", call);               \
        REFUSED_FIELD(cache, array.scale_head_stride = 2, name ".scale_head_stride", call);      \
        REFUSED_FIELD(cache, array.scale_dtype = INFLIGHT_DTYPE_F16, name ".scale_dtype", call); \
        REFUSED_FIELD(cache, array.scale_dtype = UINT32_MAX, name ".scale_dtype", call);         \
        REFUSED_FIELD(cache, array.scale_elements = 16, name ".scale_elements", call);           \
        REFUSED_FIELD(cache, array.reserved[0] = 1, name ".reserved", call);                     \
        REFUSED_FIELD(cache, array.reserved[1] = 1, name ".reserved", call);                     \
    } while (0)

#define STRIDE_FAULTS(cache, stride, name, call)                       \
    do {                                                               \
        REFUSED_FIELD(cache, stride = -1, name, call);                 \
        REFUSED_FIELD(cache, stride = -16, name, call);                \
        REFUSED_FIELD(cache, stride = INT64_MIN, name, call);          \
        REFUSED_FIELD(cache, stride = INT64_MAX, name, call);          \
        REFUSED_FIELD(cache, stride = INT64_MAX / 16 * 4, name, call); \
        REFUSED_FIELD(cache, stride = (cache).stride + 1, name, call); \
        REFUSED_FIELD(cache, stride = (cache).stride + 2, name, call); \
        REFUSED_FIELD(cache, stride = 0, name, call);                  \
        REFUSED_FIELD(cache, stride = DIM / 2, name, call);            \
    } while (0)

#endif
