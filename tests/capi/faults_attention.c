/* Attention with every argument wrong in turn: what it is made for, plans, uploads and runs. */
#include <math.h>

#include "kernels.h"

struct world {
    inflight_device *device, *other;
    inflight_attention* attention;
    inflight_step_buffer* step;
    inflight_batch batch;
    _Alignas(64) float k[CACHE_SIZE];
    _Alignas(64) float v[CACHE_SIZE];
    float q[Q_SIZE], o[Q_SIZE], lse[LSE_SIZE];
    float slopes[Q_HEADS], sinks[Q_HEADS];
    uint64_t bytes;
};

/* All memory that a call could write. */
struct state {
    float k[CACHE_SIZE], v[CACHE_SIZE];
    float q[Q_SIZE], o[Q_SIZE], lse[LSE_SIZE];
    float slopes[Q_HEADS], sinks[Q_HEADS];
    uint64_t bytes;
};

static struct state look(const struct world* w) {
    struct state state;
    memset(&state, 0, sizeof state);
    memcpy(state.k, w->k, sizeof state.k);
    memcpy(state.v, w->v, sizeof state.v);
    memcpy(state.q, w->q, sizeof state.q);
    memcpy(state.o, w->o, sizeof state.o);
    memcpy(state.lse, w->lse, sizeof state.lse);
    memcpy(state.slopes, w->slopes, sizeof state.slopes);
    memcpy(state.sinks, w->sinks, sizeof state.sinks);
    state.bytes = w->bytes;
    return state;
}

#include "faults.h"

static struct world w;
static inflight_kv_cache cache;
static inflight_tensor q, o;
static inflight_group group;
static inflight_attention_args args;
/* What a right run writes. */
static float right_o[Q_SIZE], right_lse[LSE_SIZE];

#define PLAN inflight_attention_plan(w.attention, &w.batch, BLOCKS, NULL, error)
#define UPLOAD inflight_step_buffer_upload(w.step, &w.batch, NULL, error)
#define RUN inflight_attention_run(w.attention, w.step, &args, NULL, error)

static void poison(void) {
    memset(w.o, 0xa5, sizeof w.o);
    memset(w.lse, 0xa5, sizeof w.lse);
}

/* The step that was uploaded is still there, and gives what it gave. */
static void runs_as_before(void) {
    inflight_error* error = NULL;
    CHECK(RUN == INFLIGHT_STATUS_OK);
    CHECK(memcmp(w.o, right_o, sizeof right_o) == 0);
    CHECK(memcmp(w.lse, right_lse, sizeof right_lse) == 0);
    poison();
}

static void open_world(void) {
    inflight_error* error = NULL;
    w.device = new_device();
    w.other = new_device();
    const inflight_attention_config config = new_attention_config();
    const inflight_step_limits limits = new_limits();
    CHECK(inflight_attention_create(w.device, &config, &limits, &w.attention, NULL) == 0);
    CHECK(inflight_step_buffer_create(w.device, &limits, &w.attention, 1, &w.step, NULL) == 0);
    group = new_group();
    w.batch = new_batch(&group);
    fill(w.k, CACHE_SIZE, 1);
    fill(w.v, CACHE_SIZE, 2);
    fill(w.q, Q_SIZE, 3);
    cache = new_kv_cache(w.k, w.v);
    inflight_attention_args_init(&args, sizeof args);
    q = new_tensor(w.q, TOKENS, Q_HEADS);
    o = new_tensor(w.o, TOKENS, Q_HEADS);
    args.q = &q;
    args.o = &o;
    args.cache = &cache;
    args.lse = w.lse;
    w.bytes = UINT64_MAX;
    CHECK(PLAN == INFLIGHT_STATUS_OK && UPLOAD == INFLIGHT_STATUS_OK && RUN == INFLIGHT_STATUS_OK);
    memcpy(right_o, w.o, sizeof right_o);
    memcpy(right_lse, w.lse, sizeof right_lse);
    poison();
}

static void close_world(void) {
    runs_as_before();
    inflight_attention_free(w.attention);
    inflight_step_buffer_free(w.step);
    inflight_device_free(w.other);
    inflight_device_free(w.device);
}

