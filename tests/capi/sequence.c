/* Random calls, right and wrong, each written down with what it came to: a line a call. The test
 * makes the same calls of the Rust library and compares.
 *
 *     sequence <seed> <calls>
 *
 * Prompts follow from two numbers, and what is large is written as a digest of all its values.
 */
#include <inttypes.h>

#include "check.h"

enum { MAX_IN_FLIGHT = 3, IDS = 40 };

static uint64_t rng;
static inflight_scheduler* scheduler;
static inflight_submitter* submitter;
static inflight_scheduler_config config;
static inflight_error error;
static uint64_t now;

/* Steps in flight, oldest first, with the digest that each view had. */
static inflight_step_view flying[MAX_IN_FLIGHT];
static uint64_t digests[MAX_IN_FLIGHT];
static uint32_t num_flying;

static uint64_t digest;

static void add(uint64_t value) {
    for (int byte = 0; byte < 8; byte++) {
        digest = (digest ^ (value >> (8 * byte) & 0xff)) * UINT64_C(0x100000001b3);
    }
}

static void begin_digest(void) { digest = UINT64_C(0xcbf29ce484222325); }

#define ADD_ALL(array, count)                       \
    do {                                            \
        add(count);                                 \
        for (uint32_t at = 0; at < (count); at++) { \
            add((uint64_t)(array)[at]);             \
        }                                           \
    } while (0)

static uint64_t digest_of(const inflight_step_view* step) {
    begin_digest();
    add(step->step_id);
    add(step->num_rows);
    for (uint32_t r = 0; r < step->num_rows; r++) {
        const inflight_row* row = INFLIGHT_AT(inflight_row, step->rows, step->row_size, r);
        add(row->request_id);
        add(row->num_tokens);
        add(row->num_computed);
        add(row->num_draft);
        add(row->num_output);
        add(row->flags);
    }
    ADD_ALL(step->tokens, step->num_tokens);
    ADD_ALL(step->positions, step->num_tokens);
    CHECK(step->num_groups == 1 && step->groups->struct_size == sizeof(inflight_group));
    const inflight_group* group = step->groups;
    ADD_ALL(group->slot_mapping, step->num_tokens);
    ADD_ALL(step->qo_indptr, step->num_padded_rows + 1);
    ADD_ALL(group->kv_indptr, step->num_padded_rows + 1);
    ADD_ALL(group->kv_indices, group->num_kv_blocks);
    ADD_ALL(group->kv_last_page_len, step->num_padded_rows);
    ADD_ALL(step->logits_indices, step->num_logits);
    ADD_ALL((const uint32_t*)step->pending, 3 * step->num_pending);
    ADD_ALL((const uint32_t*)step->block_ops, 3 * step->num_block_ops);
    ADD_ALL(step->preempted, step->num_preempted);
    ADD_ALL(step->packed, (uint32_t)step->packed_size);
    add(step->num_sampling);
    add(group->block_size);
    add(step->max_q_len);
    add(step->max_kv_len);
    add(step->num_running);
    add(step->num_waiting);
    add(step->num_free_blocks);
    return digest;
}

static void end_line(inflight_status status) {
    CHECK(error.code == status && (status == 0) == (error.message[0] == 0));
    printf(" = %d\n", status);
}

static uint32_t prompt_token(uint32_t kind, uint32_t at) {
    return (kind * 7919 + at * 104729) % 97;
}

static uint32_t one_in(uint32_t n) { return below(&rng, n) == 0; }

static void open_all(void) {
    inflight_scheduler_config_init(&config, sizeof config);
    config.num_blocks = 8 + below(&rng, 60);
    config.block_size = 1 + below(&rng, 8);
    config.num_host_blocks = one_in(2) ? below(&rng, 30) : 0;
    config.max_waiting = one_in(3) ? 5 : UINT64_MAX;
    config.max_num_seqs = 1 + below(&rng, 8);
    config.max_num_batched_tokens = 4 + below(&rng, 40);
    config.max_model_len = 12 + below(&rng, 40);
    config.long_prefill_token_threshold = one_in(3) ? 5 : 0;
    config.max_steps_in_flight = 1 + below(&rng, MAX_IN_FLIGHT);
    config.prefix_cache = !one_in(3);
    config.overlap = one_in(2);
    config.swap = one_in(2);
    config.policy = below(&rng, INFLIGHT_POLICY_ORCA + 1);
    config.bypass_bound = one_in(3) ? 2 : 0;
    config.bypass_lookahead = 3;
    config.max_padded_rows = one_in(3) ? 16 : 0;
    printf("open %" PRIu64 " %u %" PRIu64 " %" PRIu64 " %u %u %u %u %u %u %u %u %u %u %u %u",
           config.num_blocks, config.block_size, config.num_host_blocks, config.max_waiting,
           config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len,
           config.long_prefill_token_threshold, config.max_steps_in_flight, config.prefix_cache,
           config.overlap, config.swap, config.policy, config.bypass_bound, config.bypass_lookahead,
           config.max_padded_rows);
    end_line(inflight_scheduler_create(&config, &scheduler, &error));
    CHECK(scheduler != NULL);
    submitter = new_submitter(scheduler);
    num_flying = 0;
    now = 0;
}

