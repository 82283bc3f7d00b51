/* Every function with every argument wrong in turn: the status that the header says, the detail of
 * it, and a scheduler that is as it was.
 */
#include "check.h"

enum { REQUESTS = 4, WAITING = 3 };

static const uint32_t PROMPT[64] = {7, 8, 9};

/* A scheduler with requests that run and wait, and a step in flight. */
struct world {
    inflight_scheduler* scheduler;
    inflight_submitter* submitter;
    inflight_step_view step;
};

/* All that a caller can see of it. */
struct state {
    inflight_scheduler_stats stats;
    inflight_request_snapshot requests[REQUESTS + 2];
};

static struct world open_world(void) {
    struct world w;
    inflight_scheduler_config config = new_config(64);
    config.max_num_seqs = REQUESTS - WAITING + 2;
    config.max_model_len = 128;
    config.max_waiting = WAITING;
    w.scheduler = new_scheduler(&config);
    w.submitter = new_submitter(w.scheduler);
    w.step = new_step();
    for (uint64_t id = 0; id < REQUESTS; id++) {
        inflight_request request = new_request(id, PROMPT, 20 + id, 9);
        if (id == WAITING) {
            CHECK(inflight_scheduler_schedule(w.scheduler, 1, &w.step, NULL) == 0);
        }
        CHECK(inflight_scheduler_submit(w.scheduler, &request, NULL) == INFLIGHT_STATUS_OK);
    }
    CHECK(w.step.num_rows == 3 && w.step.num_sampling == 3);
    return w;
}

static void close_world(struct world* w) {
    inflight_scheduler_free(w->scheduler);
    /* It outlives its scheduler, and refuses everything. */
    inflight_error error = new_error();
    CHECK(inflight_submitter_cancel(w->submitter, 1, &error) == INFLIGHT_STATUS_CLOSED);
    CHECK(error.code == INFLIGHT_STATUS_CLOSED && error.message[0] != 0);
    inflight_submitter_free(w->submitter);
}

static struct state look(const struct world* w) {
    struct state state;
    memset(&state, 0, sizeof state);
    CHECK(inflight_scheduler_verify(w->scheduler, NULL) == INFLIGHT_STATUS_OK);
    inflight_scheduler_stats_init(&state.stats, sizeof state.stats);
    CHECK(inflight_scheduler_get_stats(w->scheduler, &state.stats, NULL) == INFLIGHT_STATUS_OK);
    for (uint64_t id = 0; id < REQUESTS + 2; id++) {
        inflight_request_snapshot* request = &state.requests[id];
        inflight_request_snapshot_init(request, sizeof *request);
        inflight_status status = inflight_scheduler_get_request(w->scheduler, id, request, NULL);
        CHECK(status == INFLIGHT_STATUS_OK || status == INFLIGHT_STATUS_UNKNOWN_REQUEST);
    }
    return state;
}

#include "faults.h"

