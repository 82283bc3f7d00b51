/* What a program has made before it forks, and the threads that are inside of it. */
#ifndef FORK_H
#define FORK_H

#include <pthread.h>

#include "check.h"

enum { PAGE = 16, ROWS = 4, KEYS = 512, BLOCKS = 1 + ROWS * KEYS / PAGE };
enum { Q_HEADS = 8, KV_HEADS = 4, DIM = 64, STATES = 2, MERGED = 64 };
enum { KV_SIZE = BLOCKS * PAGE * KV_HEADS * DIM, O_SIZE = ROWS * Q_HEADS * DIM };
enum { STATE_SIZE = MERGED * Q_HEADS * DIM };

/* Attention large enough for all threads of its device, and what it gave. */
struct layer {
    inflight_device* device;
    inflight_attention* attention;
    inflight_step_buffer* step;
    inflight_block_mover* mover;
    inflight_kv_cache cache;
    float* o;
};

/* As large as calls must be that are shared among threads; read by all layers. */
static float keys[KV_SIZE + 4], values[KV_SIZE + 4], queries[O_SIZE], states[STATE_SIZE];
static uint32_t qo_indptr[ROWS + 1], kv_indptr[ROWS + 1], kv_indices[BLOCKS - 1];
static uint32_t last_page_len[ROWS];

static inline void* aligned(float* memory) { return (void*)(((uintptr_t)memory + 15) / 16 * 16); }

static inline inflight_tensor tensor_of(float* data, uint64_t tokens) {
    inflight_tensor tensor;
    inflight_tensor_init(&tensor, sizeof tensor);
    CHECK(inflight_tensor_set_contiguous(&tensor, INFLIGHT_DTYPE_F32, data, tokens, Q_HEADS, DIM,
                                         NULL) == 0);
    return tensor;
}

static inline void fill_inputs(void) {
    uint64_t seed = 7;
    float* arrays[] = {keys, values, queries, states};
    const size_t lens[] = {KV_SIZE + 4, KV_SIZE + 4, O_SIZE, STATE_SIZE};
    for (size_t a = 0; a < 4; a++) {
        for (size_t i = 0; i < lens[a]; i++) {
            arrays[a][i] = (float)(draw(&seed) >> 40) / (1 << 23) - 1;
        }
    }
    for (uint32_t row = 0; row < ROWS; row++) {
        qo_indptr[row + 1] = row + 1;
        kv_indptr[row + 1] = (row + 1) * (KEYS / PAGE);
        last_page_len[row] = PAGE;
    }
    for (uint32_t i = 0; i < BLOCKS - 1; i++) {
        kv_indices[i] = i + 1;
    }
}

static inline inflight_step_limits limits_of_layer(void) {
    inflight_step_limits limits;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = limits.max_tokens = ROWS;
    limits.max_blocks = BLOCKS;
    limits.max_kv_len = KEYS;
    return limits;
}

static inline inflight_attention_config config_of_layer(void) {
    return f32_attention(Q_HEADS, KV_HEADS, DIM);
}

static inline inflight_device* device_of(uint32_t threads) {
    inflight_cpu_config config;
    inflight_cpu_config_init(&config, sizeof config);
    config.threads = threads;
    inflight_device* device;
    CHECK(inflight_device_create_cpu(&config, &device, NULL) == INFLIGHT_STATUS_OK);
    return device;
}

static inline struct layer new_layer(uint32_t threads) {
    struct layer layer;
    memset(&layer, 0, sizeof layer);
    layer.device = device_of(threads);
    inflight_attention_config config = config_of_layer();
    inflight_step_limits limits = limits_of_layer();
    CHECK(inflight_attention_create(layer.device, &config, &limits, &layer.attention, NULL) == 0);
    CHECK(inflight_step_buffer_create(layer.device, &limits, &layer.attention, 1, &layer.step,
                                      NULL) == 0);
    inflight_kv_cache_init(&layer.cache, sizeof layer.cache);
    CHECK(inflight_kv_cache_set_contiguous(&layer.cache, INFLIGHT_LAYOUT_NHD, INFLIGHT_DTYPE_F32,
                                           aligned(keys), aligned(values), BLOCKS, PAGE, KV_HEADS,
                                           DIM, NULL) == 0);
    CHECK(inflight_block_mover_create(layer.device, &layer.cache, NULL, 1, &layer.mover, NULL) ==
          0);
    layer.o = calloc(O_SIZE, sizeof *layer.o);
    CHECK(layer.o != NULL);
    return layer;
}