static void close_all(void) {
    /* In any order. */
    if (one_in(2)) {
        inflight_submitter_free(submitter);
        inflight_scheduler_free(scheduler);
    } else {
        inflight_scheduler_free(scheduler);
        inflight_submitter_free(submitter);
    }
}

static void submit(int hand_over) {
    uint32_t prompt[64], kind = below(&rng, 4);
    uint32_t len = one_in(30) ? 0 : 1 + below(&rng, one_in(10) ? 60 : 24);
    for (uint32_t i = 0; i < len; i++) {
        prompt[i] = prompt_token(kind, i);
    }
    inflight_request request = new_request(below(&rng, IDS), prompt, len, below(&rng, 20));
    uint32_t stop = below(&rng, 97);
    uint8_t salt = (uint8_t)below(&rng, 2);
    request.eos = one_in(2) ? below(&rng, 97) : INFLIGHT_NO_TOKEN;
    request.stop_tokens = &stop;
    request.num_stop_tokens = one_in(3);
    request.salt = &salt;
    request.salt_len = one_in(4);
    request.client = below(&rng, 3);
    request.arrival = one_in(3) ? now : INFLIGHT_NOW;
    request.priority = (int32_t)below(&rng, 3) - 1;
    request.min_tokens = below(&rng, 3);
    if (one_in(4)) {
        request.repetition_count = 1 + below(&rng, 3);
        request.repetition_max_pattern = 2;
    }
    request.skip_prefix_cache = one_in(8) ? 1 + one_in(4) : 0;
    printf("%s %" PRIu64 " %u %u %u %u %u %d %d %d %" PRIu64 " %" PRIu64 " %d %u %u %u",
           hand_over ? "hand-over" : "submit", request.id, kind, len, request.max_tokens,
           request.eos, stop, (int)request.num_stop_tokens, salt, (int)request.salt_len,
           request.client, request.arrival, request.priority, request.min_tokens,
           request.repetition_count, request.skip_prefix_cache);
    end_line(hand_over ? inflight_submitter_submit(submitter, &request, &error)
                       : inflight_scheduler_submit(scheduler, &request, &error));
    memset(prompt, 0xff, sizeof prompt);
}

static void schedule(void) {
    now += below(&rng, 1000);
    inflight_step_view step = new_step();
    inflight_status status = inflight_scheduler_schedule(scheduler, now, &step, &error);
    printf("schedule %" PRIu64 " %" PRIu64, now, status == 0 ? digest_of(&step) : 0);
    if (status == INFLIGHT_STATUS_OK) {
        CHECK(num_flying < config.max_steps_in_flight);
        digests[num_flying] = digest;
        flying[num_flying++] = step;
    }
    end_line(status);
}

static void add_result(const inflight_request_result* result) {
    const uint64_t of[] = {result->first_scheduled_at, result->first_token_at,
                           result->num_prompt,         result->num_output,
                           result->num_cached,         result->num_preemptions,
                           result->num_drafts,         result->num_accepted};
    ADD_ALL(of, 8);
}

