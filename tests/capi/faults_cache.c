/* The cache manager with every argument wrong in turn, and a cache that is as it was. */
#include "check.h"

enum { BLOCKS = 12, HOST_BLOCKS = 4, PAGE = 4 };

/* Sequences: with blocks, a fork of it, swapped out, and without blocks. */
enum { HELD, FORKED, SWAPPED, BARE, SEQUENCES };

static const uint32_t TOKENS[64] = {7, 8, 9};
static const uint64_t POISON = UINT64_C(0xa5a5a5a5a5a5a5a5);

struct world {
    inflight_cache* cache;
    uint64_t sequences[SEQUENCES];
    /* One that was closed. */
    uint64_t closed;
    /* Where results go. */
    uint64_t number;
    uint32_t flag;
    size_t count;
    const uint32_t* blocks;
    inflight_block_op ops[2];
};

struct state {
    inflight_cache_stats stats;
    uint64_t len[SEQUENCES];
    uint32_t tables[SEQUENCES][BLOCKS];
    uint64_t number, flag, count;
    uintptr_t blocks;
    inflight_block_op ops[2];
};

static struct state look(const struct world* w) {
    struct state state;
    memset(&state, 0, sizeof state);
    CHECK(inflight_cache_verify(w->cache, NULL) == INFLIGHT_STATUS_OK);
    inflight_cache_stats_init(&state.stats, sizeof state.stats);
    CHECK(inflight_cache_get_stats(w->cache, &state.stats, NULL) == INFLIGHT_STATUS_OK);
    for (int i = 0; i < SEQUENCES; i++) {
        const uint32_t* blocks;
        size_t len;
        CHECK(inflight_cache_table(w->cache, w->sequences[i], &blocks, &len, NULL) == 0);
        CHECK(len <= BLOCKS && (blocks == NULL) == (len == 0));
        state.len[i] = len;
        for (size_t at = 0; at < len; at++) {
            state.tables[i][at] = blocks[at];
        }
    }
    state.number = w->number;
    state.flag = w->flag;
    state.count = w->count;
    state.blocks = (uintptr_t)w->blocks;
    memcpy(state.ops, w->ops, sizeof state.ops);
    return state;
}

#include "faults.h"

static inflight_cache_config new_cache_config(void) {
    inflight_cache_config config;
    inflight_cache_config_init(&config, sizeof config);
    config.num_blocks = BLOCKS;
    config.num_host_blocks = HOST_BLOCKS;
    config.block_size = PAGE;
    return config;
}

