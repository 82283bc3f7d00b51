/* Appending, merging and moving blocks with every argument wrong in turn. */
#include <math.h>

#include "kernels.h"

enum { ROTARY = 4, POSITIONS_OF_TABLE = 7 };

struct world {
    inflight_device* device;
    inflight_step_buffer* step;
    inflight_batch batch;
    _Alignas(64) float k[CACHE_SIZE];
    _Alignas(64) float v[CACHE_SIZE];
    _Alignas(64) float host_k[CACHE_SIZE];
    _Alignas(64) float host_v[CACHE_SIZE];
    float new_k[NEW_SIZE], new_v[NEW_SIZE], q[Q_SIZE], cos_sin[POSITIONS_OF_TABLE * ROTARY];
    float o[Q_SIZE], lse[LSE_SIZE], parts[2][Q_SIZE], part_lse[2][LSE_SIZE];
};

/* All memory that a call could write. */
struct state {
    float k[CACHE_SIZE], v[CACHE_SIZE], host_k[CACHE_SIZE], host_v[CACHE_SIZE];
    float new_k[NEW_SIZE], new_v[NEW_SIZE], q[Q_SIZE], cos_sin[POSITIONS_OF_TABLE * ROTARY];
    float o[Q_SIZE], lse[LSE_SIZE], parts[2][Q_SIZE], part_lse[2][LSE_SIZE];
};

static struct state look(const struct world* w) {
    struct state state;
    memcpy(state.k, w->k, sizeof state.k);
    memcpy(state.v, w->v, sizeof state.v);
    memcpy(state.host_k, w->host_k, sizeof state.host_k);
    memcpy(state.host_v, w->host_v, sizeof state.host_v);
    memcpy(state.new_k, w->new_k, sizeof state.new_k);
    memcpy(state.new_v, w->new_v, sizeof state.new_v);
    memcpy(state.q, w->q, sizeof state.q);
    memcpy(state.cos_sin, w->cos_sin, sizeof state.cos_sin);
    memcpy(state.o, w->o, sizeof state.o);
    memcpy(state.lse, w->lse, sizeof state.lse);
    memcpy(state.parts, w->parts, sizeof state.parts);
    memcpy(state.part_lse, w->part_lse, sizeof state.part_lse);
    return state;
}

#include "faults.h"

static struct world w;
static inflight_kv_cache cache;
static inflight_group group;

static void open_world(void) {
    w.device = new_device();
    const inflight_step_limits limits = new_limits();
    CHECK(inflight_step_buffer_create(w.device, &limits, NULL, 0, &w.step, NULL) == 0);
    group = new_group();
    w.batch = new_batch(&group);
    CHECK(inflight_step_buffer_upload(w.step, &w.batch, NULL, NULL) == INFLIGHT_STATUS_OK);
    fill(w.k, CACHE_SIZE, 1);
    fill(w.v, CACHE_SIZE, 2);
    fill(w.host_k, CACHE_SIZE, 3);
    fill(w.host_v, CACHE_SIZE, 4);
    fill(w.new_k, NEW_SIZE, 5);
    fill(w.new_v, NEW_SIZE, 6);
    fill(w.q, Q_SIZE, 7);
    fill(w.parts[0], Q_SIZE, 8);
    fill(w.parts[1], Q_SIZE, 9);
    fill(w.part_lse[0], LSE_SIZE, 10);
    fill(w.part_lse[1], LSE_SIZE, 11);
    memset(w.o, 0xa5, sizeof w.o);
    memset(w.lse, 0xa5, sizeof w.lse);
    inflight_rope_config config;
    inflight_rope_config_init(&config, sizeof config);
    config.rotary_dim = ROTARY;
    CHECK(inflight_rope_table(&config, POSITIONS_OF_TABLE, w.cos_sin, POSITIONS_OF_TABLE * ROTARY,
                              NULL) == INFLIGHT_STATUS_OK);
    cache = new_kv_cache(w.k, w.v);
}