/* The oldest step, another, or none; right samples, or a token too many. */
static void commit(void) {
    uint32_t tokens[256], indptr[64] = {0}, n = 0, sampling = 0;
    uint32_t which = num_flying == 0 || one_in(20) ? below(&rng, MAX_IN_FLIGHT) : 0;
    uint64_t id = which < num_flying ? flying[which].step_id : 1000000;
    int ragged = one_in(2);
    if (which < num_flying) {
        const inflight_step_view* step = &flying[which];
        CHECK(digest_of(step) == digests[which]);
        for (uint32_t r = 0; r < step->num_rows; r++) {
            const inflight_row* row = INFLIGHT_AT(inflight_row, step->rows, step->row_size, r);
            if (!(row->flags & INFLIGHT_ROW_SAMPLES)) {
                continue;
            }
            /* Some drafts are right; with none of them there is one token a row. */
            uint32_t accepted = ragged && row->num_draft ? below(&rng, row->num_draft + 1) : 0;
            for (uint32_t i = 0; i < accepted; i++) {
                tokens[n++] = step->tokens[step->qo_indptr[r + 1] - row->num_draft + i];
            }
            tokens[n++] = below(&rng, 97);
            indptr[++sampling] = n;
        }
    }
    uint32_t given = n + one_in(30);
    tokens[n] = 5;
    inflight_samples samples = new_samples(tokens, given);
    if (ragged) {
        samples.indptr = indptr;
        samples.indptr_len = sampling + 1;
    }
    inflight_outputs_view view = new_outputs();
    inflight_status status = inflight_scheduler_commit(scheduler, id, &samples, &view, &error);
    begin_digest();
    if (status == INFLIGHT_STATUS_OK) {
        CHECK(which == 0);
        num_flying--;
        memmove(flying, flying + 1, num_flying * sizeof *flying);
        memmove(digests, digests + 1, num_flying * sizeof *digests);
        add(view.step_id);
        for (uint32_t i = 0; i < view.num_outputs; i++) {
            const inflight_output* output =
                INFLIGHT_AT(inflight_output, view.outputs, view.output_size, i);
            add(output->request_id);
            add(output->finish);
            add(output->stop_token);
            ADD_ALL(view.tokens + output->first_token, output->num_tokens);
            if (output->finish != INFLIGHT_FINISH_NONE) {
                CHECK(output->result < view.num_results);
                add_result(INFLIGHT_AT(inflight_request_result, view.results, view.result_size,
                                       output->result));
            }
        }
        add(view.num_tokens);
        ADD_ALL(view.released, view.num_released);
        add(view.num_free_blocks);
    }
    printf("commit %" PRIu64 " %d", id, ragged);
    for (uint32_t i = 0; i < given; i++) {
        printf(" %u", tokens[i]);
    }
    for (uint32_t i = 0; ragged && i <= sampling; i++) {
        printf("%s%u", i == 0 ? " / " : " ", indptr[i]);
    }
    printf(" | %" PRIu64, status == 0 ? digest : 0);
    end_line(status);
}

static void abandon(void) {
    uint32_t which = num_flying > 0 && !one_in(10) ? num_flying - 1 : below(&rng, MAX_IN_FLIGHT);
    uint64_t id = which < num_flying ? flying[which].step_id : 1000000;
    inflight_status status = inflight_scheduler_abandon(scheduler, id, &error);
    num_flying -= status == INFLIGHT_STATUS_OK;
    printf("abandon %" PRIu64, id);
    end_line(status);
}

static void draft(void) {
    uint32_t tokens[4], len = below(&rng, 5), base = below(&rng, 97);
    for (uint32_t i = 0; i < len; i++) {
        tokens[i] = base + i;
    }
    uint64_t id = below(&rng, IDS);
    printf("draft %" PRIu64 " %u %u", id, base, len);
    end_line(inflight_scheduler_set_draft(scheduler, id, len ? tokens : NULL, len, &error));
}

static void take_events(void) {
    inflight_event events[8];
    size_t n = 77, capacity = below(&rng, 9);
    inflight_status status =
        inflight_scheduler_events(scheduler, events, sizeof(inflight_event), capacity, &n, &error);
    CHECK(n <= capacity);
    begin_digest();
    for (size_t i = 0; i < n; i++) {
        add(events[i].request_id);
        add(events[i].client);
        add(events[i].step_id);
        add(events[i].kind);
        add((uint64_t)events[i].status);
        add(events[i].finish);
        add(events[i].stop_token);
        add_result(&events[i].result);
    }
    printf("events %zu %zu %" PRIu64, capacity, n, digest);
    end_line(status);
}

static void finish(uint64_t id) {
    inflight_request_result result;
    uint32_t keep = below(&rng, 6);
    inflight_request_result* to = one_in(4) ? NULL : &result;
    inflight_status status =
        inflight_scheduler_finish(scheduler, id, keep, to, sizeof(inflight_request_result), &error);
    begin_digest();
    if (status == INFLIGHT_STATUS_OK && to != NULL) {
        add_result(to);
    }
    printf("finish %" PRIu64 " %u %d %" PRIu64, id, keep, to != NULL, digest);
    end_line(status);
}

