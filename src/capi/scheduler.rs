//! The scheduler: requests in, steps out.

use std::collections::VecDeque;
use std::ffi::c_void;

use super::elements::Room;
use super::ffi::{
    Entered, Exclusive, Handle, Result, Versioned, array, at_most, at_most_max, call, check,
    create, flag, free, output, read, shared, versioned, write,
};
use super::request::{inflight_request, inflight_request_result, request_of};
use super::status::{Failure, inflight_error, inflight_status};
use super::step_view::{
    Delivered, inflight_group, inflight_outputs_view, inflight_row, inflight_samples,
    inflight_step_view, view_of,
};
use crate::batch::{BatchBuilder, RaggedBatch, RowBuckets};
use crate::cache::CacheConfig;
use crate::error::Error;
use crate::scheduler::{Config, HeadOfLine, Policy, Received, Sampled, Scheduler, Submitter, Wake};
use crate::types::{RequestId, StepId, Time};

use super::event::{EventKind, inflight_event};

/// First come, first served; admits while blocks are free, and the request admitted last gives way:
/// vLLM's rules. The default.
pub const INFLIGHT_POLICY_CONTINUOUS: u32 = 0;
/// Request-level batching, the baseline: a batch runs until its last request has ended.
pub const INFLIGHT_POLICY_STATIC: u32 = 1;
/// Lowest `priority` value first; the least urgent gives way. Waiting makes up for it: 256 admissions
/// of others count as one level, and who has seen 1,024 goes first whatever its priority. These
/// numbers are fixed here.
pub const INFLIGHT_POLICY_PRIORITY: u32 = 2;
/// No request is admitted that might have to be preempted: TensorRT-LLM's default.
pub const INFLIGHT_POLICY_NO_EVICT: u32 = 3;
/// Admits whatever fits now: TensorRT-LLM's MAX_UTILIZATION.
pub const INFLIGHT_POLICY_MAX_UTILIZATION: u32 = 4;
/// Iteration-level admission with worst-case memory: Orca.
pub const INFLIGHT_POLICY_ORCA: u32 = 5;

/// What a scheduler is made for.
///
/// Initialise it with `inflight_scheduler_config_init`, then set at least `num_blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_scheduler_config {
    /// `sizeof(inflight_scheduler_config)`.
    pub struct_size: usize,
    /// Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`. Each takes 12
    /// bytes of this process's memory, with `prefix_cache` at most 64.
    pub num_blocks: u64,
    /// Blocks of the host pool, for `swap`, at most `INFLIGHT_MAX_COUNT`; 0 (the default) for none.
    /// Each takes 4 bytes.
    pub num_host_blocks: u64,
    /// Requests that may wait; a submit beyond it is refused. No bound by default.
    pub max_waiting: u64,
    /// Tokens per block; 1 to `INFLIGHT_MAX_COUNT`, as the next three. 16 by default.
    pub block_size: u32,
    /// Requests that run at once. 256 by default.
    pub max_num_seqs: u32,
    /// Tokens computed in a step. 8192 by default.
    pub max_num_batched_tokens: u32,
    /// Tokens of prompt and output together, not 1; 0 (the default) for all that the blocks hold.
    pub max_model_len: u32,
    /// Tokens that one request may compute in a step while others run or wait, at most
    /// `INFLIGHT_MAX_COUNT`; 0 (the default) for no such cap.
    pub long_prefill_token_threshold: u32,
    /// Steps that may be scheduled before the first is committed; 1 (the default) to
    /// `INFLIGHT_MAX_COUNT`.
    pub max_steps_in_flight: u32,
    /// 1 (the default) if full blocks are kept for later requests that start with the same tokens.
    pub prefix_cache: u32,
    /// 1 (the default) if a prompt may be computed in several steps.
    pub chunked_prefill: u32,
    /// 1 if a request may run on before its last token has returned: the device takes that token
    /// from its own earlier step.
    pub overlap: u32,
    /// 1 if a preempted request's blocks move to the host pool, while it has room, instead of being
    /// computed again.
    pub swap: u32,
    /// `INFLIGHT_POLICY_*`.
    pub policy: u32,
    /// Requests that may pass one that waits for memory; 0 (the default) for none, so that a large
    /// request is never starved by small ones.
    pub bypass_bound: u32,
    /// Requests looked at behind the one that waits, in one step, where `bypass_bound` is not 0.
    pub bypass_lookahead: u32,
    /// The largest number of rows that batches are padded to, for CUDA graphs: 1, 2, 4, then by 8
    /// to 256, by 16 beyond; at most 65536. 0 (the default) for no padding.
    pub max_padded_rows: u32,
    /// 1 (the default) if events are collected from the creation of the first `inflight_submitter` on,
    /// freed or not; the caller then takes them with `inflight_scheduler_events` after each step, until
    /// when they are kept, however many.
    pub events: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_scheduler_config_init(config: inflight_scheduler_config ..= reserved)
    where reserved is 0 {
        max_waiting: u64::MAX,
        block_size: 16,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_steps_in_flight: 1,
        prefix_cache: 1,
        chunked_prefill: 1,
        policy: INFLIGHT_POLICY_CONTINUOUS,
        events: 1,
    }
}

