// Package cloop steps a scheduler in C, for comparison with steps from Go.
package cloop

/*
#cgo pkg-config: inflight
#include <inflight.h>
#include <stdlib.h>
#include <time.h>

static inflight_status run(const inflight_scheduler_config *config, uint32_t running,
                           uint32_t prompt_len, uint32_t steps, uint64_t *nanoseconds) {
    inflight_scheduler *scheduler;
    inflight_status status = inflight_scheduler_create(config, &scheduler, NULL);
    uint32_t *tokens = calloc(prompt_len > running ? prompt_len : running, sizeof *tokens);
    inflight_error error;
    inflight_error_init(&error, sizeof error);
    inflight_step_view step;
    inflight_step_view_init(&step, sizeof step);
    inflight_outputs_view outputs;
    inflight_outputs_view_init(&outputs, sizeof outputs);
    inflight_samples samples;
    inflight_samples_init(&samples, sizeof samples);
    samples.tokens = tokens;
    for (uint32_t id = 0; status == INFLIGHT_STATUS_OK && id < running; id++) {
        inflight_request request;
        inflight_request_init(&request, sizeof request);
        request.id = id;
        request.prompt = tokens;
        request.prompt_len = prompt_len;
        request.max_tokens = UINT32_MAX;
        status = inflight_scheduler_submit(scheduler, &request, &error);
    }
    uint32_t decoded = 0;
    struct timespec start, end;
    while (status == INFLIGHT_STATUS_OK && decoded < steps) {
        if (decoded == 0) {
            clock_gettime(CLOCK_MONOTONIC, &start);
        }
        status = inflight_scheduler_schedule(scheduler, 0, &step, &error);
        if (status != INFLIGHT_STATUS_OK) {
            break;
        }
        decoded += step.num_tokens == running && step.num_rows == running;
        samples.num_tokens = step.num_sampling;
        status = inflight_scheduler_commit(scheduler, step.step_id, &samples, &outputs, &error);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    *nanoseconds = (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000u +
                   (uint64_t)end.tv_nsec - (uint64_t)start.tv_nsec;
    free(tokens);
    inflight_scheduler_free(scheduler);
    return status;
}
*/
import "C"

import (
	"fmt"
	"time"
)

// Run returns how long so many steps take in which every request computes one token.
func Run(numBlocks, running, promptLen, steps int) (time.Duration, error) {
	var config C.inflight_scheduler_config
	C.inflight_scheduler_config_init(&config, C.sizeof_inflight_scheduler_config)
	config.num_blocks = C.uint64_t(numBlocks)
	config.max_num_seqs = C.uint32_t(running)
	config.prefix_cache = 0
	var nanoseconds C.uint64_t
	status := C.run(&config, C.uint32_t(running), C.uint32_t(promptLen), C.uint32_t(steps),
		&nanoseconds)
	if status != C.INFLIGHT_STATUS_OK {
		return 0, fmt.Errorf("cloop: status %d", status)
	}
	return time.Duration(nanoseconds), nil
}
