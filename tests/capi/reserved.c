/* Fields named "reserved" are 0, and refused when they are not: by every function, for every struct
 * that has one and that the caller fills in. tests/capi/programs.rs looks for structs not here.
 */
#include "check.h"

enum { BLOCKS = 4, SIZE = 4, HEADS = 2, DIM = 8, TOKENS = 3 };

static _Alignas(64) float memory[2][BLOCKS * SIZE * HEADS * DIM];
static _Alignas(64) float rows[TOKENS * HEADS * DIM];

static inflight_error error;
static inflight_scheduler_config scheduling;
static inflight_step_view view;
static inflight_step_limits limits;
static inflight_attention_config config;
static inflight_rope_config rotation;
static inflight_rope rope;
static inflight_kv_cache cache;
static inflight_tensor tensor;
static inflight_batch batch;
static inflight_append_args append;
static inflight_attention_args args;
static inflight_device* device;
static inflight_attention* attention;
static inflight_step_buffer* step;

static inflight_status make_scheduler(void) {
    inflight_scheduler* made;
    inflight_status status = inflight_scheduler_create(&scheduling, &made, &error);
    inflight_scheduler_free(made);
    return status;
}

static inflight_status make_attention(void) {
    inflight_attention* made;
    inflight_status status = inflight_attention_create(device, &config, &limits, &made, &error);
    inflight_attention_free(made);
    return status;
}

static inflight_status make_step_buffer(void) {
    inflight_step_buffer* made;
    inflight_status status = inflight_step_buffer_create(device, &limits, NULL, 0, &made, &error);
    inflight_step_buffer_free(made);
    return status;
}

static inflight_status batch_from_step(void) {
    inflight_batch of;
    inflight_batch_init(&of, sizeof of);
    return inflight_batch_from_step(&view, &of, &error);
}

static inflight_status make_table(void) {
    float table[2 * DIM];
    return inflight_rope_table(&rotation, 2, table, 2 * DIM, &error);
}

static inflight_status append_rows(void) { return inflight_append(step, &append, NULL, &error); }

static inflight_status plan(void) {
    return inflight_attention_plan(attention, &batch, BLOCKS, NULL, &error);
}

static inflight_status run(void) {
    return inflight_attention_run(attention, step, &args, NULL, &error);
}

static int ends_with(const char* text, const char* end) {
    size_t length = strlen(text), of_end = strlen(end);
    return length >= of_end && strcmp(text + length - of_end, end) == 0;
}

/* `place` is of `type`, and `call` reads it. The field may be an array: its last word is set. */
#define RESERVED(type, place, call)                                                     \
    do {                                                                                \
        type* is_of_type = &(place);                                                    \
        uint32_t* reserved = (uint32_t*)(&is_of_type->reserved + 1) - 1;                \
        CHECK((call) == INFLIGHT_STATUS_OK);                                            \
        *reserved = 1;                                                                  \
        CHECK((call) == INFLIGHT_STATUS_INVALID_ARGUMENT);                              \
        CHECK(ends_with(error.field, "reserved") || strstr(error.message, "reserved")); \
        *reserved = 0;                                                                  \
    } while (0)

int main(void) {
    static const uint32_t qo_indptr[] = {0, TOKENS}, kv_indptr[] = {0, 1}, kv_indices[] = {1};
    static const uint32_t last[] = {TOKENS}, positions[] = {0, 1, 2};
    static const int64_t slots[] = {4, 5, 6};
    static float cos_sin[TOKENS * DIM];
    error = new_error();
    scheduling = new_config(8);
    CHECK(inflight_device_create_cpu(NULL, &device, &error) == 0);
    inflight_attention_config_init(&config, sizeof config);
    config.num_q_heads = config.num_kv_heads = HEADS;
    config.head_dim = DIM;
    config.q_dtype = INFLIGHT_DTYPE_F32;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = limits.max_tokens = limits.max_blocks = limits.max_kv_len = 64;
    CHECK(inflight_attention_create(device, &config, &limits, &attention, &error) == 0);
    CHECK(inflight_step_buffer_create(device, &limits, &attention, 1, &step, &error) == 0);

    inflight_group group;
    inflight_group_init(&group, sizeof group);
    group.kv_indptr = kv_indptr;
    group.kv_indices = kv_indices;
    group.kv_last_page_len = last;
    group.slot_mapping = slots;
    group.num_kv_blocks = 1;
    group.block_size = SIZE;
    inflight_batch_init(&batch, sizeof batch);
    batch.qo_indptr = qo_indptr;
    batch.positions = positions;
    batch.groups = &group;
    batch.num_rows = 1;
    batch.num_tokens = TOKENS;
    CHECK(inflight_attention_plan(attention, &batch, BLOCKS, NULL, &error) == 0);
    CHECK(inflight_step_buffer_upload(step, &batch, NULL, &error) == 0);

    inflight_tensor_init(&tensor, sizeof tensor);
    CHECK(inflight_tensor_set_contiguous(&tensor, INFLIGHT_DTYPE_F32, rows, TOKENS, HEADS, DIM,
                                         &error) == 0);
    inflight_kv_cache_init(&cache, sizeof cache);
    CHECK(inflight_kv_cache_set_contiguous(&cache, INFLIGHT_LAYOUT_NHD, INFLIGHT_DTYPE_F32,
                                           memory[0], memory[1], BLOCKS, SIZE, HEADS, DIM,
                                           &error) == 0);
    inflight_rope_config_init(&rotation, sizeof rotation);
    rotation.rotary_dim = DIM;
    inflight_rope_init(&rope, sizeof rope);
    rope.cos_sin = cos_sin;
    rope.max_position = TOKENS;
    rope.rotary_dim = DIM;
    inflight_append_args_init(&append, sizeof append);
    append.k = append.v = &tensor;
    append.cache = &cache;
    append.rope = &rope;
    inflight_attention_args_init(&args, sizeof args);
    static float outputs[TOKENS * HEADS * DIM];
    inflight_tensor o = tensor;
    o.data = outputs;
    args.q = &tensor;
    args.o = &o;
    args.cache = &cache;

    inflight_scheduler* scheduler = new_scheduler(&scheduling);
    view = new_step();
    CHECK(inflight_scheduler_schedule(scheduler, 0, &view, &error) == 0);
    RESERVED(inflight_scheduler_config, scheduling, make_scheduler());
    RESERVED(inflight_step_view, view, batch_from_step());
    RESERVED(inflight_step_limits, limits, make_attention());
    RESERVED(inflight_step_limits, limits, make_step_buffer());
    RESERVED(inflight_rope_config, rotation, make_table());
    RESERVED(inflight_rope, rope, append_rows());
    RESERVED(inflight_kv_array, cache.k, append_rows());
    RESERVED(inflight_kv_array, cache.v, run());
    RESERVED(inflight_tensor, tensor, append_rows());
    RESERVED(inflight_tensor, tensor, run());
    RESERVED(inflight_batch, batch, plan());
    inflight_scheduler_free(scheduler);
    inflight_step_buffer_free(step);
    inflight_attention_free(attention);
    inflight_device_free(device);
    return EXIT_SUCCESS;
}
