/* Steps of a scheduler as a program in C takes them, to be compared with those from Python. */
#include <inflight.h>

typedef inflight_status (*schedule_call)(struct inflight_scheduler*, uint64_t, inflight_step_view*,
                                         inflight_error*);
typedef inflight_status (*commit_call)(struct inflight_scheduler*, uint64_t,
                                       const inflight_samples*, inflight_outputs_view*,
                                       inflight_error*);

int run(schedule_call schedule, commit_call commit, struct inflight_scheduler* scheduler,
        inflight_step_view* step, const inflight_samples* samples, inflight_outputs_view* outputs,
        inflight_error* error, int count) {
    for (int i = 0; i < count; i++) {
        int status = schedule(scheduler, INFLIGHT_NOW, step, error);
        if (status != INFLIGHT_STATUS_OK) {
            return status;
        }
        status = commit(scheduler, step->step_id, samples, outputs, error);
        if (status != INFLIGHT_STATUS_OK) {
            return status;
        }
    }
    return 0;
}
