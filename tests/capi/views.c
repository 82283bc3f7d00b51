/* What the header says of results: of the arrays of views, and of calls that fail. */
#include "check.h"

static const uint32_t PROMPT[20] = {7, 8, 9};

/* An array of a view and its length. */
static void is_array(const void* array, size_t length) { CHECK((array == NULL) == (length == 0)); }

/* An array that lies in `packed`. */
static void is_packed(const inflight_step_view* step, const void* array, size_t size) {
    size_t at = (size_t)((const uint8_t*)array - step->packed);
    CHECK(array == NULL || (at % 16 == 0 && at + size <= step->packed_size));
}

static void is_step(const inflight_step_view* step) {
    CHECK(step->num_groups == 1 && step->groups->struct_size == sizeof(inflight_group));
    const inflight_group* group = step->groups;
    CHECK(step->row_size == sizeof(inflight_row));
    CHECK(step->pending_size == sizeof(inflight_pending_token));
    CHECK(step->block_op_size == sizeof(inflight_block_op));
    CHECK((uintptr_t)step->packed % 16 == 0);
    is_packed(step, step->tokens, 4 * (size_t)step->num_tokens);
    is_packed(step, step->positions, 4 * (size_t)step->num_tokens);
    is_packed(step, group->slot_mapping, 8 * (size_t)step->num_tokens);
    is_packed(step, step->qo_indptr, 4 * ((size_t)step->num_padded_rows + 1));
    is_packed(step, group->kv_indptr, 4 * ((size_t)step->num_padded_rows + 1));
    is_packed(step, group->kv_indices, 4 * (size_t)group->num_kv_blocks);
    is_packed(step, group->kv_last_page_len, 4 * (size_t)step->num_padded_rows);
    is_packed(step, step->logits_indices, 4 * (size_t)step->num_logits);
    is_packed(step, step->pending, 12 * (size_t)step->num_pending);
    is_packed(step, step->block_ops, 12 * (size_t)step->num_block_ops);
    is_array(step->rows, step->num_rows);
    is_array(step->tokens, step->num_tokens);
    is_array(step->positions, step->num_tokens);
    is_array(group->slot_mapping, step->num_tokens);
    is_array(step->qo_indptr, step->num_padded_rows + 1);
    is_array(group->kv_indptr, step->num_padded_rows + 1);
    is_array(group->kv_indices, group->num_kv_blocks);
    is_array(group->kv_last_page_len, step->num_padded_rows);
    is_array(step->logits_indices, step->num_logits);
    is_array(step->pending, step->num_pending);
    is_array(step->block_ops, step->num_block_ops);
    is_array(step->preempted, step->num_preempted);
    is_array(step->packed, step->packed_size);
}

/* Steps without requests, of a chunk that does not sample, and of decodes. */
static void empty_arrays_are_null(void) {
    inflight_scheduler_config config = new_config(64);
    config.max_num_batched_tokens = 12;
    inflight_scheduler* scheduler = new_scheduler(&config);
    inflight_request request = new_request(1, PROMPT, 20, 3);
    uint32_t num_empty = 0, num_delivered = 0;
    for (uint64_t now = 0; now < 5; now++) {
        inflight_step_view step = new_step();
        inflight_outputs_view outputs = new_outputs();
        CHECK(inflight_scheduler_schedule(scheduler, now, &step, NULL) == 0);
        is_step(&step);
        num_empty += step.num_rows == 0;
        inflight_samples samples = new_samples(PROMPT, step.num_sampling);
        CHECK(inflight_scheduler_commit(scheduler, step.step_id, &samples, &outputs, NULL) == 0);
        CHECK(outputs.output_size == sizeof(inflight_output));
        CHECK(outputs.result_size == sizeof(inflight_request_result));
        is_array(outputs.outputs, outputs.num_outputs);
        is_array(outputs.tokens, outputs.num_tokens);
        is_array(outputs.released, outputs.num_released);
        num_delivered += outputs.num_tokens;
        if (now == 0) {
            CHECK(inflight_scheduler_submit(scheduler, &request, NULL) == 0);
        }
    }
    CHECK(num_empty == 1 && num_delivered == 3);
    inflight_scheduler_free(scheduler);
}

