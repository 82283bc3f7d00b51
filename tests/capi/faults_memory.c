/* More than the memory that there is: a status, not an abort. */
#include <sys/resource.h>

#include "check.h"

/* Address space beyond what the process has already. */
enum { MEMORY = 256 << 20 };

static void limit_memory(void) {
    FILE* file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL);
    unsigned long pages = 0;
    CHECK(fscanf(file, "%lu", &pages) == 1);
    CHECK(fclose(file) == 0);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = (rlim_t)pages * 4096 + MEMORY;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

static void refused(inflight_status status, const inflight_error* error) {
    if (status != INFLIGHT_STATUS_OUT_OF_MEMORY || error->code != status || error->field[0] != 0 ||
        strstr(error->message, "bytes") == NULL) {
        fprintf(stderr, "status %d, field '%s', '%s'\n", status, error->field, error->message);
        exit(EXIT_FAILURE);
    }
}

static void pools(void) {
    inflight_error error = new_error();
    for (int prefix_cache = 0; prefix_cache < 2; prefix_cache++) {
        inflight_cache_config config;
        inflight_cache_config_init(&config, sizeof config);
        inflight_scheduler_config scheduling = new_config(INFLIGHT_MAX_COUNT);
        config.prefix_cache = scheduling.prefix_cache = (uint32_t)prefix_cache;
        /* The records of the device pool, the prefix cache's, the host pool's. */
        const uint64_t sizes[][2] = {{INFLIGHT_MAX_COUNT, 0},
                                     {prefix_cache ? 10000000 : 50000000, 0},
                                     {1000, INFLIGHT_MAX_COUNT}};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            config.num_blocks = scheduling.num_blocks = sizes[i][0];
            config.num_host_blocks = scheduling.num_host_blocks = sizes[i][1];
            inflight_cache* cache = (inflight_cache*)(void*)&config;
            refused(inflight_cache_create(&config, &cache, &error), &error);
            CHECK(cache == NULL);
            inflight_scheduler* scheduler = (inflight_scheduler*)(void*)&config;
            refused(inflight_scheduler_create(&scheduling, &scheduler, &error), &error);
            CHECK(scheduler == NULL);
        }
        config.num_blocks = scheduling.num_blocks = 1000000;
        config.num_host_blocks = scheduling.num_host_blocks = 1000000;
        inflight_cache* cache;
        CHECK(inflight_cache_create(&config, &cache, &error) == INFLIGHT_STATUS_OK);
        inflight_cache_free(cache);
        inflight_scheduler_free(new_scheduler(&scheduling));
    }
}

/* Copies of what the caller has. */
static void copies(const uint32_t* tokens, size_t num_tokens) {
    inflight_error error = new_error();
    inflight_cache_config config;
    inflight_cache_config_init(&config, sizeof config);
    config.num_blocks = 16;
    inflight_cache* cache;
    uint64_t seq;
    CHECK(inflight_cache_create(&config, &cache, &error) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_open(cache, NULL, &seq, &error) == INFLIGHT_STATUS_OK);
    refused(inflight_cache_extend(cache, seq, tokens, num_tokens, &error), &error);
    CHECK(inflight_cache_extend(cache, seq, tokens, 40, &error) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_allocate(cache, seq, 0, 0, 40, NULL, &error) == INFLIGHT_STATUS_OK);
    CHECK(inflight_cache_verify(cache, &error) == INFLIGHT_STATUS_OK);
    inflight_cache_free(cache);

    const inflight_scheduler_config scheduling = new_config(64);
    inflight_scheduler* scheduler = new_scheduler(&scheduling);
    inflight_request request = new_request(7, tokens, num_tokens, 4);
    refused(inflight_scheduler_submit(scheduler, &request, &error), &error);
    CHECK(error.has_request == 1 && error.request_id == 7);
    request.prompt_len = 40;
    CHECK(inflight_scheduler_submit(scheduler, &request, &error) == INFLIGHT_STATUS_OK);
    inflight_scheduler_free(scheduler);
}

/* A plan takes memory for its rows, whatever blocks they name. */
static void plans(void) {
    inflight_error error = new_error();
    inflight_cpu_config cpu;
    inflight_cpu_config_init(&cpu, sizeof cpu);
    cpu.threads = 1;
    inflight_device* device;
    CHECK(inflight_device_create_cpu(&cpu, &device, &error) == INFLIGHT_STATUS_OK);
    inflight_attention_config config;
    inflight_attention_config_init(&config, sizeof config);
    config.num_q_heads = config.num_kv_heads = 1;
    config.head_dim = 8;
    config.q_dtype = INFLIGHT_DTYPE_F32;
    inflight_step_limits limits;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = limits.max_tokens = limits.max_blocks = limits.max_kv_len = 1 << 30;
    inflight_attention* attention;
    CHECK(inflight_attention_create(device, &config, &limits, &attention, &error) == 0);
    const uint32_t indptr[] = {0, 1}, block = INFLIGHT_MAX_COUNT - 1, last = 1;
    inflight_batch batch;
    inflight_batch_init(&batch, sizeof batch);
    inflight_group group;
    inflight_group_init(&group, sizeof group);
    batch.groups = &group;
    batch.qo_indptr = group.kv_indptr = indptr;
    group.kv_indices = &block;
    group.kv_last_page_len = &last;
    batch.num_rows = batch.num_tokens = group.num_kv_blocks = 1;
    group.block_size = 16;
    CHECK(inflight_attention_plan(attention, &batch, INFLIGHT_MAX_COUNT, NULL, &error) == 0);
    inflight_attention_free(attention);
    inflight_device_free(device);
}

int main(void) {
    const size_t num_tokens = MEMORY / sizeof(uint32_t) + 1024;
    uint32_t* tokens = calloc(num_tokens, sizeof *tokens);
    CHECK(tokens != NULL);
    limit_memory();
    pools();
    copies(tokens, num_tokens);
    plans();
    free(tokens);
    puts("too much memory is refused");
    return EXIT_SUCCESS;
}