static void config_faults(void) {
    inflight_attention_config config = new_attention_config();
    inflight_step_limits limits = new_limits();
    inflight_attention *const sentinel = w.attention, *out = sentinel;
#define CREATE inflight_attention_create(w.device, &config, &limits, &out, error)
#define FIELD(of, assignment, name)                  \
    do {                                             \
        out = sentinel;                              \
        REFUSED_FIELD(of, assignment, name, CREATE); \
        CHECK(out == NULL);                          \
    } while (0)
/* What a creation refuses, the question before it does. */
#define ASK inflight_attention_workspace_size(w.device, &config, &limits, &w.bytes, error)
#define BOTH(of, assignment, name)                \
    do {                                          \
        FIELD(of, assignment, name);              \
        REFUSED_FIELD(of, assignment, name, ASK); \
    } while (0)
    REFUSED(BAD, "device", inflight_attention_create(NULL, &config, &limits, &out, error));
    CHECK(out == NULL);
    REFUSED(BAD, "config", inflight_attention_create(w.device, NULL, &limits, &out, error));
    REFUSED(BAD, "config",
            inflight_attention_create(w.device, MISALIGNED(&config), &limits, &out, error));
    REFUSED(BAD, "limits", inflight_attention_create(w.device, &config, NULL, &out, error));
    REFUSED(BAD, "limits",
            inflight_attention_create(w.device, &config, MISALIGNED(&limits), &out, error));
    REFUSED(BAD, "out", inflight_attention_create(w.device, &config, &limits, NULL, error));
    REFUSED(BAD, "out",
            inflight_attention_create(w.device, &config, &limits, MISALIGNED(&out), error));
    REFUSED_SIZES(config, "config", CREATE);
    REFUSED_SIZES(limits, "limits", CREATE);
    const uint32_t no_heads[] = {0, 1, 3, 65538, UINT32_MAX - 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_heads / sizeof *no_heads; i++) {
        BOTH(config, num_q_heads = no_heads[i], "num_q_heads");
    }
    BOTH(config, num_kv_heads = 0, "num_kv_heads");
    BOTH(config, num_kv_heads = 65537, "num_kv_heads");
    BOTH(config, num_kv_heads = UINT32_MAX, "num_kv_heads");
    BOTH(config, num_kv_heads = 3, "num_q_heads");
    const uint32_t no_dims[] = {0, 1, 4, 12, 257, 264, UINT32_MAX - 7, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_dims / sizeof *no_dims; i++) {
        BOTH(config, head_dim = no_dims[i], "head_dim");
    }
    BOTH(config, q_dtype = 0, "q_dtype");
    BOTH(config, q_dtype = INFLIGHT_DTYPE_FP8_E4M3, "q_dtype");
    BOTH(config, q_dtype = 5, "q_dtype");
    BOTH(config, q_dtype = UINT32_MAX, "q_dtype");
    BOTH(config, kv_dtype = INFLIGHT_DTYPE_F16, "kv_dtype");
    BOTH(config, kv_dtype = 5, "kv_dtype");
    BOTH(config, kv_dtype = UINT32_MAX, "kv_dtype");
    const float no_scales[] = {NAN, INFINITY, -INFINITY, 2e30F, -2e30F};
    for (size_t i = 0; i < sizeof no_scales / sizeof *no_scales; i++) {
        BOTH(config, scale = no_scales[i], "scale");
    }
    const float no_caps[] = {NAN, INFINITY, -INFINITY, -1};
    for (size_t i = 0; i < sizeof no_caps / sizeof *no_caps; i++) {
        BOTH(config, soft_cap = no_caps[i], "soft_cap");
    }
    BOTH(config, causal = 2, "causal");
    BOTH(config, causal = UINT32_MAX, "causal");
    BOTH(config, fixed_split = 1, "fixed_split");
    BOTH(config, fixed_split = 129, "fixed_split");
    BOTH(config, fixed_split = UINT32_MAX, "fixed_split");
    const uint32_t too_large[] = {(1 << 30) + 1, ABOVE_MAX, UINT32_MAX};
    for (size_t i = 0; i < sizeof too_large / sizeof *too_large; i++) {
        BOTH(limits, max_rows = too_large[i], "max_rows");
        BOTH(limits, max_tokens = too_large[i], "max_tokens");
        BOTH(limits, max_blocks = too_large[i], "max_blocks");
        BOTH(limits, max_kv_len = too_large[i], "max_kv_len");
        BOTH(limits, max_mask_bytes = too_large[i], "max_mask_bytes");
    }
    BOTH(limits, max_rows = 0, "max_rows");
    BOTH(limits, max_tokens = 0, "max_tokens");
    BOTH(limits, max_blocks = 0, "max_blocks");
    BOTH(limits, max_kv_len = 0, "max_kv_len");
    BOTH(limits, reserved = 1, "reserved");
    limits.max_rows = limits.max_tokens = limits.max_blocks = 1 << 30;
    limits.max_kv_len = limits.max_mask_bytes = 1 << 30;
    CHECK(inflight_attention_create(w.device, &config, &limits, &out, NULL) == 0);
    inflight_attention_free(out);
    limits = new_limits();
    REFUSED(BAD, "device",
            inflight_attention_workspace_size(NULL, &config, &limits, &w.bytes, error));
    REFUSED(BAD, "config",
            inflight_attention_workspace_size(w.device, NULL, &limits, &w.bytes, error));
    REFUSED(BAD, "limits",
            inflight_attention_workspace_size(w.device, &config, NULL, &w.bytes, error));
    REFUSED(BAD, "bytes",
            inflight_attention_workspace_size(w.device, &config, &limits, NULL, error));
    REFUSED_SIZES(config, "config", ASK);
    REFUSED_SIZES(limits, "limits", ASK);
    /* A processor takes no workspace. */
    config.workspace = &w;
    REFUSED(BAD, "workspace", CREATE);
    config.workspace_size = 1 << 20;
    REFUSED(BAD, "workspace", CREATE);
    config.workspace = NULL;
    REFUSED(BAD, "workspace", CREATE);
}

