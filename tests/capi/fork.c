/* Forks while threads are inside of calls with every kind of object. In the child each function
 * refuses what the parent made, to free it does no harm, and what the child makes works.
 */
#include "fork.h"

#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 8, THREADS = 4, MOST_FORKS = 400 };

/* What threads of the parent use all the time, and what nothing uses at the fork. */
static inflight_scheduler *busy_scheduler, *idle_scheduler;
static inflight_submitter *busy_submitter, *idle_submitter;
static inflight_cache *busy_cache, *idle_cache;
static struct layer busy, idle;
static inflight_step_view in_flight;
static float* expected;
static inflight_status cuda_of_parent;

static int inside[WORKERS], stop;
/* Children that found the worker inside, in memory that all processes share. */
static uint32_t* found;

#define LOOP(worker, statement)                                 \
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {         \
        __atomic_store_n(&inside[worker], 1, __ATOMIC_RELEASE); \
        statement;                                              \
        __atomic_store_n(&inside[worker], 0, __ATOMIC_RELEASE); \
    }                                                           \
    return NULL

static void submit(inflight_submitter* submitter, uint64_t id) {
    static const uint32_t prompt[20] = {1, 2, 3};
    inflight_request request = new_request(id, prompt, 20, 4);
    inflight_status status = inflight_submitter_submit(submitter, &request, NULL);
    CHECK(status == INFLIGHT_STATUS_OK || status == INFLIGHT_STATUS_QUEUE_FULL);
}

static void* submits(void* unused) {
    uint64_t id = 1;
    (void)unused;
    LOOP(0, submit(busy_submitter, id++));
}

static void* cancels(void* unused) {
    uint64_t id = 1;
    (void)unused;
    LOOP(1, CHECK(inflight_submitter_cancel(busy_submitter, id++, NULL) == 0));
}

static void* steps(void* unused) {
    uint64_t now = 0;
    (void)unused;
    LOOP(2, step_once(busy_scheduler, now++));
}

static void* attends(void* unused) {
    (void)unused;
    LOOP(3, run_layer(&busy));
}

static void* merges(void* unused) {
    static float o[STATE_SIZE];
    (void)unused;
    LOOP(4, run_merge(busy.device, o));
}

static void* moves(void* unused) {
    (void)unused;
    LOOP(5, run_mover(busy.mover));
}

static void* caches(void* unused) {
    (void)unused;
    LOOP(6, use_cache(busy_cache));
}

static void ignores(uint32_t level, const char* message, void* user_data) {
    (void)level, (void)message, (void)user_data;
}

static void* logs(void* unused) {
    (void)unused;
    LOOP(7, inflight_set_log_callback(ignores, NULL, INFLIGHT_LOG_INFO));
}

static inflight_error error;

#define FORKED(call) was_refused(#call, call)

static void was_refused(const char* call, inflight_status status) {
    if (status != INFLIGHT_STATUS_FORKED || error.code != status || error.field[0] != 0 ||
        strstr(error.message, "made before fork(): make another in this process") == NULL) {
        fprintf(stderr, "%s: %d, %s, %s\n", call, (int)status, error.field, error.message);
        exit(EXIT_FAILURE);
    }
    error.code = 0;
    error.message[0] = 0;
}

