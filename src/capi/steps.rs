//! The step buffer: what kernels read of a step.

use std::ffi::c_void;
use std::sync::Arc;

use super::attention::{Limits, Shared, inflight_attention, inflight_step_limits};
use super::batch::{Arrays, arrays_of, inflight_batch};
use super::device::{Backend, backend, inflight_device};
use super::guard::{Entered, Exclusive, Result, array, call, create, free, shared};
use super::plan::State;
use super::status::{Failure, inflight_error, inflight_status};

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

#[derive(Debug)]
pub(super) struct StepState {
    pub(super) backend: Backend,
    pub(super) groups: Vec<Arc<Shared>>,
    limits: Limits,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Cpu(CpuStep),
    #[cfg(feature = "cuda-driver")]
    Cuda(Box<crate::kernels::cuda::StepBuffer>),
}

/// A step on a processor.
#[derive(Debug, Default)]
pub(super) struct CpuStep {
    /// The plan of each group; empty before the first upload.
    pub(super) generations: Vec<u64>,
    pub(super) num_tokens: usize,
    pub(super) block_size: usize,
    pub(super) slot_mapping: Vec<i64>,
    pub(super) positions: Vec<u32>,
}

impl CpuStep {
    fn upload(
        &mut self,
        limits: &Limits,
        arrays: &Arrays<'_>,
        groups: &[Entered<'_, State>],
    ) -> Result<()> {
        let rows = &arrays.rows;
        rows.check_shape()?;
        let used = rows.kv_indptr.last().map_or(0, |&end| end as usize);
        limits.check([
            ("rows", rows.num_rows(), limits.rows),
            ("tokens", rows.num_tokens(), limits.tokens),
            ("blocks", used, limits.blocks),
        ])?;
        let generation = |group: &Entered<'_, State>| match &**group {
            State::Cpu(attention) => attention.generation_of(rows),
            #[cfg(feature = "cuda-driver")]
            State::Cuda(_) => None,
        };
        let generations: Option<Vec<u64>> = groups.iter().map(generation).collect();
        let unplanned = || Failure::argument("attentions", "one has no plan of this batch");
        self.generations = generations.ok_or_else(unplanned)?;
        self.num_tokens = rows.num_tokens();
        self.block_size = rows.block_size;
        self.slot_mapping.clear();
        self.slot_mapping.extend_from_slice(arrays.slot_mapping);
        self.positions.clear();
        self.positions.extend_from_slice(arrays.positions);
        Ok(())
    }
}

/// Room for steps within `limits` and the plans of `attentions`, at most
/// `INFLIGHT_MAX_ATTENTIONS` that were made for the same device and limits; none (NULL, 0) for
/// appending alone. What the buffer needs of them it keeps: they may be freed first.
///
/// Outputs: `*out`, to be freed with `inflight_step_buffer_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming `attentions` or the field of `limits`, STRUCT_SIZE, IN_USE,
/// NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
/// Threads: any; nobody may be using the attentions. Since 0.1.
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
        let limits = unsafe { Limits::of(limits) }?;
        let refused = |reason| Err(Failure::argument("attentions", reason));
        if num_attentions > INFLIGHT_MAX_ATTENTIONS {
            return refused("there are more than 4");
        }
        // SAFETY: NULL or of so many handles.
        let handles = unsafe { array("attentions", attentions, num_attentions) }?;
        let mut groups: Vec<Arc<Shared>> = Vec::new();
        for handle in handles {
            // SAFETY: NULL or an attention that lives.
            let group = &unsafe { shared("attentions", handle.cast_const()) }?.shared;
            if groups.iter().any(|other| Arc::ptr_eq(other, group)) {
                return refused("one is there twice");
            }
            if group.limits != limits {
                return refused("one is made for other limits");
            }
            if !group.backend.is(&backend) {
                return refused("one is of another device");
            }
            groups.push(Arc::clone(group));
        }
        let kind = kind(&backend, limits, &groups)?;
        let state = StepState { backend, groups, limits, kind };
        Ok(inflight_step_buffer { state: Exclusive::new(state) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

#[cfg(feature = "cuda-driver")]
fn kind(backend: &Backend, limits: Limits, groups: &[Arc<Shared>]) -> Result<Kind> {
    let Backend::Cuda(backend) = backend else { return Ok(Kind::Cpu(CpuStep::default())) };
    for group in groups {
        // Not when they are first used: that may be in a capture.
        backend.append(group.config.q_dtype, group.config.kv_dtype)?;
        backend.merge(group.config.q_dtype)?;
    }
    let entered = enter_all(groups)?;
    let plans = device_attentions(&entered);
    let buffer = crate::kernels::cuda::StepBuffer::new(&backend.cuda, limits.into(), &plans)?;
    Ok(Kind::Cuda(Box::new(buffer)))
}

#[cfg(not(feature = "cuda-driver"))]
fn kind(_: &Backend, _: Limits, _: &[Arc<Shared>]) -> Result<Kind> {
    Ok(Kind::Cpu(CpuStep::default()))
}

fn enter_all(groups: &[Arc<Shared>]) -> Result<Vec<Entered<'_, State>>> {
    groups.iter().map(|group| group.state.enter()).collect()
}

#[cfg(feature = "cuda-driver")]
fn device_attentions<'a>(
    groups: &'a [Entered<'_, State>],
) -> Vec<&'a crate::kernels::cuda::Attention> {
    let device = groups.iter().filter_map(|group| match &**group {
        State::Cuda(attention) => Some(&**attention),
        State::Cpu(_) => None,
    });
    device.collect()
}

/// Frees a step buffer. NULL does nothing. On a GPU this waits for the device's work; graphs that
/// were captured with it must not be launched any more.
///
/// Threads: any; nobody may be using it. Since 0.1.
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
        let arrays = unsafe { arrays_of(batch) }?;
        let StepState { backend, groups, limits, kind } = &mut *state;
        let entered = enter_all(groups)?;
        match (kind, &*backend) {
            (Kind::Cpu(step), _) => {
                Backend::no_stream(stream)?;
                step.upload(limits, &arrays, &entered)
            }
            #[cfg(feature = "cuda-driver")]
            (Kind::Cuda(step), Backend::Cuda(backend)) => {
                // SAFETY: NULL or a stream that lives.
                let stream = unsafe { backend.stream(stream) }?;
                let plans = device_attentions(&entered);
                let arrays = crate::kernels::cuda::StepArrays {
                    batch: arrays.rows,
                    slot_mapping: arrays.slot_mapping,
                    positions: arrays.positions,
                    tokens: arrays.tokens,
                };
                let uploaded = step.upload(&stream, &arrays, &plans).map_err(Failure::from);
                uploaded.map_err(|failure| failure.renamed(&[("groups", "attentions")]))
            }
            #[cfg(feature = "cuda-driver")]
            (Kind::Cuda(_), Backend::Cpu(_)) => {
                Err(Failure::new(inflight_status::Corrupt, "", "a step of two devices"))
            }
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