/// Rows of the largest bucket at most: each size of the ladder takes memory.
const MAX_PADDED_ROWS: u64 = 1 << 16;

impl inflight_scheduler_config {
    fn config(&self) -> Result<Config> {
        let cache = CacheConfig {
            num_blocks: at_most_max("num_blocks", self.num_blocks)?,
            block_size: self.block_size as usize,
            prefix_cache: flag("prefix_cache", self.prefix_cache)?,
            num_host_blocks: at_most_max("num_host_blocks", self.num_host_blocks)?,
        };
        let defaults = Config::new(cache);
        Ok(Config {
            max_num_seqs: self.max_num_seqs as usize,
            max_num_batched_tokens: self.max_num_batched_tokens as usize,
            max_model_len: match self.max_model_len {
                0 => defaults.max_model_len,
                len => len as usize,
            },
            cache,
            chunked_prefill: flag("chunked_prefill", self.chunked_prefill)?,
            long_prefill_token_threshold: self.long_prefill_token_threshold as usize,
            max_waiting: usize::try_from(self.max_waiting).unwrap_or(usize::MAX),
            max_steps_in_flight: self.max_steps_in_flight as usize,
            overlap: flag("overlap", self.overlap)?,
            swap: flag("swap", self.swap)?,
        })
    }

    fn policy(&self) -> Result<Policy> {
        let policy = match self.policy {
            INFLIGHT_POLICY_CONTINUOUS => Policy::continuous(),
            INFLIGHT_POLICY_STATIC => Policy::static_batch(),
            INFLIGHT_POLICY_PRIORITY => Policy::priority(),
            INFLIGHT_POLICY_NO_EVICT => Policy::no_evict(),
            INFLIGHT_POLICY_MAX_UTILIZATION => Policy::max_utilization(),
            INFLIGHT_POLICY_ORCA => Policy::orca(),
            other => {
                return Err(Failure::argument(
                    "policy",
                    format!("{other} is not an INFLIGHT_POLICY_*"),
                ));
            }
        };
        let head_of_line = match (self.bypass_bound, self.bypass_lookahead) {
            (0, _) => HeadOfLine::Strict,
            (bound, lookahead) => HeadOfLine::Bypass { bound, lookahead },
        };
        Ok(Policy { head_of_line, ..policy })
    }

    fn buckets(&self) -> Result<RowBuckets> {
        at_most("max_padded_rows", self.max_padded_rows.into(), MAX_PADDED_ROWS)?;
        Ok(match self.max_padded_rows {
            0 => RowBuckets::none(),
            most => RowBuckets::ladder(most),
        })
    }
}

/// Decides, step by step, which requests run: `inflight_scheduler_schedule`, run the step on a
/// device, `inflight_scheduler_commit`.
///
/// One thread at a time: a call that finds another inside returns IN_USE. Other threads submit and
/// cancel through an `inflight_submitter`.
pub struct inflight_scheduler {
    pub(super) state: Exclusive<State>,
}

impl Handle for inflight_scheduler {}

/// A step in flight, and what its view points to.
#[derive(Debug, Default)]
struct InFlight {
    id: StepId,
    rows: Vec<inflight_row>,
    groups: Vec<inflight_group>,
    /// Where several steps may be in flight: the builder has the newest alone.
    batch: Option<RaggedBatch>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) scheduler: Scheduler,
    builder: BatchBuilder,
    in_flight: VecDeque<InFlight>,
    spare: Vec<InFlight>,
    delivered: Delivered,
    wants_events: bool,
    /// None while they cannot be asked for: without submitters, or not wanted.
    events: Option<VecDeque<inflight_event>>,
}

impl State {
    fn tell(events: &mut Option<VecDeque<inflight_event>>, event: inflight_event) {
        if let Some(events) = events {
            events.push_back(event);
        }
    }

    /// Hands out a way to submit. From here on there are events to be taken.
    pub(super) fn submitter(&mut self) -> Submitter {
        if self.wants_events {
            self.events.get_or_insert_default();
        }
        self.scheduler.submitter()
    }