static void buffer_faults(void) {
    inflight_step_limits limits = new_limits();
    inflight_step_buffer *const sentinel = w.step, *out = sentinel;
    inflight_attention* some[5] = {w.attention, NULL, NULL, NULL, NULL};
    size_t len = 1;
#undef CREATE
#define CREATE inflight_step_buffer_create(w.device, &limits, some, len, &out, error)
    REFUSED(BAD, "device", inflight_step_buffer_create(NULL, &limits, some, 1, &out, error));
    CHECK(out == NULL);
    REFUSED(BAD, "limits", inflight_step_buffer_create(w.device, NULL, some, 1, &out, error));
    REFUSED(BAD, "limits",
            inflight_step_buffer_create(w.device, MISALIGNED(&limits), some, 1, &out, error));
    REFUSED(BAD, "attentions",
            inflight_step_buffer_create(w.device, &limits, NULL, 1, &out, error));
    REFUSED(BAD, "attentions",
            inflight_step_buffer_create(w.device, &limits, MISALIGNED(some), 1, &out, error));
    REFUSED(BAD, "out", inflight_step_buffer_create(w.device, &limits, some, 1, NULL, error));
    REFUSED(BAD, "out",
            inflight_step_buffer_create(w.device, &limits, some, 1, MISALIGNED(&out), error));
    REFUSED_SIZES(limits, "limits", CREATE);
    FIELD(limits, max_rows = 0, "max_rows");
    FIELD(limits, max_rows = (1 << 30) + 1, "max_rows");
    FIELD(limits, max_mask_bytes = UINT32_MAX, "max_mask_bytes");
    FIELD(limits, reserved = 1, "reserved");
    /* Of other limits, of another device, none at all, twice, and too many. */
    FIELD(limits, max_rows = ROWS + 1, "attentions");
    REFUSED(BAD, "attentions", inflight_step_buffer_create(w.other, &limits, some, 1, &out, error));
    len = 2;
    REFUSED(BAD, "attentions", CREATE);
    some[1] = MISALIGNED(w.attention);
    REFUSED(BAD, "attentions", CREATE);
    some[1] = w.attention;
    REFUSED(BAD, "attentions", CREATE);
    len = INFLIGHT_MAX_ATTENTIONS + 1;
    REFUSED(BAD, "attentions", CREATE);
    len = SIZE_MAX;
    REFUSED(BAD, "attentions", CREATE);
    CHECK(out == NULL);
}