static void refuses_schedulers(inflight_scheduler* scheduler, inflight_submitter* submitter) {
    const uint32_t tokens[2] = {1, 2};
    inflight_request request = new_request(UINT64_MAX, tokens, 2, 1);
    inflight_step_view view = new_step();
    inflight_event event;
    size_t n;
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    inflight_request_snapshot snapshot;
    inflight_request_snapshot_init(&snapshot, sizeof snapshot);
    inflight_submitter* none = submitter;
    FORKED(inflight_scheduler_submit(scheduler, &request, &error));
    FORKED(inflight_scheduler_cancel(scheduler, 1, &error));
    FORKED(inflight_scheduler_finish(scheduler, 1, 1, NULL, 0, &error));
    FORKED(inflight_scheduler_set_wake(scheduler, NULL, NULL, &error));
    FORKED(inflight_scheduler_set_draft(scheduler, 1, tokens, 2, &error));
    FORKED(inflight_scheduler_schedule(scheduler, 0, &view, &error));
    FORKED(inflight_scheduler_commit(scheduler, in_flight.step_id, NULL, NULL, &error));
    FORKED(inflight_scheduler_abandon(scheduler, in_flight.step_id, &error));
    FORKED(inflight_scheduler_events(scheduler, &event, sizeof(inflight_event), 1, &n, &error));
    FORKED(inflight_scheduler_get_stats(scheduler, &stats, &error));
    FORKED(inflight_scheduler_get_request(scheduler, 1, &snapshot, &error));
    FORKED(inflight_scheduler_verify(scheduler, &error));
    FORKED(inflight_scheduler_reset_prefix_cache(scheduler, &error));
    FORKED(inflight_submitter_create(scheduler, &none, &error));
    CHECK(none == NULL);
    FORKED(inflight_submitter_submit(submitter, &request, &error));
    FORKED(inflight_submitter_cancel(submitter, 1, &error));
    FORKED(inflight_submitter_finish(submitter, 1, 1, &error));
}

static void refuses_caches(inflight_cache* cache) {
    const uint32_t tokens[2] = {1, 2}, *table;
    uint64_t number;
    size_t n;
    inflight_block_op op;
    inflight_cache_stats stats;
    inflight_cache_stats_init(&stats, sizeof stats);
    FORKED(inflight_cache_take_ops(cache, &op, sizeof(inflight_block_op), 1, &n, &error));
    FORKED(inflight_cache_reset(cache, &error));
    FORKED(inflight_cache_get_stats(cache, &stats, &error));
    FORKED(inflight_cache_verify(cache, &error));
    FORKED(inflight_cache_open(cache, NULL, &number, &error));
    FORKED(inflight_cache_extend(cache, 1, tokens, 2, &error));
    FORKED(inflight_cache_lookup(cache, 1, 2, &number, &error));
    FORKED(inflight_cache_blocks_needed(cache, 1, 0, 0, 2, &number, &error));
    FORKED(inflight_cache_allocate(cache, 1, 0, 0, 2, &number, &error));
    FORKED(inflight_cache_register(cache, 1, 2, &error));
    FORKED(inflight_cache_unregister(cache, 1, 2, &error));
    FORKED(inflight_cache_table(cache, 1, &table, &n, &error));
    FORKED(inflight_cache_truncate(cache, 1, 1, &error));
    FORKED(inflight_cache_fork(cache, 1, &number, &error));
    FORKED(inflight_cache_release(cache, 1, &error));
    FORKED(inflight_cache_close(cache, 1, &error));
    FORKED(inflight_cache_swap_out(cache, 1, &error));
    FORKED(inflight_cache_swap_in(cache, 1, &error));
}

static void refuses_layers(struct layer* of) {
    inflight_device_info info;
    inflight_device_info_init(&info, sizeof info);
    inflight_attention_config config = config_of_layer();
    inflight_step_limits limits = limits_of_layer();
    inflight_attention* attention;
    inflight_step_buffer* step;
    inflight_block_mover* mover;
    inflight_attention_args args;
    inflight_attention_args_init(&args, sizeof args);
    inflight_append_args append;
    inflight_append_args_init(&append, sizeof append);
    inflight_merge_args merge;
    inflight_merge_args_init(&merge, sizeof merge);
    inflight_tensor tensor = tensor_of(queries, ROWS);
    inflight_kv_cache cache = of->cache;
    inflight_block_op op = {INFLIGHT_BLOCK_COPY, 1, 1};
    const inflight_batch batch = batch_of_layer();
    uint64_t bytes;
    void* managed;
    FORKED(inflight_device_get_info(of->device, &info, &error));
    FORKED(inflight_device_check_pointer(of->device, keys, &error));
    FORKED(inflight_attention_create(of->device, &config, &limits, &attention, &error));
    FORKED(inflight_attention_workspace_size(of->device, &config, &limits, &bytes, &error));
    FORKED(inflight_step_buffer_create(of->device, &limits, NULL, 0, &step, &error));
    FORKED(inflight_merge(of->device, &merge, NULL, &error));
    FORKED(inflight_block_mover_create(of->device, &cache, NULL, 1, &mover, &error));
    FORKED(inflight_tensor_from_dlpack(of->device, NULL, 0, 0, &tensor, &error));
    FORKED(inflight_kv_cache_from_dlpack(of->device, NULL, NULL, 0, 0, &cache, &error));
    FORKED(inflight_tensor_to_dlpack(of->device, &tensor, 0, NULL, NULL, &managed, &error));
    CHECK(attention == NULL && step == NULL && mover == NULL && managed == NULL);
    FORKED(inflight_attention_plan(of->attention, &batch, BLOCKS, NULL, &error));
    FORKED(inflight_step_buffer_upload(of->step, &batch, NULL, &error));
    FORKED(inflight_append(of->step, &append, NULL, &error));
    FORKED(inflight_attention_run(of->attention, of->step, &args, NULL, &error));
    FORKED(inflight_block_mover_run(of->mover, &op, sizeof(inflight_block_op), 1, NULL, &error));
    /* Next to what the child has made. */
    inflight_device* own = device_of(1);
    FORKED(inflight_step_buffer_create(own, &limits, &of->attention, 1, &step, &error));
    inflight_device_free(own);
}