static inline inflight_batch batch_of_layer(void) {
    static inflight_group group;
    inflight_group_init(&group, sizeof group);
    group.kv_indptr = kv_indptr;
    group.kv_indices = kv_indices;
    group.kv_last_page_len = last_page_len;
    group.num_kv_blocks = BLOCKS - 1;
    group.block_size = PAGE;
    inflight_batch batch;
    inflight_batch_init(&batch, sizeof batch);
    batch.qo_indptr = qo_indptr;
    batch.groups = &group;
    batch.num_rows = batch.num_tokens = ROWS;
    return batch;
}

static inline void run_layer(struct layer* layer) {
    const inflight_tensor q = tensor_of(queries, ROWS), o = tensor_of(layer->o, ROWS);
    const inflight_batch batch = batch_of_layer();
    CHECK(inflight_attention_plan(layer->attention, &batch, BLOCKS, NULL, NULL) == 0);
    CHECK(inflight_step_buffer_upload(layer->step, &batch, NULL, NULL) == 0);
    inflight_attention_args args;
    inflight_attention_args_init(&args, sizeof args);
    args.q = &q;
    args.o = &o;
    args.cache = &layer->cache;
    CHECK(inflight_attention_run(layer->attention, layer->step, &args, NULL, NULL) == 0);
}

static inline void run_merge(const inflight_device* device, float* o) {
    static const float lse[MERGED * Q_HEADS];
    const inflight_tensor of = tensor_of(states, MERGED), to = tensor_of(o, MERGED);
    inflight_merge_state from[STATES];
    for (int i = 0; i < STATES; i++) {
        from[i].o = &of;
        from[i].lse = lse;
    }
    inflight_merge_args args;
    inflight_merge_args_init(&args, sizeof args);
    args.states = from;
    args.num_states = STATES;
    args.state_size = sizeof *from;
    args.o = &to;
    CHECK(inflight_merge(device, &args, NULL, NULL) == 0);
}

/* Blocks to themselves' neighbours, where nothing of the attention is read. */
static inline void run_mover(inflight_block_mover* mover) {
    inflight_block_op ops[32];
    for (uint32_t i = 0; i < 32; i++) {
        ops[i] = (inflight_block_op){INFLIGHT_BLOCK_COPY, 1 + i, 0};
    }
    CHECK(inflight_block_mover_run(mover, ops, sizeof(inflight_block_op), 32, NULL, NULL) == 0);
}

static inline void free_layer(struct layer* layer, int device_first) {
    if (device_first) {
        inflight_device_free(layer->device);
    }
    inflight_block_mover_free(layer->mover);
    inflight_step_buffer_free(layer->step);
    inflight_attention_free(layer->attention);
    if (!device_first) {
        inflight_device_free(layer->device);
    }
    free(layer->o);
}

/* One step of a scheduler, with tokens that mean nothing; returns its rows. */
static inline uint32_t step_once(inflight_scheduler* scheduler, uint64_t now) {
    static const uint32_t tokens[64];
    inflight_step_view view = new_step();
    CHECK(inflight_scheduler_schedule(scheduler, now, &view, NULL) == 0);
    CHECK(view.num_sampling <= 64);
    inflight_samples samples = new_samples(tokens, view.num_sampling);
    CHECK(inflight_scheduler_commit(scheduler, view.step_id, &samples, NULL, NULL) == 0);
    inflight_event events[64];
    size_t n = 0;
    do {
        CHECK(inflight_scheduler_events(scheduler, events, sizeof(inflight_event), 64, &n, NULL) ==
              0);
    } while (n == 64);
    return view.num_rows;
}

/* A sequence through a cache; the copies to be made are none. */
static inline void use_cache(inflight_cache* cache) {
    static const uint32_t tokens[40] = {1, 2, 3};
    uint64_t seq;
    CHECK(inflight_cache_open(cache, NULL, &seq, NULL) == 0);
    CHECK(inflight_cache_extend(cache, seq, tokens, 40, NULL) == 0);
    CHECK(inflight_cache_allocate(cache, seq, 0, 0, 40, NULL, NULL) == 0);
    CHECK(inflight_cache_register(cache, seq, 40, NULL) == 0);
    CHECK(inflight_cache_close(cache, seq, NULL) == 0);
}

static inline inflight_cache* new_cache(void) {
    inflight_cache_config config;
    inflight_cache_config_init(&config, sizeof config);
    config.num_blocks = 64;
    inflight_cache* cache;
    CHECK(inflight_cache_create(&config, &cache, NULL) == 0);
    return cache;
}

#endif