static void append_faults(void) {
    inflight_append_args args;
    inflight_append_args_init(&args, sizeof args);
    inflight_tensor k = new_tensor(w.new_k, TOKENS, KV_HEADS);
    inflight_tensor v = new_tensor(w.new_v, TOKENS, KV_HEADS);
    args.k = &k;
    args.v = &v;
    args.cache = &cache;
#define APPEND inflight_append(w.step, &args, NULL, error)
    REFUSED(BAD, "step", inflight_append(NULL, &args, NULL, error));
    REFUSED(BAD, "args", inflight_append(w.step, NULL, NULL, error));
    REFUSED(BAD, "args", inflight_append(w.step, MISALIGNED(&args), NULL, error));
    REFUSED(BAD, "stream", inflight_append(w.step, &args, &w, error));
    REFUSED_SIZES(args, "args", APPEND);
    STEP_TENSOR_FAULTS(k, "k", APPEND);
    STEP_TENSOR_FAULTS(v, "v", APPEND);
    REFUSED_FIELD(args, k = NULL, "k", APPEND);
    REFUSED_FIELD(args, v = MISALIGNED(&v), "v", APPEND);
    REFUSED_FIELD(k, heads = Q_HEADS, "k", APPEND);
    REFUSED_FIELD(v, heads = UINT32_MAX, "v", APPEND);
    REFUSED_FIELD(k, dtype = INFLIGHT_DTYPE_F16, "k", APPEND);
    REFUSED_FIELD(v, dtype = INFLIGHT_DTYPE_BF16, "v", APPEND);
    REFUSED_FIELD(args, cache = NULL, "cache", APPEND);
    REFUSED_FIELD(args, cache = MISALIGNED(&cache), "cache", APPEND);
    KV_FAULTS(cache, "cache", APPEND);
    REFUSED_FIELD(cache, block_size = PAGE - 1, "cache", APPEND);
    REFUSED_FIELD(cache, num_blocks = BLOCKS - 1, "slot_mapping", APPEND);
    REFUSED_FIELD(cache, num_heads = 1, "k", APPEND);

    /* Rotation. */
    inflight_tensor q = new_tensor(w.q, TOKENS, Q_HEADS);
    inflight_rope rope;
    inflight_rope_init(&rope, sizeof rope);
    rope.cos_sin = w.cos_sin;
    rope.q = &q;
    rope.max_position = POSITIONS_OF_TABLE;
    rope.rotary_dim = ROTARY;
    REFUSED_FIELD(args, rope = MISALIGNED(&rope), "rope", APPEND);
    args.rope = &rope;
    REFUSED_SIZES(rope, "rope", APPEND);
    REFUSED_FIELD(rope, cos_sin = NULL, "cos_sin", APPEND);
    REFUSED_FIELD(rope, cos_sin = MISALIGNED(w.cos_sin), "cos_sin", APPEND);
    REFUSED_FIELD(rope, q = MISALIGNED(&q), "q", APPEND);
    REFUSED_FIELD(rope, max_position = 0, "positions", APPEND);
    REFUSED_FIELD(rope, max_position = POSITIONS_OF_TABLE - 1, "positions", APPEND);
    REFUSED_FIELD(rope, max_position = ABOVE_MAX, "max_position", APPEND);
    REFUSED_FIELD(rope, max_position = UINT32_MAX, "max_position", APPEND);
    REFUSED_FIELD(rope, rotary_dim = 0, "rotary_dim", APPEND);
    REFUSED_FIELD(rope, rotary_dim = 3, "rotary_dim", APPEND);
    REFUSED_FIELD(rope, rotary_dim = DIM + 2, "rotary_dim", APPEND);
    REFUSED_FIELD(rope, rotary_dim = 258, "rotary_dim", APPEND);
    REFUSED_FIELD(rope, rotary_dim = UINT32_MAX, "rotary_dim", APPEND);
    REFUSED_FIELD(rope, pairs = 0, "pairs", APPEND);
    REFUSED_FIELD(rope, pairs = 3, "pairs", APPEND);
    REFUSED_FIELD(rope, pairs = UINT32_MAX, "pairs", APPEND);
    REFUSED_FIELD(rope, reserved = 1, "reserved", APPEND);
#define Q_FAULT(assignment) REFUSED_FIELD(q, assignment, "q", APPEND)
    Q_FAULT(data = NULL);
    Q_FAULT(data = MISALIGNED(w.q));
    Q_FAULT(data = k.data);
    Q_FAULT(data = v.data);
    Q_FAULT(tokens = TOKENS - 1);
    Q_FAULT(tokens = UINT64_MAX);
    Q_FAULT(heads = 0);
    Q_FAULT(head_dim = 2 * DIM);
    Q_FAULT(token_stride = -1);
    Q_FAULT(token_stride = 0);
    Q_FAULT(token_stride = INT64_MAX);
    Q_FAULT(head_stride = DIM - 1);
    Q_FAULT(head_stride = INT64_MIN);
    Q_FAULT(dtype = INFLIGHT_DTYPE_FP8_E4M3);
    Q_FAULT(dtype = 5);
    REFUSED_FIELD(q, reserved = 1, "reserved", APPEND);
    REFUSED_SIZES(q, "q", APPEND);

    /* What the step has: no slots, no positions, slots that are not there, or twice. */
    inflight_error* error = NULL;
#define STEP_FAULT(assignment, name)                                           \
    do {                                                                       \
        const inflight_batch right_batch = w.batch;                            \
        const inflight_group right_group = group;                              \
        assignment;                                                            \
        CHECK(inflight_step_buffer_upload(w.step, &w.batch, NULL, NULL) == 0); \
        REFUSED(BAD, name, APPEND);                                            \
        w.batch = right_batch;                                                 \
        group = right_group;                                                   \
    } while (0)
    const int64_t past[] = {6, 7, 8, 9, 10, 17, BLOCKS * PAGE};
    const int64_t farthest[] = {6, 7, 8, 9, 10, INT64_MAX, 20};
    const int64_t twice[] = {6, 7, 8, 9, 10, 17, 6};
    const uint32_t late[] = {2, 3, 4, 5, 6, POSITIONS_OF_TABLE, 0};
    const uint32_t latest[] = {2, 3, 4, 5, 6, UINT32_MAX, 0};
    STEP_FAULT(group.slot_mapping = NULL, "slot_mapping");
    STEP_FAULT(group.slot_mapping = past, "slot_mapping");
    STEP_FAULT(group.slot_mapping = farthest, "slot_mapping");
    STEP_FAULT(group.slot_mapping = twice, "slot_mapping");
    STEP_FAULT(w.batch.positions = NULL, "positions");
    STEP_FAULT(w.batch.positions = late, "positions");
    STEP_FAULT(w.batch.positions = latest, "positions");
    STEP_FAULT(group.block_size = PAGE + 1, "cache");

    /* A negative slot is none: just that token is left out. */
    const int64_t skipped[] = {6, 7, 8, 9, 10, -1, INT64_MIN};
    group.slot_mapping = skipped;
    CHECK(inflight_step_buffer_upload(w.step, &w.batch, NULL, NULL) == 0);
    struct state before = look(&w);
    args.rope = NULL;
    CHECK(APPEND == INFLIGHT_STATUS_OK);
    for (int at = 0; at < CACHE_SIZE; at++) {
        const int slot = at / (KV_HEADS * DIM), in_slot = at % (KV_HEADS * DIM);
        const int is_new = slot >= 6 && slot <= 10;
        const float* from =
            is_new ? &w.new_v[(slot - 6) * KV_HEADS * DIM + in_slot] : &before.v[at];
        CHECK(memcmp(&w.v[at], from, sizeof *from) == 0);
    }
    group.slot_mapping = SLOTS;
}