static void config_faults(void) {
    struct world w = open_world();
    inflight_scheduler *const sentinel = (inflight_scheduler*)(void*)&w, *out = sentinel;
    const inflight_scheduler_config good = new_config(64);
    inflight_scheduler_config config = good;
#define CREATE inflight_scheduler_create(&config, &out, error)
#define FIELD(name, value)             \
    do {                               \
        config = good, out = sentinel; \
        config.name = value;           \
        REFUSED(BAD, #name, CREATE);   \
        CHECK(out == NULL);            \
    } while (0)
    REFUSED(BAD, "config", inflight_scheduler_create(NULL, &out, error));
    CHECK(out == NULL);
    REFUSED(BAD, "out", inflight_scheduler_create(&config, NULL, error));
    REFUSED(BAD, "config", inflight_scheduler_create(MISALIGNED(&config), &out, error));
    REFUSED(BAD, "out", inflight_scheduler_create(&config, MISALIGNED(&out), error));
    REFUSED_SIZES(config, "config", CREATE);
    FIELD(num_blocks, 0);
    FIELD(num_blocks, 1);
    FIELD(num_blocks, ABOVE_MAX);
    FIELD(num_blocks, UINT32_MAX);
    FIELD(num_blocks, UINT64_MAX);
    FIELD(num_host_blocks, ABOVE_MAX);
    FIELD(num_host_blocks, (uint64_t)UINT32_MAX + 1);
    FIELD(num_host_blocks, UINT64_MAX);
    FIELD(block_size, 0);
    FIELD(block_size, ABOVE_MAX);
    FIELD(block_size, UINT32_MAX);
    FIELD(max_num_seqs, 0);
    FIELD(max_num_seqs, ABOVE_MAX);
    FIELD(max_num_seqs, UINT32_MAX);
    FIELD(max_num_batched_tokens, 0);
    FIELD(max_num_batched_tokens, ABOVE_MAX);
    FIELD(max_num_batched_tokens, UINT32_MAX);
    FIELD(max_model_len, 1);
    FIELD(max_model_len, ABOVE_MAX);
    FIELD(max_model_len, UINT32_MAX);
    FIELD(long_prefill_token_threshold, ABOVE_MAX);
    FIELD(long_prefill_token_threshold, UINT32_MAX);
    FIELD(max_steps_in_flight, 0);
    FIELD(max_steps_in_flight, ABOVE_MAX);
    FIELD(max_steps_in_flight, UINT32_MAX);
    FIELD(prefix_cache, 2);
    FIELD(chunked_prefill, UINT32_MAX);
    FIELD(overlap, 2);
    FIELD(swap, 3);
    FIELD(events, 2);
    FIELD(policy, INFLIGHT_POLICY_ORCA + 1);
    FIELD(policy, UINT32_MAX);
    FIELD(max_padded_rows, 65537);
    FIELD(max_padded_rows, UINT32_MAX);
    FIELD(reserved, 1);

    /* A newer program's struct is taken as long as it asks for nothing that is unknown here. */
    NEWER(inflight_scheduler_config) newer;
    inflight_scheduler_config_init(&newer.known, sizeof newer);
    CHECK(newer.known.struct_size == sizeof newer);
    newer.known.num_blocks = 64;
    CHECK(inflight_scheduler_create(&newer.known, &out, NULL) == INFLIGHT_STATUS_OK);
    inflight_scheduler_free(out);
    newer.later[sizeof newer.later - 1] = 1;
    REFUSED(SIZE, "config", inflight_scheduler_create(&newer.known, &out, error));
    CHECK(out == NULL);

    inflight_submitter* submitter = NULL;
    REFUSED(BAD, "scheduler", inflight_submitter_create(NULL, &submitter, error));
    REFUSED(BAD, "out", inflight_submitter_create(w.scheduler, NULL, error));
    REFUSED(BAD, "out", inflight_submitter_create(w.scheduler, MISALIGNED(&submitter), error));
    close_world(&w);
}

/* Through the scheduler and through a submitter. */
#define SUBMIT(wanted, field)                                                            \
    do {                                                                                 \
        REFUSED(wanted, field, inflight_scheduler_submit(w.scheduler, &request, error)); \
        REFUSED(wanted, field, inflight_submitter_submit(w.submitter, &request, error)); \
    } while (0)

static void request_faults(void) {
    struct world w = open_world();
    inflight_request good = new_request(100, PROMPT, 20, 4);
    inflight_request request = good;
    const inflight_content content = {(const uint8_t*)"image", 5, 0, 4};
    inflight_content bad_content = {NULL, 5, 0, 4};
    REFUSED(BAD, "scheduler", inflight_scheduler_submit(NULL, &request, error));
    REFUSED(BAD, "submitter", inflight_submitter_submit(NULL, &request, error));
    REFUSED(BAD, "request", inflight_scheduler_submit(w.scheduler, NULL, error));
    REFUSED(BAD, "request", inflight_submitter_submit(w.submitter, NULL, error));
    REFUSED(BAD, "request", inflight_scheduler_submit(w.scheduler, MISALIGNED(&request), error));
    REFUSED_SIZES(request, "request", inflight_scheduler_submit(w.scheduler, &request, error));
    REFUSED_SIZES(request, "request", inflight_submitter_submit(w.submitter, &request, error));
#define REQUEST(wanted, where, ...) \
    do {                            \
        request = good;             \
        __VA_ARGS__;                \
        SUBMIT(wanted, where);      \
    } while (0)
    static const uint32_t none[] = {1, 2, INFLIGHT_NO_TOKEN};
    REQUEST(BAD, "prompt", request.prompt = none; request.prompt_len = 3);
    REQUEST(BAD, "stop_tokens", request.stop_tokens = none; request.num_stop_tokens = 3);
    REQUEST(BAD, "prompt", request.prompt = NULL);
    REQUEST(BAD, "prompt", request.prompt = MISALIGNED(PROMPT));
    REQUEST(BAD, "prompt", request.prompt_len = 0);
    REQUEST(BAD, "prompt_len", request.prompt_len = SIZE_MAX);
    REQUEST(BAD, "prompt_len", request.prompt_len = SIZE_MAX / 4 + 2);
    REQUEST(BAD, "prompt_len", request.prompt_len = ABOVE_MAX);
    REQUEST(BAD, "max_tokens", request.max_tokens = 0);
    REQUEST(BAD, "stop_tokens", request.num_stop_tokens = 1);
    REQUEST(BAD, "num_stop_tokens", request.stop_tokens = PROMPT, request.num_stop_tokens = 65537);
    REQUEST(BAD, "num_stop_tokens", request.num_stop_tokens = SIZE_MAX);
    REQUEST(BAD, "stop_tokens", request.stop_tokens = MISALIGNED(PROMPT),
            request.num_stop_tokens = 1);
    REQUEST(BAD, "salt", request.salt_len = 1);
    REQUEST(BAD, "salt_len", request.salt = (const uint8_t*)"s", request.salt_len = 65537);
    REQUEST(BAD, "salt_len", request.salt_len = SIZE_MAX);
    REQUEST(BAD, "adapter", request.adapter_len = 1);
    REQUEST(BAD, "adapter_len", request.adapter = (const uint8_t*)"a", request.adapter_len = 65537);
    REQUEST(BAD, "adapter_len", request.adapter_len = SIZE_MAX);
    REQUEST(SIZE, "content_size", request.num_contents = 1);
    good.content_size = sizeof content;
    REQUEST(BAD, "contents", request.num_contents = 1);
    REQUEST(BAD, "contents", request.contents = MISALIGNED(&content), request.num_contents = 1);
    REQUEST(BAD, "num_contents", request.contents = &content, request.num_contents = 65537);
    REQUEST(BAD, "num_contents", request.num_contents = SIZE_MAX / 8);
    REQUEST(BAD, "contents.id", request.contents = &bad_content, request.num_contents = 1);
    bad_content = (inflight_content){content.id, 65537, 0, 4};
    REQUEST(BAD, "contents.id_len", request.contents = &bad_content, request.num_contents = 1);
    bad_content = (inflight_content){content.id, SIZE_MAX, 0, 4};
    REQUEST(BAD, "contents.id_len", request.contents = &bad_content, request.num_contents = 1);
    REQUEST(BAD, "skip_prefix_cache", request.skip_prefix_cache = 2);
    REQUEST(BAD, "repetition_count", request.repetition_count = 1);
    REQUEST(BAD, "repetition_max_pattern", request.repetition_count = 2);
    REQUEST(BAD, "repetition_max_pattern", request.repetition_count = 2,
            request.repetition_min_pattern = 3, request.repetition_max_pattern = 2);
    static const uint32_t long_prompt[128];
    REQUEST(INFLIGHT_STATUS_PROMPT_TOO_LONG, "", request.prompt = long_prompt,
            request.prompt_len = 128);
    request = good;
    request.id = 0;
    REFUSED(INFLIGHT_STATUS_DUPLICATE_REQUEST, "",
            inflight_scheduler_submit(w.scheduler, &request, error));

    /* What its detail cannot be written to has not been done. */
    request = good;
    struct state before = look(&w);
    inflight_error detail = new_error();
    CHECK(inflight_scheduler_submit(w.scheduler, &request, MISALIGNED(&detail)) == BAD);
    detail.struct_size = 3;
    CHECK(inflight_scheduler_submit(w.scheduler, &request, &detail) == SIZE);
    struct state after = look(&w);
    CHECK(memcmp(&before, &after, sizeof after) == 0);

    NEWER(inflight_request) newer;
    inflight_request_init(&newer.known, sizeof newer);
    newer.known.id = 100;
    newer.known.prompt = PROMPT;
    newer.known.prompt_len = 3;
    newer.known.max_tokens = 1;
    newer.later[0] = 1;
    REFUSED(SIZE, "request", inflight_scheduler_submit(w.scheduler, &newer.known, error));
    newer.later[0] = 0;
    CHECK(inflight_scheduler_submit(w.scheduler, &newer.known, NULL) == INFLIGHT_STATUS_OK);
    request.id = 101;
    CHECK(inflight_scheduler_submit(w.scheduler, &request, NULL) == INFLIGHT_STATUS_OK);
    request.id = 102;
    REFUSED(INFLIGHT_STATUS_QUEUE_FULL, "",
            inflight_scheduler_submit(w.scheduler, &request, error));
    /* A submitter counts what it has handed over, and hears of the rest with the next step. */
    inflight_status status = INFLIGHT_STATUS_OK;
    for (int i = 0; i <= WAITING && status == INFLIGHT_STATUS_OK; i++) {
        status = inflight_submitter_submit(w.submitter, &request, NULL);
    }
    REFUSED(INFLIGHT_STATUS_QUEUE_FULL, "",
            inflight_submitter_submit(w.submitter, &request, error));

    REFUSED(BAD, "scheduler", inflight_scheduler_cancel(NULL, 0, error));
    REFUSED(BAD, "submitter", inflight_submitter_cancel(NULL, 0, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_REQUEST, "",
            inflight_scheduler_cancel(w.scheduler, 999, error));
    inflight_request_result ended[2] = {{.num_prompt = 77}};
    REFUSED(BAD, "scheduler",
            inflight_scheduler_finish(NULL, 0, 1, ended, sizeof(inflight_request_result), error));
    REFUSED(BAD, "result",
            inflight_scheduler_finish(w.scheduler, 0, 1, MISALIGNED(ended),
                                      sizeof(inflight_request_result), error));
    REFUSED(SIZE, "result_size",
            inflight_scheduler_finish(w.scheduler, 0, 1, ended, sizeof *ended - 8, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_REQUEST, "",
            inflight_scheduler_finish(w.scheduler, 999, 1, ended, sizeof(inflight_request_result),
                                      error));
    CHECK(ended[0].num_prompt == 77);
    REFUSED(BAD, "submitter", inflight_submitter_finish(NULL, 0, 1, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_set_wake(NULL, NULL, NULL, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_set_draft(NULL, 0, PROMPT, 1, error));
    REFUSED(BAD, "draft", inflight_scheduler_set_draft(w.scheduler, 0, NULL, 1, error));
    REFUSED(BAD, "draft", inflight_scheduler_set_draft(w.scheduler, 0, PROMPT, SIZE_MAX, error));
    REFUSED(BAD, "draft",
            inflight_scheduler_set_draft(w.scheduler, 0, MISALIGNED(PROMPT), 1, error));
    REFUSED(BAD, "draft", inflight_scheduler_set_draft(w.scheduler, 0, PROMPT, 1, error));
    static const uint32_t no_token[] = {1, INFLIGHT_NO_TOKEN};
    REFUSED(BAD, "draft", inflight_scheduler_set_draft(w.scheduler, 100, no_token, 2, error));
    REFUSED(BAD, "draft_len",
            inflight_scheduler_set_draft(w.scheduler, 0, PROMPT, ABOVE_MAX, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_REQUEST, "",
            inflight_scheduler_set_draft(w.scheduler, 999, PROMPT, 1, error));
    close_world(&w);
}

/* Failures that are about one request say which. */
static void requests_of_faults(void) {
    struct world w = open_world();
    inflight_error error = new_error();
    inflight_request_snapshot snapshot;
    inflight_request_snapshot_init(&snapshot, sizeof snapshot);
    static const uint32_t long_prompt[128];
    const uint64_t big = UINT64_C(0xfedcba9876543210);
    inflight_request request = new_request(big, PROMPT, 20, 4);
#define ABOUT(id, status, call)                                    \
    do {                                                           \
        CHECK((call) == status && error.code == status);           \
        CHECK(error.has_request == 1 && error.request_id == (id)); \
    } while (0)
#define ABOUT_NONE(call)                                        \
    do {                                                        \
        error.request_id = error.has_request = 77;              \
        (void)(call);                                           \
        CHECK(error.has_request == 0 && error.request_id == 0); \
    } while (0)
    ABOUT(0, INFLIGHT_STATUS_DUPLICATE_REQUEST,
          (request.id = 0, inflight_scheduler_submit(w.scheduler, &request, &error)));
    ABOUT(999, INFLIGHT_STATUS_UNKNOWN_REQUEST,
          inflight_scheduler_cancel(w.scheduler, 999, &error));
    ABOUT(big, INFLIGHT_STATUS_UNKNOWN_REQUEST,
          inflight_scheduler_set_draft(w.scheduler, big, PROMPT, 1, &error));
    ABOUT(1, BAD, inflight_scheduler_set_draft(w.scheduler, 1, PROMPT, 1, &error));
    ABOUT(big, INFLIGHT_STATUS_UNKNOWN_REQUEST,
          inflight_scheduler_get_request(w.scheduler, big, &snapshot, &error));
#define ABOUT_SUBMIT(status, ...)                                                     \
    do {                                                                              \
        request = new_request(big, PROMPT, 20, 4);                                    \
        __VA_ARGS__;                                                                  \
        ABOUT(big, status, inflight_scheduler_submit(w.scheduler, &request, &error)); \
        ABOUT(big, status, inflight_submitter_submit(w.submitter, &request, &error)); \
    } while (0)
    ABOUT_SUBMIT(BAD, request.max_tokens = 0);
    ABOUT_SUBMIT(BAD, request.prompt = NULL);
    ABOUT_SUBMIT(BAD, request.skip_prefix_cache = 2);
    ABOUT_SUBMIT(INFLIGHT_STATUS_PROMPT_TOO_LONG, request.prompt = long_prompt,
                 request.prompt_len = 128);
    ABOUT_NONE(inflight_scheduler_submit(w.scheduler, NULL, &error));
    ABOUT_NONE(inflight_scheduler_cancel(NULL, 5, &error));
    ABOUT_NONE(inflight_scheduler_abandon(w.scheduler, 999, &error));
    ABOUT_NONE(inflight_scheduler_verify(w.scheduler, &error));
    CHECK(error.code == 0);
    for (int i = 1; i < WAITING; i++) {
        request = new_request(200 + (uint64_t)i, PROMPT, 20, 4);
        CHECK(inflight_scheduler_submit(w.scheduler, &request, NULL) == INFLIGHT_STATUS_OK);
    }
    request = new_request(big, PROMPT, 20, 4);
    ABOUT(big, INFLIGHT_STATUS_QUEUE_FULL,
          inflight_scheduler_submit(w.scheduler, &request, &error));
    close_world(&w);

    inflight_scheduler_config config = new_config(4);
    config.max_model_len = 4096;
    inflight_scheduler* small = new_scheduler(&config);
    request = new_request(big, PROMPT, 20, 400);
    ABOUT(big, INFLIGHT_STATUS_NEVER_FITS, inflight_scheduler_submit(small, &request, &error));
    inflight_scheduler_free(small);

    /* Where nobody said a limit, it says whence it is. */
    config.max_model_len = 0;
    small = new_scheduler(&config);
    request.prompt_len = 3 * config.block_size;
    ABOUT(big, INFLIGHT_STATUS_PROMPT_TOO_LONG, inflight_scheduler_submit(small, &request, &error));
    CHECK(strstr(error.message, "(all that 3 blocks hold)") != NULL);
    inflight_scheduler_free(small);
}

static void step_faults(void) {
    struct world w = open_world();
    inflight_step_view view = new_step(), view_before = view;
    inflight_outputs_view outputs = new_outputs();
    uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const inflight_samples good = new_samples(tokens, w.step.num_sampling);
    inflight_samples samples = good;
    uint64_t id = w.step.step_id;
    REFUSED(INFLIGHT_STATUS_TOO_MANY_STEPS_IN_FLIGHT, "",
            inflight_scheduler_schedule(w.scheduler, 2, &view, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_schedule(NULL, 2, &view, error));
    REFUSED(BAD, "view", inflight_scheduler_schedule(w.scheduler, 2, NULL, error));
    REFUSED(BAD, "view", inflight_scheduler_schedule(w.scheduler, 2, MISALIGNED(&view), error));
    REFUSED_SIZES(view, "view", inflight_scheduler_schedule(w.scheduler, 2, &view, error));
    CHECK(memcmp(&view, &view_before, sizeof view) == 0);

#define COMMIT(step) inflight_scheduler_commit(w.scheduler, step, &samples, &outputs, error)
#define SAMPLES(wanted, where, ...)         \
    do {                                    \
        samples = good;                     \
        __VA_ARGS__;                        \
        REFUSED(wanted, where, COMMIT(id)); \
    } while (0)
    REFUSED(BAD, "scheduler", inflight_scheduler_commit(NULL, id, &samples, &outputs, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_STEP, "", COMMIT(id + 1));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_STEP, "", COMMIT(UINT64_MAX));
    REFUSED(INFLIGHT_STATUS_OUTPUT_MISMATCH, "",
            inflight_scheduler_commit(w.scheduler, id, NULL, &outputs, error));
    REFUSED(BAD, "samples",
            inflight_scheduler_commit(w.scheduler, id, MISALIGNED(&samples), &outputs, error));
    REFUSED(BAD, "view",
            inflight_scheduler_commit(w.scheduler, id, &samples, MISALIGNED(&outputs), error));
    REFUSED_SIZES(samples, "samples", COMMIT(id));
    REFUSED_SIZES(outputs, "view", COMMIT(id));
    SAMPLES(BAD, "samples.tokens", samples.tokens = NULL);
    SAMPLES(BAD, "samples.tokens", samples.tokens = MISALIGNED(tokens));
    SAMPLES(BAD, "samples.tokens", samples.num_tokens = SIZE_MAX / 2);
    SAMPLES(INFLIGHT_STATUS_OUTPUT_MISMATCH, "", samples.num_tokens = 0);
    SAMPLES(INFLIGHT_STATUS_OUTPUT_MISMATCH, "", samples.num_tokens--);
    SAMPLES(INFLIGHT_STATUS_OUTPUT_MISMATCH, "", samples.num_tokens++);
    SAYS("samples of 4 came", COMMIT(id));
    samples.struct_size = 7;
    SAYS("not within", COMMIT(id));
    uint32_t indptr[4] = {0, 1, 2, 3};
    SAMPLES(BAD, "samples.indptr", samples.indptr_len = 4);
    SAMPLES(BAD, "samples.indptr", samples.indptr = MISALIGNED(indptr), samples.indptr_len = 3);
    SAMPLES(BAD, "samples.indptr", samples.indptr = indptr, samples.indptr_len = SIZE_MAX);
    const uint32_t wrong[][4] = {
        {0, 2, 2, 3}, {1, 1, 2, 3}, {0, 1, 2, 9}, {0, 2, 1, 3}, {3, 2, 1, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        samples = good;
        samples.indptr = wrong[i];
        samples.indptr_len = 4;
        struct state before = look(&w);
        inflight_error detail = new_error();
        inflight_status status =
            inflight_scheduler_commit(w.scheduler, id, &samples, &outputs, &detail);
        CHECK(status == BAD || status == INFLIGHT_STATUS_OUTPUT_MISMATCH);
        CHECK(detail.code == status && detail.message[0] != 0);
        struct state after = look(&w);
        CHECK(memcmp(&before, &after, sizeof after) == 0);
    }

    REFUSED(BAD, "scheduler", inflight_scheduler_abandon(NULL, id, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_STEP, "",
            inflight_scheduler_abandon(w.scheduler, id + 7, error));
    REFUSED(INFLIGHT_STATUS_OUT_OF_BLOCKS, "",
            inflight_scheduler_reset_prefix_cache(w.scheduler, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_reset_prefix_cache(NULL, error));

    /* Everything refused above goes well when it is right. */
    samples = good;
    NEWER(inflight_outputs_view) newer;
    inflight_outputs_view_init(&newer.known, sizeof newer);
    memset(newer.later, 0xa5, sizeof newer.later);
    inflight_error detail = new_error();
    detail.code = 77;
    CHECK(inflight_scheduler_commit(w.scheduler, id, &samples, &newer.known, &detail) == 0);
    CHECK(detail.code == 0 && detail.message[0] == 0 && detail.field[0] == 0);
    CHECK(newer.known.struct_size == sizeof newer && newer.known.num_outputs == 3);
    CHECK(newer.later[0] == 0xa5);
    REFUSED(INFLIGHT_STATUS_UNKNOWN_STEP, "", COMMIT(id));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_STEP, "", inflight_scheduler_abandon(w.scheduler, id, error));
    close_world(&w);
}

static void order_faults(void) {
    struct world w = open_world();
    inflight_scheduler_free(w.scheduler);
    inflight_submitter_free(w.submitter);
    inflight_scheduler_config config = new_config(64);
    config.max_steps_in_flight = 2;
    config.overlap = 1;
    w.scheduler = new_scheduler(&config);
    w.submitter = new_submitter(w.scheduler);
    inflight_request request = new_request(0, PROMPT, 20, 9);
    CHECK(inflight_scheduler_submit(w.scheduler, &request, NULL) == INFLIGHT_STATUS_OK);
    inflight_step_view first = new_step(), second = new_step();
    CHECK(inflight_scheduler_schedule(w.scheduler, 1, &first, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_scheduler_schedule(w.scheduler, 2, &second, NULL) == INFLIGHT_STATUS_OK);
    CHECK(second.num_pending == 1 && second.tokens[second.pending[0].token] == INFLIGHT_NO_TOKEN);
    uint32_t token = 5;
    inflight_samples samples = new_samples(&token, 1);
    REFUSED(INFLIGHT_STATUS_STEP_OUT_OF_ORDER, "",
            inflight_scheduler_commit(w.scheduler, second.step_id, &samples, NULL, error));
    REFUSED(INFLIGHT_STATUS_STEP_OUT_OF_ORDER, "",
            inflight_scheduler_abandon(w.scheduler, first.step_id, error));
    CHECK(inflight_scheduler_commit(w.scheduler, first.step_id, &samples, NULL, NULL) == 0);
    CHECK(inflight_scheduler_abandon(w.scheduler, second.step_id, NULL) == INFLIGHT_STATUS_OK);
    close_world(&w);
}

/* Runs a request of one token: how many events there are. */
static size_t events_of(inflight_scheduler* scheduler, uint64_t id) {
    inflight_request request = new_request(id, PROMPT, 3, 1);
    inflight_step_view step = new_step();
    uint32_t token = 5;
    const inflight_samples samples = new_samples(&token, 1);
    inflight_event events[8];
    size_t num_events = 77;
    CHECK(inflight_scheduler_submit(scheduler, &request, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_scheduler_schedule(scheduler, 1, &step, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_scheduler_commit(scheduler, step.step_id, &samples, NULL, NULL) == 0);
    CHECK(inflight_scheduler_events(scheduler, events, sizeof(inflight_event), 8, &num_events,
                                    NULL) == 0);
    return num_events;
}

/* A program that has no submitter need not know of events. */
static void events_begin_with_a_submitter(void) {
    inflight_scheduler_config config = new_config(64);
    for (config.events = 0; config.events <= 1; config.events++) {
        inflight_scheduler* scheduler = new_scheduler(&config);
        CHECK(events_of(scheduler, 1) == 0);
        CHECK(inflight_submitter_create(scheduler, NULL, NULL) == BAD);
        CHECK(events_of(scheduler, 2) == 0);
        inflight_submitter_free(new_submitter(scheduler));
        CHECK(events_of(scheduler, 3) == config.events);
        CHECK(events_of(scheduler, 4) == config.events);
        inflight_scheduler_free(scheduler);
    }
}

static void report_faults(void) {
    struct world w = open_world();
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    inflight_request_snapshot snapshot;
    inflight_request_snapshot_init(&snapshot, sizeof snapshot);
    inflight_event events[2];
    size_t num_events = 77;
    REFUSED(BAD, "scheduler", inflight_scheduler_get_stats(NULL, &stats, error));
    REFUSED(BAD, "stats", inflight_scheduler_get_stats(w.scheduler, NULL, error));
    REFUSED(BAD, "stats", inflight_scheduler_get_stats(w.scheduler, MISALIGNED(&stats), error));
    REFUSED_SIZES(stats, "stats", inflight_scheduler_get_stats(w.scheduler, &stats, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_get_request(NULL, 0, &snapshot, error));
    REFUSED(BAD, "snapshot", inflight_scheduler_get_request(w.scheduler, 0, NULL, error));
    REFUSED(BAD, "snapshot",
            inflight_scheduler_get_request(w.scheduler, 0, MISALIGNED(&snapshot), error));
    REFUSED_SIZES(snapshot, "snapshot",
                  inflight_scheduler_get_request(w.scheduler, 0, &snapshot, error));
    REFUSED(INFLIGHT_STATUS_UNKNOWN_REQUEST, "",
            inflight_scheduler_get_request(w.scheduler, 999, &snapshot, error));
    REFUSED(BAD, "scheduler", inflight_scheduler_verify(NULL, error));

    CHECK(inflight_submitter_cancel(w.submitter, 0, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_scheduler_abandon(w.scheduler, w.step.step_id, NULL) == INFLIGHT_STATUS_OK);
    CHECK(inflight_scheduler_schedule(w.scheduler, 2, &w.step, NULL) == INFLIGHT_STATUS_OK);
    REFUSED(BAD, "scheduler",
            inflight_scheduler_events(NULL, events, sizeof(inflight_event), 2, &num_events, error));
    REFUSED(BAD, "events",
            inflight_scheduler_events(w.scheduler, NULL, sizeof(inflight_event), 2, &num_events,
                                      error));
    REFUSED(BAD, "events",
            inflight_scheduler_events(w.scheduler, MISALIGNED(events), sizeof(inflight_event), 1,
                                      &num_events, error));
    REFUSED(BAD, "events",
            inflight_scheduler_events(w.scheduler, events, sizeof(inflight_event), SIZE_MAX / 16,
                                      &num_events, error));
    const size_t no_sizes[] = {0, sizeof *events - 8, sizeof *events + 4, 1 << 20, SIZE_MAX};
    for (size_t i = 0; i < sizeof no_sizes / sizeof *no_sizes; i++) {
        REFUSED(SIZE, "event_size",
                inflight_scheduler_events(w.scheduler, events, no_sizes[i], 1, &num_events, error));
    }
    CHECK(num_events == 77);
    REFUSED(BAD, "num_events",
            inflight_scheduler_events(w.scheduler, events, sizeof(inflight_event), 2, NULL, error));
    REFUSED(BAD, "num_events",
            inflight_scheduler_events(w.scheduler, events, sizeof(inflight_event), 2,
                                      MISALIGNED(&num_events), error));
    CHECK(inflight_scheduler_events(w.scheduler, NULL, sizeof(inflight_event), 0, &num_events,
                                    NULL) == 0);
    CHECK(num_events == 0);
    CHECK(inflight_scheduler_events(w.scheduler, events, sizeof(inflight_event), 2, &num_events,
                                    NULL) == 0);
    CHECK(num_events == 1 && events[0].kind == INFLIGHT_EVENT_CANCELLED);
    CHECK(events[0].request_id == 0);
    close_world(&w);
}

int main(void) {
    config_faults();
    request_faults();
    requests_of_faults();
    step_faults();
    order_faults();
    report_faults();
    events_begin_with_a_submitter();
    for (int32_t status = -1; status < 1000; status++) {
        CHECK(inflight_status_string(status)[0] != 0);
    }
    printf("%u wrong calls refused\n", num_refused);
    return EXIT_SUCCESS;
}
