/* inflight: continuous batching as a library.
 *
 * What a serving stack needs, each usable on its own: a scheduler that decides at every iteration
 * which requests run and with how many tokens; a paged KV cache manager; and attention over paged
 * KV, on CPUs and on GPUs. docs/c-abi.md is the guide; this header is the reference.
 *
 *     inflight_scheduler_config config;
 *     inflight_scheduler_config_init(&config, sizeof config);
 *     config.num_blocks = 1024;
 *     inflight_scheduler *scheduler;
 *     if (inflight_scheduler_create(&config, &scheduler, NULL) != INFLIGHT_STATUS_OK) ...
 *     ... inflight_scheduler_submit(scheduler, &request, NULL) ...
 *     for (;;) {
 *         inflight_scheduler_schedule(scheduler, now, &step, NULL);   // which tokens of whom
 *         ... run the model on step.tokens, step.slot_mapping, step.kv_indices ...
 *         inflight_scheduler_commit(scheduler, step.step_id, &samples, &outputs, NULL);
 *     }
 *     inflight_scheduler_free(scheduler);
 *
 * Errors
 *   Every call that can fail returns an inflight_status. Results come through pointers, written only
 *   on success; a pointer to a handle is set to NULL on failure. The last argument takes the detail,
 *   an inflight_error of the caller's, or NULL. Nothing is kept per thread. A failed call leaves its
 *   objects as they were, unless its description says otherwise. No call exits the process, throws,
 *   or leaves a lock behind: a panic inside becomes INFLIGHT_STATUS_PANIC, and its handle refuses
 *   further calls (INFLIGHT_STATUS_POISONED) but can be freed.
 *
 * Ownership
 *   What an inflight_*_create gives is freed by the caller with the matching _free, once; _free of
 *   NULL does nothing. Handles may be freed in any order and on any thread. The library keeps no
 *   pointer of the caller's beyond a call, but where a description says so, and no memory that it
 *   allocated is freed by the caller in another way. Views (inflight_*_view) point into the library:
 *   their descriptions say how long.
 *
 * Threads
 *   Different handles are independent. A handle given as a pointer to const may be used by several
 *   threads at once; another is for one thread at a time, any thread, and a call that finds another
 *   inside returns INFLIGHT_STATUS_IN_USE and does nothing.
 *
 * Structs
 *   Configurations, requests and views begin with struct_size and are prepared by their _init with
 *   sizeof as the program sees it. They only ever grow at the end: a program built with an older
 *   header keeps working with a newer library, and with an older library as long as it leaves newer
 *   fields at 0. Fields named "reserved" are 0. Flags are 0 or 1, anything else is refused.
 *
 * Versions
 *   INFLIGHT_ABI_VERSION is in the library's SONAME. Within one, functions and constants are only
 *   added. "Since" names the first version that has a function.
 */


#ifndef INFLIGHT_H
#define INFLIGHT_H

/* Made by cbindgen from src/capi: edit that, then run INFLIGHT_REGENERATE=1 cargo test --test header. */

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this header.
 */
#define INFLIGHT_VERSION_MAJOR 0

/**
 * Version of this header.
 */
#define INFLIGHT_VERSION_MINOR 1

/**
 * Version of this header.
 */
#define INFLIGHT_VERSION_PATCH 0

/**
 * Version of this header in one number: `major * 1000000 + minor * 1000 + patch`.
 */
#define INFLIGHT_VERSION_NUMBER 1000

/**
 * Version of the ABI of this header: the number in the library's SONAME. It changes where a
 * program that was compiled before would break, and only there.
 */
#define INFLIGHT_ABI_VERSION 0

/**
 * Something went wrong inside the library.
 */
#define INFLIGHT_LOG_ERROR 1

/**
 * Something is slower or other than one would expect.
 */
#define INFLIGHT_LOG_WARNING 2

/**
 * What was found and chosen.
 */
#define INFLIGHT_LOG_INFO 3

/**
 * Bytes of `inflight_error.field`, terminator included.
 */
#define INFLIGHT_ERROR_FIELD_SIZE 64

/**
 * Bytes of `inflight_error.message`, terminator included.
 */
#define INFLIGHT_ERROR_MESSAGE_SIZE 432

/**
 * No token: a request without `eos`.
 */
#define INFLIGHT_NO_TOKEN UINT32_MAX

/**
 * The time of the last `inflight_scheduler_schedule`: for a request that says no `arrival`.
 */
#define INFLIGHT_NOW UINT64_MAX

/**
 * First come, first served; admits while blocks are free, and the request admitted last gives way:
 * vLLM's rules. The default.
 */
#define INFLIGHT_POLICY_CONTINUOUS 0

/**
 * Request-level batching, the baseline: a batch runs until its last request has ended.
 */
#define INFLIGHT_POLICY_STATIC 1

/**
 * Lowest `priority` value first, with ageing; the least urgent gives way.
 */
#define INFLIGHT_POLICY_PRIORITY 2

/**
 * Nobody is admitted who might have to give way: TensorRT-LLM's default.
 */
#define INFLIGHT_POLICY_NO_EVICT 3

/**
 * Admits whatever fits now: TensorRT-LLM's MAX_UTILIZATION.
 */