static void merge_faults(void) {
    inflight_merge_state states[2];
    inflight_merge_args args;
    inflight_merge_args_init(&args, sizeof args);
    inflight_tensor parts[2], o = new_tensor(w.o, TOKENS, Q_HEADS);
    for (int i = 0; i < 2; i++) {
        parts[i] = new_tensor(w.parts[i], TOKENS, Q_HEADS);
        states[i] = (inflight_merge_state){&parts[i], w.part_lse[i]};
    }
    args.states = states;
    args.num_states = 2;
    args.state_size = sizeof *states;
    args.o = &o;
    args.lse = w.lse;
#define MERGE inflight_merge(w.device, &args, NULL, error)
    REFUSED(BAD, "device", inflight_merge(NULL, &args, NULL, error));
    REFUSED(BAD, "args", inflight_merge(w.device, NULL, NULL, error));
    REFUSED(BAD, "args", inflight_merge(w.device, MISALIGNED(&args), NULL, error));
    REFUSED(BAD, "stream", inflight_merge(w.device, &args, &w, error));
    REFUSED_SIZES(args, "args", MERGE);
    REFUSED_FIELD(args, states = NULL, "states", MERGE);
    REFUSED_FIELD(args, states = MISALIGNED(states), "states", MERGE);
    REFUSED_FIELD(args, num_states = 0, "states", MERGE);
    REFUSED_FIELD(args, num_states = INFLIGHT_MAX_STATES + 1, "states", MERGE);
    REFUSED_FIELD(args, num_states = SIZE_MAX, "states", MERGE);
    const size_t no_sizes[] = {0, 8, sizeof *states + 4, 1 << 20, SIZE_MAX};
    for (size_t i = 0; i < sizeof no_sizes / sizeof *no_sizes; i++) {
        args.state_size = no_sizes[i];
        REFUSED(SIZE, "state_size", MERGE);
    }
    args.state_size = sizeof *states;
    REFUSED_FIELD(args, o = NULL, "o", MERGE);
    TENSOR_FAULTS(o, "o", MERGE);
    OVERLAPS(o, "o", MERGE);
    REFUSED_FIELD(o, dtype = INFLIGHT_DTYPE_FP8_E4M3, "o", MERGE);
    REFUSED_FIELD(o, tokens = TOKENS + 1, "states", MERGE);
    REFUSED_FIELD(o, heads = KV_HEADS, "states", MERGE);
    STEP_TENSOR_FAULTS(parts[1], "states", MERGE);
    REFUSED_FIELD(parts[1], heads = KV_HEADS, "states", MERGE);
    REFUSED_FIELD(states[1], o = NULL, "states", MERGE);
    REFUSED_FIELD(states[0], lse = NULL, "states", MERGE);
    REFUSED_FIELD(states[1], lse = MISALIGNED(w.part_lse[1]), "states", MERGE);
    REFUSED_FIELD(args, lse = MISALIGNED(w.lse), "lse", MERGE);

    /* A state without keys is neutral, whatever its outputs are. */
    for (int i = 0; i < LSE_SIZE; i++) {
        w.part_lse[1][i] = -INFINITY;
    }
    for (int i = 0; i < Q_SIZE; i++) {
        w.parts[1][i] = NAN;
    }
    inflight_error* error = NULL;
    CHECK(MERGE == INFLIGHT_STATUS_OK);
    CHECK(memcmp(w.o, w.parts[0], sizeof w.o) == 0);
    CHECK(memcmp(w.lse, w.part_lse[0], sizeof w.lse) == 0);
}

