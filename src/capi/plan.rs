//! Attention over a paged cache: planning a step and running its layers.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attention::{Limits, Shared, inflight_attention};
use super::batch::{arrays_of, inflight_batch, inflight_mask, mask_of};
use super::device::Backend;
use super::guard::{
    Result, Versioned, array, array_mut, at_most_max, call, read, shared, versioned,
};
use super::kv::{cache_of, failure, inflight_kv_cache};
use super::status::{Failure, inflight_error, inflight_status};
use super::steps::{Kind, inflight_step_buffer};
use super::tensor::{host_tensor, host_tensor_mut, inflight_tensor};
use crate::device::cpu::Cpu;
use crate::kernels::{AttentionArgs, AttentionConfig, BatchView, Mask, cpu};
use crate::types::BlockId;

/// What computes attention.
#[derive(Debug)]
pub(super) enum State {
    Cpu(Box<CpuAttention>),
    #[cfg(feature = "cuda-driver")]
    Cuda(Box<crate::kernels::cuda::Attention>),
}

impl State {
    fn forget_plan(&mut self) {
        match self {
            Self::Cpu(attention) => attention.planned = None,
            #[cfg(feature = "cuda-driver")]
            Self::Cuda(attention) => attention.forget_plan(),
        }
    }
}

/// Attention on a processor, with what the GPU's keeps itself: the mask, and which plan it was.
#[derive(Debug)]
pub(super) struct CpuAttention {
    attention: cpu::Attention,
    planned: Option<Planned>,
    rows: Rows,
    mask_bits: Vec<u8>,
    mask_indptr: Vec<u32>,
    mask_widths: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    generation: u64,
    num_tokens: usize,
    num_blocks: usize,
    has_mask: bool,
}

/// A copy of a batch's rows.
#[derive(Debug, Default)]
struct Rows {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<BlockId>,
    kv_last_page_len: Vec<u32>,
    block_size: usize,
}

impl Rows {
    fn set(&mut self, rows: &BatchView<'_>, used: usize) {
        self.qo_indptr.clear();
        self.qo_indptr.extend_from_slice(rows.qo_indptr);
        self.kv_indptr.clear();
        self.kv_indptr.extend_from_slice(rows.kv_indptr);
        self.kv_indices.clear();
        self.kv_indices.extend_from_slice(&rows.kv_indices[..used]);
        self.kv_last_page_len.clear();
        self.kv_last_page_len.extend_from_slice(rows.kv_last_page_len);
        self.block_size = rows.block_size;
    }

    fn are(&self, rows: &BatchView<'_>) -> bool {
        self.qo_indptr == rows.qo_indptr
            && self.kv_indptr == rows.kv_indptr
            && rows.kv_indices.starts_with(&self.kv_indices)
            && self.kv_last_page_len == rows.kv_last_page_len
            && self.block_size == rows.block_size
    }
}

impl CpuAttention {
    pub(super) fn new(config: AttentionConfig) -> Result<Self> {
        Ok(Self {
            attention: cpu::Attention::new(config)?,
            planned: None,
            rows: Rows::default(),
            mask_bits: Vec::new(),
            mask_indptr: Vec::new(),
            mask_widths: Vec::new(),
        })
    }

    fn plan(
        &mut self,
        cpu: &Cpu,
        limits: &Limits,
        rows: BatchView<'_>,
        num_blocks: usize,
        mask: Option<Mask<'_>>,
    ) -> Result<()> {
        rows.check(num_blocks)?;
        let used = rows.kv_indptr.last().map_or(0, |&end| end as usize);
        let extent = |row: usize| (rows.qo_indptr[row + 1] - rows.qo_indptr[row], rows.kv_len(row));
        let extents = (0..rows.num_rows()).map(extent);
        let longest = extents.clone().map(|(_, kv_len)| kv_len).max().unwrap_or(0);
        limits.check([
            ("rows", rows.num_rows(), limits.rows),
            ("tokens", rows.num_tokens(), limits.tokens),
            ("blocks", used, limits.blocks),
            ("keys in a row", longest as usize, limits.kv_len),
            ("bytes of mask", mask.map_or(0, |mask| mask.bits.len()), limits.mask_bytes),
        ])?;
        if let Some(mask) = mask {
            mask.check(extents)?;
        }
        self.attention.plan(cpu, rows, num_blocks)?;
        self.rows.set(&rows, used);
        let none = Mask { bits: &[], indptr: &[], widths: &[] };
        let Mask { bits, indptr, widths } = mask.unwrap_or(none);
        self.mask_bits.clear();
        self.mask_bits.extend_from_slice(bits);
        self.mask_indptr.clear();
        self.mask_indptr.extend_from_slice(indptr);
        self.mask_widths.clear();
        self.mask_widths.extend_from_slice(widths);
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.planned = Some(Planned {
            generation: NEXT.fetch_add(1, Ordering::Relaxed),
            num_tokens: rows.num_tokens(),
            num_blocks,
            has_mask: mask.is_some(),
        });
        Ok(())
    }

    /// The plan made last, if it is of these rows.
    pub(super) fn generation_of(&self, rows: &BatchView<'_>) -> Option<u64> {
        let planned = self.planned.filter(|_| self.rows.are(rows))?;
        Some(planned.generation)
    }