/* Outputs are written on success alone, and 0 is no sequence. */
static void a_failed_call_writes_nothing(void) {
    inflight_cache_config config;
    inflight_cache_config_init(&config, sizeof config);
    config.num_blocks = 8;
    inflight_cache* cache = NULL;
    CHECK(inflight_cache_create(&config, &cache, NULL) == 0);
    uint64_t first = 0, child = 77, number = 77;
    uint32_t block;
    const uint32_t* table = &block;
    size_t length = 77;
    CHECK(inflight_cache_open(cache, NULL, &first, NULL) == 0 && first != 0);
    CHECK(inflight_cache_close(cache, 0, NULL) == INFLIGHT_STATUS_INVALID_ARGUMENT);
    CHECK(inflight_cache_fork(cache, 0, &child, NULL) == INFLIGHT_STATUS_INVALID_ARGUMENT);
    CHECK(inflight_cache_lookup(cache, 0, 1, &number, NULL) == INFLIGHT_STATUS_INVALID_ARGUMENT);
    CHECK(inflight_cache_allocate(cache, first, 0, 0, 1 << 20, &number, NULL) ==
          INFLIGHT_STATUS_INVALID_ARGUMENT);
    CHECK(inflight_cache_table(cache, 0, &table, &length, NULL) ==
          INFLIGHT_STATUS_INVALID_ARGUMENT);
    CHECK(child == 77 && number == 77 && table == &block && length == 77);
    CHECK(inflight_cache_table(cache, first, &table, &length, NULL) == 0);
    is_array(table, length);
    CHECK(length == 0);
    inflight_cache_free(cache);
}

/* With overlap: a token is of the step whose id the view says, also past one that was abandoned. */
static void pending_tokens_name_their_step(void) {
    inflight_scheduler_config config = new_config(64);
    config.max_steps_in_flight = 2;
    config.overlap = 1;
    inflight_scheduler* scheduler = new_scheduler(&config);
    inflight_request request = new_request(1, PROMPT, 20, 5);
    CHECK(inflight_scheduler_submit(scheduler, &request, NULL) == 0);
    inflight_step_view first = new_step(), step = new_step();
    CHECK(inflight_scheduler_schedule(scheduler, 0, &first, NULL) == 0);
    for (uint64_t now = 1; now < 4; now++) {
        CHECK(inflight_scheduler_schedule(scheduler, now, &step, NULL) == 0);
        is_step(&step);
        CHECK(step.num_pending == 1);
        CHECK(step.step_id - step.pending[0].steps_back == first.step_id);
        CHECK(inflight_scheduler_abandon(scheduler, step.step_id, NULL) == 0);
    }
    CHECK(step.step_id == first.step_id + 3);
    inflight_scheduler_free(scheduler);
}

/* A program of a later version has larger elements: they are read and written at its distances. */
static void elements_are_as_far_apart_as_said(void) {
    const uint8_t id[4] = {1, 2, 3, 4};
    struct {
        inflight_content known;
        uint64_t later;
    } contents[2] = {{{id, 4, 0, 1}, 0}, {{id, 4, 1, 1}, 0}};
    struct {
        inflight_event known;
        uint64_t later;
    } events[2];
    inflight_scheduler_config config = new_config(64);
    inflight_scheduler* scheduler = new_scheduler(&config);
    inflight_submitter* submitter = new_submitter(scheduler);
    inflight_request request = new_request(7, PROMPT, 20, 1);
    request.contents = &contents[0].known;
    request.num_contents = 2;
    request.content_size = sizeof *contents;
    contents[1].later = 1;
    CHECK(inflight_submitter_submit(submitter, &request, NULL) == INFLIGHT_STATUS_STRUCT_SIZE);
    contents[1].later = 0;
    CHECK(inflight_submitter_submit(submitter, &request, NULL) == INFLIGHT_STATUS_OK);
    inflight_step_view step = new_step();
    CHECK(inflight_scheduler_schedule(scheduler, 0, &step, NULL) == INFLIGHT_STATUS_OK);
    inflight_samples samples = new_samples(PROMPT, step.num_sampling);
    CHECK(inflight_scheduler_commit(scheduler, step.step_id, &samples, NULL, NULL) == 0);
    memset(events, 0xa5, sizeof events);
    size_t n = 0;
    CHECK(inflight_scheduler_events(scheduler, &events[0].known, sizeof *events, 2, &n, NULL) == 0);
    CHECK(n == 1 && events[0].known.request_id == 7 && events[0].known.result.num_output == 1);
    CHECK(events[0].later == 0 && events[1].later == UINT64_C(0xa5a5a5a5a5a5a5a5));
    inflight_submitter_free(submitter);
    inflight_scheduler_free(scheduler);
}

int main(void) {
    elements_are_as_far_apart_as_said();
    pending_tokens_name_their_step();
    a_failed_call_writes_nothing();
    empty_arrays_are_null();
    return EXIT_SUCCESS;
}
