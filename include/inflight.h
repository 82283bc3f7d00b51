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
 *     check(inflight_scheduler_create(&config, &scheduler, NULL));
 *     check(inflight_scheduler_submit(scheduler, &request, NULL));
 *     inflight_step_view step;
 *     inflight_samples samples;
 *     inflight_outputs_view outputs;
 *     inflight_step_view_init(&step, sizeof step);
 *     inflight_samples_init(&samples, sizeof samples);
 *     inflight_outputs_view_init(&outputs, sizeof outputs);
 *     samples.tokens = sampled;
 *     while (serving()) {
 *         check(inflight_scheduler_schedule(scheduler, now(), &step, NULL));
 *         if (step.num_rows == 0) {
 *             wait_for_requests();         // nothing to run
 *         } else {
 *             run_model(&step, sampled);   // step.tokens, step.slot_mapping, step.kv_indices, ...
 *         }
 *         samples.num_tokens = step.num_sampling;
 *         check(inflight_scheduler_commit(scheduler, step.step_id, &samples, &outputs, NULL));
 *         deliver(&outputs);
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
 * Fork
 *   In the child of a fork, every call with a handle that was made before it returns
 *   INFLIGHT_STATUS_FORKED and does nothing, whatever threads of the parent were inside of: make
 *   others there. To free such a handle is safe and silent, and never waits; what cannot be released
 *   without the parent's threads stays. CUDA, where the parent has used it, cannot be used in the
 *   child (INFLIGHT_STATUS_NO_CUDA).
 *
 * Structs
 *   Most begin with struct_size and are prepared by their _init with sizeof as the program sees it.
 *   Others stand in arrays: one of the library's comes with the bytes from one element to the next
 *   (rows with row_size), and a call that reads or fills one of the caller's is told sizeof an element
 *   (event_size). INFLIGHT_AT finds an element. In arrays of structs with a struct_size the next is as
 *   many bytes further. All of them only ever grow at the end: a program built with an older header
 *   keeps working with a newer library, and with an older library as long as it leaves newer fields at
 *   0. Fields named "reserved" are 0. Flags are 0 or 1, anything else is refused. Counts are at most
 *   INFLIGHT_MAX_COUNT where a field says no other maximum.
 *
 * Versions
 *   INFLIGHT_ABI_VERSION is in the library's SONAME. What is here is frozen within one: names, values,
 *   prototypes, and the fields of structs, where they are and what they mean. Later versions append:
 *   functions, constants, numbers of kinds, reasons and statuses (pass over those that you do not
 *   know), and fields at the end of structs, so a request grows by its size. Texts of messages are not
 *   frozen. "Since" names the first version that has a function.
 */


#ifndef INFLIGHT_H
#define INFLIGHT_H

/* Made by cbindgen from src/capi: edit that, then run INFLIGHT_REGENERATE=1 cargo test --test header. */

#include <stddef.h>
#include <stdint.h>
/* Element `index` of an array of structs of the library's, `size` bytes apart:
 * `INFLIGHT_AT(inflight_row, step.rows, step.row_size, r)->request_id`. */
#define INFLIGHT_AT(type, array, size, index) \
    ((const type *)(const void *)((const unsigned char *)(array) + (size_t)(size) * (index)))

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
#define INFLIGHT_ABI_VERSION 1

/**
 * Most blocks, tokens or requests, where a field says no other maximum: their numbers are of 31
 * bits.
 */
#define INFLIGHT_MAX_COUNT 2147483647

/**
 * Something went wrong inside the library.
 */
#define INFLIGHT_LOG_ERROR 1

/**
 * Something is slower or other than one would expect. This version has no such lines.
 */
#define INFLIGHT_LOG_WARNING 2

/**
 * What was found and chosen. This version has no such lines.
 */
#define INFLIGHT_LOG_INFO 3

/**
 * Bytes of `inflight_error.field`, terminator included.
 */
#define INFLIGHT_ERROR_FIELD_SIZE 64

/**
 * Bytes of `inflight_error.message`, terminator included.
 */
#define INFLIGHT_ERROR_MESSAGE_SIZE 424

/**
 * No token: a request without `eos`. Refused among
 * tokens: in prompts, drafts, stop tokens, samples and tokens of sequences.
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
 * Lowest `priority` value first; the least urgent gives way. Waiting makes up for it: 256 admissions
 * of others count as one level, and who has seen 1,024 goes first whatever its priority. These
 * numbers are fixed here.
 */
#define INFLIGHT_POLICY_PRIORITY 2

/**
 * No request is admitted that might have to be preempted: TensorRT-LLM's default.
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
 * The caller ended it: `inflight_submitter_finish`.
 */
#define INFLIGHT_FINISH_STOPPED 5

/**
 * A request that a submitter handed over cannot run: `status` says why. For DUPLICATE_REQUEST the
 * id is that of another request as well, which goes on.
 */
#define INFLIGHT_EVENT_REFUSED 1

/**
 * A request has finished: `finish` says why.
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
 * The processor. Pointers given with it are to memory of the process, streams are NULL, and calls
 * return when their work is done.
 */
#define INFLIGHT_DEVICE_CPU 1

/**
 * A GPU, through the CUDA driver. Pointers given with it are to memory that it can reach, streams
 * are `CUstream` or `cudaStream_t` (NULL is the default one), and calls queue their work.
 */
#define INFLIGHT_DEVICE_CUDA 2

/**
 * The best instructions that this processor has.
 */
#define INFLIGHT_ISA_BEST 0

/**
 * AVX-512 F, BW, DQ, VL and BF16.
 */
#define INFLIGHT_ISA_AVX512_BF16 1

/**
 * AVX-512 F, BW, DQ and VL.
 */
#define INFLIGHT_ISA_AVX512 2

/**
 * AVX2, FMA and F16C.
 */
#define INFLIGHT_ISA_AVX2 3

/**
 * NEON.
 */
#define INFLIGHT_ISA_NEON 4

/**
 * No instructions but those that every processor has.
 */
#define INFLIGHT_ISA_PORTABLE 5

/**
 * The same with the algorithm of `INFLIGHT_ISA_AVX512_BF16`, for tests.
 */
#define INFLIGHT_ISA_PORTABLE_BF16 6

/**
 * Bytes of `inflight_device_info.name`, terminator included.
 */
#define INFLIGHT_DEVICE_NAME_SIZE 256

/**
 * IEEE binary32.
 */
#define INFLIGHT_DTYPE_F32 1

/**
 * IEEE binary16.
 */
#define INFLIGHT_DTYPE_F16 2

/**
 * bfloat16: the upper half of a binary32.
 */
#define INFLIGHT_DTYPE_BF16 3

/**
 * OCP 8-bit float e4m3 without infinities, largest 448: `float8_e4m3fn`.
 */
#define INFLIGHT_DTYPE_FP8_E4M3 4

/**
 * `[num_blocks, block_size, num_heads, head_dim]`: a token's heads are together.
 */
#define INFLIGHT_LAYOUT_NHD 1

/**
 * `[num_blocks, num_heads, block_size, head_dim]`: a head's tokens are together.
 */
#define INFLIGHT_LAYOUT_HND 2

/**
 * No window: queries see keys however far back.
 */
#define INFLIGHT_NO_WINDOW UINT32_MAX

/**
 * Attentions of one step buffer at most.
 */
#define INFLIGHT_MAX_ATTENTIONS 4

/**
 * Pairs are elements `i` and `i + rotary_dim / 2` of a head: GPT-NeoX, Llama as Hugging Face stores
 * it.
 */
#define INFLIGHT_ROPE_PAIRS_HALF 1

/**
 * Pairs are elements `2 i` and `2 i + 1`: GPT-J, Llama as its authors stored it.
 */
#define INFLIGHT_ROPE_PAIRS_INTERLEAVED 2

/**
 * Frequencies as they are. The default.
 */
#define INFLIGHT_ROPE_SCALING_NONE 0

/**
 * All are divided by `factor`: position interpolation.
 */
#define INFLIGHT_ROPE_SCALING_LINEAR 1

/**
 * `theta` is multiplied by `factor^(d / (d - 2))`, d the rotary dimension.
 */
#define INFLIGHT_ROPE_SCALING_NTK 2

/**
 * The same with the factor that the table's length asks for, beyond `original_max_position`.
 */
#define INFLIGHT_ROPE_SCALING_DYNAMIC_NTK 3

/**
 * YaRN: takes `factor`, `original_max_position`, `beta_fast`, `beta_slow`, `attention_factor`,
 * `mscale`, `mscale_all_dim` and `truncate`.
 */
#define INFLIGHT_ROPE_SCALING_YARN 4

/**
 * Llama 3.1: takes `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position`.
 */
#define INFLIGHT_ROPE_SCALING_LLAMA3 5

/**
 * States of one merge at most.
 */
#define INFLIGHT_MAX_STATES 16

/**
 * A `DLManagedTensor`: what a capsule named "dltensor" holds.
 */
#define INFLIGHT_DLPACK_UNVERSIONED 0

/**
 * A `DLManagedTensorVersioned` of version 1: what a capsule named "dltensor_versioned" holds.
 */
#define INFLIGHT_DLPACK_VERSIONED 1

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
     * The scheduler of a submitter has been freed, or a call with it panicked: it takes no more
     * requests.
     */
    INFLIGHT_STATUS_CLOSED = 110,
    /**
     * The object was made before `fork`, by a parent of this process. It can be freed; make another
     * in this process.
     */
    INFLIGHT_STATUS_FORKED = 111,
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
     * The process has too little memory left for what was asked.
     */
    INFLIGHT_STATUS_OUT_OF_MEMORY = 204,
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
     * This build has no kernels that the device can run, or its driver: one that is older than the
     * toolkit that compiled them allows. The message says which, and what to do.
     */
    INFLIGHT_STATUS_NO_KERNEL_IMAGE = 304,
    /**
     * The device, or this build, does not offer what was asked for. No call of this version returns it.
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
 * Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
 * any mixture of them.
 *
 * Once per step `inflight_attention_plan`, then `inflight_step_buffer_upload`; then once per layer
 * `inflight_append` and `inflight_attention_run`. Needs no scheduler: an `inflight_batch` says what
 * the rows are.
 *
 * Results: the softmax over a query's keys, summed in f32; a query without keys gives 0 and an LSE
 * of minus infinity. The same plan gives the same bits.
 *
 * One thread at a time: a call that finds another inside returns IN_USE. Layers that run at the same
 * time need one each, and a step buffer each.
 */
typedef struct inflight_attention inflight_attention;

/**
 * Carries out block operations on every layer's K and V: those of a step, or of
 * `inflight_cache_take_ops`.
 *
 * One thread at a time: a call that finds another inside returns IN_USE.
 */
typedef struct inflight_block_mover inflight_block_mover;

/**
 * Decides which block of a paged KV cache holds which tokens of which sequence: block tables,
 * prefix cache, copy-on-write, swap. It moves no data and knows no scheduler: those that have an
 * `inflight_scheduler` do not need it.
 *
 * The life of a sequence: `inflight_cache_open`; `inflight_cache_extend` with its tokens;
 * `inflight_cache_lookup` what is cached; `inflight_cache_allocate` with what was found;
 * `inflight_cache_register` what this step fills; `inflight_cache_take_ops` and make the copies, run
 * the step on `inflight_cache_table`; `inflight_cache_close`.
 *
 * One thread at a time: a call that finds another inside returns IN_USE.
 */
typedef struct inflight_cache inflight_cache;

/**
 * A device that kernels run on. What is made for it keeps what it needs of it: it may be freed
 * first.
 */
typedef struct inflight_device inflight_device;

/**
 * Decides, step by step, which requests run: `inflight_scheduler_schedule`, run the step on a
 * device, `inflight_scheduler_commit`.
 *
 * One thread at a time: a call that finds another inside returns IN_USE. Other threads submit and
 * cancel through an `inflight_submitter`.
 */
typedef struct inflight_scheduler inflight_scheduler;

/**
 * A step's arrays and plans, where kernels find them: on a GPU in device memory at an address that
 * stays, so that a captured graph serves every step; on a processor a copy.
 *
 * `inflight_step_buffer_upload` writes it, by a copy, and nothing else may: a kernel here may read
 * it while the kernels queued before are still running. What those write of queries, keys, values
 * and outputs is waited for.
 *
 * One thread at a time: a call that finds another inside returns IN_USE, so that threads which
 * append and attend at the same time need one each. Attentions of one buffer take turns.
 */
typedef struct inflight_step_buffer inflight_step_buffer;

/**
 * Hands requests to a scheduler that another thread steps. Any number of threads may use one at
 * the same time, and each may have its own.
 *
 * What it is given takes effect with the next `inflight_scheduler_schedule`, in order; what became
 * of it is told by `inflight_scheduler_events`. It may outlive its scheduler, and refuses
 * everything then (CLOSED), as it does when a call with the scheduler panicked.
 */
typedef struct inflight_submitter inflight_submitter;

/**
 * How the library was built. All functions are there in every build: those that need CUDA return
 * `INFLIGHT_STATUS_NO_CUDA` where this one has no support for it, and `INFLIGHT_STATUS_NO_KERNEL_IMAGE`
 * where it has no kernels.
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
     * What the kernels were compiled for, "sm_80, sm_90, PTX 8.0, PTX 9.0"; empty where there are none.
     */
    const char *cuda_architectures;
    /**
     * Target of the compiler, "x86_64-unknown-linux-gnu".
     */
    const char *target;
    /**
     * The CUDA toolkit that compiled the kernels, 13000 for 13.0; 0 where there are none.
     */
    uint32_t cuda_toolkit;
    /**
     * The CUDA version that the driver must offer, 12040 for 12.4 (driver 550): what the library needs,
     * or 13000 (driver 580) where a toolkit of 13.x compiled the kernels. 0 where `cuda_driver` is.
     */
    uint32_t cuda_driver_needed;
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
     * The request that the failure is about, where `has_request` is 1; else 0.
     */
    uint64_t request_id;
    /**
     * The status that the call returned.
     */
    int32_t code;
    /**
     * 1 if the failure is about one request: the one that was submitted or named, or with STALLED
     * the one at the head of the queue.
     */
    uint32_t has_request;
    /**
     * The field or argument at fault, as it is spelt in this header, with INVALID_ARGUMENT and
     * STRUCT_SIZE; empty with all others.
     */
    char field[INFLIGHT_ERROR_FIELD_SIZE];
    /**
     * What is wrong, in English, UTF-8, cut to fit. With a field it goes on from the field's name
     * ("is NULL"): print `field: message`.
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
     * Bytes of `id`, at most 65536.
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
 * A request to generate from a prompt. Everything it points to is copied by the call that takes it. What
 * later versions ask of a request is added at its end.
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
     * Token ids, none of them `INFLIGHT_NO_TOKEN`; at least one.
     */
    const uint32_t *prompt;
    /**
     * Tokens of `prompt`, at most `INFLIGHT_MAX_COUNT`.
     */
    size_t prompt_len;
    /**
     * Token ids that end the request when sampled, each reported as the reason, none of them
     * `INFLIGHT_NO_TOKEN`; may be NULL.
     */
    const uint32_t *stop_tokens;
    /**
     * Tokens of `stop_tokens`, at most 65536.
     */
    size_t num_stop_tokens;
    /**
     * Requests share cached blocks only with requests of the same salt; may be NULL.
     */
    const uint8_t *salt;
    /**
     * Bytes of `salt`, at most 65536.
     */
    size_t salt_len;
    /**
     * Name of the adapter (LoRA) that the request runs with, for the same purpose; may be NULL.
     */
    const uint8_t *adapter;
    /**
     * Bytes of `adapter`, at most 65536.
     */
    size_t adapter_len;
    /**
     * Contents behind placeholder tokens, for the same purpose; may be NULL.
     */
    const struct inflight_content *contents;
    /**
     * Elements of `contents`, at most 65536.
     */
    size_t num_contents;
    /**
     * `sizeof(inflight_content)`, where there are contents.
     */
    size_t content_size;
    /**
     * The client that the request belongs to: for policies that are fair to clients, and for the caller.
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
     * affected: the sampler must not sample it too early.
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
     * Repetitions of a pattern at the end of the output that end the request; at least 2, with
     * `repetition_max_pattern` set too, or 0 (the default) for no such rule.
     */
    uint32_t repetition_count;
    /**
     * Shortest pattern looked for, in tokens; 0 reads as 1.
     */
    uint32_t repetition_min_pattern;
    /**
     * Longest pattern looked for, in tokens: at least the shortest, where there is a rule.
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
     * Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`. Each takes 12
     * bytes of this process's memory, with `prefix_cache` at most 64.
     */
    uint64_t num_blocks;
    /**
     * Blocks of the host pool, for `swap`, at most `INFLIGHT_MAX_COUNT`; 0 (the default) for none.
     * Each takes 4 bytes.
     */
    uint64_t num_host_blocks;
    /**
     * Requests that may wait; a submit beyond it is refused. No bound by default.
     */
    uint64_t max_waiting;
    /**
     * Tokens per block; 1 to `INFLIGHT_MAX_COUNT`, as the next three. 16 by default.
     */
    uint32_t block_size;
    /**
     * Requests that run at once. 256 by default.
     */
    uint32_t max_num_seqs;
    /**
     * Tokens computed in a step. 8192 by default.
     */
    uint32_t max_num_batched_tokens;
    /**
     * Tokens of prompt and output together, not 1; 0 (the default) for all that the blocks hold.
     */
    uint32_t max_model_len;
    /**
     * Tokens that one request may compute in a step while others run or wait, at most
     * `INFLIGHT_MAX_COUNT`; 0 (the default) for no such cap.
     */
    uint32_t long_prefill_token_threshold;
    /**
     * Steps that may be scheduled before the first is committed; 1 (the default) to
     * `INFLIGHT_MAX_COUNT`.
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
     * to 256, by 16 beyond; at most 65536. 0 (the default) for no padding.
     */
    uint32_t max_padded_rows;
    /**
     * 1 (the default) if events are collected from the creation of the first `inflight_submitter` on,
     * freed or not; the caller then takes them with `inflight_scheduler_events` after each step, until
     * when they are kept, however many.
     */
    uint32_t events;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_scheduler_config;

/**
 * Counts and times of a request at its end: of an `inflight_output`, and at the end of an
 * `inflight_event`, which grows with it. In arrays `result_size` bytes from one to the next.
 */
typedef struct inflight_request_result {
    /**
     * The time given to the `inflight_scheduler_schedule` that first admitted it; 2^64 - 1 where it
     * was not.
     */
    uint64_t first_scheduled_at;
    /**
     * The time given to the `inflight_scheduler_schedule` of the step that sampled its first token;
     * 2^64 - 1 where none has been committed.
     */
    uint64_t first_token_at;
    /**
     * Tokens of its prompt.
     */
    uint32_t num_prompt;
    /**
     * Tokens that it has output.
     */
    uint32_t num_output;
    /**
     * Tokens that it found in the prefix cache when it was first admitted.
     */
    uint32_t num_cached;
    /**
     * Times it was preempted.
     */
    uint32_t num_preemptions;
    /**
     * Draft tokens that were verified.
     */
    uint32_t num_drafts;
    /**
     * Draft tokens among them that were accepted.
     */
    uint32_t num_accepted;
} inflight_request_result;

/**
 * What a scheduler calls to wake the thread that steps it: see `inflight_scheduler_set_wake`.
 */
typedef void (*inflight_wake_fn)(void *user_data);

/**
 * One request's share of a step. In arrays `row_size` bytes from one to the next.
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
 * What a group of layers has of the cache in a step: layers that keep the same keys share it. A model
 * whose layers all do has one group.
 *
 * Of groups in an array each has the same `struct_size`, and the next begins as many bytes further.
 * Those of a caller are initialised with `inflight_group_init`.
 */
typedef struct inflight_group {
    /**
     * `sizeof(inflight_group)` as its maker sees it.
     */
    size_t struct_size;
    /**
     * Row r reads blocks `kv_indices[kv_indptr[r]..kv_indptr[r + 1]]`, one more than rows, empty ones
     * included.
     */
    const uint32_t *kv_indptr;
    /**
     * Block tables of the rows, one after the other, `[num_kv_blocks]`. Attention only reads them:
     * rows may share a block, and a row may name one several times.
     */
    const uint32_t *kv_indices;
    /**
     * Tokens in the last block of each row, this step's included; 0 for a row without blocks.
     */
    const uint32_t *kv_last_page_len;
    /**
     * Where each token's KV is written, `block * block_size + offset`; a negative one is skipped.
     * `[num_tokens]`, or NULL where nothing is appended.
     */
    const int64_t *slot_mapping;
    /**
     * Elements of `kv_indices`; at most 2^30.
     */
    uint32_t num_kv_blocks;
    /**
     * Tokens per block; 1 to `INFLIGHT_MAX_COUNT`.
     */
    uint32_t block_size;
} inflight_group;

/**
 * An input token that is not known yet, with `overlap`: the device takes it from an earlier step. In
 * arrays `pending_size` bytes from one to the next.
 */
typedef struct inflight_pending_token {
    /**
     * Index into `tokens`.
     */
    uint32_t token;
    /**
     * The step that samples it is `step_id - steps_back`; at least 1. Steps that were abandoned
     * count, since their ids are not given again.
     */
    uint32_t steps_back;
    /**
     * Index among that step's logits.
     */
    uint32_t logits;
} inflight_pending_token;

/**
 * A copy of a block, in every layer's K and V, that the device makes before the step's kernels. In
 * arrays `block_op_size` bytes from one to the next, or what the caller passes as `op_size`.
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
 * library's, valid until the step's commit or abandon, and NULL where they are empty.
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
     * Row r owns tokens `qo_indptr[r]..qo_indptr[r + 1]`, `[num_padded_rows + 1]`.
     */
    const uint32_t *qo_indptr;
    /**
     * Block tables and slots of each group of layers, `[num_groups]`: one, as the scheduler of this
     * version knows no others.
     */
    const struct inflight_group *groups;
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
     * One buffer with all arrays but `rows`, `groups` and `preempted`, and those of the groups, for one copy to a device: an array is
     * as far from its start there as here. 16-byte aligned, as is each array. What else is in it is
     * the library's own, and may change.
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
     * Elements of `groups`.
     */
    uint32_t num_groups;
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
     * Bytes from one of `rows` to the next.
     */
    uint32_t row_size;
    /**
     * Bytes from one of `pending` to the next.
     */
    uint32_t pending_size;
    /**
     * Bytes from one of `block_ops` to the next.
     */
    uint32_t block_op_size;
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
     * NULL for one token per row. With drafts: the i-th row that samples has
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
 * What a commit delivers of one request. In arrays `output_size` bytes from one to the next.
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
    /**
     * Where `finish` is not `INFLIGHT_FINISH_NONE`: its counts and times are `results[result]` of the
     * view.
     */
    uint32_t result;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_output;

/**
 * What a commit delivers. All arrays are the library's, valid until the scheduler's next schedule,
 * commit or abandon, and NULL where they are empty.
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
     * Counts and times of the requests that finished, `[num_results]`: see `inflight_output`.
     */
    const struct inflight_request_result *results;
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
     * Elements of `results`.
     */
    uint32_t num_results;
    /**
     * Blocks free after the commit.
     */
    uint32_t num_free_blocks;
    /**
     * Bytes from one of `outputs` to the next.
     */
    uint32_t output_size;
    /**
     * Bytes from one of `results` to the next.
     */
    uint32_t result_size;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_outputs_view;

/**
 * Something that happened to a request. Kinds may be added: pass over those that you do not know. In
 * arrays `event_size` bytes from one to the next.
 */
typedef struct inflight_event {
    /**
     * The request.
     */
    uint64_t request_id;
    /**
     * Its `client`, which tells requests of one id apart.
     */
    uint64_t client;
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
    /**
     * Zeros.
     */
    uint64_t reserved[2];
    /**
     * Its counts and times, where it has finished or was cancelled; else zeros, and no times.
     */
    struct inflight_request_result result;
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
     * Requests that finished: by themselves, or by a finish of the caller.
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
     * The client that it belongs to.
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
     * Tokens that it found in the prefix cache when it was first admitted.
     */
    uint32_t num_cached;
    /**
     * Draft tokens that were verified.
     */
    uint32_t num_drafts;
    /**
     * Draft tokens among them that were accepted.
     */
    uint32_t num_accepted;
    /**
     * The time given to the `inflight_scheduler_schedule` that first admitted it, or 2^64 - 1.
     */
    uint64_t first_scheduled_at;
    /**
     * The time given to the `inflight_scheduler_schedule` of the step that sampled its first token,
     * or 2^64 - 1.
     */
    uint64_t first_token_at;
} inflight_request_snapshot;

/**
 * What a cache manager is made for.
 *
 * Initialise it with `inflight_cache_config_init`, then set at least `num_blocks`.
 */
typedef struct inflight_cache_config {
    /**
     * `sizeof(inflight_cache_config)`.
     */
    size_t struct_size;
    /**
     * Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`. Each takes 12
     * bytes of this process's memory, with `prefix_cache` at most 64.
     */
    uint64_t num_blocks;
    /**
     * Blocks of the host pool, to swap sequences out to, at most `INFLIGHT_MAX_COUNT`; 0 (the
     * default) for none. Each takes 4 bytes.
     */
    uint64_t num_host_blocks;
    /**
     * Tokens per block; 1 to `INFLIGHT_MAX_COUNT`. 16 by default.
     */
    uint32_t block_size;
    /**
     * 1 (the default) if full blocks are kept for later sequences that start with the same tokens.
     */
    uint32_t prefix_cache;
} inflight_cache_config;

/**
 * Counters since a cache manager was made, and its state now.
 */
typedef struct inflight_cache_stats {
    /**
     * `sizeof(inflight_cache_stats)`.
     */
    size_t struct_size;
    /**
     * Tokens of sequences that looked for a cached prefix and then allocated: all that they had then,
     * as vLLM counts.
     */
    uint64_t queried_tokens;
    /**
     * Tokens among them that were found and adopted.
     */
    uint64_t hit_tokens;
    /**
     * Blocks whose known content was given up for a new one.
     */
    uint64_t evicted_blocks;
    /**
     * Blocks of the device pool that can be handed out at all: all but the null block.
     */
    uint64_t num_usable_blocks;
    /**
     * Blocks of the device pool that are free now, cached ones included.
     */
    uint64_t num_free_blocks;
    /**
     * Blocks of the device pool with a known content, held or free.
     */
    uint64_t num_cached_blocks;
    /**
     * Blocks of the host pool that are free now.
     */
    uint64_t num_free_host_blocks;
    /**
     * Sequences that are open now.
     */
    uint64_t num_sequences;
} inflight_cache_stats;

/**
 * What, besides its tokens, decides the content of a sequence's blocks: sequences share cached blocks
 * only where all of it is the same.
 */
typedef struct inflight_cache_keys {
    /**
     * `sizeof(inflight_cache_keys)`.
     */
    size_t struct_size;
    /**
     * A salt, one a tenant for example; may be NULL.
     */
    const uint8_t *salt;
    /**
     * Bytes of `salt`, at most 65536; likewise the next two lengths.
     */
    size_t salt_len;
    /**
     * Name of the adapter (LoRA) that the sequence runs with; may be NULL.
     */
    const uint8_t *adapter;
    /**
     * Bytes of `adapter`.
     */
    size_t adapter_len;
    /**
     * Contents behind placeholder tokens; may be NULL.
     */
    const struct inflight_content *contents;
    /**
     * Elements of `contents`.
     */
    size_t num_contents;
    /**
     * `sizeof(inflight_content)`, where there are contents.
     */
    size_t content_size;
} inflight_cache_keys;

/**
 * How many threads kernels have, where, and with which instructions.
 */
typedef struct inflight_cpu_config {
    /**
     * `sizeof(inflight_cpu_config)`.
     */
    size_t struct_size;
    /**
     * Cores to pin the threads to, one each, in order; NULL leaves them to the system. Linux only.
     */
    const uint32_t *cores;
    /**
     * Elements of `cores`, at most 1024.
     */
    size_t num_cores;
    /**
     * Threads, at most 1024; 0 (the default) for one per core in `cores`, or a core that this process
     * may use.
     */
    uint32_t threads;
    /**
     * `INFLIGHT_ISA_*`.
     */
    uint32_t isa;
} inflight_cpu_config;

/**
 * What a device is.
 */
typedef struct inflight_device_info {
    /**
     * `sizeof(inflight_device_info)`.
     */
    size_t struct_size;
    /**
     * Bytes of its memory; 0 of a processor.
     */
    uint64_t memory;
    /**
     * Its name, UTF-8; of a processor the instructions that are used, "avx512-bf16".
     */
    char name[INFLIGHT_DEVICE_NAME_SIZE];
    /**
     * The number that a GPU keeps in whatever order; zeros of a processor.
     */
    uint8_t uuid[16];
    /**
     * `INFLIGHT_DEVICE_*`.
     */
    uint32_t kind;
    /**
     * Number of a GPU, as the driver counts; 0 of a processor.
     */
    uint32_t ordinal;
    /**
     * Compute capability of a GPU, "8" of 8.6; 0 of a processor.
     */
    uint32_t compute_capability_major;
    /**
     * "6" of 8.6.
     */
    uint32_t compute_capability_minor;
    /**
     * Streaming multiprocessors of a GPU; 0 of a processor.
     */
    uint32_t multiprocessors;
    /**
     * Threads of a processor; 0 of a GPU.
     */
    uint32_t threads;
    /**
     * `INFLIGHT_ISA_*` of a processor; 0 of a GPU.
     */
    uint32_t isa;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_device_info;

/**
 * Tokens of heads: queries, outputs, new keys and values. The elements of a head are contiguous.
 *
 * Initialise it with `inflight_tensor_init`; `inflight_tensor_set_contiguous` then sets all fields of
 * one without gaps.
 */
typedef struct inflight_tensor {
    /**
     * `sizeof(inflight_tensor)`.
     */
    size_t struct_size;
    /**
     * The first element; NULL only where there are no tokens. On a processor at a multiple of the
     * element's size, on a GPU of 16 bytes.
     */
    void *data;
    /**
     * Tokens, at most `INFLIGHT_MAX_COUNT`.
     */
    uint64_t tokens;
    /**
     * Elements from one token to the next, not negative; any number where there is one token. On a
     * GPU a multiple of 16 bytes.
     */
    int64_t token_stride;
    /**
     * Elements from one head to the next, alike.
     */
    int64_t head_stride;
    /**
     * Heads; at least 1.
     */
    uint32_t heads;
    /**
     * Elements per head; at least 1.
     */
    uint32_t head_dim;
    /**
     * `INFLIGHT_DTYPE_*`.
     */
    uint32_t dtype;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_tensor;

/**
 * The K or the V of a layer: `num_blocks` x `block_size` x `num_heads` rows of `head_dim` contiguous
 * elements, in any order that strides can say. Rows do not overlap.
 *
 * The base, and strides of dimensions above 1, are multiples of 16 bytes.
 *
 * It stands inside `inflight_kv_cache`, so it keeps its size: what later versions add takes the place
 * of `reserved`.
 */
typedef struct inflight_kv_array {
    /**
     * First element.
     */
    void *data;
    /**
     * What the numbers of an fp8 array are multiplied with when read, f32 above 0, in the device's
     * memory. NULL for other types.
     */
    const void *scales;
    /**
     * Elements from one block to the next.
     */
    int64_t block_stride;
    /**
     * From a token of a block to the next.
     */
    int64_t token_stride;
    /**
     * From a head of a token to the next.
     */
    int64_t head_stride;
    /**
     * Scales from one block to the next; 0, since kernels of this version have none for each.
     */
    int64_t scale_block_stride;
    /**
     * From a token's scale to the next's; 0, likewise.
     */
    int64_t scale_token_stride;
    /**
     * From a head's scale to the next's: 1 where each has one, 0 where all share one.
     */
    int64_t scale_head_stride;
    /**
     * `INFLIGHT_DTYPE_*`.
     */
    uint32_t dtype;
    /**
     * Elements per head: a multiple of 8 up to 256.
     */
    uint32_t head_dim;
    /**
     * Type of the scales, `INFLIGHT_DTYPE_*`: F32, or 0 for that.
     */
    uint32_t scale_dtype;
    /**
     * Elements of a head that share a scale; 0 for all of them, as kernels of this version have it.
     */
    uint32_t scale_elements;
    /**
     * Zeros.
     */
    uint64_t reserved[2];
} inflight_kv_array;

/**
 * A layer's K and V, which may be interleaved. That the rows of each are apart is checked; whether K
 * and V overlap is not, but for their first elements, nor whether they overlap other tensors.
 *
 * Initialise it with `inflight_kv_cache_init`; `inflight_kv_cache_set_contiguous` then sets all fields
 * of the usual layouts, but scales.
 *
 * Kernels of this version take K and V of one type and head dimension, and V apart from K: values that
 * lie in the keys (`v.data` within K, as in multi-head latent attention) are refused.
 */
typedef struct inflight_kv_cache {
    /**
     * `sizeof(inflight_kv_cache)`.
     */
    size_t struct_size;
    /**
     * Blocks; 1 to `INFLIGHT_MAX_COUNT`.
     */
    uint64_t num_blocks;
    /**
     * Tokens per block; 1 to `INFLIGHT_MAX_COUNT`.
     */
    uint32_t block_size;
    /**
     * KV heads; 1 to 65536.
     */
    uint32_t num_heads;
    /**
     * Keys.
     */
    struct inflight_kv_array k;
    /**
     * Values.
     */
    struct inflight_kv_array v;
} inflight_kv_cache;

/**
 * The rows of a step: how many queries each has, and where its keys are. All arrays are in this
 * process's memory, and copied by the calls that take them. `inflight_batch_from_step` makes one of
 * a scheduler's step.
 *
 * A row's keys are those in its blocks: the full ones, and `kv_last_page_len` in the last. They
 * include its own new tokens, which are the last of them: query `i` of a row of `q_len` queries and
 * `kv_len` keys is at position `kv_len - q_len + i`, by which mask, window and ALiBi go.
 */
typedef struct inflight_batch {
    /**
     * `sizeof(inflight_batch)`.
     */
    size_t struct_size;
    /**
     * Row r owns query tokens `qo_indptr[r]..qo_indptr[r + 1]`, `[num_rows + 1]`.
     */
    const uint32_t *qo_indptr;
    /**
     * Position of each token, for rotary embeddings alone; `[num_tokens]`, or NULL.
     */
    const uint32_t *positions;
    /**
     * Input tokens, for kernels of the caller's on a GPU; `[num_tokens]`, or NULL.
     */
    const uint32_t *tokens;
    /**
     * Block tables and slots of each group of layers, `[num_groups]`.
     */
    const struct inflight_group *groups;
    /**
     * A step's `packed`, where the arrays of this batch are those of that step and lie in it, so that
     * it may be copied as it is; NULL (the default) where they lie anywhere.
     */
    const uint8_t *packed;
    /**
     * Bytes of `packed`.
     */
    size_t packed_size;
    /**
     * Rows, empty ones included: at most 2^30, as the next.
     */
    uint32_t num_rows;
    /**
     * Query tokens: the last of `qo_indptr`.
     */
    uint32_t num_tokens;
    /**
     * Elements of `groups`: 1 (the default), since kernels of this version know no others.
     */
    uint32_t num_groups;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_batch;

/**
 * Which of the last keys each query sees: a tree of drafts, or any pattern at all.
 *
 * Row r's mask is over its last `widths[r]` keys; earlier keys are seen, and with width 0 all are.
 * Query i has `ceil(widths[r] / 8)` bytes from byte `indptr[r] + i * ceil(widths[r] / 8)` of `bits`;
 * bit b % 8 (the least significant is 0) of byte b / 8 says whether it sees key
 * `kv_len - widths[r] + b`. Causality and window hold as well: a pattern that looks ahead needs
 * `causal` 0. All arrays are in this process's memory, and copied.
 */
typedef struct inflight_mask {
    /**
     * `sizeof(inflight_mask)`.
     */
    size_t struct_size;
    /**
     * The bits.
     */
    const uint8_t *bits;
    /**
     * Bytes of `bits`, at most 2^30.
     */
    size_t num_bytes;
    /**
     * Where each row's bytes begin, and where the last's end, `[num_rows + 1]`.
     */
    const uint32_t *indptr;
    /**
     * Keys that a row's mask covers, at most those it has, `[num_rows]`.
     */
    const uint32_t *widths;
} inflight_mask;

/**
 * The attention of a group of layers: same heads, types, window and mask.
 *
 * Initialise it with `inflight_attention_config_init`, then set at least `num_q_heads`,
 * `num_kv_heads`, `head_dim` and `q_dtype`.
 */
typedef struct inflight_attention_config {
    /**
     * `sizeof(inflight_attention_config)`.
     */
    size_t struct_size;
    /**
     * Query heads: a multiple of `num_kv_heads`; at most 65536, and on a GPU 128 a KV head.
     */
    uint32_t num_q_heads;
    /**
     * KV heads; at least 1.
     */
    uint32_t num_kv_heads;
    /**
     * Elements per head: a multiple of 8 up to 256; on a GPU 64, 80, 96, 112, 128, 192 or 256.
     */
    uint32_t head_dim;
    /**
     * Type of queries and outputs, `INFLIGHT_DTYPE_*`: F32 (on a processor only), F16 or BF16.
     */
    uint32_t q_dtype;
    /**
     * Type of the cache, `INFLIGHT_DTYPE_*`: that of the queries, or FP8_E4M3; 0 (the default) for
     * that of the queries.
     */
    uint32_t kv_dtype;
    /**
     * Factor of the dot products, within 1e30 of 0; 0 (the default) for `1 / sqrt(head_dim)`.
     */
    float scale;
    /**
     * 1 (the default) if a query sees no key after its own position.
     */
    uint32_t causal;
    /**
     * Keys a query sees before its own position; `INFLIGHT_NO_WINDOW` (the default) for all.
     */
    uint32_t window_left;
    /**
     * Logits are bent to stay below this; 0 (the default) for no bend.
     */
    float soft_cap;
    /**
     * Batch-invariant mode: a row's result depends on nothing but the row, bit by bit. The keys of
     * a row are then split at multiples of this many, itself a multiple of 128 (2048 is usual); 0
     * (the default) for the fastest division.
     */
    uint32_t fixed_split;
    /**
     * Memory of a GPU for splitting rows, at a multiple of 16 bytes; NULL (the default) for the
     * library's own, and on a processor. It may hold anything, and attentions that run one after
     * another may share it: see `inflight_attention_workspace_size`.
     */
    void *workspace;
    /**
     * Bytes of `workspace`: at least what `inflight_attention_workspace_size` tells; 0 where it is
     * NULL.
     */
    uint64_t workspace_size;
} inflight_attention_config;

/**
 * The largest steps that something is made for: later calls refuse larger ones. On a GPU memory is
 * allocated for them once; a captured graph may be replayed with any step within them.
 *
 * Initialise it with `inflight_step_limits_init`, then set at least `max_rows`, `max_tokens`,
 * `max_blocks` and `max_kv_len`.
 */
typedef struct inflight_step_limits {
    /**
     * `sizeof(inflight_step_limits)`.
     */
    size_t struct_size;
    /**
     * Rows, empty ones included: 1 to 2^30, as the next three.
     */
    uint32_t max_rows;
    /**
     * Query tokens.
     */
    uint32_t max_tokens;
    /**
     * Entries of all block tables together.
     */
    uint32_t max_blocks;
    /**
     * Keys of a row.
     */
    uint32_t max_kv_len;
    /**
     * Bytes of masks, up to 2^30; 0 (the default) for steps without.
     */
    uint32_t max_mask_bytes;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_step_limits;

/**
 * What one layer's attention reads and writes, in the device's memory.
 */
typedef struct inflight_attention_args {
    /**
     * `sizeof(inflight_attention_args)`.
     */
    size_t struct_size;
    /**
     * Queries, `[tokens, num_q_heads, head_dim]`. Tokens beyond the step's are not looked at.
     */
    const struct inflight_tensor *q;
    /**
     * Outputs: type of `q`, and its shape with any strides. Overlaps nothing else:
     * `q` in its place is refused, other overlaps are not seen.
     */
    const struct inflight_tensor *o;
    /**
     * The layer's K and V, this step's already appended.
     */
    const struct inflight_kv_cache *cache;
    /**
     * Takes the LSE, f32 `[tokens, num_q_heads]`; NULL if not wanted. For the step's tokens; in a CUDA
     * graph's capture for as many as the limits have.
     */
    float *lse;
    /**
     * ALiBi slopes, one per query head; NULL for none.
     */
    const float *alibi_slopes;
    /**
     * Sink logits, one per query head: a key without value that takes part in the softmax; NULL for
     * none.
     */
    const float *sinks;
} inflight_attention_args;

/**
 * Rotation of new keys before they are stored, and of queries in place; by the positions of the
 * step. Computed in f32 and rounded once.
 */
typedef struct inflight_rope {
    /**
     * `sizeof(inflight_rope)`.
     */
    size_t struct_size;
    /**
     * f32 `[max_position, rotary_dim]` in the device's memory: the cosines of a position's
     * `rotary_dim / 2` angles, then their sines, as `inflight_rope_table` makes them. On a GPU at a
     * multiple of 16 bytes.
     */
    const float *cos_sin;
    /**
     * Queries to rotate as well, `[tokens, num_q_heads, head_dim]`, of the type of the keys on a GPU;
     * NULL for none. Those of tokens without a slot are rotated too.
     */
    const struct inflight_tensor *q;
    /**
     * Positions that the table has, at most `INFLIGHT_MAX_COUNT`. A token at a later one is refused
     * on a processor; a GPU leaves it out.
     */
    uint32_t max_position;
    /**
     * Elements of a head that are rotated, its first; even, at most `head_dim`.
     */
    uint32_t rotary_dim;
    /**
     * `INFLIGHT_ROPE_PAIRS_*`; HALF by default.
     */
    uint32_t pairs;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_rope;

/**
 * The rotary position embedding of a model, by the names that Hugging Face configurations have.
 *
 * Initialise it with `inflight_rope_config_init`, then set at least `rotary_dim`.
 */
typedef struct inflight_rope_config {
    /**
     * `sizeof(inflight_rope_config)`.
     */
    size_t struct_size;
    /**
     * Elements of a head that are rotated, its first; even, from 2 to 256.
     */
    uint32_t rotary_dim;
    /**
     * Base of the frequencies, above 1; 10000 by default.
     */
    float theta;
    /**
     * `INFLIGHT_ROPE_SCALING_*`: how frequencies are stretched for long contexts.
     */
    uint32_t scaling;
    /**
     * New length over old; 1 (the default) or more.
     */
    float factor;
    /**
     * Positions that the model was trained on.
     */
    uint32_t original_max_position;
    /**
     * From this many turns within the training's positions on a frequency stays; 32 by default.
     */
    float beta_fast;
    /**
     * Up to this many turns it is divided by the factor; 1 by default.
     */
    float beta_slow;
    /**
     * What cosines and sines are multiplied by; 0 (the default) for `0.1 ln(factor) + 1`, or what
     * the next two say.
     */
    float attention_factor;
    /**
     * With `mscale_all_dim`, `a(mscale) / a(mscale_all_dim)` is the attention factor, where a(m) is
     * `0.1 m ln(factor) + 1`; 0 (the default) counts for nothing.
     */
    float mscale;
    /**
     * See `mscale`.
     */
    float mscale_all_dim;
    /**
     * Turns below which a frequency is divided by the factor; 1 by default.
     */
    float low_freq_factor;
    /**
     * Turns above which it stays; 4 by default.
     */
    float high_freq_factor;
    /**
     * 1 (the default) if the pairs between which YaRN blends are rounded outwards to whole ones.
     */
    uint32_t truncate;
    /**
     * 0.
     */
    uint32_t reserved;
} inflight_rope_config;

/**
 * New keys and values of a layer, in the device's memory.
 */
typedef struct inflight_append_args {
    /**
     * `sizeof(inflight_append_args)`.
     */
    size_t struct_size;
    /**
     * New keys, `[tokens, num_kv_heads, head_dim]`: of the cache's type, or for an fp8 cache F32 (on
     * a processor only), F16 or BF16. Tokens beyond the step's are not looked at.
     */
    const struct inflight_tensor *k;
    /**
     * New values, alike.
     */
    const struct inflight_tensor *v;
    /**
     * Where they go, to the slots of the step. Numbers of an fp8 cache are divided by the scales and
     * rounded to nearest even; what is beyond 448 becomes 448, NaN stays NaN.
     */
    const struct inflight_kv_cache *cache;
    /**
     * Rotation of keys before they are stored, and of queries; NULL for none.
     */
    const struct inflight_rope *rope;
} inflight_append_args;

/**
 * The attention of the same queries over some of the keys, in the device's memory.
 */
typedef struct inflight_merge_state {
    /**
     * Outputs, `[tokens, heads, head_dim]`: F32, F16 or BF16 on a processor, on a GPU of the result's
     * type and all with the same strides.
     */
    const struct inflight_tensor *o;
    /**
     * LSE, f32 `[tokens, heads]`. A row of minus infinity, or of plus infinity as FlashAttention
     * marks rows without keys, is neutral, its outputs not read.
     */
    const float *lse;
} inflight_merge_state;

/**
 * What a merge reads and writes.
 */
typedef struct inflight_merge_args {
    /**
     * `sizeof(inflight_merge_args)`.
     */
    size_t struct_size;
    /**
     * The states, over disjoint keys.
     */
    const struct inflight_merge_state *states;
    /**
     * Elements of `states`, 1 to `INFLIGHT_MAX_STATES`.
     */
    size_t num_states;
    /**
     * `sizeof(inflight_merge_state)`.
     */
    size_t state_size;
    /**
     * Takes the outputs, of the states' shape. On a GPU it may be that of a state.
     */
    const struct inflight_tensor *o;
    /**
     * Takes the LSE, f32 `[tokens, heads]`; NULL where it is not wanted. Not that of a state.
     */
    float *lse;
} inflight_merge_args;

/**
 * Called once, on any thread, when an exported array is not used any more.
 */
typedef void (*inflight_release_callback)(void *user_data);

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
 * no callback, as at the start.
 *
 * The library logs rarely: never in a step that goes well, and in this version only its own panics,
 * which Rust reports on the error output as well. When this call returns, the callback
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
 * Prepares an `inflight_error`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_error)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_error_init(struct inflight_error *error, size_t size);

/**
 * Prepares an `inflight_request`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_request)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_request_init(struct inflight_request *request, size_t size);

/**
 * Prepares an `inflight_scheduler_config`: size set, defaults in all other fields,
 * 0 where a field says none.
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
 * Fails: INVALID_ARGUMENT naming the field of `config`; STRUCT_SIZE; OUT_OF_MEMORY when the pools'
 * records do not fit.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_scheduler_create(const struct inflight_scheduler_config *config,
                                          struct inflight_scheduler **out,
                                          struct inflight_error *error);

/**
 * Frees a scheduler, whatever it holds. NULL does nothing. Views of its steps are gone; submitters
 * may live on, and refuse everything.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_scheduler_free(struct inflight_scheduler *scheduler);

/**
 * Queues a request. Everything it points to is copied.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, STRUCT_SIZE, DUPLICATE_REQUEST,
 * PROMPT_TOO_LONG, NEVER_FITS, QUEUE_FULL (try again later), OUT_OF_MEMORY, IN_USE, POISONED.
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
 * Ends a request after its first `keep_tokens` output tokens, or after all that were delivered where
 * those are fewer: for an end that the caller looks for itself, such as a stop string. It counts as
 * finished; later output tokens do not count, samples in flight are dropped, and its full blocks
 * serve later requests. There is no event: the call says it all.
 *
 * Outputs: `*result`, what it has come to, as much as `result_size`, the `sizeof` of the caller's, has
 * room for; NULL if the caller does not care.
 * Fails, and nothing has changed: UNKNOWN_REQUEST when it has finished, or never was;
 * INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time; `inflight_submitter_finish` is for any. Since 0.1.
 */
inflight_status inflight_scheduler_finish(struct inflight_scheduler *scheduler,
                                          uint64_t request_id,
                                          uint32_t keep_tokens,
                                          struct inflight_request_result *result,
                                          size_t result_size,
                                          struct inflight_error *error);

/**
 * Has `wake(user_data)` called when a submitter hands something over and nothing was waiting to be
 * received: for the first message to an empty inbox, and not for those that follow until the next
 * `inflight_scheduler_schedule` receives them all. So a thread with nothing to step sleeps until it is
 * called (an eventfd, a condition variable, a channel). It may be called for a message that has been
 * received meanwhile; a step with nothing to run follows then. NULL for no calls.
 *
 * `wake` runs on the thread that submits, inside its call, or inside this function where something
 * waits already. It must return soon, must not use this scheduler or its submitters, and must not
 * unwind. No call is under way, or comes later, once this function has replaced it or
 * `inflight_scheduler_free` has returned.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_set_wake(struct inflight_scheduler *scheduler,
                                            inflight_wake_fn wake,
                                            void *user_data,
                                            struct inflight_error *error);

/**
 * Draft tokens to be verified in the step in which the request samples next; they replace earlier
 * ones, and none (NULL, 0) takes them back.
 *
 * Fails, and nothing has changed: UNKNOWN_REQUEST; INVALID_ARGUMENT for more than
 * `INFLIGHT_MAX_COUNT` tokens, for `INFLIGHT_NO_TOKEN` among them, while tokens of it are in flight,
 * with `overlap`, and under static batching; IN_USE, POISONED.
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
 * Fails, and there is no step: TOO_MANY_STEPS_IN_FLIGHT; STALLED when the policy lets no request run,
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
 * next schedule, commit or abandon; NULL if the caller does not care (events tell what finished).
 * Fails, and nothing has changed: UNKNOWN_STEP; STEP_OUT_OF_ORDER when an older step is in flight;
 * OUTPUT_MISMATCH when the samples are not those of its rows; INVALID_ARGUMENT for bad offsets, for
 * `INFLIGHT_NO_TOKEN`, and for accepted tokens that are not those of the draft;
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
 * Takes the oldest events, at most `capacity` of them, each in `event_size` bytes, which is
 * `sizeof(inflight_event)`. There are none before a scheduler's first
 * submitter: its commits, and the `preempted` of its steps, say the same.
 *
 * Outputs: `events[0..*num_events]`; what does not fit stays for the next call. `events` may be
 * NULL if `capacity` is 0.
 * Fails, and no event is taken: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_events(struct inflight_scheduler *scheduler,
                                          struct inflight_event *events,
                                          size_t event_size,
                                          size_t capacity,
                                          size_t *num_events,
                                          struct inflight_error *error);

/**
 * Prepares an `inflight_group`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_group)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_group_init(struct inflight_group *group, size_t size);

/**
 * Prepares an `inflight_step_view`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_step_view)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_step_view_init(struct inflight_step_view *view, size_t size);

/**
 * Prepares an `inflight_samples`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_samples)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_samples_init(struct inflight_samples *samples, size_t size);

/**
 * Prepares an `inflight_outputs_view`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_outputs_view)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_outputs_view_init(struct inflight_outputs_view *view, size_t size);

/**
 * Prepares an `inflight_scheduler_stats`: size set, defaults in all other fields,
 * 0 where a field says none.
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
 * Prepares an `inflight_request_snapshot`: size set, defaults in all other fields,
 * 0 where a field says none.
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
 * Fails, and nothing is forgotten: OUT_OF_BLOCKS while a request holds KV, of the device pool (it
 * runs) or of the host pool (it is swapped out): let it finish, or cancel it; INVALID_ARGUMENT,
 * IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_scheduler_reset_prefix_cache(struct inflight_scheduler *scheduler,
                                                      struct inflight_error *error);

/**
 * A submitter for a scheduler. From the first one on the scheduler collects events, unless its
 * `config.events` was 0: take them after each step.
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
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_submitter_free(struct inflight_submitter *submitter);

/**
 * Hands over a request. Everything it points to is copied.
 *
 * Whether its id is free shows when the scheduler receives it, and whether the queue still has
 * room, since preempted requests join it meanwhile: a request that is refused then
 * (DUPLICATE_REQUEST, QUEUE_FULL) gives an event `INFLIGHT_EVENT_REFUSED`.
 *
 * Fails, and nothing has happened: INVALID_ARGUMENT, STRUCT_SIZE, PROMPT_TOO_LONG, NEVER_FITS,
 * CLOSED, QUEUE_FULL (try again later), OUT_OF_MEMORY.
 * Threads: any, several at once. Since 0.1.
 */
inflight_status inflight_submitter_submit(const struct inflight_submitter *submitter,
                                          const struct inflight_request *request,
                                          struct inflight_error *error);

/**
 * Asks for the end of a request, wherever it is. One that has ended already is no error: the event
 * is `INFLIGHT_EVENT_CANCELLED` where there was something to cancel.
 *
 * Fails: INVALID_ARGUMENT, CLOSED.
 * Threads: any, several at once. Since 0.1.
 */
inflight_status inflight_submitter_cancel(const struct inflight_submitter *submitter,
                                          uint64_t request_id,
                                          struct inflight_error *error);

/**
 * Requests the end of a request after its first `keep_tokens` output tokens, or after all that were
 * delivered where those are fewer, as `inflight_scheduler_finish` does. One that has ended already is
 * not an error: the event is `INFLIGHT_EVENT_FINISHED`, with `INFLIGHT_FINISH_STOPPED`, where there
 * was something to end.
 *
 * Fails: INVALID_ARGUMENT, CLOSED.
 * Threads: any, several at once. Since 0.1.
 */
inflight_status inflight_submitter_finish(const struct inflight_submitter *submitter,
                                          uint64_t request_id,
                                          uint32_t keep_tokens,
                                          struct inflight_error *error);

/**
 * Prepares an `inflight_cache_config`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_cache_config)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_cache_config_init(struct inflight_cache_config *config, size_t size);

/**
 * A cache manager without sequences.
 *
 * Outputs: `*out`, to be freed with `inflight_cache_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming the field of `config`; STRUCT_SIZE; OUT_OF_MEMORY when the pools'
 * records do not fit.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_cache_create(const struct inflight_cache_config *config,
                                      struct inflight_cache **out,
                                      struct inflight_error *error);

/**
 * Frees a cache manager and all its sequences. NULL does nothing.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_cache_free(struct inflight_cache *cache);

/**
 * Takes the oldest copies that the device has to make before the kernels of the next step, in
 * order, at most `capacity` of them, each in `op_size` bytes, which is `sizeof(inflight_block_op)`:
 * `inflight_block_mover_run` makes them.
 *
 * Outputs: `ops[0..*num_ops]`; what does not fit stays for the next call: call until fewer than
 * `capacity` come. `ops` may be NULL if `capacity` is 0.
 * Fails, and nothing is taken: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_take_ops(struct inflight_cache *cache,
                                        struct inflight_block_op *ops,
                                        size_t op_size,
                                        size_t capacity,
                                        size_t *num_ops,
                                        struct inflight_error *error);

/**
 * Forgets all cached prefixes: after a change of the model's weights, for example.
 *
 * Fails, and nothing is forgotten: OUT_OF_BLOCKS while any sequence holds blocks, of the device
 * pool or, swapped out, of the host pool (close it, or free its blocks, first); INVALID_ARGUMENT,
 * IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_reset(struct inflight_cache *cache, struct inflight_error *error);

/**
 * Prepares an `inflight_cache_stats`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_cache_stats)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_cache_stats_init(struct inflight_cache_stats *stats, size_t size);

/**
 * Counters and state.
 *
 * Outputs: `*stats`, prepared with `inflight_cache_stats_init`.
 * Fails: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_get_stats(struct inflight_cache *cache,
                                         struct inflight_cache_stats *stats,
                                         struct inflight_error *error);

/**
 * Checks every invariant: each block is free or held, and as often as tables name it; the prefix
 * cache and the blocks agree. For tests: it looks at all blocks.
 *
 * Fails: CORRUPT saying what does not hold, a bug in the library; INVALID_ARGUMENT, IN_USE,
 * POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_verify(struct inflight_cache *cache, struct inflight_error *error);

/**
 * Prepares an `inflight_cache_keys`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_cache_keys)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_cache_keys_init(struct inflight_cache_keys *keys, size_t size);

/**
 * Starts a sequence without tokens and blocks, under `keys`, which are copied; NULL for none.
 *
 * Outputs: `*seq`, its number until `inflight_cache_close`, never 0 and never used for another.
 * Fails, and nothing has changed: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_open(struct inflight_cache *cache,
                                    const struct inflight_cache_keys *keys,
                                    uint64_t *seq,
                                    struct inflight_error *error);

/**
 * Says which tokens a sequence has next, after those that were said before. They name the contents
 * of its blocks for the prefix cache; without one this may be left out.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, also for more than INFLIGHT_MAX_COUNT tokens
 * in all and for INFLIGHT_NO_TOKEN among them; OUT_OF_MEMORY, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_extend(struct inflight_cache *cache,
                                      uint64_t seq,
                                      const uint32_t *tokens,
                                      size_t num_tokens,
                                      struct inflight_error *error);

/**
 * Looks up the longest cached prefix of a sequence's tokens, of at most `max_tokens`: one less than
 * it has, since a step must compute the logits of the last. Nothing is held before
 * `inflight_cache_allocate`.
 *
 * Outputs: `*num_cached`, its tokens, a multiple of the block size.
 * Fails: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_lookup(struct inflight_cache *cache,
                                      uint64_t seq,
                                      uint64_t max_tokens,
                                      uint64_t *num_cached,
                                      struct inflight_error *error);

/**
 * How many blocks `inflight_cache_allocate` with the same arguments would take from the free ones.
 *
 * Outputs: `*num_blocks`.
 * Fails: as `inflight_cache_allocate`, but never OUT_OF_BLOCKS.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_blocks_needed(struct inflight_cache *cache,
                                             uint64_t seq,
                                             uint64_t num_cached,
                                             uint64_t write_from,
                                             uint64_t num_tokens,
                                             uint64_t *num_blocks,
                                             struct inflight_error *error);

/**
 * Gives a sequence the blocks for its first `num_tokens` tokens, of which those from `write_from`
 * are about to be written. The first `num_cached` tokens, as `inflight_cache_lookup` found them,
 * come from the prefix cache, which is for sequences without blocks; 0 for all others. Blocks that
 * others share and this sequence will write are replaced by copies, see
 * `inflight_cache_take_ops`.
 *
 * Outputs: `*num_blocks`, the blocks it took from the free ones; NULL if the caller does not care.
 * Fails, and nothing has changed: OUT_OF_BLOCKS (preempt a request, or try again later);
 * INVALID_ARGUMENT when the sequence is unknown or swapped out, when the prefix is not cached any
 * more or the sequence has blocks, and when the whole pool would not hold the tokens; IN_USE,
 * POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_allocate(struct inflight_cache *cache,
                                        uint64_t seq,
                                        uint64_t num_cached,
                                        uint64_t write_from,
                                        uint64_t num_tokens,
                                        uint64_t *num_blocks,
                                        struct inflight_error *error);

/**
 * Makes the sequence's full blocks among its first `num_tokens` tokens findable for others. Also
 * ahead of the step that computes them, if the sequence that finds them runs after it or in it.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_register(struct inflight_cache *cache,
                                        uint64_t seq,
                                        uint64_t num_tokens,
                                        struct inflight_error *error);

/**
 * Takes back `inflight_cache_register` for blocks past the first `num_tokens` tokens: the step that
 * would have computed them did not take place.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_unregister(struct inflight_cache *cache,
                                          uint64_t seq,
                                          uint64_t num_tokens,
                                          struct inflight_error *error);

/**
 * The block table of a sequence, in the order of its tokens; empty while it is swapped out.
 *
 * Outputs: `*blocks`, valid until the next call that changes this sequence, NULL where there are
 * none; `*num_blocks`.
 * Fails: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_table(struct inflight_cache *cache,
                                     uint64_t seq,
                                     const uint32_t **blocks,
                                     size_t *num_blocks,
                                     struct inflight_error *error);

/**
 * Shortens a sequence to its first `num_tokens` tokens: blocks and tokens past them are forgotten.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT when it is unknown or swapped out; IN_USE,
 * POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_truncate(struct inflight_cache *cache,
                                        uint64_t seq,
                                        uint64_t num_tokens,
                                        struct inflight_error *error);

/**
 * Starts a sequence with the tokens and keys of `seq` that shares all its blocks. The first
 * of them to write to a shared block gets a copy of it, by `inflight_cache_allocate`.
 *
 * Outputs: `*child`.
 * Fails, and nothing has changed: INVALID_ARGUMENT when it is unknown or swapped out;
 * OUT_OF_MEMORY, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_fork(struct inflight_cache *cache,
                                    uint64_t seq,
                                    uint64_t *child,
                                    struct inflight_error *error);

/**
 * Frees the blocks of a sequence, which stays open and keeps its tokens: it gives way, and is
 * computed again later.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_release(struct inflight_cache *cache,
                                       uint64_t seq,
                                       struct inflight_error *error);

/**
 * Ends a sequence and frees its blocks, which the prefix cache may still serve to others.
 *
 * Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_close(struct inflight_cache *cache,
                                     uint64_t seq,
                                     struct inflight_error *error);

/**
 * Moves a sequence to the host pool and frees its device blocks. The copies are among
 * `inflight_cache_take_ops`, to be made before anybody writes to those blocks.
 *
 * Fails, and nothing has changed: OUT_OF_BLOCKS of the host pool; INVALID_ARGUMENT when the
 * sequence has no blocks on the device, or more than the host pool; IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_swap_out(struct inflight_cache *cache,
                                        uint64_t seq,
                                        struct inflight_error *error);

/**
 * Moves a sequence back to the device pool. Its full blocks are findable again once they have been
 * registered again.
 *
 * Fails, and nothing has changed: OUT_OF_BLOCKS; INVALID_ARGUMENT when the sequence is not swapped
 * out; IN_USE, POISONED.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_cache_swap_in(struct inflight_cache *cache,
                                       uint64_t seq,
                                       struct inflight_error *error);

/**
 * Prepares an `inflight_cpu_config`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_cpu_config)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_cpu_config_init(struct inflight_cpu_config *config, size_t size);

/**
 * The processor, with threads of its own that sleep between calls. `config` may be NULL.
 *
 * Outputs: `*out`, to be freed with `inflight_device_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming `threads`, `cores`, `num_cores` or `isa`; STRUCT_SIZE; DEVICE when
 * threads cannot be started.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_device_create_cpu(const struct inflight_cpu_config *config,
                                           struct inflight_device **out,
                                           struct inflight_error *error);

/**
 * How many GPUs the CUDA driver finds.
 *
 * Outputs: `*count`, at least 1.
 * Fails: NO_CUDA saying why there is none; INVALID_ARGUMENT.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_cuda_device_count(uint32_t *count, struct inflight_error *error);

/**
 * GPU `ordinal`, as the driver counts them, with its primary context: the one that the CUDA runtime
 * of the same process uses. No call changes the caller's current context.
 *
 * Outputs: `*out`, to be freed with `inflight_device_free`; NULL on failure.
 * Fails: NO_CUDA where CUDA cannot be used, or this build has no support for it; INVALID_ARGUMENT
 * naming `device` where there are fewer; CUDA.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_device_create_cuda(uint32_t ordinal,
                                            struct inflight_device **out,
                                            struct inflight_error *error);

/**
 * Frees a device. NULL does nothing. What was made for it stays usable. The threads of a processor
 * have ended when the last of device, attentions, step buffers and block movers that use them has
 * been freed: the library may be unloaded then, and not before.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_device_free(struct inflight_device *device);

/**
 * Prepares an `inflight_device_info`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_device_info)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_device_info_init(struct inflight_device_info *info, size_t size);

/**
 * Says what a device is.
 *
 * Outputs: `*info`, prepared with `inflight_device_info_init`.
 * Fails: INVALID_ARGUMENT, STRUCT_SIZE.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_device_get_info(const struct inflight_device *device,
                                         struct inflight_device_info *info,
                                         struct inflight_error *error);

/**
 * Checks that kernels of the device can use an address, as far as that can be said: on a GPU that
 * the driver knows it, and that it is not another's. It takes microseconds: for looking for
 * mistakes, not for every call.
 *
 * Fails: INVALID_ARGUMENT naming `pointer`; CUDA.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_device_check_pointer(const struct inflight_device *device,
                                              const void *pointer,
                                              struct inflight_error *error);

/**
 * Prepares an `inflight_tensor`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_tensor)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_tensor_init(struct inflight_tensor *tensor, size_t size);

/**
 * Sets a tensor without anything between its heads and tokens.
 *
 * Outputs: `*tensor`, prepared with `inflight_tensor_init`.
 * Fails, and nothing has changed: INVALID_ARGUMENT when the strides do not fit 64 bits; STRUCT_SIZE.
 * What kernels refuse is looked at by the calls that take the tensor.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_tensor_set_contiguous(struct inflight_tensor *tensor,
                                               uint32_t dtype,
                                               void *data,
                                               uint64_t tokens,
                                               uint32_t heads,
                                               uint32_t head_dim,
                                               struct inflight_error *error);

/**
 * Prepares an `inflight_kv_cache`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_kv_cache)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_kv_cache_init(struct inflight_kv_cache *cache, size_t size);

/**
 * Sets a cache of two arrays, each without gaps in the order that `layout` (`INFLIGHT_LAYOUT_*`) says;
 * without scales, which for an fp8 cache the caller sets afterwards.
 *
 * Outputs: `*cache`, prepared with `inflight_kv_cache_init`.
 * Fails, and nothing has changed: INVALID_ARGUMENT, also when the strides do not fit 64 bits;
 * STRUCT_SIZE. What kernels refuse is looked at by the calls that take the cache.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_kv_cache_set_contiguous(struct inflight_kv_cache *cache,
                                                 uint32_t layout,
                                                 uint32_t dtype,
                                                 void *k,
                                                 void *v,
                                                 uint64_t num_blocks,
                                                 uint32_t block_size,
                                                 uint32_t num_heads,
                                                 uint32_t head_dim,
                                                 struct inflight_error *error);

/**
 * Prepares an `inflight_batch`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_batch)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_batch_init(struct inflight_batch *batch, size_t size);

/**
 * The rows of a scheduler's step. Nothing is copied: the arrays are the step's, and valid as long.
 *
 * Outputs: `*batch`, prepared with `inflight_batch_init`.
 * Fails: INVALID_ARGUMENT, STRUCT_SIZE.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_batch_from_step(const struct inflight_step_view *view,
                                         struct inflight_batch *batch,
                                         struct inflight_error *error);

/**
 * Prepares an `inflight_mask`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_mask)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_mask_init(struct inflight_mask *mask, size_t size);

/**
 * Prepares an `inflight_attention_config`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_attention_config)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_attention_config_init(struct inflight_attention_config *config, size_t size);

/**
 * Prepares an `inflight_step_limits`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_step_limits)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_step_limits_init(struct inflight_step_limits *limits, size_t size);

/**
 * Attention on a device, for steps within `limits`.
 *
 * On a GPU it loads kernels, and takes the memory of split rows from `config->workspace` or, where
 * that is NULL, allocates it. Besides, it allocates counters of 4 bytes per tile that can be split.
 * Nothing is allocated later. On a processor memory grows with the steps, and steps of like size
 * allocate nothing.
 *
 * Outputs: `*out`, to be freed with `inflight_attention_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming the field of `config` or `limits`: `workspace_size` where that is
 * too little, `workspace` where that is not at a multiple of 16 bytes, is not memory that the driver
 * knows, or is given on a processor; STRUCT_SIZE, NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_attention_create(const struct inflight_device *device,
                                          const struct inflight_attention_config *config,
                                          const struct inflight_step_limits *limits,
                                          struct inflight_attention **out,
                                          struct inflight_error *error);

/**
 * Frees an attention. NULL does nothing. Step buffers made with it keep what they need of it. On a
 * GPU this waits for the device's work, unless such a step buffer is left.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_attention_free(struct inflight_attention *attention);

/**
 * Memory of a GPU that an attention of this configuration and these limits takes for splitting rows:
 * asked before it is created, to pass that much in `config->workspace`, which is not looked at here.
 * It loads the attention's kernels, whose occupancy of the device decides, and they stay loaded.
 *
 * A workspace stays the caller's. It may hold anything before a run, and does after it, so it needs
 * no initialisation, and between runs may serve for something else. Attentions whose runs are in one
 * order, on one stream or by the caller's events, may share one of the largest size among them, and
 * should: those of a model's layers run one after another. Those that run at the same time need one
 * each. It must live until all runs with it are done, and no graph that captured one is launched any
 * more; freeing the attention does not free it.
 *
 * Outputs: `*bytes`; 0 on a processor.
 * Fails: INVALID_ARGUMENT naming `bytes` or the field of `config` or `limits`, STRUCT_SIZE,
 * NO_KERNEL_IMAGE, CUDA.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_attention_workspace_size(const struct inflight_device *device,
                                                  const struct inflight_attention_config *config,
                                                  const struct inflight_step_limits *limits,
                                                  uint64_t *bytes,
                                                  struct inflight_error *error);

/**
 * Room for steps within `limits` and the plans of `attentions`, at most
 * `INFLIGHT_MAX_ATTENTIONS` that were made for the same device and limits; none (NULL, 0) for
 * appending alone. What the buffer needs of them it keeps: they may be freed first.
 *
 * Outputs: `*out`, to be freed with `inflight_step_buffer_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming `attentions` or the field of `limits`, STRUCT_SIZE, IN_USE,
 * NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
 * Threads: any, while no other call uses the attentions. Since 0.1.
 */
inflight_status inflight_step_buffer_create(const struct inflight_device *device,
                                            const struct inflight_step_limits *limits,
                                            struct inflight_attention *const *attentions,
                                            size_t num_attentions,
                                            struct inflight_step_buffer **out,
                                            struct inflight_error *error);

/**
 * Frees a step buffer. NULL does nothing. On a GPU this waits for the device's work; graphs that
 * were captured with it must not be launched any more.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_step_buffer_free(struct inflight_step_buffer *step);

/**
 * Takes a step: the arrays of `batch`, and the plans that the buffer's attentions made of it last.
 * All are copied: `batch` may go when the call returns.
 *
 * On a GPU it queues one copy on `stream`, which may not be in capture: the copy belongs before a
 * graph's launch. It is ordered behind all work that reads the step before, by the stream or by the
 * caller's events. It waits where four uploads before it are not done yet.
 *
 * Fails, and the step before is still there: INVALID_ARGUMENT naming the array of `batch`, `limits`
 * where it is larger, `attentions` where one has no plan of it, or `stream`; STRUCT_SIZE, IN_USE,
 * POISONED. CUDA: there is no step then.
 * Threads: one at a time, also with the attentions. Since 0.1.
 */
inflight_status inflight_step_buffer_upload(struct inflight_step_buffer *step,
                                            const struct inflight_batch *batch,
                                            void *stream,
                                            struct inflight_error *error);

/**
 * Divides a step's work among the device's cores or multiprocessors, for caches of at least
 * `num_blocks` blocks, at most `INFLIGHT_MAX_COUNT`. On the host, for either device; it depends on
 * nothing but its arguments.
 * `mask` may be NULL.
 *
 * Fails, and there is no plan then: INVALID_ARGUMENT naming the array of `batch` or `mask`,
 * `num_blocks`, or `limits` where the step is larger; STRUCT_SIZE, OUT_OF_MEMORY. IN_USE, POISONED:
 * nothing has changed.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_attention_plan(struct inflight_attention *attention,
                                        const struct inflight_batch *batch,
                                        uint64_t num_blocks,
                                        const struct inflight_mask *mask,
                                        struct inflight_error *error);

/**
 * Prepares an `inflight_attention_args`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_attention_args)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_attention_args_init(struct inflight_attention_args *args, size_t size);

/**
 * Computes a layer's attention for the step in `step`, whose upload was of the plan made last.
 *
 * On a GPU it queues the work on `stream`, neither allocating nor waiting: the stream may be in
 * capture, and a graph replayed with any later step within the limits that was uploaded to the same
 * buffer, with caches of the same block size and all blocks within those captured. It is ordered
 * behind the upload, and before any later upload, by the stream or by the caller's events; all runs
 * of one attention are in one such order. On a processor `stream` is NULL, and `o` is written when
 * the call returns.
 *
 * Outputs: `args->o`, and `args->lse` where it is not NULL.
 * Fails, and nothing is written: INVALID_ARGUMENT naming the field of `args`, `plan` where there is
 * none, `step` where its upload was not of the plan made last; STRUCT_SIZE, IN_USE, POISONED. CUDA:
 * outputs may be anything.
 * Threads: one at a time, also with the step buffer. Since 0.1.
 */
inflight_status inflight_attention_run(struct inflight_attention *attention,
                                       struct inflight_step_buffer *step,
                                       const struct inflight_attention_args *args,
                                       void *stream,
                                       struct inflight_error *error);

/**
 * Prepares an `inflight_rope`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_rope)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_rope_init(struct inflight_rope *rope, size_t size);

/**
 * Prepares an `inflight_rope_config`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_rope_config)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_rope_config_init(struct inflight_rope_config *config, size_t size);

/**
 * Makes the table that rotations read, in this process's memory: for each position the cosines of
 * its `rotary_dim / 2` angles, then their sines, both times the attention factor. Computed in
 * binary64, rounded once. For a GPU the caller copies it there.
 *
 * Outputs: `table[0..max_position * rotary_dim]`, `max_position` at most `INFLIGHT_MAX_COUNT`.
 * Fails, and nothing is written: INVALID_ARGUMENT naming the field of `config`, `max_position`,
 * `table`, or `table_len` where the table has fewer elements; STRUCT_SIZE.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_rope_table(const struct inflight_rope_config *config,
                                    uint32_t max_position,
                                    float *table,
                                    size_t table_len,
                                    struct inflight_error *error);

/**
 * Prepares an `inflight_append_args`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_append_args)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_append_args_init(struct inflight_append_args *args, size_t size);

/**
 * Writes the new keys and values of a layer to the slots that the step uploaded last has, rotated
 * and quantised on the way where asked. The bytes stored are the same on every device.
 *
 * On a GPU it queues the work on `stream`, as `inflight_attention_run`; in capture too, but the
 * first call for a pair of types that no attention of the buffer has loads a kernel, which is not
 * for a capture. On a processor `stream` is NULL.
 *
 * Outputs: the slots of `args->cache`; `args->rope->q` where there is one.
 * Fails, and nothing is written: INVALID_ARGUMENT naming the field of `args`, `slot_mapping` or
 * `positions` where the step's are missing or out of range; STRUCT_SIZE, IN_USE, POISONED,
 * NO_KERNEL_IMAGE. CUDA: the slots may hold anything.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_append(struct inflight_step_buffer *step,
                                const struct inflight_append_args *args,
                                void *stream,
                                struct inflight_error *error);

/**
 * Prepares an `inflight_merge_args`: size set, defaults in all other fields,
 * 0 where a field says none.
 *
 * `size` is `sizeof(inflight_merge_args)`. NULL does nothing.
 *
 * Threads: any. Since 0.1.
 */
void inflight_merge_args_init(struct inflight_merge_args *args, size_t size);

/**
 * Merges states over disjoint keys, in the order given, into the attention over all of them: for
 * shared prefixes, cascades, and keys on several devices. A sink belongs to exactly one of them.
 *
 * On a GPU it queues the work on `stream`, in capture too; the first call for a type loads a kernel,
 * unless a step buffer has an attention of it, and is not for a capture then. On a processor `stream`
 * is NULL.
 *
 * Outputs: `args->o`, and `args->lse` where it is not NULL.
 * Fails, and nothing is written: INVALID_ARGUMENT naming `states`, `o`, `lse` or `stream`;
 * STRUCT_SIZE, NO_KERNEL_IMAGE. CUDA: outputs may be anything.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_merge(const struct inflight_device *device,
                               const struct inflight_merge_args *args,
                               void *stream,
                               struct inflight_error *error);

/**
 * A mover for the caches of `num_layers` layers, 1 to 65536: `device_caches`, and where operations
 * swap `host_caches`, their counterparts in the host pool (NULL otherwise), which may have another
 * number of blocks and distance between them. All of an array have one `struct_size`. The structs are copied; the memory that they name
 * stays until the mover is freed.
 *
 * On a GPU all have one shape, blocks are contiguous, and the host's are page-locked memory, at the
 * addresses that it has for the device.
 *
 * Outputs: `*out`, to be freed with `inflight_block_mover_free`; NULL on failure.
 * Fails: INVALID_ARGUMENT naming `num_layers`, `device_caches`, `host_caches`, or the field of one;
 * NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_block_mover_create(const struct inflight_device *device,
                                            const struct inflight_kv_cache *device_caches,
                                            const struct inflight_kv_cache *host_caches,
                                            size_t num_layers,
                                            struct inflight_block_mover **out,
                                            struct inflight_error *error);

/**
 * Frees a mover. NULL does nothing. On a GPU this waits for the device's work.
 *
 * Threads: any, while no other call uses it. Since 0.1.
 */
void inflight_block_mover_free(struct inflight_block_mover *mover);

/**
 * Carries out at most `INFLIGHT_MAX_COUNT` operations, with the result of doing so in order; each has
 * `op_size` bytes, as a view's `block_op_size` says, or `sizeof(inflight_block_op)`. A block copied to
 * itself stays.
 *
 * On a GPU it queues the work on `stream`, which may not be in capture, and waits where four calls
 * before it are not done yet. On a processor `stream` is NULL.
 *
 * Fails, and nothing is copied: INVALID_ARGUMENT naming `ops` where one is of no kind or names a
 * block that is not there, `host_caches` where one swaps and there are none, or `stream`; IN_USE,
 * POISONED. CUDA: some may have been carried out.
 * Threads: one at a time. Since 0.1.
 */
inflight_status inflight_block_mover_run(struct inflight_block_mover *mover,
                                         const struct inflight_block_op *ops,
                                         size_t op_size,
                                         size_t num_ops,
                                         void *stream,
                                         struct inflight_error *error);

/**
 * Sees an array of `[tokens, heads, head_dim]` as a tensor of the device.
 *
 * `managed` is a `DLManagedTensorVersioned *` or `DLManagedTensor *`, as `kind`
 * (`INFLIGHT_DLPACK_*`) says, of dlpack.h, which this header does not need. It stays the caller's: it
 * is read, not kept, and must live as long as the tensor is used; its deleter is not called. Types
 * are float32, float16, bfloat16, and as FP8_E4M3 float8_e4m3fn and uint8; strides may be NULL; the
 * last dimension is contiguous. Pass the stream to the producer as DLPack's protocol has it: this
 * call waits for nothing.
 *
 * `write` is 1 for outputs, which may not be read-only.
 *
 * Outputs: `*tensor`, prepared with `inflight_tensor_init`.
 * Fails, and nothing is written: INVALID_ARGUMENT naming `managed` for another device, type, number
 * of dimensions or major version.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_tensor_from_dlpack(const struct inflight_device *device,
                                            const void *managed,
                                            uint32_t kind,
                                            uint32_t write,
                                            struct inflight_tensor *tensor,
                                            struct inflight_error *error);

/**
 * Sees two arrays as a layer's K and V, to be read and written. Their dimensions are in the order
 * that `layout` (`INFLIGHT_LAYOUT_*`) names, with any strides: slices of one array do as well. `kind`
 * is that of both; all else is as with `inflight_tensor_from_dlpack`. Scales of an fp8 cache are the
 * caller's to set: they are NULL.
 *
 * Outputs: `*cache`, prepared with `inflight_kv_cache_init`.
 * Fails, and nothing is written: INVALID_ARGUMENT naming `k`, `v`, `layout`, or the field of the
 * cache that would result.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_kv_cache_from_dlpack(const struct inflight_device *device,
                                              const void *k,
                                              const void *v,
                                              uint32_t kind,
                                              uint32_t layout,
                                              struct inflight_kv_cache *cache,
                                              struct inflight_error *error);

/**
 * Exports a tensor of the device as a `DLManagedTensorVersioned` of DLPack 1.1, for a capsule named
 * "dltensor_versioned". The memory stays the caller's: `release` (may be NULL) is called with
 * `user_data` when the consumer's deleter says that it is not used any more. The work that writes the
 * tensor is the caller's to order before the consumer's.
 *
 * Outputs: `*managed`, which its last holder frees by its own deleter; NULL on failure, and
 * `release` is not called then.
 * Fails: INVALID_ARGUMENT naming `tensor` or `read_only`.
 * Threads: any. Since 0.1.
 */
inflight_status inflight_tensor_to_dlpack(const struct inflight_device *device,
                                          const struct inflight_tensor *tensor,
                                          uint32_t read_only,
                                          inflight_release_callback release,
                                          void *user_data,
                                          void **managed,
                                          struct inflight_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* INFLIGHT_H */