/* Bytes of large allocations; 0 where the system does not say. */
static size_t mapped(void) {
#ifdef __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 33)
    return mallinfo2().hblkhd;
#endif
#endif
    return 0;
}

static void frees_all(int number) {
    const size_t before = mapped();
    inflight_scheduler_free(idle_scheduler);
    /* Memory checkers count elsewhere. */
    CHECK(before == 0 || mapped() < before);
    if (number % 2 == 0) {
        inflight_scheduler_free(busy_scheduler);
    }
    inflight_submitter_free(idle_submitter);
    inflight_submitter_free(busy_submitter);
    if (number % 2 == 1) {
        inflight_scheduler_free(busy_scheduler);
    }
    inflight_cache_free(busy_cache);
    inflight_cache_free(idle_cache);
    free_layer(&idle, number % 3 == 0);
    free_layer(&busy, number % 3 != 0);
}

static void* submits_few(void* submitter) {
    for (uint64_t id = 1; id <= 20; id++) {
        submit(submitter, id);
    }
    return NULL;
}

static void uses_its_own(int number) {
    inflight_scheduler_config config = new_config(64);
    inflight_scheduler* scheduler = new_scheduler(&config);
    inflight_submitter* submitter = new_submitter(scheduler);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, submits_few, submitter) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    uint64_t now = 0;
    while (step_once(scheduler, now++) > 0) {
    }
    inflight_scheduler_stats stats;
    inflight_scheduler_stats_init(&stats, sizeof stats);
    CHECK(inflight_scheduler_get_stats(scheduler, &stats, NULL) == 0 && stats.finished == 20);
    CHECK(inflight_scheduler_verify(scheduler, NULL) == 0);

    struct layer layer = new_layer(THREADS);
    for (int run = 0; run < 3; run++) {
        run_layer(&layer);
        CHECK(memcmp(layer.o, expected, O_SIZE * sizeof *expected) == 0);
    }
    static float o[STATE_SIZE];
    run_merge(layer.device, o);
    CHECK(memcmp(o, states, sizeof o) == 0);
    run_mover(layer.mover);
    inflight_cache* cache = new_cache();
    use_cache(cache);
    CHECK(inflight_cache_verify(cache, NULL) == 0);

    if (number % 8 == 0) {
        /* A child of the child. */
        pid_t pid = fork();
        if (pid == 0) {
            alarm(120);
            refuses_schedulers(scheduler, submitter);
            refuses_caches(cache);
            refuses_layers(&layer);
            free_layer(&layer, 0);
            inflight_scheduler_free(scheduler);
            _exit(0);
        }
        int status;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    }
    free_layer(&layer, 1);
    inflight_cache_free(cache);
    inflight_submitter_free(submitter);
    inflight_scheduler_free(scheduler);
}