#define INFLIGHT_POLICY_MAX_UTILIZATION 4

/**
 * Iteration-level admission with worst-case memory: Orca.
 */
#define INFLIGHT_POLICY_ORCA 5

/**
 * The row reaches its request's newest token and so samples: a chunk of a prompt does not.
 */
#define INFLIGHT_ROW_SAMPLES 1

/**
 * The row computes just its request's newest token (and drafts), having output before.
 */
#define INFLIGHT_ROW_DECODES 2

/**
 * The row's request was admitted in this step.
 */
#define INFLIGHT_ROW_ADMITTED 4

/**
 * Device to device: a sequence is about to write to a block that it shares.
 */
#define INFLIGHT_BLOCK_COPY 0

/**
 * Device to host.
 */
#define INFLIGHT_BLOCK_SWAP_OUT 1

/**
 * Host to device.
 */
#define INFLIGHT_BLOCK_SWAP_IN 2

/**
 * The request goes on.
 */
#define INFLIGHT_FINISH_NONE 0

/**
 * It sampled its end-of-sequence token.
 */
#define INFLIGHT_FINISH_EOS 1

/**
 * It sampled one of its stop tokens.
 */
#define INFLIGHT_FINISH_STOP_TOKEN 2

/**
 * It reached `max_tokens` or `max_model_len`.
 */
#define INFLIGHT_FINISH_LENGTH 3

/**
 * Its output repeats itself.
 */
#define INFLIGHT_FINISH_REPETITION 4

/**
 * A request that a submitter handed over cannot run: `status` says why.
 */
#define INFLIGHT_EVENT_REFUSED 1

/**
 * A request sampled its last token: `finish` says why it was the last.
 */
#define INFLIGHT_EVENT_FINISHED 2

/**
 * A request was cancelled through a submitter.
 */
#define INFLIGHT_EVENT_CANCELLED 3

/**
 * A request had to give way in step `step_id`, and waits again. It goes on later.
 */
#define INFLIGHT_EVENT_PREEMPTED 4

/**
 * What a call came to.
 *
 * 0 is success. Numbers are in groups: 1xx the caller's arguments, 2xx capacity (nothing is wrong;
 * try again when requests have finished), 3xx the device, 9xx the library itself. They are never
 * reused, and new ones may be added: treat one that you do not know by its group.
 *
 * Every call that fails leaves its objects as they were, unless its description says otherwise.
 */
enum inflight_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Done.
     */
    INFLIGHT_STATUS_OK = 0,
    /**
     * An argument, or a field of one, is outside its range. Also NULL where it may not be, and
     * pointers that are not aligned as their type asks for.
     */
    INFLIGHT_STATUS_INVALID_ARGUMENT = 100,
    /**
     * A request of this id has not finished yet.
     */
    INFLIGHT_STATUS_DUPLICATE_REQUEST = 101,
    /**
     * No request of this id is waiting or running.
     */
    INFLIGHT_STATUS_UNKNOWN_REQUEST = 102,
    /**
     * The prompt leaves no room for one output token below `max_model_len`.
     */
    INFLIGHT_STATUS_PROMPT_TOO_LONG = 103,
    /**
     * The request would not fit even if it had the whole cache to itself.
     */
    INFLIGHT_STATUS_NEVER_FITS = 104,
    /**
     * The step is not in flight: never scheduled, or already committed or abandoned.
     */
    INFLIGHT_STATUS_UNKNOWN_STEP = 105,
    /**
     * Steps are committed oldest first and abandoned newest first.
     */
    INFLIGHT_STATUS_STEP_OUT_OF_ORDER = 106,
    /**
     * The outputs do not match the rows of the step.
     */
    INFLIGHT_STATUS_OUTPUT_MISMATCH = 107,
    /**
     * The first field of a struct is not its size, or the size of one that this library does not
     * know: older than the first version, or newer with fields set that are unknown here.
     */
    INFLIGHT_STATUS_STRUCT_SIZE = 108,
    /**
     * Another thread is inside a call with the same handle, which is for one at a time.
     */
    INFLIGHT_STATUS_IN_USE = 109,
    /**
     * `max_waiting` requests wait already.
     */
    INFLIGHT_STATUS_QUEUE_FULL = 200,
    /**
     * The pool cannot give that many blocks now.
     */
    INFLIGHT_STATUS_OUT_OF_BLOCKS = 201,
    /**
     * `max_steps_in_flight` steps await their commit.
     */
    INFLIGHT_STATUS_TOO_MANY_STEPS_IN_FLIGHT = 202,
    /**
     * Requests wait, nothing runs, and the policy admits none of them.
     */
    INFLIGHT_STATUS_STALLED = 203,
    /**
     * The device could not run the step.
     */
    INFLIGHT_STATUS_DEVICE = 300,
    /**
     * A call of the CUDA driver failed.
     */
    INFLIGHT_STATUS_CUDA = 301,
    /**
     * The device has too little memory left.
     */
    INFLIGHT_STATUS_OUT_OF_DEVICE_MEMORY = 302,
    /**
     * CUDA cannot be used on this machine.
     */
    INFLIGHT_STATUS_NO_CUDA = 303,
    /**
     * This build has no kernels that the device can run.
     */
    INFLIGHT_STATUS_NO_KERNEL_IMAGE = 304,
    /**
     * The device, or this build, does not offer what was asked for.
     */
    INFLIGHT_STATUS_UNSUPPORTED = 305,
    /**
     * An invariant does not hold: a bug in the library.
     */
    INFLIGHT_STATUS_CORRUPT = 900,
    /**
     * The library panicked: a bug in it. The handle is poisoned.
     */
    INFLIGHT_STATUS_PANIC = 901,
    /**
     * An earlier call with this handle panicked: it can only be freed.
     */
    INFLIGHT_STATUS_POISONED = 902,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum inflight_status inflight_status;
