//! Looking at a scheduler: counters, requests, invariants.

use super::cache::held;
use super::ffi::{Result, Versioned, call, versioned, write};
use super::request::inflight_request_result;
use super::scheduler::{State, enter, inflight_scheduler};
use super::status::{inflight_error, inflight_status};
use crate::error::Error;
use crate::types::RequestId;

/// Counters since a scheduler was made, and its state now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_scheduler_stats {
    /// `sizeof(inflight_scheduler_stats)`.
    pub struct_size: usize,
    /// Steps scheduled, empty ones included.
    pub steps: u64,
    /// Admissions, those after a preemption included.
    pub admissions: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Requests that finished: by themselves, or by a finish of the caller.
    pub finished: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Tokens delivered.
    pub output_tokens: u64,
    /// Tokens of requests that looked for a cached prefix.
    pub prefix_queried_tokens: u64,
    /// Tokens among them that were found.
    pub prefix_hit_tokens: u64,
    /// Blocks whose known content was given up for a new one.
    pub evicted_blocks: u64,
    /// Requests that hold a slot now.
    pub num_running: u64,
    /// Requests that wait now.
    pub num_waiting: u64,
    /// Blocks of the device pool that are free now, cached ones included.
    pub num_free_blocks: u64,
    /// Blocks of the host pool that are free now.
    pub num_free_host_blocks: u64,
}

versioned! {
    inflight_scheduler_stats_init(stats: inflight_scheduler_stats ..= num_free_host_blocks) {}
}

/// Counters and state.
///
/// Outputs: `*stats`, prepared with `inflight_scheduler_stats_init`.
/// Fails: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_get_stats(
    scheduler: *mut inflight_scheduler,
    stats: *mut inflight_scheduler_stats,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let state = unsafe { enter(scheduler) }?;
        let now = stats_of(&state);
        // SAFETY: NULL or the caller's to be written.
        unsafe { write("stats", stats, now) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

fn stats_of(state: &State) -> inflight_scheduler_stats {
    let scheduler = &state.scheduler;
    let (stats, cache) = (scheduler.stats(), scheduler.cache());
    let cached = cache.stats();
    inflight_scheduler_stats {
        struct_size: 0,
        steps: stats.steps,
        admissions: stats.admissions,
        preemptions: stats.preemptions,
        finished: stats.finished,
        cancelled: stats.cancelled,
        output_tokens: stats.output_tokens,
        prefix_queried_tokens: cached.queried_tokens,
        prefix_hit_tokens: cached.hit_tokens,
        evicted_blocks: cached.evicted_blocks,
        num_running: scheduler.num_running() as u64,
        num_waiting: scheduler.num_waiting() as u64,
        num_free_blocks: cache.num_free() as u64,
        num_free_host_blocks: cache.num_host_free() as u64,
    }
}

/// A request at this moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_request_snapshot {
    /// `sizeof(inflight_request_snapshot)`.
    pub struct_size: usize,
    /// The client that it belongs to.
    pub client: u64,
    /// 1 if it is among the running requests, 0 if it waits.
    pub running: u32,
    /// Tokens of its prompt.
    pub num_prompt: u32,
    /// Tokens output so far.
    pub num_output: u32,
    /// Tokens whose KV is computed or in flight.
    pub num_computed: u32,
    /// Times it was preempted.
    pub num_preemptions: u32,
    /// Tokens that it found in the prefix cache when it was first admitted.
    pub num_cached: u32,
    /// Draft tokens that were verified.
    pub num_drafts: u32,
    /// Draft tokens among them that were accepted.
    pub num_accepted: u32,
    /// The time given to the `inflight_scheduler_schedule` that first admitted it, or 2^64 - 1.
    pub first_scheduled_at: u64,
    /// The time given to the `inflight_scheduler_schedule` of the step that sampled its first token,
    /// or 2^64 - 1.
    pub first_token_at: u64,
}

versioned! {
    inflight_request_snapshot_init(snapshot: inflight_request_snapshot ..= first_token_at) {
        first_scheduled_at: u64::MAX,
        first_token_at: u64::MAX,
    }
}

/// A request at this moment.
///
/// Outputs: `*snapshot`, prepared with `inflight_request_snapshot_init`.
/// Fails: UNKNOWN_REQUEST when it has finished, or never was; INVALID_ARGUMENT, STRUCT_SIZE, IN_USE,
/// POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_get_request(
    scheduler: *mut inflight_scheduler,
    request_id: u64,
    snapshot: *mut inflight_request_snapshot,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let state = unsafe { enter(scheduler) }?;
        let now = snapshot_of(&state, RequestId(request_id))?;
        // SAFETY: NULL or the caller's to be written.
        unsafe { write("snapshot", snapshot, now) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

fn snapshot_of(state: &State, id: RequestId) -> Result<inflight_request_snapshot> {
    let now = state.scheduler.snapshot(id).ok_or(Error::UnknownRequest(id))?;
    let so_far = inflight_request_result::from(&now);
    Ok(inflight_request_snapshot {
        struct_size: 0,
        client: now.client,
        running: u32::from(now.running),
        num_prompt: now.num_prompt,
        num_output: now.num_output,
        num_computed: now.num_computed,
        num_preemptions: now.num_preemptions,
        num_cached: now.num_cached,
        num_drafts: now.num_drafts,
        num_accepted: now.num_accepted,
        first_scheduled_at: so_far.first_scheduled_at,
        first_token_at: so_far.first_token_at,
    })
}

/// Checks every invariant: for tests and debugging, since it looks at all there is.
///
/// Fails: CORRUPT, with what does not hold in the message; INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_verify(
    scheduler: *mut inflight_scheduler,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let state = unsafe { enter(scheduler) }?;
        Ok(state.scheduler.verify()?)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Forgets cached prefixes: for a model whose weights have changed.
///
/// Fails, and nothing is forgotten: OUT_OF_BLOCKS while a request holds KV, of the device pool (it
/// runs) or of the host pool (it is swapped out): let it finish, or cancel it; INVALID_ARGUMENT,
/// IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_reset_prefix_cache(
    scheduler: *mut inflight_scheduler,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        match state.scheduler.reset_prefix_cache() {
            true => Ok(()),
            false => Err(held(state.scheduler.cache())),
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
