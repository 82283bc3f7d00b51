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