#else
typedef int32_t inflight_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Decides, step by step, which requests run: `inflight_scheduler_schedule`, run the step on a
 * device, `inflight_scheduler_commit`.
 *
 * One thread at a time: a call that finds another inside returns IN_USE. Other threads submit and
 * cancel through an `inflight_submitter`.
 */
typedef struct inflight_scheduler inflight_scheduler;

/**
 * Hands requests to a scheduler that another thread steps. Any number of threads may use one at
 * the same time, and each may have its own.
 *
 * What it is given takes effect with the next `inflight_scheduler_schedule`, in order; what became
 * of it is told by `inflight_scheduler_events`. It may outlive its scheduler, and refuses
 * everything then.
 */
typedef struct inflight_submitter inflight_submitter;

/**
 * How the library was built. All functions are there in every build: those that this one cannot
 * offer return `INFLIGHT_STATUS_UNSUPPORTED` or `INFLIGHT_STATUS_NO_CUDA`.
 */
typedef struct inflight_build_info {
    /**
     * `sizeof(inflight_build_info)`.
     */
    size_t struct_size;
    /**
     * 1 if the library can use a CUDA driver, where there is one.
     */
    uint32_t cuda_driver;
    /**
     * 1 if it has kernels for GPUs.
     */
    uint32_t cuda_kernels;
    /**
     * What the kernels were compiled for, "sm_80, sm_90a, PTX 8.0"; empty where there are none.
     */
    const char *cuda_architectures;
    /**
     * Target of the compiler, "x86_64-unknown-linux-gnu".
     */
    const char *target;
} inflight_build_info;

/**
 * Takes a line of the log: its level (`INFLIGHT_LOG_*`), the text (UTF-8, no line break, valid
 * during the call), and the `user_data` that was given with the callback. It may be called from
 * any thread, several at once, and must not call this library.
 */
typedef void (*inflight_log_callback)(uint32_t level, const char *message, void *user_data);

/**
 * The detail of an error: every call that can fail takes a pointer to one as its last argument,
 * which may be NULL. It is the caller's, so threads never share it, and it needs no freeing.
 *
 * Initialise it once with `inflight_error_init`; each call then overwrites it, a successful one
 * with code 0 and empty strings.
 */
typedef struct inflight_error {
    /**
     * `sizeof(inflight_error)`.
     */
    size_t struct_size;
    /**
     * The status that the call returned.
     */
    int32_t code;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * The field or argument at fault, as it is spelt in this header; empty where there is none.
     */
    char field[INFLIGHT_ERROR_FIELD_SIZE];
    /**
     * What is wrong, in English, UTF-8, cut to fit.
     */
    char message[INFLIGHT_ERROR_MESSAGE_SIZE];
} inflight_error;

/**
 * Content behind placeholder tokens, such as an image: prompts share cached blocks only where it
 * is the same.
 */
typedef struct inflight_content {
    /**
     * Names the content, a digest for example.
     */
    const uint8_t *id;
    /**
     * Bytes of `id`.
     */
    size_t id_len;
    /**
     * First token position it covers.
     */
    uint32_t start;
    /**
     * Tokens it covers.
     */
    uint32_t len;
} inflight_content;

/**
 * A request to generate from a prompt. Everything it points to is copied by the call that takes it.
 *
 * Initialise it with `inflight_request_init`, then set at least `id`, `prompt`, `prompt_len` and
 * `max_tokens`.
 */