    fn receive(&mut self) -> Result<()> {
        let Self { scheduler, events, .. } = self;
        scheduler.receive(|received| match received {
            Received::Submitted(_) | Received::NothingToEnd(_) => {}
            Received::Refused { id, client, error } => {
                let status = Failure::from(error).status;
                Self::tell(events, inflight_event::refused(id, client, status));
            }
            Received::Cancelled(ended) => Self::tell(events, inflight_event::cancelled(&ended)),
            Received::Finished(ended) => Self::tell(events, inflight_event::stopped(&ended)),
        })?;
        Ok(())
    }

    fn schedule(&mut self, now: Time) -> Result<inflight_step_view> {
        self.receive()?;
        let id = self.scheduler.schedule(now)?.id();
        let built = self.build(id);
        if built.is_err() {
            self.scheduler.abandon(id)?;
        }
        built
    }

    fn build(&mut self, id: StepId) -> Result<inflight_step_view> {
        let Self { scheduler, builder, in_flight, spare, events, .. } = self;
        let step = scheduler.step(id).ok_or(Error::UnknownStep(id))?;
        let built = builder.build(scheduler, step)?;
        let mut kept = spare.pop().unwrap_or_default();
        kept.id = id;
        kept.rows.clear();
        kept.rows.extend(step.rows().iter().map(inflight_row::from));
        if scheduler.config().max_steps_in_flight > 1 {
            kept.batch.get_or_insert_default().clone_from(built);
        }
        for &request in step.preempted() {
            let client = scheduler.snapshot(request).map_or(0, |request| request.client);
            let mut event = inflight_event::new(request, client, EventKind::Preempted);
            event.step_id = id.0;
            Self::tell(events, event);
        }
        let batch = kept.batch.as_ref().unwrap_or(built);
        kept.groups.clear();
        kept.groups.push(batch.into());
        let view = view_of(step, batch, &kept.rows, &kept.groups);
        in_flight.push_back(kept);
        Ok(view)
    }

    /// Forgets what the view of a step points to.
    fn retire(&mut self, id: StepId) {
        let at = self.in_flight.iter().position(|step| step.id == id);
        let retired = at.and_then(|at| self.in_flight.remove(at));
        self.spare.extend(retired);
    }

    fn commit(&mut self, id: StepId, sampled: Sampled<'_>) -> Result<inflight_outputs_view> {
        let outputs = self.scheduler.commit(id, sampled)?;
        let view = self.delivered.view(&outputs);
        let events = &mut self.events;
        let finished = outputs.as_slice().iter().filter(|output| output.finish.is_some());
        for (output, ended) in finished.zip(outputs.ended()) {
            Self::tell(events, inflight_event::finished(output, ended, id));
        }
        self.retire(id);
        Ok(view)
    }
}

/// Enters a scheduler.
///
/// # Safety
/// `scheduler` is NULL or one that lives during 'a.
pub(super) unsafe fn enter<'a>(scheduler: *const inflight_scheduler) -> Result<Entered<'a, State>> {
    // SAFETY: as the caller promises.
    unsafe { shared("scheduler", scheduler) }?.state.enter()
}

/// A scheduler without requests.
///
/// Outputs: `*out`, to be freed with `inflight_scheduler_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming the field of `config`; STRUCT_SIZE; OUT_OF_MEMORY when the pools'
/// records do not fit.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_create(
    config: *const inflight_scheduler_config,
    out: *mut *mut inflight_scheduler,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a config.
        let config = unsafe { read("config", config) }?;
        let state = State {
            scheduler: Scheduler::new(config.config()?, config.policy()?)?,
            builder: BatchBuilder::new(config.buckets()?, None),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            delivered: Delivered::default(),
            wants_events: flag("events", config.events)?,
            events: None,
        };
        Ok(inflight_scheduler { state: Exclusive::new(state) })
    };
    // SAFETY: `out` is NULL or the caller's to be written, `error` NULL or the caller's.
    unsafe { create("out", out, error, make) }
}

/// Frees a scheduler, whatever it holds. NULL does nothing. Views of its steps are gone; submitters
/// may live on, and refuse everything.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_free(scheduler: *mut inflight_scheduler) {
    // SAFETY: NULL, or from `inflight_scheduler_create` and not used any more.
    unsafe { free(scheduler) }
}

