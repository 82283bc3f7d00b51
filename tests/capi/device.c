/* The threads of a processor: there while something uses them, gone when that call returns. */
#include <dirent.h>
#include <time.h>

#include "check.h"

enum { THREADS = 5 };

/* Threads of this process that the library has started. */
static int count_threads(void) {
    DIR* tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    int count = 0;
    for (struct dirent* task; (task = readdir(tasks)) != NULL;) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE* file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file != NULL) {
            count += fgets(name, sizeof name, file) != NULL && strncmp(name, "inflight-", 9) == 0;
            fclose(file);
        }
    }
    closedir(tasks);
    return count;
}

/* A thread that has been joined may be listed for a moment. */
static int all_gone(void) {
    for (int tries = 0; tries < 1000 && count_threads() > 0; tries++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return count_threads() == 0;
}

int main(void) {
    inflight_cpu_config threads;
    inflight_cpu_config_init(&threads, sizeof threads);
    threads.threads = THREADS;
    inflight_step_limits limits;
    inflight_step_limits_init(&limits, sizeof limits);
    limits.max_rows = limits.max_tokens = limits.max_blocks = limits.max_kv_len = 8;
    for (int round = 0; round < 50; round++) {
        inflight_device* device;
        inflight_step_buffer* step;
        CHECK(all_gone());
        CHECK(inflight_device_create_cpu(&threads, &device, NULL) == 0);
        CHECK(inflight_step_buffer_create(device, &limits, NULL, 0, &step, NULL) == 0);
        inflight_device_free(device);
        inflight_step_buffer_free(step);
    }
    CHECK(all_gone());
    return EXIT_SUCCESS;
}
