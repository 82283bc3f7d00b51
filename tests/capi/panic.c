/* With a library that panics where INFLIGHT_PANIC says (--cfg inflight_inject_panic): every call
 * turns a panic into a status, its handle refuses all further calls and can be freed, and other
 * handles go on.
 */
#include "check.h"

static inflight_scheduler* scheduler;
static inflight_submitter* submitter;
static inflight_step_view step;
static inflight_scheduler_stats stats;
static inflight_request_snapshot snapshot;
static size_t num_events;
static int lines;

static inflight_status submit(inflight_error* e) {
    static const uint32_t prompt[] = {1, 2, 3};
    inflight_request request = new_request(9, prompt, 3, 4);
    return inflight_scheduler_submit(scheduler, &request, e);
}
static inflight_status cancel(inflight_error* e) {
    return inflight_scheduler_cancel(scheduler, 0, e);
}
static inflight_status finish(inflight_error* e) {
    return inflight_scheduler_finish(scheduler, 0, 1, NULL, sizeof(inflight_request_result), e);
}
static inflight_status set_wake(inflight_error* e) {
    return inflight_scheduler_set_wake(scheduler, NULL, NULL, e);
}
static inflight_status set_draft(inflight_error* e) {
    return inflight_scheduler_set_draft(scheduler, 0, NULL, 0, e);
}
static inflight_status schedule(inflight_error* e) {
    return inflight_scheduler_schedule(scheduler, 5, &step, e);
}
static inflight_status commit(inflight_error* e) {
    return inflight_scheduler_commit(scheduler, 0, NULL, NULL, e);
}
static inflight_status abandon(inflight_error* e) {
    return inflight_scheduler_abandon(scheduler, 0, e);
}
static inflight_status events(inflight_error* e) {
    return inflight_scheduler_events(scheduler, NULL, sizeof(inflight_event), 0, &num_events, e);
}
static inflight_status get_stats(inflight_error* e) {
    return inflight_scheduler_get_stats(scheduler, &stats, e);
}
static inflight_status get_request(inflight_error* e) {
    return inflight_scheduler_get_request(scheduler, 0, &snapshot, e);
}
static inflight_status verify(inflight_error* e) { return inflight_scheduler_verify(scheduler, e); }
static inflight_status reset(inflight_error* e) {
    return inflight_scheduler_reset_prefix_cache(scheduler, e);
}
static inflight_status make_submitter(inflight_error* e) {
    inflight_submitter* other = (inflight_submitter*)(void*)&lines;
    inflight_status status = inflight_submitter_create(scheduler, &other, e);
    CHECK(other == NULL);
    return status;
}
static inflight_status make_scheduler(inflight_error* e) {
    inflight_scheduler_config config = new_config(8);
    inflight_scheduler* other = (inflight_scheduler*)(void*)&lines;
    inflight_status status = inflight_scheduler_create(&config, &other, e);
    CHECK(other == NULL);
    return status;
}
static inflight_status hand_over(inflight_error* e) {
    static const uint32_t prompt[] = {1, 2, 3};
    inflight_request request = new_request(8, prompt, 3, 4);
    return inflight_submitter_submit(submitter, &request, e);
}

typedef inflight_status (*call)(inflight_error*);

/* Those that enter a scheduler. */
static const call CALLS[] = {submit,      cancel, finish,  set_wake,      set_draft,
                             schedule,    commit, abandon, events,        get_stats,
                             get_request, verify, reset,   make_submitter};
enum { NUM_CALLS = sizeof CALLS / sizeof *CALLS };

static void count_line(uint32_t level, const char* message, void* user_data) {
    CHECK(level == INFLIGHT_LOG_ERROR && strstr(message, "injected") != NULL);
    ++*(int*)user_data;
}

static void panics(call function) {
    inflight_error error = new_error();
    CHECK(function(&error) == INFLIGHT_STATUS_PANIC);
    CHECK(error.code == INFLIGHT_STATUS_PANIC && strstr(error.message, "injected") != NULL);
}

int main(void) {
    inflight_set_log_callback(count_line, &lines, INFLIGHT_LOG_INFO);
    inflight_scheduler_config config = new_config(64);
    inflight_scheduler* bystander = new_scheduler(&config);
    for (int i = 0; i < NUM_CALLS; i++) {
        scheduler = new_scheduler(&config);
        submitter = new_submitter(scheduler);
        step = new_step();
        inflight_scheduler_stats_init(&stats, sizeof stats);
        inflight_request_snapshot_init(&snapshot, sizeof snapshot);
        CHECK(submit(NULL) == INFLIGHT_STATUS_OK);

        /* Before it has entered: nothing has happened to the scheduler. */
        CHECK(setenv("INFLIGHT_PANIC", "call", 1) == 0);
        panics(CALLS[i]);
        panics(make_scheduler);
        panics(hand_over);
        CHECK(unsetenv("INFLIGHT_PANIC") == 0);
        CHECK(verify(NULL) == INFLIGHT_STATUS_OK);

        CHECK(setenv("INFLIGHT_PANIC", "enter", 1) == 0);
        panics(CALLS[i]);
        CHECK(unsetenv("INFLIGHT_PANIC") == 0);
        for (int other = 0; other < NUM_CALLS; other++) {
            inflight_error error = new_error();
            CHECK(CALLS[other](&error) == INFLIGHT_STATUS_POISONED);
            CHECK(error.code == INFLIGHT_STATUS_POISONED && error.message[0] != 0);
        }
        /* Nobody would receive it. */
        CHECK(hand_over(NULL) == INFLIGHT_STATUS_CLOSED);
        CHECK(inflight_submitter_cancel(submitter, 0, NULL) == INFLIGHT_STATUS_CLOSED);
        inflight_scheduler_free(scheduler);
        CHECK(hand_over(NULL) == INFLIGHT_STATUS_CLOSED);
        inflight_submitter_free(submitter);
        CHECK(inflight_scheduler_verify(bystander, NULL) == INFLIGHT_STATUS_OK);
    }
    inflight_scheduler_free(bystander);
    CHECK(lines == 4 * NUM_CALLS);
    printf("%d panics told, none got out\n", lines);
    return EXIT_SUCCESS;
}