static void library_goes_on(void) {
    inflight_build_info info;
    inflight_get_build_info(&info, sizeof info);
    CHECK(info.target[0] != 0 && info.cuda_architectures != NULL);
    inflight_set_log_callback(ignores, NULL, INFLIGHT_LOG_INFO);
    inflight_set_log_callback(NULL, NULL, 0);
    /* A driver that the parent has used is not for the child; one that was not there is not here.
     */
    uint32_t count;
    inflight_device* device;
    CHECK(inflight_cuda_device_count(&count, &error) == INFLIGHT_STATUS_NO_CUDA);
    CHECK((strstr(error.message, "fork()") != NULL) == (cuda_of_parent == INFLIGHT_STATUS_OK));
    CHECK(inflight_device_create_cuda(0, &device, &error) == INFLIGHT_STATUS_NO_CUDA);
    CHECK(device == NULL);
}

static void child(int number) {
    alarm(120);
    for (int worker = 0; worker < WORKERS; worker++) {
        found[worker] += inside[worker];
    }
    inflight_error_init(&error, sizeof error);
    refuses_schedulers(busy_scheduler, busy_submitter);
    refuses_schedulers(idle_scheduler, idle_submitter);
    refuses_caches(busy_cache);
    refuses_caches(idle_cache);
    refuses_layers(&busy);
    refuses_layers(&idle);
    frees_all(number);
    library_goes_on();
    uses_its_own(number);
    exit(EXIT_SUCCESS);
}

/* Runs a child to its end, which says nothing. */
static void fork_once(int number) {
    int told = memfd_create("stderr", 0);
    pid_t pid = fork();
    CHECK(told >= 0 && pid >= 0);
    if (pid == 0) {
        CHECK(dup2(told, STDERR_FILENO) >= 0);
        child(number);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    char text[4096];
    ssize_t len = pread(told, text, sizeof text, 0);
    close(told);
    if (status != 0 || len != 0) {
        const char* how = WIFSIGNALED(status) ? "was ended by signal" : "exited with";
        int what = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
        fprintf(stderr, "child %d %s %d: %.*s\n", number, how, what, (int)len, text);
        exit(EXIT_FAILURE);
    }
}

static void makes_all(void) {
    inflight_scheduler_config config = new_config(200);
    config.max_num_seqs = 32;
    config.max_waiting = 100;
    busy_scheduler = new_scheduler(&config);
    busy_submitter = new_submitter(busy_scheduler);
    /* Large, so that its memory is seen to be released. */
    config.num_blocks = 1 << 16;
    idle_scheduler = new_scheduler(&config);
    idle_submitter = new_submitter(idle_scheduler);
    submits_few(idle_submitter);
    in_flight = new_step();
    CHECK(inflight_scheduler_schedule(idle_scheduler, 0, &in_flight, NULL) == 0);
    busy_cache = new_cache();
    idle_cache = new_cache();
    use_cache(idle_cache);
    busy = new_layer(THREADS);
    idle = new_layer(THREADS);
    run_layer(&idle);
    expected = malloc(O_SIZE * sizeof *expected);
    CHECK(expected != NULL);
    memcpy(expected, idle.o, O_SIZE * sizeof *expected);
}

int main(int argc, char** argv) {
    int forks = argc > 1 ? atoi(argv[1]) : 20, number = 0, all = 0;
    uint32_t count;
    cuda_of_parent = inflight_cuda_device_count(&count, NULL);
    found = mmap(NULL, WORKERS * sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    CHECK(found != MAP_FAILED);
    mallopt(M_MMAP_THRESHOLD, 1 << 17);
    fill_inputs();
    makes_all();
    void* (*const work[WORKERS])(void*) = {submits, cancels, steps,  attends,
                                           merges,  moves,   caches, logs};
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, work[i], NULL) == 0);
    }
    for (; number < forks || !all; number++) {
        CHECK(number < MOST_FORKS);
        fork_once(number);
        all = 1;
        for (int i = 0; i < WORKERS; i++) {
            all &= found[i] > 0;
        }
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < WORKERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    /* The parent has noticed nothing. */
    CHECK(inflight_scheduler_verify(busy_scheduler, NULL) == 0);
    CHECK(inflight_cache_verify(busy_cache, NULL) == 0);
    CHECK(memcmp(busy.o, expected, O_SIZE * sizeof *expected) == 0);
    frees_all(0);
    free(expected);
    printf("%d forks; inside:", number);
    for (int i = 0; i < WORKERS; i++) {
        printf(" %u", found[i]);
    }
    printf("\n");
    return EXIT_SUCCESS;
}
