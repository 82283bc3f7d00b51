/* What the programs under test share. */
#ifndef CHECK_H
#define CHECK_H

#include <inflight.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(EXIT_FAILURE);                                             \
        }                                                                   \
    } while (0)

/* SplitMix64: the same seed is the same test, everywhere. */
static inline uint64_t draw(uint64_t* state) {
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint32_t below(uint64_t* state, uint32_t n) { return (uint32_t)(draw(state) % n); }

static inline inflight_error new_error(void) {
    inflight_error error;
    inflight_error_init(&error, sizeof error);
    return error;
}

static inline inflight_scheduler_config new_config(uint64_t num_blocks) {
    inflight_scheduler_config config;
    inflight_scheduler_config_init(&config, sizeof config);
    config.num_blocks = num_blocks;
    return config;
}

static inline inflight_attention_config f32_attention(uint32_t q_heads, uint32_t kv_heads,
                                                      uint32_t head_dim) {
    inflight_attention_config config;
    inflight_attention_config_init(&config, sizeof config);
    config.num_q_heads = q_heads;
    config.num_kv_heads = kv_heads;
    config.head_dim = head_dim;
    config.q_dtype = INFLIGHT_DTYPE_F32;
    return config;
}

static inline inflight_request new_request(uint64_t id, const uint32_t* prompt, size_t len,
                                           uint32_t max_tokens) {
    inflight_request request;
    inflight_request_init(&request, sizeof request);
    request.id = id;
    request.prompt = prompt;
    request.prompt_len = len;
    request.max_tokens = max_tokens;
    return request;
}

static inline inflight_step_view new_step(void) {
    inflight_step_view view;
    inflight_step_view_init(&view, sizeof view);
    return view;
}

static inline inflight_outputs_view new_outputs(void) {
    inflight_outputs_view view;
    inflight_outputs_view_init(&view, sizeof view);
    return view;
}

static inline inflight_samples new_samples(const uint32_t* tokens, size_t num_tokens) {
    inflight_samples samples;
    inflight_samples_init(&samples, sizeof samples);
    samples.tokens = tokens;
    samples.num_tokens = num_tokens;
    return samples;
}

static inline inflight_scheduler* new_scheduler(const inflight_scheduler_config* config) {
    inflight_scheduler* scheduler = NULL;
    CHECK(inflight_scheduler_create(config, &scheduler, NULL) == INFLIGHT_STATUS_OK);
    CHECK(scheduler != NULL);
    return scheduler;
}

static inline inflight_submitter* new_submitter(inflight_scheduler* scheduler) {
    inflight_submitter* submitter = NULL;
    CHECK(inflight_submitter_create(scheduler, &submitter, NULL) == INFLIGHT_STATUS_OK);
    CHECK(submitter != NULL);
    return submitter;
}

#endif
