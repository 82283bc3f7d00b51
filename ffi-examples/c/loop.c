/* The smallest loop: submit three requests, then schedule, run and commit until all are done.
 *
 * The "model" is a function of a token and its position, so that the output can be checked and no
 * weights are needed. A real one computes step.tokens at step.positions, writes their KV to
 * step.groups->slot_mapping, attends over step.groups->kv_indices and samples at
 * step.logits_indices.
 */
#include <inflight.h>
#include <stdio.h>
#include <stdlib.h>

enum { REQUESTS = 3, SHARED = 32, BLOCK_SIZE = 16, MAX_ROWS = 8, MAX_OUTPUT = 16 };

/* Requests differ in length, and start with the same SHARED tokens: a system prompt. */
static const uint32_t PROMPT_LEN[REQUESTS] = {40, 50, 37};
static const uint32_t MAX_TOKENS[REQUESTS] = {5, 12, 8};

static uint32_t prompt_token(uint32_t request, uint32_t position) {
    return position < SHARED ? 100 + position : 1000 * (request + 1) + position;
}

static uint32_t next_token(uint32_t token, uint32_t position) {
    return (token * 31 + position * 7 + 3) % 9973;
}

/* Says what went wrong, and ends the program: an example has nothing to recover for. */
static void check(inflight_status status, const inflight_error* error) {
    if (status == INFLIGHT_STATUS_OK) {
        return;
    }
    fprintf(stderr, "%s: %s%s%s\n", inflight_status_string(status), error->field,
            error->field[0] ? ": " : "", error->message);
    exit(EXIT_FAILURE);
}

static void submit(inflight_scheduler* scheduler, uint32_t id) {
    uint32_t prompt[64];
    for (uint32_t i = 0; i < PROMPT_LEN[id]; i++) {
        prompt[i] = prompt_token(id, i);
    }
    inflight_error error;
    inflight_error_init(&error, sizeof error);
    inflight_request request;
    inflight_request_init(&request, sizeof request);
    request.id = id;
    request.prompt = prompt;
    request.prompt_len = PROMPT_LEN[id];
    request.max_tokens = MAX_TOKENS[id];
    /* The prompt is copied: the array above need not outlive the call. */
    check(inflight_scheduler_submit(scheduler, &request, &error), &error);
}

/* One token for each row that samples, in the order of the rows. */
static size_t run_model(const inflight_step_view* step, uint32_t* sampled) {
    for (uint32_t i = 0; i < step->num_logits; i++) {
        uint32_t at = step->logits_indices[i];
        sampled[i] = next_token(step->tokens[at], step->positions[at]);
    }
    return step->num_logits;
}

static void print_step(const inflight_step_view* step) {
    printf("%4llu  %4u  %6u  %6u  ", (unsigned long long)step->step_id, step->num_rows,
           step->num_tokens, step->num_free_blocks);
    for (uint32_t r = 0; r < step->num_rows; r++) {
        const inflight_row* row = INFLIGHT_AT(inflight_row, step->rows, step->row_size, r);
        printf(" %s%llu:%u+%u", row->flags & INFLIGHT_ROW_ADMITTED ? "*" : "",
               (unsigned long long)row->request_id, row->num_computed, row->num_tokens);
    }
    putchar('\n');
}

/* The model again, one request at a time and without a scheduler. */
static int is_expected(uint32_t id, const uint32_t* output, uint32_t num_output) {
    uint32_t position = PROMPT_LEN[id] - 1, token = prompt_token(id, position);
    for (uint32_t i = 0; i < num_output; i++) {
        token = next_token(token, position++);
        if (output[i] != token) {
            return 0;
        }
    }
    return num_output == MAX_TOKENS[id];
}

int main(void) {
    if (inflight_abi_version() != INFLIGHT_ABI_VERSION) {
        fprintf(stderr, "inflight %s has another ABI\n", inflight_version_string());
        return EXIT_FAILURE;
    }
    inflight_error error;
    inflight_error_init(&error, sizeof error);

    inflight_scheduler_config config;
    inflight_scheduler_config_init(&config, sizeof config);
    config.num_blocks = 32;
    config.block_size = BLOCK_SIZE;
    config.max_num_seqs = MAX_ROWS;
    config.max_num_batched_tokens = 32; /* small, so that prompts are computed in chunks */
    inflight_scheduler* scheduler;
    check(inflight_scheduler_create(&config, &scheduler, &error), &error);

    for (uint32_t id = 0; id < REQUESTS; id++) {
        submit(scheduler, id);
    }

    uint32_t output[REQUESTS][MAX_OUTPUT];
    uint32_t num_output[REQUESTS] = {0};
    int unfinished = REQUESTS;
    inflight_step_view step;
    inflight_step_view_init(&step, sizeof step);
    inflight_outputs_view outputs;
    inflight_outputs_view_init(&outputs, sizeof outputs);
    inflight_samples samples;
    inflight_samples_init(&samples, sizeof samples);
    uint32_t sampled[MAX_ROWS];

    printf("step  rows  tokens  blocks  request:computed+new (* admitted)\n");
    for (uint64_t now = 0; unfinished > 0; now++) {
        check(inflight_scheduler_schedule(scheduler, now, &step, &error), &error);
        print_step(&step);
        samples.tokens = sampled;
        samples.num_tokens = run_model(&step, sampled);
        check(inflight_scheduler_commit(scheduler, step.step_id, &samples, &outputs, &error),
              &error);
        for (uint32_t i = 0; i < outputs.num_outputs; i++) {
            const inflight_output* got =
                INFLIGHT_AT(inflight_output, outputs.outputs, outputs.output_size, i);
            for (uint32_t t = 0; t < got->num_tokens; t++) {
                output[got->request_id][num_output[got->request_id]++] =
                    outputs.tokens[got->first_token + t];
            }
            unfinished -= got->finish != INFLIGHT_FINISH_NONE;
        }
    }
    inflight_scheduler_free(scheduler);

    int wrong = 0;
    for (uint32_t id = 0; id < REQUESTS; id++) {
        printf("request %u:", id);
        for (uint32_t i = 0; i < num_output[id]; i++) {
            printf(" %u", output[id][i]);
        }
        putchar('\n');
        wrong += !is_expected(id, output[id], num_output[id]);
    }
    if (wrong) {
        fprintf(stderr, "%d requests got other tokens than alone\n", wrong);
    }
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