/* Every fault of the arrays of a batch that `call` takes. */
#define BATCH_FAULTS(call)                                                                       \
    do {                                                                                         \
        const uint32_t falls[] = {0, 5, 4, 7}, late[] = {1, 5, 6, 7}, short_of[] = {0, 2, 4, 6}; \
        REFUSED_FIELD(w.batch, qo_indptr = NULL, "qo_indptr", call);                             \
        REFUSED_FIELD(w.batch, qo_indptr = MISALIGNED(QO_INDPTR), "qo_indptr", call);            \
        REFUSED_FIELD(w.batch, qo_indptr = falls, "qo_indptr", call);                            \
        REFUSED_FIELD(w.batch, qo_indptr = late, "qo_indptr", call);                             \
        REFUSED_FIELD(group, kv_indptr = NULL, "kv_indptr", call);                               \
        REFUSED_FIELD(group, kv_indptr = MISALIGNED(KV_INDPTR), "kv_indptr", call);              \
        REFUSED_FIELD(group, kv_indptr = falls, "kv_indptr", call);                              \
        REFUSED_FIELD(group, kv_indptr = late, "kv_indptr", call);                               \
        REFUSED_FIELD(group, kv_indptr = short_of, "kv_indices", call);                          \
        REFUSED_FIELD(group, kv_indices = NULL, "kv_indices", call);                             \
        REFUSED_FIELD(group, kv_indices = MISALIGNED(KV_INDICES), "kv_indices", call);           \
        REFUSED_FIELD(group, kv_last_page_len = NULL, "kv_last_page_len", call);                 \
        REFUSED_FIELD(group, kv_last_page_len = MISALIGNED(LAST_PAGE_LEN), "kv_last_page_len",   \
                      call);                                                                     \
        REFUSED_FIELD(group, slot_mapping = MISALIGNED(SLOTS), "slot_mapping", call);            \
        REFUSED_FIELD(w.batch, positions = MISALIGNED(POSITIONS), "positions", call);            \
        REFUSED_FIELD(w.batch, tokens = MISALIGNED(POSITIONS), "tokens", call);                  \
        REFUSED_FIELD(w.batch, num_rows = (1 << 30) + 1, "num_rows", call);                      \
        REFUSED_FIELD(w.batch, num_rows = UINT32_MAX, "num_rows", call);                         \
        REFUSED_FIELD(w.batch, num_tokens = (1 << 30) + 1, "num_tokens", call);                  \
        REFUSED_FIELD(w.batch, num_tokens = UINT32_MAX, "num_tokens", call);                     \
        REFUSED_FIELD(w.batch, num_tokens = 0, "num_tokens", call);                              \
        REFUSED_FIELD(w.batch, num_tokens = TOKENS - 1, "num_tokens", call);                     \
        REFUSED_FIELD(group, num_kv_blocks = (1 << 30) + 1, "num_kv_blocks", call);              \
        REFUSED_FIELD(group, num_kv_blocks = UINT32_MAX, "num_kv_blocks", call);                 \
        REFUSED_FIELD(group, num_kv_blocks = 4, "kv_indices", call);                             \
        REFUSED_FIELD(group, block_size = 0, "block_size", call);                                \
        REFUSED_FIELD(group, block_size = ABOVE_MAX, "block_size", call);                        \
        REFUSED_FIELD(group, block_size = UINT32_MAX, "block_size", call);                       \
        REFUSED_FIELD(w.batch, groups = NULL, "groups", call);                                   \
        REFUSED_FIELD(w.batch, groups = MISALIGNED(&group), "groups", call);                     \
        REFUSED_FIELD(w.batch, num_groups = 0, "num_groups", call);                              \
        REFUSED_FIELD(w.batch, num_groups = 2, "num_groups", call);                              \
        REFUSED_FIELD(w.batch, num_groups = UINT32_MAX, "num_groups", call);                     \
        REFUSED_FIELD(w.batch, reserved = 1, "reserved", call);                                  \
        REFUSED_SIZES(group, "groups", call);                                                    \
        REFUSED_SIZES(w.batch, "batch", call);                                                   \
    } while (0)

