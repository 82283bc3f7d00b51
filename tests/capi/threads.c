/* Eight threads submit and cancel while one steps and another looks on: every request that was
 * taken ends exactly once, and a handle for one thread at a time says so to the second.
 */
#include <pthread.h>
#include <sched.h>

#include "check.h"

enum { THREADS = 8, MAX_ROWS = 64 };

static uint32_t per_thread = 2000;
static inflight_scheduler* scheduler;
static inflight_submitter* common;
static int clients_left = THREADS;
static int done;
/* How each request ended; written by the thread that steps. */
static uint8_t* ends;

struct client {
    uint32_t number;
    uint32_t taken, refused, cancels;
    inflight_submitter* submitter;
    uint8_t* is_taken;
};

static void* submit_and_cancel(void* argument) {
    struct client* client = argument;
    uint64_t seed = 1000 + client->number;
    uint32_t prompt[40];
    inflight_error error = new_error();
    for (uint32_t i = 0; i < per_thread; i++) {
        uint64_t id = (uint64_t)client->number * per_thread + i;
        uint32_t len = 1 + below(&seed, 40);
        for (uint32_t t = 0; t < len; t++) {
            prompt[t] = below(&seed, 4);
        }
        inflight_request request = new_request(id, prompt, len, 1 + below(&seed, 12));
        inflight_status status = inflight_submitter_submit(client->submitter, &request, &error);
        /* Copied: what becomes of it here is nobody's business. */
        memset(prompt, 0xff, sizeof prompt);
        CHECK(error.code == status);
        client->is_taken[i] = status == INFLIGHT_STATUS_OK;
        if (status == INFLIGHT_STATUS_OK) {
            client->taken++;
        } else {
            CHECK(status == INFLIGHT_STATUS_QUEUE_FULL);
            client->refused++;
            sched_yield();
        }
        if (below(&seed, 4) == 0) {
            uint64_t victim = (uint64_t)client->number * per_thread + below(&seed, i + 1);
            CHECK(inflight_submitter_cancel(client->submitter, victim, &error) == 0);
            client->cancels++;
        }
    }
    __atomic_sub_fetch(&clients_left, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* Looks at what another thread is using: told so, or let in between two calls. */
static void* look_on(void* argument) {
    uint32_t* in_use = argument;
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
        inflight_status status = inflight_scheduler_get_stats(scheduler, &stats, NULL);
        CHECK(status == INFLIGHT_STATUS_OK || status == INFLIGHT_STATUS_IN_USE);
        *in_use += status == INFLIGHT_STATUS_IN_USE;
        sched_yield();
    }
    return NULL;
}

/* Again while the onlooker is inside. */
#define PATIENTLY(status, call) \
    do {                        \
        status = (call);        \
    } while (status == INFLIGHT_STATUS_IN_USE)

static void take_events(void) {
    inflight_event events[32];
    size_t n = 0;
    do {
        inflight_status status;
        PATIENTLY(status, inflight_scheduler_events(scheduler, events, sizeof(inflight_event), 32,
                                                    &n, NULL));
        CHECK(status == INFLIGHT_STATUS_OK);
        for (size_t i = 0; i < n; i++) {
            if (events[i].kind != INFLIGHT_EVENT_PREEMPTED) {
                CHECK(events[i].request_id < (uint64_t)THREADS * per_thread);
                ends[events[i].request_id]++;
            }
        }
    } while (n > 0);
}

static void step_until_all_is_done(void) {
    uint32_t tokens[MAX_ROWS] = {0};
    inflight_step_view step = new_step();
    inflight_status status;
    for (uint64_t now = 0;; now++) {
        int last = __atomic_load_n(&clients_left, __ATOMIC_ACQUIRE) == 0;
        PATIENTLY(status, inflight_scheduler_schedule(scheduler, now, &step, NULL));
        CHECK(status == INFLIGHT_STATUS_OK && step.num_sampling <= MAX_ROWS);
        inflight_samples samples = new_samples(tokens, step.num_sampling);
        PATIENTLY(status, inflight_scheduler_commit(scheduler, step.step_id, &samples, NULL, NULL));
        CHECK(status == INFLIGHT_STATUS_OK);
        take_events();
        if (last && step.num_rows == 0 && step.num_waiting == 0) {
            break;
        }
        if (step.num_rows == 0) {
            sched_yield();
        }
    }
    __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
}

int main(int argc, char** argv) {
    if (argc > 1) {
        per_thread = (uint32_t)atoi(argv[1]);
    }
    inflight_scheduler_config config = new_config(200);
    config.max_num_seqs = MAX_ROWS;
    config.max_waiting = 100;
    scheduler = new_scheduler(&config);
    common = new_submitter(scheduler);
    ends = calloc((size_t)THREADS * per_thread, 1);
    pthread_t threads[THREADS], onlooker;
    struct client clients[THREADS];
    uint32_t in_use = 0;
    CHECK(pthread_create(&onlooker, NULL, look_on, &in_use) == 0);
    for (uint32_t i = 0; i < THREADS; i++) {
        /* Half of them share one submitter; who makes one is a user of the scheduler. */
        inflight_submitter* own = common;
        if (i % 2 == 1) {
            inflight_status status;
            PATIENTLY(status, inflight_submitter_create(scheduler, &own, NULL));
            CHECK(status == INFLIGHT_STATUS_OK);
        }
        clients[i] = (struct client){i, 0, 0, 0, own, calloc(per_thread, 1)};
        CHECK(pthread_create(&threads[i], NULL, submit_and_cancel, &clients[i]) == 0);
    }
    step_until_all_is_done();
    uint32_t taken = 0, refused = 0, cancels = 0;
    for (uint32_t i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        taken += clients[i].taken;
        refused += clients[i].refused;
        cancels += clients[i].cancels;
        for (uint32_t at = 0; at < per_thread; at++) {
            CHECK(ends[i * per_thread + at] == clients[i].is_taken[at]);
        }
        free(clients[i].is_taken);
    }
    CHECK(pthread_join(onlooker, NULL) == 0);
    CHECK(inflight_scheduler_verify(scheduler, NULL) == INFLIGHT_STATUS_OK);
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    CHECK(inflight_scheduler_get_stats(scheduler, &stats, NULL) == INFLIGHT_STATUS_OK);
    CHECK(stats.num_running == 0 && stats.num_waiting == 0 && stats.num_free_blocks == 199);
    inflight_scheduler_free(scheduler);
    for (uint32_t i = 1; i < THREADS; i += 2) {
        inflight_submitter_free(clients[i].submitter);
    }
    inflight_submitter_free(common);
    free(ends);
    printf("%u requests taken, %u refused, %u cancels, %llu steps, %u calls found another inside\n",
           taken, refused, cancels, (unsigned long long)stats.steps, in_use);
    return EXIT_SUCCESS;
}
