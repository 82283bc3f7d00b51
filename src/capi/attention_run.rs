//! Attention over a paged cache: planning a step and running its layers.

use std::ffi::c_void;
use std::sync::Arc;

use super::attention::inflight_attention;
use super::batch::{arrays_of, inflight_batch, inflight_mask, mask_of};
use super::device::stream_of;
use super::ffi::{Result, Versioned, at_most_max, call, read, shared, versioned};
use super::kv::{cache_of, failure, inflight_kv_cache};
use super::status::{Failure, inflight_error, inflight_status};
use super::step_buffer::inflight_step_buffer;
use super::tensor::{device_tensor, inflight_tensor};
use crate::kernels::AttentionArgs;

/// Divides a step's work among the device's cores or multiprocessors, for caches of at least
/// `num_blocks` blocks, at most `INFLIGHT_MAX_COUNT`. On the host, for either device; it depends on
/// nothing but its arguments.
/// `mask` may be NULL.
///
/// Fails, and there is no plan then: INVALID_ARGUMENT naming the array of `batch` or `mask`,
/// `num_blocks`, or `limits` where the step is larger; STRUCT_SIZE, OUT_OF_MEMORY. IN_USE, POISONED:
/// nothing has changed.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_attention_plan(
    attention: *mut inflight_attention,
    batch: *const inflight_batch,
    num_blocks: u64,
    mask: *const inflight_mask,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or an attention that lives.
        let mut attention =
            unsafe { shared("attention", attention.cast_const()) }?.state.enter()?;
        // Whatever fails from here on, there is none.
        attention.forget_plan();
        // SAFETY: NULL or a batch.
        let rows = unsafe { arrays_of(batch) }?.batch;
        // SAFETY: NULL or a mask.
        let mask = unsafe { mask_of(mask, rows.num_rows()) }?;
        let num_blocks = at_most_max("num_blocks", num_blocks)?;
        Ok(attention.plan(rows, num_blocks, mask)?)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// What one layer's attention reads and writes, in the device's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_attention_args {
    /// `sizeof(inflight_attention_args)`.
    pub struct_size: usize,
    /// Queries, `[tokens, num_q_heads, head_dim]`. Tokens beyond the step's are not looked at.
    pub q: *const inflight_tensor,
    /// Outputs: type of `q`, and its shape with any strides. Overlaps nothing else:
    /// `q` in its place is refused, other overlaps are not seen.
    pub o: *const inflight_tensor,
    /// The layer's K and V, this step's already appended.
    pub cache: *const inflight_kv_cache,
    /// Takes the LSE, f32 `[tokens, num_q_heads]`; NULL if not wanted. For the step's tokens; in a CUDA
    /// graph's capture for as many as the limits have.
    pub lse: *mut f32,
    /// ALiBi slopes, one per query head; NULL for none.
    pub alibi_slopes: *const f32,
    /// Sink logits, one per query head: a key without value that takes part in the softmax; NULL for
    /// none.
    pub sinks: *const f32,
}

versioned! {
    inflight_attention_args_init(args: inflight_attention_args ..= sinks) {}
}

/// Computes a layer's attention for the step in `step`, whose upload was of the plan made last.
///
/// On a GPU it queues the work on `stream`, neither allocating nor waiting: the stream may be in
/// capture, and a graph replayed with any later step within the limits that was uploaded to the same
/// buffer, with caches of the same block size and all blocks within those captured. It is ordered
/// behind the upload, and before any later upload, by the stream or by the caller's events; all runs
/// of one attention are in one such order. On a processor `stream` is NULL, and `o` is written when
/// the call returns.
///
/// Outputs: `args->o`, and `args->lse` where it is not NULL.
/// Fails, and nothing is written: INVALID_ARGUMENT naming the field of `args`, `plan` where there is
/// none, `step` where its upload was not of the plan made last; STRUCT_SIZE, IN_USE, POISONED. CUDA:
/// outputs may be anything.
/// Threads: one at a time, also with the step buffer. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_attention_run(
    attention: *mut inflight_attention,
    step: *mut inflight_step_buffer,
    args: *const inflight_attention_args,
    stream: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or an attention that lives.
        let state = &unsafe { shared("attention", attention.cast_const()) }?.state;
        let attention = state.enter()?;
        // SAFETY: NULL or a step buffer that lives.
        let step = unsafe { shared("step", step.cast_const()) }?.state.enter()?;
        // SAFETY: NULL or arguments.
        let args = unsafe { read("args", args) }?;
        let group = step.groups.iter().position(|group| Arc::ptr_eq(group, state));
        let Some(group) = group else {
            return Err(Failure::argument("step", "was not made for this attention"));
        };
        // SAFETY: NULL or a stream that lives.
        let stream = unsafe { stream_of(step.backend.device(), stream) }?;
        // SAFETY: as the caller of this function promises.
        let args = unsafe { device_args(&args) }?;
        // SAFETY: as the caller of this function promises.
        let ran = unsafe { attention.run(stream.as_ref(), &step.buffer, group, &args) };
        ran.map_err(failure)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// # Safety
/// All addresses are as the functions of the ABI ask for.
unsafe fn device_args(args: &inflight_attention_args) -> Result<AttentionArgs> {
    // SAFETY: as the caller promises.
    let cache = unsafe { cache_of(args.cache) }?;
    Ok(AttentionArgs {
        // SAFETY: as the caller promises.
        q: unsafe { device_tensor("q", args.q) }?,
        // SAFETY: as the caller promises.
        cache: unsafe { cache.device() }?,
        // SAFETY: as the caller promises.
        o: unsafe { device_tensor("o", args.o) }?,
        lse: args.lse.expose_provenance() as u64,
        alibi_slopes: args.alibi_slopes.expose_provenance() as u64,
        sinks: args.sinks.expose_provenance() as u64,
    })
}