typedef struct inflight_request {
    /**
     * `sizeof(inflight_request)`.
     */
    size_t struct_size;
    /**
     * Chosen by the caller, unique among requests that have not finished.
     */
    uint64_t id;
    /**
     * Token ids; at least one.
     */
    const uint32_t *prompt;
    /**
     * Tokens of `prompt`.
     */
    size_t prompt_len;
    /**
     * Token ids that end the request when sampled, each reported as the reason; may be NULL.
     */
    const uint32_t *stop_tokens;
    /**
     * Tokens of `stop_tokens`.
     */
    size_t num_stop_tokens;
    /**
     * Requests share cached blocks only with requests of the same salt; may be NULL.
     */
    const uint8_t *salt;
    /**
     * Bytes of `salt`.
     */
    size_t salt_len;
    /**
     * Name of the adapter (LoRA) that the request runs with, for the same purpose; may be NULL.
     */
    const uint8_t *adapter;
    /**
     * Bytes of `adapter`.
     */
    size_t adapter_len;
    /**
     * Contents behind placeholder tokens, for the same purpose; may be NULL.
     */
    const struct inflight_content *contents;
    /**
     * Elements of `contents`.
     */
    size_t num_contents;
    /**
     * Whom the request belongs to: for policies that are fair to clients, and for the caller.
     */
    uint64_t client;
    /**
     * When it came, in nanoseconds of the clock that `inflight_scheduler_schedule` is given;
     * `INFLIGHT_NOW` by default.
     */
    uint64_t arrival;
    /**
     * Output tokens at most; at least 1. `max_model_len` caps prompt and output together.
     */
    uint32_t max_tokens;
    /**
     * Outputs below which repetition does not end the request. The end of sequence is not
     * affected: whoever samples must not sample it too early.
     */
    uint32_t min_tokens;
    /**
     * Token id that ends the request when sampled; `INFLIGHT_NO_TOKEN` (the default) for none.
     */
    uint32_t eos;
    /**
     * Lower runs first, under a policy that looks at it.
     */
    int32_t priority;
    /**
     * Repetitions of a pattern at the end of the output that end the request; at least 2, or 0
     * (the default) for no such rule.
     */
    uint32_t repetition_count;
    /**
     * Shortest pattern looked for, in tokens; 0 reads as 1.
     */
    uint32_t repetition_min_pattern;
    /**
     * Longest pattern looked for, in tokens.
     */
    uint32_t repetition_max_pattern;
    /**
     * 1 if it must not start from a cached prefix: for requests that want the logits of every
     * prompt position. Its blocks serve others either way.
     */
    uint32_t skip_prefix_cache;
} inflight_request;

/**
 * What a scheduler is made for.
 *
 * Initialise it with `inflight_scheduler_config_init`, then set at least `num_blocks`.
 */