/* After a plan that failed there is none, until one is made again. */
static void plans_again(void) {
    REFUSED(BAD, "plan", RUN);
    REFUSED(BAD, "attentions", UPLOAD);
    inflight_error* error = NULL;
    CHECK(PLAN == INFLIGHT_STATUS_OK);
    REFUSED(BAD, "step", RUN);
    CHECK(UPLOAD == INFLIGHT_STATUS_OK);
    runs_as_before();
}

static void plan_faults(void) {
    REFUSED(BAD, "attention", inflight_attention_plan(NULL, &w.batch, BLOCKS, NULL, error));
    runs_as_before();
    REFUSED(BAD, "batch", inflight_attention_plan(w.attention, NULL, BLOCKS, NULL, error));
    plans_again();
    REFUSED(BAD, "batch",
            inflight_attention_plan(w.attention, MISALIGNED(&w.batch), BLOCKS, NULL, error));
    plans_again();
    BATCH_FAULTS(PLAN);
    plans_again();
#define INDICES(...)                                                  \
    do {                                                              \
        const uint32_t wrong[] = {__VA_ARGS__};                       \
        REFUSED_FIELD(group, kv_indices = wrong, "kv_indices", PLAN); \
    } while (0)
    INDICES(1, 2, 3, 4, BLOCKS);
    INDICES(UINT32_MAX, 2, 3, 4, 5);
    INDICES(1, 2, 3, ABOVE_MAX, 5);
    plans_again();
#define LAST_PAGES(...)                                                           \
    do {                                                                          \
        const uint32_t wrong[] = {__VA_ARGS__};                                   \
        REFUSED_FIELD(group, kv_last_page_len = wrong, "kv_last_page_len", PLAN); \
    } while (0)
    LAST_PAGES(0, 2, 1);
    LAST_PAGES(3, PAGE + 1, 1);
    LAST_PAGES(3, 2, UINT32_MAX);
    const uint32_t none_last[] = {0, 3, 5, 5};
    REFUSED_FIELD(group, kv_indptr = none_last, "kv_last_page_len", PLAN);
    /* Keys of a row that no 31 bits count. */
    REFUSED_FIELD(group, block_size = INFLIGHT_MAX_COUNT, "kv_indptr", PLAN);
    plans_again();
    const uint64_t no_blocks[] = {ABOVE_MAX, (uint64_t)UINT32_MAX + 2, UINT64_MAX};
    for (size_t i = 0; i < sizeof no_blocks / sizeof *no_blocks; i++) {
        REFUSED(BAD, "num_blocks",
                inflight_attention_plan(w.attention, &w.batch, no_blocks[i], NULL, error));
    }
    for (uint64_t few = 0; few < BLOCKS; few++) {
        REFUSED(BAD, "kv_indices",
                inflight_attention_plan(w.attention, &w.batch, few, NULL, error));
    }
    plans_again();
    /* Larger than the limits: rows, tokens, blocks, keys of a row. */
    const uint32_t four[] = {0, 5, 6, 7, 7}, four_kv[] = {0, 2, 4, 5, 5},
                   four_last[] = {3, 2, 1, 0};
    inflight_batch larger = w.batch;
    inflight_group of = group;
    larger.groups = &of;
    larger.qo_indptr = four;
    of.kv_indptr = four_kv;
    of.kv_last_page_len = four_last;
    larger.num_rows = 4;
#define LARGER inflight_attention_plan(w.attention, &larger, BLOCKS, NULL, error)
    REFUSED(BAD, "limits", LARGER);
    const uint32_t eight[] = {0, 5, 6, 8};
    larger = w.batch;
    larger.groups = &of;
    of = group;
    larger.qo_indptr = eight;
    larger.num_tokens = 8;
    of.slot_mapping = NULL;
    larger.positions = NULL;
    REFUSED(BAD, "limits", LARGER);
    const uint32_t six_kv[] = {0, 2, 4, 6}, six[] = {1, 2, 3, 4, 5, 0};
    larger = w.batch;
    larger.groups = &of;
    of = group;
    of.kv_indptr = six_kv;
    of.kv_indices = six;
    of.num_kv_blocks = 6;
    REFUSED(BAD, "limits", LARGER);
    const uint32_t long_last[] = {PAGE, 2, 1};
    of = group;
    of.kv_last_page_len = long_last;
    REFUSED(BAD, "limits", LARGER);
    plans_again();
}