static void mover_faults(void) {
    inflight_kv_cache host = new_kv_cache(w.host_k, w.host_v);
    /* The host pool has fewer blocks. */
    host.num_blocks = 2;
    inflight_block_mover *const sentinel = (inflight_block_mover*)(void*)&w, *out = sentinel;
#define CREATE inflight_block_mover_create(w.device, &cache, &host, 1, &out, error)
    REFUSED(BAD, "device", inflight_block_mover_create(NULL, &cache, &host, 1, &out, error));
    CHECK(out == NULL);
    REFUSED(BAD, "device_caches",
            inflight_block_mover_create(w.device, NULL, &host, 1, &out, error));
    REFUSED(BAD, "device_caches",
            inflight_block_mover_create(w.device, MISALIGNED(&cache), &host, 1, &out, error));
    REFUSED(BAD, "host_caches",
            inflight_block_mover_create(w.device, &cache, MISALIGNED(&host), 1, &out, error));
    const size_t no_layers[] = {0, 65537, SIZE_MAX};
    for (size_t i = 0; i < sizeof no_layers / sizeof *no_layers; i++) {
        REFUSED(BAD, "num_layers",
                inflight_block_mover_create(w.device, &cache, &host, no_layers[i], &out, error));
    }
    REFUSED(BAD, "out", inflight_block_mover_create(w.device, &cache, &host, 1, NULL, error));
    REFUSED(BAD, "out",
            inflight_block_mover_create(w.device, &cache, &host, 1, MISALIGNED(&out), error));
    KV_FAULTS(cache, "device_caches", CREATE);
    KV_FAULTS(host, "host_caches", CREATE);
    REFUSED_FIELD(host, block_size = PAGE - 1, "host_caches", CREATE);
    REFUSED_FIELD(host, num_heads = 1, "host_caches", CREATE);
    REFUSED_FIELD(host, k.dtype = host.v.dtype = INFLIGHT_DTYPE_BF16, "host_caches", CREATE);
    inflight_kv_cache two[2] = {cache, cache};
    two[1].struct_size += 8;
    REFUSED(BAD, "device_caches", inflight_block_mover_create(w.device, two, NULL, 2, &out, error));
    CHECK(out == NULL);

    inflight_error* error = NULL;
    inflight_block_mover *mover, *alone;
    CHECK(inflight_block_mover_create(w.device, &cache, &host, 1, &mover, NULL) == 0);
    CHECK(inflight_block_mover_create(w.device, &cache, NULL, 1, &alone, NULL) == 0);
    /* A right one before the wrong one: nothing is copied. */
    inflight_block_op ops[2] = {{INFLIGHT_BLOCK_COPY, 1, 2}, {INFLIGHT_BLOCK_COPY, 2, 3}};
#define MOVE inflight_block_mover_run(mover, ops, sizeof(inflight_block_op), 2, NULL, error)
#define OP(assignment, name) REFUSED_FIELD(ops[1], assignment, name, MOVE)
    REFUSED(BAD, "mover",
            inflight_block_mover_run(NULL, ops, sizeof(inflight_block_op), 2, NULL, error));
    REFUSED(BAD, "ops",
            inflight_block_mover_run(mover, NULL, sizeof(inflight_block_op), 2, NULL, error));
    REFUSED(BAD, "ops",
            inflight_block_mover_run(mover, MISALIGNED(ops), sizeof(inflight_block_op), 1, NULL,
                                     error));
    REFUSED(SIZE, "op_size", inflight_block_mover_run(mover, ops, 8, 2, NULL, error));
    REFUSED(SIZE, "op_size", inflight_block_mover_run(mover, ops, 14, 1, NULL, error));
    REFUSED(
        BAD, "num_ops",
        inflight_block_mover_run(mover, ops, sizeof(inflight_block_op), ABOVE_MAX, NULL, error));
    REFUSED(BAD, "num_ops",
            inflight_block_mover_run(mover, ops, sizeof(inflight_block_op), SIZE_MAX, NULL, error));
    REFUSED(BAD, "stream",
            inflight_block_mover_run(mover, ops, sizeof(inflight_block_op), 2, &w, error));
    OP(kind = 3, "ops");
    OP(kind = UINT32_MAX, "ops");
    OP(src = BLOCKS, "ops");
    OP(src = UINT32_MAX, "ops");
    OP(dst = BLOCKS, "ops");
    OP(dst = UINT32_MAX, "ops");
    ops[1] = (inflight_block_op){INFLIGHT_BLOCK_SWAP_OUT, 5, 1};
    OP(dst = 2, "ops");
    OP(src = BLOCKS, "ops");
    REFUSED(BAD, "host_caches",
            inflight_block_mover_run(alone, ops, sizeof(inflight_block_op), 2, NULL, error));
    ops[1] = (inflight_block_op){INFLIGHT_BLOCK_SWAP_IN, 1, 5};
    OP(src = 2, "ops");
    OP(dst = BLOCKS, "ops");
    REFUSED(BAD, "host_caches",
            inflight_block_mover_run(alone, ops, sizeof(inflight_block_op), 2, NULL, error));

    /* The null block is a block like others to a mover, and a block copied to itself stays. */
    ops[0] = (inflight_block_op){INFLIGHT_BLOCK_COPY, 4, 4};
    ops[1] = (inflight_block_op){INFLIGHT_BLOCK_COPY, 1, 0};
    struct state before = look(&w);
    CHECK(MOVE == INFLIGHT_STATUS_OK);
    const size_t block = CACHE_SIZE / BLOCKS;
    CHECK(memcmp(w.k, &before.k[block], block * sizeof(float)) == 0);
    CHECK(memcmp(&w.k[block], &before.k[block], (CACHE_SIZE - block) * sizeof(float)) == 0);
    CHECK(inflight_block_mover_run(mover, NULL, sizeof(inflight_block_op), 0, NULL, NULL) ==
          INFLIGHT_STATUS_OK);
    inflight_block_mover_free(mover);
    inflight_block_mover_free(alone);
}

int main(void) {
    open_world();
    append_faults();
    merge_faults();
    mover_faults();
    inflight_step_buffer_free(w.step);
    inflight_device_free(w.device);
    printf("%u wrong calls refused\n", num_refused);
    return EXIT_SUCCESS;
}
