/* A scheduler's steps through cache and attention, in C alone: each output is the mean of what the
 * row's keys hold, since all logits are equal. */

#include <inflight.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 16, SIZE = 4, HEADS = 2, DIM = 8, MOST = 64 };

static inflight_error error;

static void must(inflight_status status, const char* call) {
    if (status != INFLIGHT_STATUS_OK) {
        fprintf(stderr, "%s: %s: %s: %s\n", call, inflight_status_string(status), error.field,
                error.message);
        exit(1);
    }
}

#define MUST(call) must(call, #call)

static inflight_tensor tensor(float* data, uint64_t tokens) {
    inflight_tensor made;
    inflight_tensor_init(&made, sizeof made);
    MUST(inflight_tensor_set_contiguous(&made, INFLIGHT_DTYPE_F32, data, tokens, HEADS, DIM,
                                        &error));
    return made;
}

int main(void) {
    static float memory[2][BLOCKS * SIZE * HEADS * DIM + 4];
    static float q[MOST * HEADS * DIM], kv[MOST * HEADS * DIM], o[MOST * HEADS * DIM];
    inflight_error_init(&error, sizeof error);

    inflight_scheduler_config scheduling;
    inflight_scheduler_config_init(&scheduling, sizeof scheduling);
    scheduling.num_blocks = BLOCKS;
    scheduling.block_size = SIZE;
    inflight_scheduler* scheduler;
    MUST(inflight_scheduler_create(&scheduling, &scheduler, &error));
    for (uint64_t id = 0; id < 3; id++) {
        const uint32_t prompt[] = {1, 2, 3, 4, 5, 6, 7};
        inflight_request request;
        inflight_request_init(&request, sizeof request);
        request.id = id;
        request.prompt = prompt;
        request.prompt_len = 3 + 2 * id;
        request.max_tokens = 4;
        request.skip_prefix_cache = 1;
        MUST(inflight_scheduler_submit(scheduler, &request, &error));
    }

    inflight_device* device;
    MUST(inflight_device_create_cpu(NULL, &device, &error));
    inflight_attention_config config;
    inflight_attention_config_init(&config, sizeof config);
    config.num_q_heads = config.num_kv_heads = HEADS;
    config.head_dim = DIM;
    config.q_dtype = INFLIGHT_DTYPE_F32;
    inflight_step_limits limits;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = limits.max_tokens = limits.max_blocks = limits.max_kv_len = MOST;
    inflight_attention* attention;
    MUST(inflight_attention_create(device, &config, &limits, &attention, &error));
    inflight_step_buffer* step;
    MUST(inflight_step_buffer_create(device, &limits, &attention, 1, &step, &error));
    inflight_device_free(device);

    void* const k = (void*)(((uintptr_t)memory[0] + 15) / 16 * 16);
    void* const v = (void*)(((uintptr_t)memory[1] + 15) / 16 * 16);
    inflight_kv_cache cache;
    inflight_kv_cache_init(&cache, sizeof cache);
    MUST(inflight_kv_cache_set_contiguous(&cache, INFLIGHT_LAYOUT_NHD, INFLIGHT_DTYPE_F32, k, v,
                                          BLOCKS, SIZE, HEADS, DIM, &error));

    int rows = 0;
    for (uint64_t now = 0;; now++) {
        inflight_step_view view;
        inflight_step_view_init(&view, sizeof view);
        MUST(inflight_scheduler_schedule(scheduler, now, &view, &error));
        if (view.num_rows == 0) {
            break;
        }
        inflight_batch batch;
        inflight_batch_init(&batch, sizeof batch);
        MUST(inflight_batch_from_step(&view, &batch, &error));
        MUST(inflight_attention_plan(attention, &batch, BLOCKS, NULL, &error));
        MUST(inflight_step_buffer_upload(step, &batch, NULL, &error));

        /* The value of a token is its position: queries of zeros see their mean. */
        for (uint32_t t = 0; t < view.num_tokens; t++) {
            for (int i = 0; i < HEADS * DIM; i++) {
                kv[t * HEADS * DIM + i] = (float)view.positions[t];
            }
        }
        inflight_append_args append;
        inflight_append_args_init(&append, sizeof append);
        const inflight_tensor new_kv = tensor(kv, view.num_tokens);
        append.k = append.v = &new_kv;
        append.cache = &cache;
        MUST(inflight_append(step, &append, NULL, &error));
        inflight_attention_args args;
        inflight_attention_args_init(&args, sizeof args);
        const inflight_tensor queries = tensor(q, view.num_tokens);
        const inflight_tensor outputs = tensor(o, view.num_tokens);
        args.q = &queries;
        args.o = &outputs;
        args.cache = &cache;
        MUST(inflight_attention_run(attention, step, &args, NULL, &error));
        for (uint32_t t = 0; t < view.num_tokens; t++) {
            const float mean = (float)view.positions[t] / 2;
            for (int i = 0; i < HEADS * DIM; i++) {
                if (fabsf(o[t * HEADS * DIM + i] - mean) > 1e-5f) {
                    fprintf(stderr, "token %u: %g, not %g\n", (unsigned)t,
                            (double)o[t * HEADS * DIM + i], (double)mean);
                    return 1;
                }
            }
        }
        /* The same from arrays that are not said to lie in one buffer. */
        static float again[MOST * HEADS * DIM];
        inflight_batch apart = batch;
        apart.packed = NULL;
        apart.packed_size = 0;
        const inflight_tensor others = tensor(again, view.num_tokens);
        args.o = &others;
        MUST(inflight_step_buffer_upload(step, &apart, NULL, &error));
        MUST(inflight_attention_run(attention, step, &args, NULL, &error));
        if (batch.packed == NULL ||
            memcmp(again, o, view.num_tokens * HEADS * DIM * sizeof *o) != 0) {
            fprintf(stderr, "another upload gives other outputs\n");
            return 1;
        }
        rows += (int)view.num_rows;
        const uint32_t tokens[3] = {8, 8, 8};
        inflight_samples samples;
        inflight_samples_init(&samples, sizeof samples);
        samples.tokens = tokens;
        samples.num_tokens = view.num_sampling;
        MUST(inflight_scheduler_commit(scheduler, view.step_id, &samples, NULL, &error));
    }
    inflight_attention_free(attention);
    inflight_step_buffer_free(step);
    inflight_scheduler_free(scheduler);
    printf("%d rows\n", rows);
    return rows == 12 ? 0 : 1;
}
