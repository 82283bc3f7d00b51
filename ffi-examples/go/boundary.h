/* The calls of a scheduler as Go makes them: one crossing each, scalars and flat arrays in, results
 * into memory of C's, so that no pointer of Go's stands in memory that is passed. */
#ifndef INFLIGHT_GO_BORDER_H
#define INFLIGHT_GO_BORDER_H

#include <inflight.h>
#include <stdlib.h>

/* Where the calls of one scheduler write. */
typedef struct boundary {
    inflight_scheduler *scheduler;
    inflight_step_view step;
    inflight_outputs_view outputs;
    inflight_scheduler_stats stats;
    inflight_request_snapshot snapshot;
    inflight_request_result result;
    inflight_error error;
    size_t num_events;
} boundary;

static inline boundary *boundary_create(const inflight_scheduler_config *config,
                                    inflight_error *error, inflight_status *status) {
    boundary *b = calloc(1, sizeof *b);
    if (b == NULL) {
        abort(); /* as Go itself does where memory is out */
    }
    inflight_step_view_init(&b->step, sizeof b->step);
    inflight_outputs_view_init(&b->outputs, sizeof b->outputs);
    inflight_scheduler_stats_init(&b->stats, sizeof b->stats);
    inflight_request_snapshot_init(&b->snapshot, sizeof b->snapshot);
    inflight_error_init(&b->error, sizeof b->error);
    *status = inflight_scheduler_create(config, &b->scheduler, error);
    if (*status != INFLIGHT_STATUS_OK) {
        free(b);
        return NULL;
    }
    return b;
}

static inline void boundary_free(boundary *b) {
    inflight_scheduler_free(b->scheduler);
    free(b);
}

static inline inflight_status boundary_schedule(boundary *b, uint64_t now) {
    return inflight_scheduler_schedule(b->scheduler, now, &b->step, &b->error);
}

static inline inflight_status boundary_commit(boundary *b, uint64_t step_id, const uint32_t *tokens,
                                            size_t num_tokens, const uint32_t *indptr,
                                            size_t indptr_len) {
    inflight_samples samples;
    inflight_samples_init(&samples, sizeof samples);
    samples.tokens = tokens;
    samples.num_tokens = num_tokens;
    samples.indptr = indptr;
    samples.indptr_len = indptr_len;
    return inflight_scheduler_commit(b->scheduler, step_id, &samples, &b->outputs, &b->error);
}

static inline inflight_status boundary_abandon(boundary *b, uint64_t step_id) {
    return inflight_scheduler_abandon(b->scheduler, step_id, &b->error);
}

static inline inflight_status boundary_events(boundary *b, inflight_event *events, size_t capacity) {
    return inflight_scheduler_events(b->scheduler, events, sizeof *events, capacity, &b->num_events, &b->error);
}

static inline inflight_status boundary_submit(boundary *b, const inflight_request *request) {
    return inflight_scheduler_submit(b->scheduler, request, &b->error);
}

static inline inflight_status boundary_cancel(boundary *b, uint64_t id) {
    return inflight_scheduler_cancel(b->scheduler, id, &b->error);
}

static inline inflight_status boundary_set_draft(boundary *b, uint64_t id, const uint32_t *draft,
                                               size_t draft_len) {
    return inflight_scheduler_set_draft(b->scheduler, id, draft, draft_len, &b->error);
}

static inline inflight_status boundary_get_stats(boundary *b) {
    return inflight_scheduler_get_stats(b->scheduler, &b->stats, &b->error);
}

static inline inflight_status boundary_get_request(boundary *b, uint64_t id) {
    return inflight_scheduler_get_request(b->scheduler, id, &b->snapshot, &b->error);
}

static inline inflight_status boundary_verify(boundary *b) {
    return inflight_scheduler_verify(b->scheduler, &b->error);
}

static inline inflight_status boundary_reset_prefix_cache(boundary *b) {
    return inflight_scheduler_reset_prefix_cache(b->scheduler, &b->error);
}

static inline inflight_status boundary_finish(boundary *b, uint64_t id, uint32_t keep_tokens) {
    return inflight_scheduler_finish(b->scheduler, id, keep_tokens, &b->result, sizeof b->result,
                                     &b->error);
}

/* Go's, in wake.go. */
extern void inflightGoWake(uintptr_t handle);

static void boundary_wake(void *handle) { inflightGoWake((uintptr_t)handle); }

/* Has the function behind the handle called; 0 for none. */
static inline inflight_status boundary_set_wake(boundary *b, uintptr_t handle) {
    return inflight_scheduler_set_wake(b->scheduler, handle != 0 ? boundary_wake : NULL,
                                       (void *)handle, &b->error);
}

static inline inflight_status boundary_submitter_create(boundary *b, inflight_submitter **out) {
    return inflight_submitter_create(b->scheduler, out, &b->error);
}

#endif
