//! The step buffer: what kernels read of a step.

use std::ffi::c_void;
use std::sync::Arc;

use super::attention::{inflight_attention, inflight_step_limits, limits_of};
use super::batch::{inflight_batch, source_of};
use super::device::{backend, inflight_device, stream_of};
use super::ffi::{Entered, Exclusive, Handle, Result, array, call, create, free, shared};
use super::status::{Failure, inflight_error, inflight_status};
use crate::error::Error;
use crate::kernels::{Attention, Backend, StepBuffer};

/// Attentions of one step buffer at most.
pub const INFLIGHT_MAX_ATTENTIONS: usize = 4;

/// A step's arrays and plans, where kernels find them: on a GPU in device memory at an address that
/// stays, so that a captured graph serves every step; on a processor a copy.
///
/// `inflight_step_buffer_upload` writes it, by a copy, and nothing else may: a kernel here may read
/// it while the kernels queued before are still running. What those write of queries, keys, values
/// and outputs is waited for.
///
/// One thread at a time: a call that finds another inside returns IN_USE, so that threads which
/// append and attend at the same time need one each. Attentions of one buffer take turns.
pub struct inflight_step_buffer {
    pub(super) state: Exclusive<StepState>,
}

impl Handle for inflight_step_buffer {}

#[derive(Debug)]
pub(super) struct StepState {
    pub(super) backend: Backend,
    pub(super) groups: Vec<Arc<Exclusive<Attention>>>,
    pub(super) buffer: StepBuffer,
}

/// Room for steps within `limits` and the plans of `attentions`, at most
/// `INFLIGHT_MAX_ATTENTIONS` that were made for the same device and limits; none (NULL, 0) for
/// appending alone. What the buffer needs of them it keeps: they may be freed first.
///
/// Outputs: `*out`, to be freed with `inflight_step_buffer_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming `attentions` or the field of `limits`, STRUCT_SIZE, IN_USE,
/// NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
/// Threads: any, while no other call uses the attentions. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_step_buffer_create(
    device: *const inflight_device,
    limits: *const inflight_step_limits,
    attentions: *const *mut inflight_attention,
    num_attentions: usize,
    out: *mut *mut inflight_step_buffer,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        // SAFETY: NULL or limits.
        let limits = unsafe { limits_of(limits) }?;
        let refused = |reason| Err(Failure::argument("attentions", reason));
        if num_attentions > INFLIGHT_MAX_ATTENTIONS {
            return refused("there are more than 4");
        }
        // SAFETY: NULL or of so many handles.
        let handles = unsafe { array("attentions", attentions, num_attentions) }?;
        let mut groups: Vec<Arc<Exclusive<Attention>>> = Vec::new();
        for handle in handles {
            // SAFETY: NULL or an attention that lives.
            let group = &unsafe { shared("attentions", handle.cast_const()) }?.state;
            if groups.iter().any(|other| Arc::ptr_eq(other, group)) {
                return refused("one is listed twice");
            }
            groups.push(Arc::clone(group));
        }
        let entered = enter_all(&groups)?;
        let made = StepBuffer::new(&backend, limits, entered.iter().map(|group| &**group));
        let buffer = made.map_err(failure)?;
        drop(entered);
        let state = StepState { backend, groups, buffer };
        Ok(inflight_step_buffer { state: Exclusive::new(state) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

fn enter_all(groups: &[Arc<Exclusive<Attention>>]) -> Result<Vec<Entered<'_, Attention>>> {
    groups.iter().map(|group| group.enter()).collect()
}

/// The failure of a step buffer, its field as C spells it.
fn failure(error: Error) -> Failure {
    Failure::from(error).renamed(&[("groups", "attentions")])
}

/// Frees a step buffer. NULL does nothing. On a GPU this waits for the device's work; graphs that
/// were captured with it must not be launched any more.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_step_buffer_free(step: *mut inflight_step_buffer) {
    // SAFETY: NULL, or from `inflight_step_buffer_create` and not used any more.
    unsafe { free(step) }
}

/// Takes a step: the arrays of `batch`, and the plans that the buffer's attentions made of it last.
/// All are copied: `batch` may go when the call returns.
///
/// On a GPU it queues one copy on `stream`, which may not be in capture: the copy belongs before a
/// graph's launch. It is ordered behind all work that reads the step before, by the stream or by the
/// caller's events. It waits where four uploads before it are not done yet.
///
/// Fails, and the step before is still there: INVALID_ARGUMENT naming the array of `batch`, `limits`
/// where it is larger, `attentions` where one has no plan of it, or `stream`; STRUCT_SIZE, IN_USE,
/// POISONED. CUDA: there is no step then.
/// Threads: one at a time, also with the attentions. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_step_buffer_upload(
    step: *mut inflight_step_buffer,
    batch: *const inflight_batch,
    stream: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a step buffer that lives.
        let mut state = unsafe { shared("step", step.cast_const()) }?.state.enter()?;
        // SAFETY: NULL or a batch.
        let source = unsafe { source_of(batch) }?;
        let StepState { backend, groups, buffer } = &mut *state;
        // SAFETY: NULL or a stream that lives.
        let stream = unsafe { stream_of(backend.device(), stream) }?;
        let entered = enter_all(groups)?;
        let groups = entered.iter().map(|group| &**group);
        buffer.upload(stream.as_ref(), source, groups).map_err(failure)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