static void mask_faults(void) {
    inflight_error* error = NULL;
    const uint8_t bits[32] = {0xff};
    const uint32_t indptr[] = {0, 5, 6, 6}, widths[] = {7, 2, 0};
    inflight_mask mask;
    inflight_mask_init(&mask, sizeof mask);
    mask.bits = bits;
    mask.num_bytes = 6;
    mask.indptr = indptr;
    mask.widths = widths;
#define MASKED inflight_attention_plan(w.attention, &w.batch, BLOCKS, &mask, error)
#define MASK(assignment, name) REFUSED_FIELD(mask, assignment, name, MASKED)
    REFUSED(BAD, "mask",
            inflight_attention_plan(w.attention, &w.batch, BLOCKS, MISALIGNED(&mask), error));
    REFUSED_SIZES(mask, "mask", MASKED);
    MASK(bits = NULL, "mask.bits");
    MASK(num_bytes = 5, "mask.bits");
    MASK(num_bytes = 0, "mask.bits");
    MASK(num_bytes = (1 << 30) + 1, "mask.num_bytes");
    MASK(num_bytes = SIZE_MAX, "mask.num_bytes");
    MASK(num_bytes = 17, "limits");
    MASK(indptr = NULL, "mask.indptr");
    MASK(indptr = MISALIGNED(indptr), "mask.indptr");
    MASK(widths = NULL, "mask.widths");
    MASK(widths = MISALIGNED(widths), "mask.widths");
    const uint32_t wide[] = {8, 2, 0}, widest[] = {UINT32_MAX, 2, 0};
    MASK(widths = wide, "mask.widths");
    MASK(widths = widest, "mask.widths");
    const uint32_t few[] = {0, 4, 6, 6}, falls[] = {0, 5, 3, 6}, far[] = {0, 5, 7, 7};
    const uint32_t farthest[] = {UINT32_MAX, 5, 6, 6};
    MASK(indptr = few, "mask.indptr");
    MASK(indptr = falls, "mask.indptr");
    MASK(indptr = farthest, "mask.indptr");
    MASK(indptr = far, "mask.bits");
    plans_again();
    CHECK(MASKED == INFLIGHT_STATUS_OK && UPLOAD == INFLIGHT_STATUS_OK);
    CHECK(RUN == INFLIGHT_STATUS_OK);
    poison();
    CHECK(PLAN == INFLIGHT_STATUS_OK && UPLOAD == INFLIGHT_STATUS_OK);
    runs_as_before();
}

static void upload_faults(void) {
    REFUSED(BAD, "step", inflight_step_buffer_upload(NULL, &w.batch, NULL, error));
    REFUSED(BAD, "batch", inflight_step_buffer_upload(w.step, NULL, NULL, error));
    REFUSED(BAD, "batch", inflight_step_buffer_upload(w.step, MISALIGNED(&w.batch), NULL, error));
    REFUSED(BAD, "stream", inflight_step_buffer_upload(w.step, &w.batch, &w, error));
    BATCH_FAULTS(UPLOAD);
    runs_as_before();
    /* Rows of other lengths than those that were planned. */
    const uint32_t last[] = {2, 2, 1};
    REFUSED_FIELD(group, kv_last_page_len = last, "attentions", UPLOAD);
    REFUSED_FIELD(group, block_size = PAGE + 1, "attentions", UPLOAD);
    runs_as_before();
    /* A buffer without attentions has limits too. */
    inflight_step_limits limits = new_limits();
    limits.max_tokens = TOKENS - 1;
    inflight_step_buffer* small;
    CHECK(inflight_step_buffer_create(w.device, &limits, NULL, 0, &small, NULL) == 0);
    REFUSED(BAD, "limits", inflight_step_buffer_upload(small, &w.batch, NULL, error));
    REFUSED(BAD, "step", inflight_attention_run(w.attention, small, &args, NULL, error));
    inflight_step_buffer_free(small);
    runs_as_before();
}

