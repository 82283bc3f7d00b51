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
    inflight_tensor tensor = {data, tokens, 0, 0, heads, DIM, INFLIGHT_DTYPE_F32, 0};
    CHECK(inflight_tensor_set_strides(&tensor, NULL) == INFLIGHT_STATUS_OK);
    return tensor;
}

static inline inflight_kv_cache new_kv_cache(float* k, float* v) {
    inflight_kv_cache cache;
    memset(&cache, 0, sizeof cache);
    cache.k = k;
    cache.v = v;
    cache.num_blocks = BLOCKS;
    cache.block_size = PAGE;
    cache.num_heads = KV_HEADS;
    cache.head_dim = DIM;
    cache.dtype = INFLIGHT_DTYPE_F32;
    CHECK(inflight_kv_cache_set_strides(&cache, INFLIGHT_LAYOUT_NHD, NULL) == INFLIGHT_STATUS_OK);
    return cache;
}

static inline inflight_batch new_batch(void) {
    inflight_batch batch;
    inflight_batch_init(&batch, sizeof batch);
    batch.qo_indptr = QO_INDPTR;
    batch.kv_indptr = KV_INDPTR;
    batch.kv_indices = KV_INDICES;
    batch.kv_last_page_len = LAST_PAGE_LEN;
    batch.slot_mapping = SLOTS;
    batch.positions = POSITIONS;
    batch.num_rows = ROWS;
    batch.num_tokens = TOKENS;
    batch.num_kv_blocks = 5;
    batch.block_size = PAGE;
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
        REFUSED_FIELD(tensor, reserved = 1, name, call);                     \
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

/* Every fault of a cache of F32, K and V alike. */
#define KV_FAULTS(cache, call)                                                   \
    do {                                                                         \
        SIDE_FAULTS(cache, k, "cache.k", call);                                  \
        SIDE_FAULTS(cache, v, "cache.v", call);                                  \
        REFUSED_FIELD(cache, v = (cache).k, "cache.v", call);                    \
        REFUSED_FIELD(cache, num_blocks = 0, "cache.num_blocks", call);          \
        REFUSED_FIELD(cache, num_blocks = ABOVE_MAX, "cache.num_blocks", call);  \
        REFUSED_FIELD(cache, num_blocks = UINT64_MAX, "cache.num_blocks", call); \
        REFUSED_FIELD(cache, block_size = 0, "cache.block_size", call);          \
        REFUSED_FIELD(cache, block_size = ABOVE_MAX, "cache.block_size", call);  \
        REFUSED_FIELD(cache, block_size = UINT32_MAX, "cache.block_size", call); \
        REFUSED_FIELD(cache, num_heads = 0, "cache.num_heads", call);            \
        REFUSED_FIELD(cache, num_heads = 65537, "cache.num_heads", call);        \
        REFUSED_FIELD(cache, num_heads = UINT32_MAX, "cache.num_heads", call);   \
        REFUSED_FIELD(cache, head_dim = 0, "cache.head_dim", call);              \
        REFUSED_FIELD(cache, head_dim = 4, "cache.head_dim", call);              \
        REFUSED_FIELD(cache, head_dim = 264, "cache.head_dim", call);            \
        REFUSED_FIELD(cache, head_dim = UINT32_MAX, "cache.head_dim", call);     \
        REFUSED_FIELD(cache, dtype = 0, "cache.dtype", call);                    \
        REFUSED_FIELD(cache, dtype = 5, "cache.dtype", call);                    \
        REFUSED_FIELD(cache, dtype = UINT32_MAX, "cache.dtype", call);           \
        REFUSED_FIELD(cache, reserved[0] = 1, "cache.reserved", call);           \
        REFUSED_FIELD(cache, reserved[8] = 1, "cache.reserved", call);           \
    } while (0)

/* Pointer and strides of one side: what is negative, no multiple of 16 bytes, does not fit 64 bits
 * or makes rows overlap. */
#define SIDE_FAULTS(cache, side, name, call)                             \
    do {                                                                 \
        REFUSED_FIELD(cache, side = NULL, name, call);                   \
        REFUSED_FIELD(cache, side = (float*)cache.side + 1, name, call); \
        REFUSED_FIELD(cache, side = MISALIGNED(cache.side), name, call); \
        STRIDE_FAULTS(cache, side##_block_stride, name, call);           \
        STRIDE_FAULTS(cache, side##_token_stride, name, call);           \
        STRIDE_FAULTS(cache, side##_head_stride, name, call);            \
    } while (0)

#define STRIDE_FAULTS(cache, stride, name, call)                       \
    do {                                                               \
        REFUSED_FIELD(cache, stride = -1, name, call);                 \
        REFUSED_FIELD(cache, stride = -16, name, call);                \
        REFUSED_FIELD(cache, stride = INT64_MIN, name, call);          \
        REFUSED_FIELD(cache, stride = INT64_MAX, name, call);          \
        REFUSED_FIELD(cache, stride = INT64_MAX / 16 * 4, name, call); \
        REFUSED_FIELD(cache, stride = cache.stride + 1, name, call);   \
        REFUSED_FIELD(cache, stride = cache.stride + 2, name, call);   \
        REFUSED_FIELD(cache, stride = 0, name, call);                  \
        REFUSED_FIELD(cache, stride = DIM / 2, name, call);            \
    } while (0)

#endif