static uint64_t open_sequence(inflight_cache* cache, uint32_t first, uint64_t num_tokens) {
    uint32_t tokens[64];
    memcpy(tokens, TOKENS, sizeof tokens);
    tokens[0] = first;
    uint64_t seq;
    CHECK(inflight_cache_open(cache, NULL, &seq, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_extend(cache, seq, tokens, num_tokens, NULL) == INFLIGHT_STATUS_OK);
    return seq;
}

static struct world open_world(void) {
    struct world w;
    memset(&w, 0, sizeof w);
    inflight_cache_config config = new_cache_config();
    CHECK(inflight_cache_create(&config, &w.cache, NULL) == INFLIGHT_STATUS_OK);
    w.sequences[HELD] = open_sequence(w.cache, 1, 10);
    CHECK(inflight_cache_allocate(w.cache, w.sequences[HELD], 0, 0, 10, NULL, NULL) == 0);
    CHECK(inflight_cache_register(w.cache, w.sequences[HELD], 10, NULL) == 0);
    CHECK(inflight_cache_fork(w.cache, w.sequences[HELD], &w.sequences[FORKED], NULL) == 0);
    w.sequences[SWAPPED] = open_sequence(w.cache, 2, 12);
    CHECK(inflight_cache_allocate(w.cache, w.sequences[SWAPPED], 0, 0, 12, NULL, NULL) == 0);
    CHECK(inflight_cache_swap_out(w.cache, w.sequences[SWAPPED], NULL) == 0);
    w.sequences[BARE] = open_sequence(w.cache, 1, 9);
    w.closed = open_sequence(w.cache, 3, 5);
    CHECK(inflight_cache_close(w.cache, w.closed, NULL) == INFLIGHT_STATUS_OK);
    w.number = POISON;
    w.flag = (uint32_t)POISON;
    w.count = (size_t)POISON;
    w.blocks = TOKENS;
    memset(w.ops, 0xa5, sizeof w.ops);
    return w;
}

/* What it could do before all that was refused, it can do now. */
static void close_world(struct world* w) {
    uint64_t found;
    CHECK(inflight_cache_lookup(w->cache, w->sequences[BARE], 8, &found, NULL) == 0 && found == 8);
    CHECK(inflight_cache_allocate(w->cache, w->sequences[BARE], 8, 8, 9, &found, NULL) == 0);
    CHECK(found == 1);
    CHECK(inflight_cache_allocate(w->cache, w->sequences[FORKED], 0, 9, 10, &found, NULL) == 0);
    CHECK(found == 1);
    CHECK(inflight_cache_swap_in(w->cache, w->sequences[SWAPPED], NULL) == INFLIGHT_STATUS_OK);
    inflight_block_op ops[16];
    size_t num_ops;
    CHECK(inflight_cache_take_ops(w->cache, ops, sizeof(inflight_block_op), 16, &num_ops, NULL) ==
          0);
    /* Three out, one copy, three in. */
    CHECK(num_ops == 7 && ops[0].kind == INFLIGHT_BLOCK_SWAP_OUT);
    CHECK(ops[3].kind == INFLIGHT_BLOCK_COPY && ops[4].kind == INFLIGHT_BLOCK_SWAP_IN);
    for (int i = 0; i < SEQUENCES; i++) {
        CHECK(inflight_cache_close(w->cache, w->sequences[i], NULL) == INFLIGHT_STATUS_OK);
        CHECK(inflight_cache_close(w->cache, w->sequences[i], NULL) == BAD);
    }
    CHECK(inflight_cache_reset(w->cache, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_verify(w->cache, NULL) == INFLIGHT_STATUS_OK);
    inflight_cache_free(w->cache);
}

static void config_faults(void) {
    struct world w = open_world();
    inflight_cache *const sentinel = (inflight_cache*)(void*)&w, *out = sentinel;
    const inflight_cache_config good = new_cache_config();
    inflight_cache_config config = good;
#define CREATE inflight_cache_create(&config, &out, error)
#define FIELD(name, value)             \
    do {                               \
        config = good, out = sentinel; \
        config.name = value;           \
        REFUSED(BAD, #name, CREATE);   \
        CHECK(out == NULL);            \
    } while (0)
    REFUSED(BAD, "config", inflight_cache_create(NULL, &out, error));
    CHECK(out == NULL);
    REFUSED(BAD, "out", inflight_cache_create(&config, NULL, error));
    REFUSED(BAD, "config", inflight_cache_create(MISALIGNED(&config), &out, error));
    REFUSED(BAD, "out", inflight_cache_create(&config, MISALIGNED(&out), error));
    REFUSED_SIZES(config, "config", CREATE);
    FIELD(num_blocks, 0);
    FIELD(num_blocks, 1);
    FIELD(num_blocks, ABOVE_MAX);
    FIELD(num_blocks, UINT64_MAX);
    FIELD(num_host_blocks, ABOVE_MAX);
    FIELD(num_host_blocks, UINT64_MAX);
    FIELD(block_size, 0);
    FIELD(block_size, ABOVE_MAX);
    FIELD(block_size, UINT32_MAX);
    FIELD(prefix_cache, 2);
    FIELD(prefix_cache, UINT32_MAX);

    NEWER(inflight_cache_config) newer;
    inflight_cache_config_init(&newer.known, sizeof newer);
    newer.known.num_blocks = BLOCKS;
    CHECK(inflight_cache_create(&newer.known, &out, NULL) == INFLIGHT_STATUS_OK);
    inflight_cache_free(out);
    newer.later[0] = 1;
    REFUSED(SIZE, "config", inflight_cache_create(&newer.known, &out, error));

    inflight_cache_stats stats;
    inflight_cache_stats_init(&stats, sizeof stats);
    REFUSED(BAD, "cache", inflight_cache_get_stats(NULL, &stats, error));
    REFUSED(BAD, "stats", inflight_cache_get_stats(w.cache, NULL, error));
    REFUSED(BAD, "stats", inflight_cache_get_stats(w.cache, MISALIGNED(&stats), error));
    REFUSED_SIZES(stats, "stats", inflight_cache_get_stats(w.cache, &stats, error));
    REFUSED(BAD, "cache", inflight_cache_verify(NULL, error));
    REFUSED(BAD, "cache", inflight_cache_reset(NULL, error));
    /* Sequences hold blocks. */
    REFUSED(INFLIGHT_STATUS_OUT_OF_BLOCKS, "", inflight_cache_reset(w.cache, error));
    REFUSED(BAD, "cache",
            inflight_cache_take_ops(NULL, w.ops, sizeof(inflight_block_op), 2, &w.count, error));
    REFUSED(BAD, "ops",
            inflight_cache_take_ops(w.cache, NULL, sizeof(inflight_block_op), 2, &w.count, error));
    REFUSED(BAD, "ops",
            inflight_cache_take_ops(w.cache, MISALIGNED(w.ops), sizeof(inflight_block_op), 1,
                                    &w.count, error));
    REFUSED(BAD, "ops",
            inflight_cache_take_ops(w.cache, w.ops, sizeof(inflight_block_op), SIZE_MAX, &w.count,
                                    error));
    REFUSED(BAD, "ops",
            inflight_cache_take_ops(w.cache, w.ops, sizeof(inflight_block_op), SIZE_MAX / 12,
                                    &w.count, error));
    REFUSED(SIZE, "op_size", inflight_cache_take_ops(w.cache, w.ops, 8, 2, &w.count, error));
    REFUSED(BAD, "num_ops",
            inflight_cache_take_ops(w.cache, w.ops, sizeof(inflight_block_op), 2, NULL, error));
    REFUSED(BAD, "num_ops",
            inflight_cache_take_ops(w.cache, w.ops, sizeof(inflight_block_op), 2,
                                    MISALIGNED(&w.count), error));
    close_world(&w);
}

static void keys_faults(void) {
    struct world w = open_world();
    inflight_cache_keys keys;
    inflight_cache_keys_init(&keys, sizeof keys);
    const uint8_t* const text = (const uint8_t*)"text";
    const inflight_content no_id = {NULL, 5, 0, 4}, long_id = {text, 65537, 0, 4};
#define OPEN inflight_cache_open(w.cache, &keys, &w.number, error)
#define KEYS(assignment, name) REFUSED_FIELD(keys, assignment, name, OPEN)
    REFUSED(BAD, "cache", inflight_cache_open(NULL, &keys, &w.number, error));
    REFUSED(BAD, "keys", inflight_cache_open(w.cache, MISALIGNED(&keys), &w.number, error));
    REFUSED(BAD, "seq", inflight_cache_open(w.cache, &keys, NULL, error));
    REFUSED(BAD, "seq", inflight_cache_open(w.cache, &keys, MISALIGNED(&w.number), error));
    REFUSED_SIZES(keys, "keys", OPEN);
    KEYS(salt_len = 1, "salt");
    KEYS(salt_len = 65537, "salt_len");
    KEYS(salt_len = SIZE_MAX, "salt_len");
    KEYS(adapter_len = 1, "adapter");
    KEYS(adapter_len = 65537, "adapter_len");
    KEYS(adapter_len = SIZE_MAX, "adapter_len");
    keys.num_contents = 1;
    REFUSED(SIZE, "content_size", OPEN);
    keys.num_contents = 0;
    keys.content_size = sizeof no_id;
    KEYS(num_contents = 1, "contents");
    KEYS(num_contents = 65537, "num_contents");
    KEYS(num_contents = SIZE_MAX, "num_contents");
    keys.num_contents = 1;
    KEYS(contents = MISALIGNED(&no_id), "contents");
    KEYS(contents = &no_id, "contents.id");
    KEYS(contents = &long_id, "contents.id_len");
    /* Where a content lies is any numbers: what would be past the last position covers it. */
    const inflight_content far = {text, 4, UINT32_MAX, UINT32_MAX};
    keys.contents = &far;
    uint64_t seq;
    CHECK(inflight_cache_open(w.cache, &keys, &seq, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_extend(w.cache, seq, TOKENS, 16, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_close(w.cache, seq, NULL) == INFLIGHT_STATUS_OK);
    close_world(&w);
}

/* `call` uses `cache` and `seq`: no cache, and no open sequence. */
#define ABOUT_SEQUENCE(call)                                                  \
    do {                                                                      \
        inflight_cache* cache = NULL;                                         \
        uint64_t seq = w.sequences[HELD];                                     \
        REFUSED(BAD, "cache", call);                                          \
        cache = w.cache;                                                      \
        const uint64_t unknown[] = {w.closed, UINT64_MAX, UINT64_C(1) << 63}; \
        for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {       \
            seq = unknown[i];                                                 \
            REFUSED(BAD, "seq", call);                                        \
        }                                                                     \
    } while (0)

static void sequence_faults(void) {
    struct world w = open_world();
    uint64_t* const out = &w.number;
    const uint64_t held = w.sequences[HELD], swapped = w.sequences[SWAPPED];
    const uint64_t bare = w.sequences[BARE];
    ABOUT_SEQUENCE(inflight_cache_extend(cache, seq, TOKENS, 1, error));
    ABOUT_SEQUENCE(inflight_cache_lookup(cache, seq, 4, out, error));
    ABOUT_SEQUENCE(inflight_cache_blocks_needed(cache, seq, 0, 0, 4, out, error));
    ABOUT_SEQUENCE(inflight_cache_allocate(cache, seq, 0, 0, 4, out, error));
    ABOUT_SEQUENCE(inflight_cache_register(cache, seq, 4, error));
    ABOUT_SEQUENCE(inflight_cache_unregister(cache, seq, 4, error));
    ABOUT_SEQUENCE(inflight_cache_table(cache, seq, &w.blocks, &w.count, error));
    ABOUT_SEQUENCE(inflight_cache_truncate(cache, seq, 4, error));
    ABOUT_SEQUENCE(inflight_cache_fork(cache, seq, out, error));
    ABOUT_SEQUENCE(inflight_cache_release(cache, seq, error));
    ABOUT_SEQUENCE(inflight_cache_close(cache, seq, error));
    ABOUT_SEQUENCE(inflight_cache_swap_out(cache, seq, error));
    ABOUT_SEQUENCE(inflight_cache_swap_in(cache, seq, error));

    static const uint32_t none[] = {1, INFLIGHT_NO_TOKEN};
    REFUSED(BAD, "tokens", inflight_cache_extend(w.cache, held, none, 2, error));
    REFUSED(BAD, "tokens", inflight_cache_extend(w.cache, held, NULL, 1, error));
    REFUSED(BAD, "tokens", inflight_cache_extend(w.cache, held, MISALIGNED(TOKENS), 1, error));
    REFUSED(BAD, "num_tokens",
            inflight_cache_extend(w.cache, held, TOKENS, INFLIGHT_MAX_COUNT - 9, error));
    REFUSED(BAD, "num_tokens", inflight_cache_extend(w.cache, held, TOKENS, SIZE_MAX, error));
    REFUSED(BAD, "num_cached", inflight_cache_lookup(w.cache, held, 4, NULL, error));
    REFUSED(BAD, "num_cached", inflight_cache_lookup(w.cache, held, 4, MISALIGNED(out), error));
    REFUSED(BAD, "blocks", inflight_cache_table(w.cache, held, NULL, &w.count, error));
    REFUSED(BAD, "blocks",
            inflight_cache_table(w.cache, held, MISALIGNED(&w.blocks), &w.count, error));
    REFUSED(BAD, "num_blocks", inflight_cache_table(w.cache, held, &w.blocks, NULL, error));
    REFUSED(BAD, "num_blocks",
            inflight_cache_table(w.cache, held, &w.blocks, MISALIGNED(&w.count), error));
    REFUSED(BAD, "child", inflight_cache_fork(w.cache, held, NULL, error));
    REFUSED(BAD, "child", inflight_cache_fork(w.cache, held, MISALIGNED(out), error));

    /* What a sequence cannot do where it is. */
    REFUSED(BAD, "seq", inflight_cache_fork(w.cache, swapped, out, error));
    REFUSED(BAD, "seq", inflight_cache_truncate(w.cache, swapped, 4, error));
    REFUSED(BAD, "seq", inflight_cache_swap_out(w.cache, swapped, error));
    REFUSED(BAD, "seq", inflight_cache_swap_out(w.cache, bare, error));
    REFUSED(BAD, "seq", inflight_cache_swap_in(w.cache, held, error));
    REFUSED(BAD, "seq", inflight_cache_swap_in(w.cache, bare, error));
    REFUSED(INFLIGHT_STATUS_OUT_OF_BLOCKS, "", inflight_cache_swap_out(w.cache, held, error));
    SAYS("3 host blocks are needed", inflight_cache_swap_out(w.cache, held, error));

    /* Numbers of tokens that are more than there are ask for all there is. */
    struct state before = look(&w);
    CHECK(inflight_cache_register(w.cache, held, UINT64_MAX, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_register(w.cache, swapped, UINT64_MAX, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_unregister(w.cache, held, UINT64_MAX, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_truncate(w.cache, held, UINT64_MAX, NULL) == INFLIGHT_STATUS_OK);
    struct state after = look(&w);
    CHECK(memcmp(&before, &after, sizeof after) == 0);
    uint64_t found;
    CHECK(inflight_cache_lookup(w.cache, bare, UINT64_MAX, &found, NULL) == 0 && found == 8);
    close_world(&w);
}

static void allocation_faults(void) {
    struct world w = open_world();
    const uint64_t held = w.sequences[HELD], swapped = w.sequences[SWAPPED];
    const uint64_t bare = w.sequences[BARE];
    /* The two take the same, but for a place for the result. */
#define ALLOCATE(name, seq, cached, from, tokens)                                                \
    do {                                                                                         \
        REFUSED(BAD, name,                                                                       \
                inflight_cache_allocate(w.cache, seq, cached, from, tokens, &w.number, error));  \
        REFUSED(                                                                                 \
            BAD, name,                                                                           \
            inflight_cache_blocks_needed(w.cache, seq, cached, from, tokens, &w.number, error)); \
    } while (0)
    ALLOCATE("num_cached", bare, 1, 0, 9);
    ALLOCATE("num_cached", bare, UINT64_MAX, 0, 9);
    ALLOCATE("num_cached", bare, 8, 0, 7);
    ALLOCATE("num_cached", bare, 12, 0, 12);
    ALLOCATE("num_cached", held, 8, 0, 10);
    ALLOCATE("seq", swapped, 0, 0, 12);
    ALLOCATE("num_tokens", bare, 0, 0, (BLOCKS - 1) * PAGE + 1);
    ALLOCATE("num_tokens", bare, 0, UINT64_MAX, UINT64_MAX);
    ALLOCATE("num_tokens", held, 0, 0, UINT64_MAX);
    REFUSED(BAD, "num_blocks",
            inflight_cache_allocate(w.cache, bare, 0, 0, 4, MISALIGNED(&w.number), error));
    REFUSED(BAD, "num_blocks", inflight_cache_blocks_needed(w.cache, bare, 0, 0, 4, NULL, error));
    REFUSED(BAD, "num_blocks",
            inflight_cache_blocks_needed(w.cache, bare, 0, 0, 4, MISALIGNED(&w.number), error));
    REFUSED(INFLIGHT_STATUS_OUT_OF_BLOCKS, "",
            inflight_cache_allocate(w.cache, bare, 0, 0, (BLOCKS - 1) * PAGE, &w.number, error));
    CHECK(inflight_cache_blocks_needed(w.cache, bare, 0, UINT64_MAX, (BLOCKS - 1) * PAGE, &w.number,
                                       NULL) == INFLIGHT_STATUS_OK);
    CHECK(w.number == BLOCKS - 1);
    close_world(&w);

    /* A host pool and a device pool without room. */
    w = open_world();
    const uint64_t all = open_sequence(w.cache, 5, 32);
    CHECK(inflight_cache_allocate(w.cache, all, 0, 0, 32, NULL, NULL) == INFLIGHT_STATUS_OK);
    REFUSED(INFLIGHT_STATUS_OUT_OF_BLOCKS, "",
            inflight_cache_swap_in(w.cache, w.sequences[SWAPPED], error));
    SAYS("device blocks are needed", inflight_cache_swap_in(w.cache, w.sequences[SWAPPED], error));
    /* It is no matter of time where the host pool is too small. */
    REFUSED(BAD, "seq", inflight_cache_swap_out(w.cache, all, error));
    CHECK(inflight_cache_close(w.cache, all, NULL) == INFLIGHT_STATUS_OK);
    close_world(&w);
}

int main(void) {
    config_faults();
    keys_faults();
    sequence_faults();
    allocation_faults();
    inflight_cache_free(NULL);
    printf("%u wrong calls refused\n", num_refused);
    return EXIT_SUCCESS;
}