static void run_faults(void) {
    REFUSED(BAD, "attention", inflight_attention_run(NULL, w.step, &args, NULL, error));
    REFUSED(BAD, "step", inflight_attention_run(w.attention, NULL, &args, NULL, error));
    REFUSED(BAD, "args", inflight_attention_run(w.attention, w.step, NULL, NULL, error));
    REFUSED(BAD, "args",
            inflight_attention_run(w.attention, w.step, MISALIGNED(&args), NULL, error));
    REFUSED(BAD, "stream", inflight_attention_run(w.attention, w.step, &args, &w, error));
    REFUSED_SIZES(args, "args", RUN);
    STEP_TENSOR_FAULTS(q, "q", RUN);
    STEP_TENSOR_FAULTS(o, "o", RUN);
    OVERLAPS(o, "o", RUN);
    REFUSED_FIELD(q, heads = KV_HEADS, "q", RUN);
    REFUSED_FIELD(q, heads = UINT32_MAX, "q", RUN);
    REFUSED_FIELD(o, heads = KV_HEADS, "o", RUN);
    REFUSED_FIELD(q, dtype = INFLIGHT_DTYPE_F16, "q", RUN);
    REFUSED_FIELD(o, dtype = INFLIGHT_DTYPE_BF16, "o", RUN);
    REFUSED_FIELD(o, data = w.q, "o", RUN);
    REFUSED_FIELD(q, data = w.o, "o", RUN);
    REFUSED_FIELD(args, cache = NULL, "cache", RUN);
    REFUSED_FIELD(args, cache = MISALIGNED(&cache), "cache", RUN);
    KV_FAULTS(cache, "cache", RUN);
    REFUSED_FIELD(cache, num_blocks = BLOCKS - 1, "cache", RUN);
    REFUSED_FIELD(cache, block_size = PAGE - 1, "cache", RUN);
    REFUSED_FIELD(cache, num_heads = 1, "cache", RUN);
    cache.k.scales = cache.v.scales = w.sinks;
    SAYS("fp8 caches only", RUN);
    cache.k.scales = cache.v.scales = NULL;
    REFUSED_FIELD(args, q = NULL, "q", RUN);
    REFUSED_FIELD(args, o = MISALIGNED(&o), "o", RUN);
    REFUSED_FIELD(args, lse = MISALIGNED(w.lse), "lse", RUN);
    REFUSED_FIELD(args, alibi_slopes = MISALIGNED(w.slopes), "alibi_slopes", RUN);
    REFUSED_FIELD(args, sinks = MISALIGNED(w.sinks), "sinks", RUN);
    const float no_numbers[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++) {
        w.slopes[Q_HEADS - 1] = no_numbers[i];
        REFUSED_FIELD(args, alibi_slopes = w.slopes, "alibi_slopes", RUN);
        w.slopes[Q_HEADS - 1] = 0;
    }
    /* A sink of minus infinity is none at all. */
    for (size_t i = 0; i < 2; i++) {
        w.sinks[0] = no_numbers[i];
        REFUSED_FIELD(args, sinks = w.sinks, "sinks", RUN);
        w.sinks[0] = 0;
    }
    runs_as_before();

    /* A step of another attention, and one that was never uploaded. */
    const inflight_attention_config config = new_attention_config();
    const inflight_step_limits limits = new_limits();
    inflight_attention* other;
    inflight_step_buffer* empty;
    CHECK(inflight_attention_create(w.device, &config, &limits, &other, NULL) == 0);
    CHECK(inflight_step_buffer_create(w.device, &limits, &w.attention, 1, &empty, NULL) == 0);
    REFUSED(BAD, "step", inflight_attention_run(other, empty, &args, NULL, error));
    REFUSED(BAD, "step", inflight_attention_run(w.attention, empty, &args, NULL, error));
    inflight_attention_free(other);
    inflight_step_buffer_free(empty);
    runs_as_before();
}