typedef struct inflight_scheduler_config {
    /**
     * `sizeof(inflight_scheduler_config)`.
     */
    size_t struct_size;
    /**
     * Blocks of the device pool, the null block 0 included: at least 2.
     */
    uint64_t num_blocks;
    /**
     * Blocks of the host pool, for `swap`; 0 (the default) for none.
     */
    uint64_t num_host_blocks;
    /**
     * Requests that may wait; a submit beyond it is refused. No bound by default.
     */
    uint64_t max_waiting;
    /**
     * Tokens a block; at least 1. 16 by default.
     */
    uint32_t block_size;
    /**
     * Requests that run at once; at least 1. 256 by default.
     */
    uint32_t max_num_seqs;
    /**
     * Tokens computed in a step; at least 1. 8192 by default.
     */
    uint32_t max_num_batched_tokens;
    /**
     * Tokens of prompt and output together; at least 2, or 0 (the default) for all that the blocks
     * hold.
     */
    uint32_t max_model_len;
    /**
     * Tokens that one request may compute in a step while others run or wait; 0 (the default) for
     * no such cap.
     */
    uint32_t long_prefill_token_threshold;
    /**
     * Steps that may be scheduled before the first is committed; at least 1, the default.
     */
    uint32_t max_steps_in_flight;
    /**
     * 1 (the default) if full blocks are kept for later requests that start with the same tokens.
     */
    uint32_t prefix_cache;
    /**
     * 1 (the default) if a prompt may be computed in several steps.
     */
    uint32_t chunked_prefill;
    /**
     * 1 if a request may run on before its last token has returned: the device takes that token
     * from its own earlier step.
     */
    uint32_t overlap;
    /**
     * 1 if a preempted request's blocks move to the host pool, while it has room, instead of being
     * computed again.
     */
    uint32_t swap;
    /**
     * `INFLIGHT_POLICY_*`.
     */
    uint32_t policy;
    /**
     * Requests that may pass one that waits for memory; 0 (the default) for none, so that a large
     * request is never starved by small ones.
     */
    uint32_t bypass_bound;
    /**
     * Requests looked at behind the one that waits, in one step, where `bypass_bound` is not 0.
     */
    uint32_t bypass_lookahead;
    /**
     * The largest number of rows that batches are padded to, for CUDA graphs: 1, 2, 4, then by 8
     * to 256, by 16 beyond. 0 (the default) for no padding.
     */
    uint32_t max_padded_rows;
    /**
     * 1 (the default) to collect events, which the caller then takes with
     * `inflight_scheduler_events` now and again.
     */
    uint32_t events;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_scheduler_config;

/**
 * One request's share of a step.
 */
typedef struct inflight_row {
    /**
     * The request.
     */
    uint64_t request_id;
    /**
     * Tokens it computes, drafts included; at least 1.
     */
    uint32_t num_tokens;
    /**
     * Tokens whose KV is there before the step: the position of its first token.
     */
    uint32_t num_computed;
    /**
     * Draft tokens at the end of its tokens.
     */
    uint32_t num_draft;
    /**
     * Tokens it will have output once everything in flight has returned, this step excluded.
     */
    uint32_t num_output;
    /**
     * `INFLIGHT_ROW_*`, or-ed.
     */
    uint32_t flags;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_row;

/**
 * An input token that is not known yet, with `overlap`: the device takes it from an earlier step.
 */
typedef struct inflight_pending_token {
    /**
     * Index into `tokens`.
     */
    uint32_t token;
    /**
     * How many steps ago it is sampled; at least 1.
     */
    uint32_t steps_back;
    /**
     * Index among that step's logits.
     */
    uint32_t logits;
} inflight_pending_token;

/**
 * A copy of a block, in every layer's K and V, that the device makes before the step's kernels.
 */
typedef struct inflight_block_op {
    /**
     * `INFLIGHT_BLOCK_*`.
     */
    uint32_t kind;
    /**
     * Block read: of the host pool for a swap in, else of the device pool.
     */
    uint32_t src;
    /**
     * Block written: of the host pool for a swap out, else of the device pool.
     */
    uint32_t dst;
} inflight_block_op;

/**
 * One iteration: which requests compute how many tokens, as a ragged batch. All arrays are the
 * library's, and valid until the step's commit or abandon.
 *
 * Rows are requests, in order: those that were running, then those admitted. With row padding the
 * arrays by row have `num_padded_rows` entries, the last of them empty rows.
 */
typedef struct inflight_step_view {
    /**
     * `sizeof(inflight_step_view)`.
     */
    size_t struct_size;
    /**
     * Names the step to `inflight_scheduler_commit` and `inflight_scheduler_abandon`.
     */
    uint64_t step_id;
    /**
     * Rows, `[num_rows]`.
     */
    const struct inflight_row *rows;
    /**
     * Input tokens, row by row, `[num_tokens]`.
     */
    const uint32_t *tokens;
    /**
     * Position of each token in its sequence, `[num_tokens]`.
     */
    const uint32_t *positions;
    /**
     * Where each token's KV is written, `block * block_size + offset`, `[num_tokens]`.
     */
    const int64_t *slot_mapping;
    /**
     * Row r owns tokens `qo_indptr[r]..qo_indptr[r + 1]`, `[num_padded_rows + 1]`.
     */
    const uint32_t *qo_indptr;
    /**
     * Row r reads blocks `kv_indices[kv_indptr[r]..kv_indptr[r + 1]]`, `[num_padded_rows + 1]`.
     */
    const uint32_t *kv_indptr;
    /**
     * Block tables of the rows, one after the other, `[num_kv_blocks]`.
     */
    const uint32_t *kv_indices;
    /**
     * Tokens in each row's last block, this step's included, `[num_padded_rows]`.
     */
    const uint32_t *kv_last_page_len;
    /**
     * Tokens whose logits are needed: one for each row that samples, and one for each of its
     * drafts before it, `[num_logits]`.
     */
    const uint32_t *logits_indices;
    /**
     * Input tokens that a step in flight samples, `[num_pending]`; `tokens` has
     * `INFLIGHT_NO_TOKEN` there.
     */
    const struct inflight_pending_token *pending;
    /**
     * Copies to make first, in order, `[num_block_ops]`.
     */
    const struct inflight_block_op *block_ops;
    /**
     * Requests that had to give way and wait again, `[num_preempted]`.
     */
    const uint64_t *preempted;
    /**
     * All arrays in one buffer, header first, as kernels read it: 16-byte aligned.
     */
    const uint8_t *packed;
    /**
     * Bytes of `packed`.
     */
    size_t packed_size;
    /**
     * Rows.
     */
    uint32_t num_rows;
    /**
     * Rows, empty ones included.
     */
    uint32_t num_padded_rows;
    /**
     * Tokens.
     */
    uint32_t num_tokens;
    /**
     * Rows that sample.
     */
    uint32_t num_sampling;
    /**
     * Positions whose logits are needed.
     */
    uint32_t num_logits;
    /**
     * Elements of `kv_indices`.
     */
    uint32_t num_kv_blocks;
    /**
     * Elements of `pending`.
     */
    uint32_t num_pending;
    /**
     * Elements of `block_ops`.
     */
    uint32_t num_block_ops;
    /**
     * Elements of `preempted`.
     */
    uint32_t num_preempted;
    /**
     * Tokens a block.
     */
    uint32_t block_size;
    /**
     * Most tokens of a row.
     */
    uint32_t max_q_len;
    /**
     * Most keys of a row, this step's included.
     */
    uint32_t max_kv_len;
    /**
     * Requests that hold a slot, after scheduling.
     */
    uint32_t num_running;
    /**
     * Requests that wait, after scheduling.
     */
    uint32_t num_waiting;
    /**
     * Blocks free, after scheduling.
     */
    uint32_t num_free_blocks;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_step_view;

/**
 * The tokens that a step sampled.
 */
typedef struct inflight_samples {
    /**
     * `sizeof(inflight_samples)`.
     */
    size_t struct_size;
    /**
     * Token ids of the rows that sample, in the order of the rows.
     */
    const uint32_t *tokens;
    /**
     * Elements of `tokens`.
     */
    size_t num_tokens;
    /**
     * NULL for one token a row. With drafts: the i-th row that samples has
     * `tokens[indptr[i]..indptr[i + 1]]`, the accepted drafts and the token after them, between
     * one and `num_draft + 1`.
     */
    const uint32_t *indptr;
    /**
     * Elements of `indptr`: one more than rows that sample.
     */
    size_t indptr_len;
} inflight_samples;

/**
 * What a commit delivers of one request.
 */
typedef struct inflight_output {
    /**
     * The request.
     */
    uint64_t request_id;
    /**
     * Its tokens are `tokens[first_token..first_token + num_tokens]` of the view.
     */
    uint32_t first_token;
    /**
     * Its tokens in this commit.
     */
    uint32_t num_tokens;
    /**
     * `INFLIGHT_FINISH_*`: set with its last token.
     */
    uint32_t finish;
    /**
     * The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
     */
    uint32_t stop_token;
} inflight_output;

/**
 * What a commit delivers. All arrays are the library's, and valid until the next call with the
 * scheduler.
 */
typedef struct inflight_outputs_view {
    /**
     * `sizeof(inflight_outputs_view)`.
     */
    size_t struct_size;
    /**
     * The step that was committed.
     */
    uint64_t step_id;
    /**
     * The requests that got tokens, in the order of the step's rows, `[num_outputs]`.
     */
    const struct inflight_output *outputs;
    /**
     * Their tokens, `[num_tokens]`.
     */
    const uint32_t *tokens;
    /**
     * Requests that gave back their slot and blocks: those that finished, or under static batching
     * the whole batch with its last, `[num_released]`.
     */
    const uint64_t *released;
    /**
     * Elements of `outputs`.
     */
    uint32_t num_outputs;
    /**
     * Elements of `tokens`.
     */
    uint32_t num_tokens;
    /**
     * Elements of `released`.
     */
    uint32_t num_released;
    /**
     * Blocks free after the commit.
     */
    uint32_t num_free_blocks;
} inflight_outputs_view;

/**
 * Something that happened to a request.
 */
typedef struct inflight_event {
    /**
     * The request.
     */
    uint64_t request_id;
    /**
     * The step with which it happened, or 2^64 - 1.
     */
    uint64_t step_id;
    /**
     * `INFLIGHT_EVENT_*`.
     */
    uint32_t kind;
    /**
     * Why it was refused: an `inflight_status`; else 0.
     */
    int32_t status;
    /**
     * Why it finished: `INFLIGHT_FINISH_*`; else `INFLIGHT_FINISH_NONE`.
     */
    uint32_t finish;
    /**
     * The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
     */
    uint32_t stop_token;
} inflight_event;

/**
 * Counters since a scheduler was made, and its state now.
 */
typedef struct inflight_scheduler_stats {
    /**
     * `sizeof(inflight_scheduler_stats)`.
     */
    size_t struct_size;
    /**
     * Steps scheduled, empty ones included.
     */
    uint64_t steps;
    /**
     * Admissions, those after a preemption included.
     */
    uint64_t admissions;
    /**
     * Preemptions.
     */
    uint64_t preemptions;
    /**
     * Requests that ended by themselves.
     */
    uint64_t finished;
    /**
     * Requests cancelled.
     */
    uint64_t cancelled;
    /**
     * Tokens delivered.
     */
    uint64_t output_tokens;
    /**
     * Tokens of requests that looked for a cached prefix.
     */
    uint64_t prefix_queried_tokens;
    /**
     * Tokens among them that were found.
     */
    uint64_t prefix_hit_tokens;
    /**
     * Blocks whose known content was given up for a new one.
     */
    uint64_t evicted_blocks;
    /**
     * Requests that hold a slot now.
     */
    uint64_t num_running;
    /**
     * Requests that wait now.
     */
    uint64_t num_waiting;
    /**
     * Blocks of the device pool that are free now, cached ones included.
     */
    uint64_t num_free_blocks;
    /**
     * Blocks of the host pool that are free now.
     */
    uint64_t num_free_host_blocks;
} inflight_scheduler_stats;

/**
 * A request at this moment.
 */
typedef struct inflight_request_snapshot {
    /**
     * `sizeof(inflight_request_snapshot)`.
     */
    size_t struct_size;
    /**
     * Whom it belongs to.
     */
    uint64_t client;
    /**
     * 1 if it is among the running requests, 0 if it waits.
     */
    uint32_t running;
    /**
     * Tokens of its prompt.
     */
    uint32_t num_prompt;
    /**
     * Tokens output so far.
     */
    uint32_t num_output;
    /**
     * Tokens whose KV is computed or in flight.
     */
    uint32_t num_computed;
    /**
     * Times it was preempted.
     */
    uint32_t num_preemptions;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_request_snapshot;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library that is loaded, like `INFLIGHT_VERSION_NUMBER`.
 *
 * A library that is newer than the header, with the same ABI version, serves it as well.
 *
 * Threads: any. Since 0.1.
 */
uint32_t inflight_version_number(void);

/**
 * Version of the library that is loaded, "0.1.0". The string lives as long as the library.
 *
 * Threads: any. Since 0.1.
 */
const char *inflight_version_string(void);

/**
 * Version of the ABI of the library that is loaded, to be compared with `INFLIGHT_ABI_VERSION`.
 *
 * Threads: any. Since 0.1.
 */
uint32_t inflight_abi_version(void);

/**
 * Says how the library was built.
 *
 * `size` is `sizeof(inflight_build_info)`. NULL does nothing. The strings live as long as the
 * library.
 *
 * Threads: any. Since 0.1.
 *
 * # Safety
 * `info` is NULL or points to `size` bytes that may be written.
 */
void inflight_get_build_info(struct inflight_build_info *info, size_t size);

/**
 * Has lines of the log of at most this level (`INFLIGHT_LOG_*`) given to `callback`; NULL for
 * nobody, as at the start.
 *
 * The library logs rarely: never in a step that goes well. When this call returns, the callback
 * that was set before is not running and will not be called any more.
 *
 * Threads: any, but not from inside a callback. Since 0.1.
 *
 * # Safety
 * `callback` may be called from any thread, with `user_data`, until it is replaced.
 */
void inflight_set_log_callback(inflight_log_callback callback, void *user_data, uint32_t level);

/**
 * What a status means, in a few words.
 *
 * Outputs: a string that lives as long as the library. A number that is no status gives
 * "unknown status".
 *
 * Threads: any. Since 0.1.
 */
const char *inflight_status_string(int32_t status);

/**
 * Prepares an `inflight_error`: size set, code 0, strings empty.
 *
 * `size` is `sizeof(inflight_error)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 *
 * # Safety
 * `error` is NULL or points to `size` bytes that may be written.
 */
void inflight_error_init(struct inflight_error *error, size_t size);

/**
 * Prepares an `inflight_request`: size set, defaults in all other fields.
 *
 * `size` is `sizeof(inflight_request)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_request_init(struct inflight_request *request, size_t size);

/**
 * Prepares an `inflight_scheduler_config`: size set, defaults in all other fields.
 *
 * `size` is `sizeof(inflight_scheduler_config)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_scheduler_config_init(struct inflight_scheduler_config *config, size_t size);

/**
 * A scheduler without requests.
 *
 * Outputs: `*out`, to be freed with `inflight_scheduler_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming the field of `config`, STRUCT_SIZE.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_scheduler_create(const struct inflight_scheduler_config *config,
                                          struct inflight_scheduler **out,
                                          struct inflight_error *error);

/**
 * Frees a scheduler, whatever it holds. NULL does nothing. Views of its steps are gone; submitters
 * may live on, and refuse everything.
 *
 * Threads: any; nobody may be using it. Since 0.1.
 */
void inflight_scheduler_free(struct inflight_scheduler *scheduler);

/**
 * Queues a request. Everything it points to is copied.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, STRUCT_SIZE, DUPLICATE_REQUEST,
 * PROMPT_TOO_LONG, NEVER_FITS, QUEUE_FULL (try again later), IN_USE, POISONED.
 * Threads: one at a time; `inflight_submitter_submit` is for any. Since 0.1.
 */
inflight_status inflight_scheduler_submit(struct inflight_scheduler *scheduler,
                                          const struct inflight_request *request,
                                          struct inflight_error *error);

/**
 * Ends a request wherever it is, and frees its slot and blocks. Samples of it that are still in
 * flight are dropped. There is no event: the call says it all.
 *
 * Fails, and nothing has changed: UNKNOWN_REQUEST when it has finished, or never was;
 * INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time; `inflight_submitter_cancel` is for any. Since 0.1.
 */
inflight_status inflight_scheduler_cancel(struct inflight_scheduler *scheduler,
                                          uint64_t request_id,
                                          struct inflight_error *error);

/**
 * Draft tokens to be verified in the step in which the request samples next; they replace earlier
 * ones, and none (NULL, 0) takes them back.
 *
 * Fails, and nothing has changed: UNKNOWN_REQUEST; INVALID_ARGUMENT while tokens of it are in
 * flight, with `overlap`, and under static batching; IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_set_draft(struct inflight_scheduler *scheduler,
                                             uint64_t request_id,
                                             const uint32_t *draft,
                                             size_t draft_len,
                                             struct inflight_error *error);

/**
 * Schedules the next step at time `now`, in nanoseconds from any origin; earlier than the last
 * reads as the last. What submitters handed over is received first.
 *
 * Outputs: `*view`, prepared with `inflight_step_view_init`: the step, whose arrays are valid until
 * its commit or abandon. `num_rows` is 0 where there is nothing to run; such a step is committed,
 * with no tokens, or abandoned as any other.
 * Fails, and there is no step: TOO_MANY_STEPS_IN_FLIGHT; STALLED when the policy lets nobody run,
 * which is for the caller to mend (cancel a request, or wait for what else holds blocks);
 * INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED. Requests may have been received and preempted.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_schedule(struct inflight_scheduler *scheduler,
                                            uint64_t now,
                                            struct inflight_step_view *view,
                                            struct inflight_error *error);

/**
 * Takes the samples of the oldest step in flight and says what became of its requests. Each token
 * is delivered once and in order; what was sampled past a request's end, or for one that was
 * cancelled meanwhile, is dropped.
 *
 * `samples` is NULL for a step in which no row samples.
 *
 * Outputs: `*view`, prepared with `inflight_outputs_view_init`, whose arrays are valid until the
 * next call with the scheduler; NULL if the caller does not care (events tell what finished).
 * Fails, and nothing has changed: UNKNOWN_STEP; STEP_OUT_OF_ORDER when an older step is in flight;
 * OUTPUT_MISMATCH when the samples are not those of its rows; INVALID_ARGUMENT for bad offsets;
 * STRUCT_SIZE, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_commit(struct inflight_scheduler *scheduler,
                                          uint64_t step_id,
                                          const struct inflight_samples *samples,
                                          struct inflight_outputs_view *view,
                                          struct inflight_error *error);

/**
 * Undoes the newest step in flight, as if it had not been scheduled: for a step that was not run,
 * or failed on the way. Its tokens are computed again; requests it preempted stay preempted.
 *
 * Fails, and nothing has changed: UNKNOWN_STEP; STEP_OUT_OF_ORDER when a newer step, which builds
 * on it, is in flight; INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_abandon(struct inflight_scheduler *scheduler,
                                           uint64_t step_id,
                                           struct inflight_error *error);

/**
 * Takes the oldest events, at most `capacity` of them.
 *
 * Outputs: `events[0..*num_events]`; what does not fit stays for the next call. `events` may be
 * NULL if `capacity` is 0.
 * Fails, and no event is taken: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_events(struct inflight_scheduler *scheduler,
                                          struct inflight_event *events,
                                          size_t capacity,
                                          size_t *num_events,
                                          struct inflight_error *error);

/**
 * Prepares an `inflight_step_view`: size set, empty.
 *
 * `size` is `sizeof(inflight_step_view)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_step_view_init(struct inflight_step_view *view, size_t size);

/**
 * Prepares an `inflight_samples`: size set, empty.
 *
 * `size` is `sizeof(inflight_samples)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_samples_init(struct inflight_samples *samples, size_t size);

/**
 * Prepares an `inflight_outputs_view`: size set, empty.
 *
 * `size` is `sizeof(inflight_outputs_view)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_outputs_view_init(struct inflight_outputs_view *view, size_t size);

/**
 * Prepares an `inflight_scheduler_stats`: size set, zeros.
 *
 * `size` is `sizeof(inflight_scheduler_stats)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_scheduler_stats_init(struct inflight_scheduler_stats *stats, size_t size);

/**
 * Counters and state.
 *
 * Outputs: `*stats`, prepared with `inflight_scheduler_stats_init`.
 * Fails: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_get_stats(struct inflight_scheduler *scheduler,
                                             struct inflight_scheduler_stats *stats,
                                             struct inflight_error *error);

/**
 * Prepares an `inflight_request_snapshot`: size set, zeros.
 *
 * `size` is `sizeof(inflight_request_snapshot)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_request_snapshot_init(struct inflight_request_snapshot *snapshot, size_t size);

/**
 * A request at this moment.
 *
 * Outputs: `*snapshot`, prepared with `inflight_request_snapshot_init`.
 * Fails: UNKNOWN_REQUEST when it has finished, or never was; INVALID_ARGUMENT, STRUCT_SIZE, IN_USE,
 * POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_get_request(struct inflight_scheduler *scheduler,
                                               uint64_t request_id,
                                               struct inflight_request_snapshot *snapshot,
                                               struct inflight_error *error);

/**
 * Checks every invariant: for tests and debugging, since it looks at all there is.
 *
 * Fails: CORRUPT, with what does not hold in the message; INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_verify(struct inflight_scheduler *scheduler,
                                          struct inflight_error *error);

/**
 * Forgets cached prefixes: for a model whose weights have changed.
 *
 * Fails, and nothing is forgotten: OUT_OF_BLOCKS while any block is held; INVALID_ARGUMENT, IN_USE,
 * POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_reset_prefix_cache(struct inflight_scheduler *scheduler,
                                                      struct inflight_error *error);

/**
 * A submitter for a scheduler.
 *
 * Outputs: `*out`, to be freed with `inflight_submitter_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: the scheduler's (one at a time). Since 0.1.
 */
inflight_status inflight_submitter_create(struct inflight_scheduler *scheduler,
                                          struct inflight_submitter **out,
                                          struct inflight_error *error);

/**
 * Frees a submitter. NULL does nothing. What it handed over stays handed over.
 *
 * Threads: any; nobody may be using it. Since 0.1.
 */
void inflight_submitter_free(struct inflight_submitter *submitter);

/**
 * Hands over a request. Everything it points to is copied.
 *
 * Whether its id is free shows when the scheduler receives it: a request that is refused then gives
 * an event `INFLIGHT_EVENT_REFUSED`.
 *
 * Fails, and nothing has happened: INVALID_ARGUMENT, STRUCT_SIZE, PROMPT_TOO_LONG, NEVER_FITS,
 * QUEUE_FULL (try again later).
 * Threads: any, several at once. Since 0.1.
 */
inflight_status inflight_submitter_submit(const struct inflight_submitter *submitter,
                                          const struct inflight_request *request,
                                          struct inflight_error *error);

/**
 * Asks for the end of a request, wherever it is. One that has ended already is no error: the event
 * is `INFLIGHT_EVENT_CANCELLED` where there was something to cancel.
 *
 * Fails: INVALID_ARGUMENT.
 * Threads: any, several at once. Since 0.1.
 */
inflight_status inflight_submitter_cancel(const struct inflight_submitter *submitter,
                                          uint64_t request_id,
                                          struct inflight_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* INFLIGHT_H */