    /// # Safety
    /// Pointers among `args` are NULL, or to as much as they are said to have.
    unsafe fn run(
        &mut self,
        cpu: &Cpu,
        generation: Option<u64>,
        args: &inflight_attention_args,
    ) -> Result<()> {
        let Some(planned) = self.planned else {
            return Err(Failure::argument("plan", "there is none: plan a step first"));
        };
        if generation != Some(planned.generation) {
            return Err(Failure::argument("step", "does not hold the plan made last"));
        }
        // SAFETY: as the caller promises.
        let given = unsafe { cache_of(args.cache) }?;
        // SAFETY: as the caller promises.
        let cache = unsafe { given.host() }?;
        if cache.layout().num_blocks < planned.num_blocks {
            let (has, most) = (cache.layout().num_blocks, planned.num_blocks);
            let reason = format!("has {has} blocks, planned for {most}");
            return Err(Failure::argument("cache", reason));
        }
        let heads = self.attention.config().num_q_heads;
        let rows = if args.lse.is_null() { 0 } else { planned.num_tokens * heads };
        // SAFETY: as the caller promises.
        let lse = unsafe { array_mut("lse", args.lse, rows) }?;
        let of = |numbers: *const f32| if numbers.is_null() { 0 } else { heads };
        // SAFETY: as the caller promises.
        let slopes = unsafe { array("alibi_slopes", args.alibi_slopes, of(args.alibi_slopes)) }?;
        // SAFETY: as the caller promises.
        let sinks = unsafe { array("sinks", args.sinks, of(args.sinks)) }?;
        let args = AttentionArgs {
            // SAFETY: as the caller promises.
            q: unsafe { host_tensor("q", args.q) }?,
            cache: &cache,
            // SAFETY: as the caller promises.
            scales: unsafe { given.host_scales() }?,
            // SAFETY: as the caller promises.
            o: unsafe { host_tensor_mut("o", args.o) }?,
            lse: (!args.lse.is_null()).then_some(lse),
            alibi_slopes: (!args.alibi_slopes.is_null()).then_some(slopes),
            sinks: (!args.sinks.is_null()).then_some(sinks),
            mask: planned.has_mask.then_some(Mask {
                bits: &self.mask_bits,
                indptr: &self.mask_indptr,
                widths: &self.mask_widths,
            }),
        };
        self.attention.run(cpu, args).map_err(failure)
    }
}

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
        let Shared { backend, limits, state, .. } =
            &*unsafe { shared("attention", attention.cast_const()) }?.shared;
        let mut state = state.enter()?;
        // Whatever fails from here on, there is none.
        state.forget_plan();
        // SAFETY: NULL or a batch.
        let rows = unsafe { arrays_of(batch) }?.rows;
        // SAFETY: NULL or a mask.
        let mask = unsafe { mask_of(mask, rows.num_rows()) }?;
        let num_blocks = at_most_max("num_blocks", num_blocks)?;
        match (&mut *state, backend) {
            (State::Cpu(attention), Backend::Cpu(cpu)) => {
                attention.plan(cpu, limits, rows, num_blocks, mask)
            }
            #[cfg(feature = "cuda-driver")]
            (State::Cuda(attention), _) => {
                let _ = limits;
                Ok(attention.plan(rows, num_blocks, mask)?)
            }
            #[cfg(feature = "cuda-driver")]
            _ => Err(Failure::new(inflight_status::Corrupt, "", "an attention of two devices")),
        }
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
    /// Takes the LSE, f32 `[tokens, num_q_heads]`; NULL for nobody. For the step's tokens; in a CUDA
    /// graph's capture for as many as the limits have.
    pub lse: *mut f32,
    /// ALiBi slopes, one a query head; NULL for none.
    pub alibi_slopes: *const f32,
    /// Sink logits, one a query head: a key without value that takes part in the softmax; NULL for
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
        let attention = &unsafe { shared("attention", attention.cast_const()) }?.shared;
        let mut state = attention.state.enter()?;
        // SAFETY: NULL or a step buffer that lives.
        let step = unsafe { shared("step", step.cast_const()) }?.state.enter()?;
        // SAFETY: NULL or arguments.
        let args = unsafe { read("args", args) }?;
        let group = step.groups.iter().position(|group| Arc::ptr_eq(group, attention));
        let Some(group) = group else {
            return Err(Failure::argument("step", "was not made for this attention"));
        };
        match (&mut *state, &step.kind, &attention.backend) {
            (State::Cpu(attention), Kind::Cpu(step), Backend::Cpu(cpu)) => {
                Backend::no_stream(stream)?;
                let generation = step.generations.get(group).copied();
                // SAFETY: as the caller of this function promises.
                unsafe { attention.run(cpu, generation, &args) }
            }
            #[cfg(feature = "cuda-driver")]
            (State::Cuda(attention), Kind::Cuda(step), Backend::Cuda(backend)) => {
                // SAFETY: NULL or a stream that lives.
                let stream = unsafe { backend.stream(stream) }?;
                // SAFETY: as the caller of this function promises.
                let args = unsafe { device_args(&args) }?;
                // SAFETY: as the caller of this function promises.
                let queued = unsafe { attention.run(&stream, step, group, &args) };
                queued.map_err(failure)
            }
            #[cfg(feature = "cuda-driver")]
            _ => Err(Failure::new(inflight_status::Corrupt, "", "an attention of two devices")),
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// # Safety
/// All addresses are as the functions of the ABI ask for.
#[cfg(feature = "cuda-driver")]
unsafe fn device_args(
    args: &inflight_attention_args,
) -> Result<crate::kernels::cuda::AttentionArgs> {
    // SAFETY: as the caller promises.
    let cache = unsafe { cache_of(args.cache) }?;
    Ok(crate::kernels::cuda::AttentionArgs {
        // SAFETY: as the caller promises.
        q: unsafe { super::cuda::device_tensor("q", args.q) }?,
        // SAFETY: as the caller promises.
        cache: unsafe { cache.device() }?,
        // SAFETY: as the caller promises.
        o: unsafe { super::cuda::device_tensor("o", args.o) }?,
        lse: args.lse.addr() as u64,
        alibi_slopes: args.alibi_slopes.addr() as u64,
        sinks: args.sinks.addr() as u64,
    })
}