/* Scales of a cache of fp8. */
static void scale_faults(void) {
    inflight_attention_config config = new_attention_config();
    config.kv_dtype = INFLIGHT_DTYPE_FP8_E4M3;
    const inflight_step_limits limits = new_limits();
    inflight_attention* attention;
    inflight_step_buffer* step;
    CHECK(inflight_attention_create(w.device, &config, &limits, &attention, NULL) == 0);
    CHECK(inflight_step_buffer_create(w.device, &limits, &attention, 1, &step, NULL) == 0);
    CHECK(inflight_attention_plan(attention, &w.batch, BLOCKS, NULL, NULL) == 0);
    CHECK(inflight_step_buffer_upload(step, &w.batch, NULL, NULL) == 0);
    static _Alignas(64) uint8_t k[2 * CACHE_SIZE], v[2 * CACHE_SIZE];
    float scales[KV_HEADS] = {1, 1};
    inflight_kv_cache fp8 = cache;
    fp8.k.data = k;
    fp8.v.data = v;
    fp8.k.dtype = fp8.v.dtype = INFLIGHT_DTYPE_FP8_E4M3;
    fp8.k.head_stride = fp8.v.head_stride = 16;
    fp8.k.token_stride = fp8.v.token_stride = 16 * KV_HEADS;
    fp8.k.block_stride = fp8.v.block_stride = 16 * KV_HEADS * PAGE;
    fp8.k.scales = fp8.v.scales = scales;
    fp8.k.scale_head_stride = fp8.v.scale_head_stride = 1;
    inflight_attention_args with = args;
    with.cache = &fp8;
#undef RUN
#define RUN inflight_attention_run(attention, step, &with, NULL, error)
    REFUSED_FIELD(with, cache = &cache, "cache", RUN);
    REFUSED_FIELD(fp8, k.scales = fp8.v.scales = NULL, "cache.k.scales", RUN);
    REFUSED_FIELD(fp8, k.scale_head_stride = 0, "cache.v.scale_head_stride", RUN);
    REFUSED_FIELD(fp8, k.scales = NULL, "cache.k.scales", RUN);
    REFUSED_FIELD(fp8, k.scales = MISALIGNED(scales), "cache.k.scales", RUN);
    REFUSED_FIELD(fp8, v.scales = NULL, "cache.v.scales", RUN);
    REFUSED_FIELD(fp8, v.scales = MISALIGNED(scales), "cache.v.scales", RUN);
    REFUSED_FIELD(fp8, k.head_stride = DIM, "cache.k", RUN);
    const float no_scales[] = {NAN, INFINITY, -INFINITY, 0, -1};
    for (size_t i = 0; i < sizeof no_scales / sizeof *no_scales; i++) {
        const float bad[KV_HEADS] = {1, no_scales[i]};
        REFUSED_FIELD(fp8, k.scales = bad, "cache.k.scales", RUN);
        REFUSED_FIELD(fp8, v.scales = bad, "cache.v.scales", RUN);
    }
    /* Times the scale of attention it is beyond f32. */
    const float huge[KV_HEADS] = {3e38F, 3e38F};
    REFUSED_FIELD(fp8, k.scales = huge, "cache.k.scales", RUN);
    inflight_error* error = NULL;
    CHECK(RUN == INFLIGHT_STATUS_OK);
    poison();
    inflight_attention_free(attention);
    inflight_step_buffer_free(step);
}

int main(void) {
    open_world();
    config_faults();
    buffer_faults();
    plan_faults();
    mask_faults();
    upload_faults();
    run_faults();
    scale_faults();
    close_world();
    printf("%u wrong calls refused\n", num_refused);
    return EXIT_SUCCESS;
}