static void look(void) {
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    CHECK(inflight_scheduler_get_stats(scheduler, &stats, NULL) == INFLIGHT_STATUS_OK);
    begin_digest();
    const uint64_t values[] = {stats.steps,
                               stats.admissions,
                               stats.preemptions,
                               stats.finished,
                               stats.cancelled,
                               stats.output_tokens,
                               stats.prefix_queried_tokens,
                               stats.prefix_hit_tokens,
                               stats.evicted_blocks,
                               stats.num_running,
                               stats.num_waiting,
                               stats.num_free_blocks,
                               stats.num_free_host_blocks};
    ADD_ALL(values, (uint32_t)(sizeof values / sizeof *values));
    uint64_t id = below(&rng, IDS);
    inflight_request_snapshot snapshot;
    inflight_request_snapshot_init(&snapshot, sizeof snapshot);
    inflight_status status = inflight_scheduler_get_request(scheduler, id, &snapshot, &error);
    if (status == INFLIGHT_STATUS_OK) {
        const uint64_t of[] = {snapshot.client,        snapshot.running,
                               snapshot.num_prompt,    snapshot.num_output,
                               snapshot.num_computed,  snapshot.num_preemptions,
                               snapshot.num_cached,    snapshot.num_drafts,
                               snapshot.num_accepted,  snapshot.first_scheduled_at,
                               snapshot.first_token_at};
        ADD_ALL(of, 11);
    }
    printf("look %" PRIu64 " %" PRIu64, id, digest);
    end_line(status);
}

/* A call that no scheduler is to notice. */
static void wrong(void) {
    inflight_request request = new_request(below(&rng, IDS), NULL, 3, 4);
    inflight_step_view step = new_step();
    inflight_samples samples = new_samples(NULL, 0);
    inflight_event event;
    inflight_status status = 0;
    size_t n;
    switch (below(&rng, 8)) {
        case 0:
            status = inflight_scheduler_submit(scheduler, &request, &error);
            break;
        case 1:
            status = inflight_submitter_submit(submitter, &request, &error);
            break;
        case 2:
            status = inflight_scheduler_submit(NULL, &request, &error);
            break;
        case 3:
            status = inflight_scheduler_schedule(scheduler, now, NULL, &error);
            break;
        case 4:
            step.struct_size = 8;
            status = inflight_scheduler_schedule(scheduler, now, &step, &error);
            break;
        case 5:
            samples.indptr_len = 3;
            status = inflight_scheduler_commit(scheduler, 0, &samples, NULL, &error);
            break;
        case 6:
            status =
                inflight_scheduler_events(scheduler, NULL, sizeof(inflight_event), 3, &n, &error);
            break;
        case 7:
            status = inflight_scheduler_events(scheduler, &event, sizeof(inflight_event), 1, NULL,
                                               &error);
            break;
    }
    CHECK(status >= 100 && status < 200);
    printf("wrong");
    end_line(status);
}

static void call(void) {
    uint32_t kind = below(&rng, 100);
    uint64_t id = below(&rng, IDS);
    if (kind < 14) {
        submit(0);
    } else if (kind < 20) {
        submit(1);
    } else if (kind < 21) {
        if (one_in(2)) {
            finish(id);
        } else {
            uint32_t keep = below(&rng, 6);
            printf("ask-finish %" PRIu64 " %u", id, keep);
            end_line(inflight_submitter_finish(submitter, id, keep, &error));
        }
    } else if (kind < 23) {
        printf("cancel %" PRIu64, id);
        end_line(inflight_scheduler_cancel(scheduler, id, &error));
    } else if (kind < 25) {
        printf("ask-cancel %" PRIu64, id);
        end_line(inflight_submitter_cancel(submitter, id, &error));
    } else if (kind < 79) {
        /* What makes sense, but for now and then. */
        int full = num_flying == config.max_steps_in_flight;
        if (one_in(10) ? one_in(2) : !full && (num_flying == 0 || one_in(2))) {
            schedule();
        } else {
            commit();
        }
    } else if (kind < 82) {
        abandon();
    } else if (kind < 86) {
        draft();
    } else if (kind < 90) {
        take_events();
    } else if (kind < 93) {
        look();
    } else if (kind < 94) {
        printf("reset");
        end_line(inflight_scheduler_reset_prefix_cache(scheduler, &error));
    } else if (kind < 96) {
        CHECK(inflight_scheduler_verify(scheduler, &error) == INFLIGHT_STATUS_OK);
        printf("verify");
        end_line(INFLIGHT_STATUS_OK);
    } else {
        wrong();
    }
}

int main(int argc, char** argv) {
    CHECK(argc == 3);
    rng = strtoull(argv[1], NULL, 10);
    error = new_error();
    long calls = strtol(argv[2], NULL, 10);
    while (calls > 0) {
        open_all();
        for (long n = 1500; n > 0 && calls > 0; n--, calls--) {
            call();
        }
        close_all();
    }
    return EXIT_SUCCESS;
}
