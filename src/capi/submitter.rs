//! Submitting and cancelling from any thread.

use super::ffi::{Handle, Result, Watch, call, create, free, shared};
use super::request::{inflight_request, request_of};
use super::scheduler::{enter, inflight_scheduler};
use super::status::{Failure, inflight_error, inflight_status};
use crate::scheduler::Submitter;
use crate::types::RequestId;

/// Hands requests to a scheduler that another thread steps. Any number of threads may use one at
/// the same time, and each may have its own.
///
/// What it is given takes effect with the next `inflight_scheduler_schedule`, in order; what became
/// of it is told by `inflight_scheduler_events`. It may outlive its scheduler, and refuses
/// everything then (CLOSED), as it does when a call with the scheduler panicked.
pub struct inflight_submitter {
    submitter: Submitter,
    scheduler: Watch,
}

impl Handle for inflight_submitter {}

impl inflight_submitter {
    /// What hands over, while anybody will receive it.
    fn open(&self) -> Result<&Submitter> {
        if self.scheduler.is_poisoned() {
            return Err(Failure::new(inflight_status::Closed, "", "its scheduler panicked"));
        }
        Ok(&self.submitter)
    }
}

/// A submitter for a scheduler. From the first one on the scheduler collects events, unless its
/// `config.events` was 0: take them after each step.
///
/// Outputs: `*out`, to be freed with `inflight_submitter_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: the scheduler's (one at a time). Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_submitter_create(
    scheduler: *mut inflight_scheduler,
    out: *mut *mut inflight_submitter,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        // SAFETY: as above.
        let watch = unsafe { shared("scheduler", scheduler.cast_const()) }?.state.watch();
        Ok(inflight_submitter { submitter: state.submitter(), scheduler: watch })
    };
    // SAFETY: `out` is NULL or the caller's to be written, `error` NULL or the caller's.
    unsafe { create("out", out, error, make) }
}

/// Frees a submitter. NULL does nothing. What it handed over stays handed over.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_submitter_free(submitter: *mut inflight_submitter) {
    // SAFETY: NULL, or from `inflight_submitter_create` and not used any more.
    unsafe { free(submitter) }
}

/// Hands over a request. Everything it points to is copied.
///
/// Whether its id is free shows when the scheduler receives it, and whether the queue still has
/// room, since preempted requests join it meanwhile: a request that is refused then
/// (DUPLICATE_REQUEST, QUEUE_FULL) gives an event `INFLIGHT_EVENT_REFUSED`.
///
/// Fails, and nothing has happened: INVALID_ARGUMENT, STRUCT_SIZE, PROMPT_TOO_LONG, NEVER_FITS,
/// CLOSED, QUEUE_FULL (try again later), OUT_OF_MEMORY.
/// Threads: any, several at once. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_submitter_submit(
    submitter: *const inflight_submitter,
    request: *const inflight_request,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a submitter that lives.
        let submitter = unsafe { shared("submitter", submitter) }?;
        // SAFETY: NULL or a request.
        let request = unsafe { request_of(request) }?;
        let id = request.id.0;
        let submitted = submitter.open()?.submit(request);
        submitted.map_err(|error| Failure::from(error).of_request(id))
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Asks for the end of a request, wherever it is. One that has ended already is no error: the event
/// is `INFLIGHT_EVENT_CANCELLED` where there was something to cancel.
///
/// Fails: INVALID_ARGUMENT, CLOSED.
/// Threads: any, several at once. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_submitter_cancel(
    submitter: *const inflight_submitter,
    request_id: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a submitter that lives.
        let submitter = unsafe { shared("submitter", submitter) }?;
        Ok(submitter.open()?.cancel(RequestId(request_id))?)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Requests the end of a request after its first `keep_tokens` output tokens, or after all that were
/// delivered where those are fewer, as `inflight_scheduler_finish` does. One that has ended already is
/// not an error: the event is `INFLIGHT_EVENT_FINISHED`, with `INFLIGHT_FINISH_STOPPED`, where there
/// was something to end.
///
/// Fails: INVALID_ARGUMENT, CLOSED.
/// Threads: any, several at once. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_submitter_finish(
    submitter: *const inflight_submitter,
    request_id: u64,
    keep_tokens: u32,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a submitter that lives.
        let submitter = unsafe { shared("submitter", submitter) }?;
        Ok(submitter.open()?.finish(RequestId(request_id), keep_tokens)?)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