/// Queues a request. Everything it points to is copied.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, STRUCT_SIZE, DUPLICATE_REQUEST,
/// PROMPT_TOO_LONG, NEVER_FITS, QUEUE_FULL (try again later), OUT_OF_MEMORY, IN_USE, POISONED.
/// Threads: one at a time; `inflight_submitter_submit` is for any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_submit(
    scheduler: *mut inflight_scheduler,
    request: *const inflight_request,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        // SAFETY: NULL or a request.
        let request = unsafe { request_of(request) }?;
        let id = request.id.0;
        state.scheduler.submit(request).map_err(|error| Failure::from(error).of_request(id))
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Ends a request wherever it is, and frees its slot and blocks. Samples of it that are still in
/// flight are dropped. There is no event: the call says it all.
///
/// Fails, and nothing has changed: UNKNOWN_REQUEST when it has finished, or never was;
/// INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time; `inflight_submitter_cancel` is for any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_cancel(
    scheduler: *mut inflight_scheduler,
    request_id: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        state.scheduler.cancel(RequestId(request_id))?;
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Ends a request after its first `keep_tokens` output tokens, or after all that were delivered where
/// those are fewer: for an end that the caller looks for itself, such as a stop string. It counts as
/// finished; later output tokens do not count, samples in flight are dropped, and its full blocks
/// serve later requests. There is no event: the call says it all.
///
/// Outputs: `*result`, what it has come to, as much as `result_size`, the `sizeof` of the caller's, has
/// room for; NULL if the caller does not care.
/// Fails, and nothing has changed: UNKNOWN_REQUEST when it has finished, or never was;
/// INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time; `inflight_submitter_finish` is for any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_finish(
    scheduler: *mut inflight_scheduler,
    request_id: u64,
    keep_tokens: u32,
    result: *mut inflight_request_result,
    result_size: usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        let wanted = usize::from(!result.is_null());
        // SAFETY: NULL or the caller's to be written.
        let mut room =
            unsafe { Room::new(["result", "result_size"], result, result_size, wanted) }?;
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        let ended = state.scheduler.finish(RequestId(request_id), keep_tokens)?;
        if room.len() > 0 {
            room.write(0, (&ended.last).into());
        }
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// What a scheduler calls to wake the thread that steps it: see `inflight_scheduler_set_wake`.
pub type inflight_wake_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// The caller's function and its argument.
struct WakeCall {
    wake: unsafe extern "C" fn(*mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the caller promises that `wake` may be called with `user_data` on any thread.
unsafe impl Send for WakeCall {}
// SAFETY: as above.
unsafe impl Sync for WakeCall {}

impl WakeCall {
    fn call(&self) {
        // SAFETY: the caller promises that it may be called until it is replaced, and `set_wake` of the
        // scheduler and its end wait for a call under way.
        unsafe { (self.wake)(self.user_data) }
    }
}

/// Has `wake(user_data)` called when a submitter hands something over and nothing was waiting to be
/// received: for the first message to an empty inbox, and not for those that follow until the next
/// `inflight_scheduler_schedule` receives them all. So a thread with nothing to step sleeps until it is
/// called (an eventfd, a condition variable, a channel). It may be called for a message that has been
/// received meanwhile; a step with nothing to run follows then. NULL for no calls.
///
/// `wake` runs on the thread that submits, inside its call, or inside this function where something
/// waits already. It must return soon, must not use this scheduler or its submitters, and must not
/// unwind. No call is under way, or comes later, once this function has replaced it or
/// `inflight_scheduler_free` has returned.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_set_wake(
    scheduler: *mut inflight_scheduler,
    wake: inflight_wake_fn,
    user_data: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        let call = wake.map(|wake| WakeCall { wake, user_data });
        state.scheduler.set_wake(call.map(|call| Box::new(move || call.call()) as Wake));
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Draft tokens to be verified in the step in which the request samples next; they replace earlier
/// ones, and none (NULL, 0) takes them back.
///
/// Fails, and nothing has changed: UNKNOWN_REQUEST; INVALID_ARGUMENT for more than
/// `INFLIGHT_MAX_COUNT` tokens, for `INFLIGHT_NO_TOKEN` among them, while tokens of it are in flight,
/// with `overlap`, and under static batching; IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_set_draft(
    scheduler: *mut inflight_scheduler,
    request_id: u64,
    draft: *const u32,
    draft_len: usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        // SAFETY: NULL or of so many tokens.
        let draft = unsafe { array("draft", draft, draft_len) }?;
        at_most_max("draft_len", draft_len as u64)?;
        let set = state.scheduler.set_draft(RequestId(request_id), draft);
        set.map_err(|error| Failure::from(error).of_request(request_id))
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Schedules the next step at time `now`, in nanoseconds from any origin; earlier than the last
/// reads as the last. What submitters handed over is received first.
///
/// Outputs: `*view`, prepared with `inflight_step_view_init`: the step, whose arrays are valid until
/// its commit or abandon. `num_rows` is 0 where there is nothing to run; such a step is committed,
/// with no tokens, or abandoned as any other.
/// Fails, and there is no step: TOO_MANY_STEPS_IN_FLIGHT; STALLED when the policy lets no request run,
/// which is for the caller to mend (cancel a request, or wait for what else holds blocks);
/// INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED. Requests may have been received and preempted.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_schedule(
    scheduler: *mut inflight_scheduler,
    now: u64,
    view: *mut inflight_step_view,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        // First, so that no step is lost for want of a place for its view.
        // SAFETY: NULL or a view.
        unsafe { check("view", view) }?;
        let scheduled = state.schedule(Time(now))?;
        // SAFETY: as above.
        unsafe { write("view", view, scheduled) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Takes the samples of the oldest step in flight and says what became of its requests. Each token
/// is delivered once and in order; what was sampled past a request's end, or for one that was
/// cancelled meanwhile, is dropped.
///
/// `samples` is NULL for a step in which no row samples.
///
/// Outputs: `*view`, prepared with `inflight_outputs_view_init`, whose arrays are valid until the
/// next schedule, commit or abandon; NULL if the caller does not care (events tell what finished).
/// Fails, and nothing has changed: UNKNOWN_STEP; STEP_OUT_OF_ORDER when an older step is in flight;
/// OUTPUT_MISMATCH when the samples are not those of its rows; INVALID_ARGUMENT for bad offsets, for
/// `INFLIGHT_NO_TOKEN`, and for accepted tokens that are not those of the draft;
/// STRUCT_SIZE, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_commit(
    scheduler: *mut inflight_scheduler,
    step_id: u64,
    samples: *const inflight_samples,
    view: *mut inflight_outputs_view,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        let given = match samples.is_null() {
            true => inflight_samples::initial(),
            // SAFETY: samples of the caller's.
            false => unsafe { read("samples", samples) }?,
        };
        // SAFETY: NULL or of so many tokens.
        let tokens = unsafe { array("samples.tokens", given.tokens, given.num_tokens) }?;
        // SAFETY: NULL or of so many offsets.
        let indptr = unsafe { array("samples.indptr", given.indptr, given.indptr_len) }?;
        let sampled = match given.indptr.is_null() {
            true => Sampled::One(tokens),
            false => Sampled::Ragged { tokens, indptr },
        };
        if !view.is_null() {
            // SAFETY: a view of the caller's.
            unsafe { check("view", view) }?;
        }
        let committed = state.commit(StepId(step_id), sampled)?;
        match view.is_null() {
            true => Ok(()),
            // SAFETY: as above.
            false => unsafe { write("view", view, committed) },
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Undoes the newest step in flight, as if it had not been scheduled: for a step that was not run,
/// or failed on the way. Its tokens are computed again; requests it preempted stay preempted.
///
/// Fails, and nothing has changed: UNKNOWN_STEP; STEP_OUT_OF_ORDER when a newer step, which builds
/// on it, is in flight; INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_abandon(
    scheduler: *mut inflight_scheduler,
    step_id: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        state.scheduler.abandon(StepId(step_id))?;
        state.retire(StepId(step_id));
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Takes the oldest events, at most `capacity` of them, each in `event_size` bytes, which is
/// `sizeof(inflight_event)`. There are none before a scheduler's first
/// submitter: its commits, and the `preempted` of its steps, say the same.
///
/// Outputs: `events[0..*num_events]`; what does not fit stays for the next call. `events` may be
/// NULL if `capacity` is 0.
/// Fails, and no event is taken: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_scheduler_events(
    scheduler: *mut inflight_scheduler,
    events: *mut inflight_event,
    event_size: usize,
    capacity: usize,
    num_events: *mut usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a scheduler that lives.
        let mut state = unsafe { enter(scheduler) }?;
        // SAFETY: NULL or of so many events.
        let mut room =
            unsafe { Room::new(["events", "event_size"], events, event_size, capacity) }?;
        // SAFETY: NULL or the caller's to be written.
        let num_events = unsafe { output("num_events", num_events) }?;
        let Some(all) = &mut state.events else {
            num_events.write(0);
            return Ok(());
        };
        let taken = all.len().min(capacity);
        for (at, event) in all.drain(..taken).enumerate() {
            room.write(at, event);
        }
        num_events.write(taken);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
