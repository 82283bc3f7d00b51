/* Steady decoding of 256 requests: what a step costs, and that it allocates nothing.
 *
 * A program with COUNT_ALLOCATIONS, else a shared object that benches/ffi.rs loads.
 */
#include <time.h>

#include "check.h"

enum { RUNNING = 256, BLOCKS = 40000 };

struct engine {
    inflight_scheduler* scheduler;
    uint64_t now;
    uint32_t tokens[RUNNING];
};

struct engine* engine_open(void);
double engine_run(struct engine* engine, uint32_t steps);
void engine_close(struct engine* engine);

struct engine* engine_open(void) {
    struct engine* engine = calloc(1, sizeof *engine);
    inflight_scheduler_config config = new_config(BLOCKS);
    config.max_num_seqs = RUNNING;
    engine->scheduler = new_scheduler(&config);
    for (uint32_t id = 0; id < RUNNING; id++) {
        /* Of all lengths, so that blocks fill in every step. */
        uint32_t prompt[48];
        for (uint32_t i = 0; i < 48; i++) {
            prompt[i] = id * 1000 + i;
        }
        inflight_request request = new_request(id, prompt, 1 + id % 48, 100000);
        CHECK(inflight_scheduler_submit(engine->scheduler, &request, NULL) == 0);
        engine->tokens[id] = id;
    }
    return engine;
}

/* Nanoseconds a step. */
double engine_run(struct engine* engine, uint32_t steps) {
    inflight_step_view step = new_step();
    inflight_outputs_view outputs = new_outputs();
    inflight_error error = new_error();
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (uint32_t i = 0; i < steps; i++) {
        CHECK(inflight_scheduler_schedule(engine->scheduler, engine->now++, &step, &error) == 0);
        CHECK(step.num_sampling == RUNNING);
        inflight_samples samples = new_samples(engine->tokens, step.num_sampling);
        CHECK(inflight_scheduler_commit(engine->scheduler, step.step_id, &samples, &outputs,
                                        &error) == 0);
        CHECK(outputs.num_tokens == RUNNING);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / steps;
}

void engine_close(struct engine* engine) {
    inflight_scheduler_free(engine->scheduler);
    free(engine);
}

#ifdef COUNT_ALLOCATIONS
static unsigned allocations;

/* The library's calls come here, too: a program's own malloc is everybody's. */
extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t n, size_t size);
extern void* __libc_realloc(void* at, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
    allocations++;
    return __libc_malloc(size);
}

void* calloc(size_t n, size_t size) {
    allocations++;
    return __libc_calloc(n, size);
}

void* realloc(void* at, size_t size) {
    allocations++;
    return __libc_realloc(at, size);
}

int posix_memalign(void** at, size_t alignment, size_t size) {
    allocations++;
    *at = __libc_memalign(alignment, size);
    return *at == NULL;
}

void* aligned_alloc(size_t alignment, size_t size) {
    allocations++;
    return __libc_memalign(alignment, size);
}

int main(void) {
    struct engine* engine = engine_open();
    CHECK(allocations > RUNNING);
    engine_run(engine, 64);
    allocations = 0;
    double ns = engine_run(engine, 1000);
    unsigned counted = allocations;
    engine_close(engine);
    printf("1000 steps of %d requests: %u allocations, %.1f us a step\n", RUNNING, counted,
           ns / 1e3);
    CHECK(counted == 0);
    return EXIT_SUCCESS;
}
#endif
