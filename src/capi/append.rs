//! Appending new keys and values to a cache.

use std::ffi::c_void;

use super::device::Backend;
use super::guard::{Result, Versioned, array, at_most, at_most_max, call, read, shared, versioned};
use super::kv::{cache_of, inflight_kv_cache};
use super::rope::inflight_rope;
use super::status::{Failure, inflight_error, inflight_status};
use super::steps::{CpuStep, Kind, inflight_step_buffer};
use super::tensor::{host_tensor, host_tensor_mut, inflight_tensor};
use crate::device::cpu::Cpu;
use crate::error::Error;
use crate::kernels::cpu;

/// New keys and values of a layer, in the device's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_append_args {
    /// `sizeof(inflight_append_args)`.
    pub struct_size: usize,
    /// New keys, `[tokens, num_kv_heads, head_dim]`: of the cache's type, or for an fp8 cache F32 (on
    /// a processor only), F16 or BF16. Tokens beyond the step's are not looked at.
    pub k: *const inflight_tensor,
    /// New values, alike.
    pub v: *const inflight_tensor,
    /// Where they go, to the slots of the step. Numbers of an fp8 cache are divided by the scales and
    /// rounded to nearest even; what is beyond 448 becomes 448, NaN stays NaN.
    pub cache: *const inflight_kv_cache,
    /// Rotation of keys before they are stored, and of queries; NULL for none.
    pub rope: *const inflight_rope,
}

versioned! {
    inflight_append_args_init(args: inflight_append_args ..= rope) {}
}

/// Writes the new keys and values of a layer to the slots that the step uploaded last has, rotated
/// and quantised on the way where asked. The bytes stored are the same on every device.
///
/// On a GPU it queues the work on `stream`, as `inflight_attention_run`; in capture too, but the
/// first call for a pair of types that no attention of the buffer has loads a kernel, which is not
/// for a capture. On a processor `stream` is NULL.
///
/// Outputs: the slots of `args->cache`; `args->rope->q` where there is one.
/// Fails, and nothing is written: INVALID_ARGUMENT naming the field of `args`, `slot_mapping` or
/// `positions` where the step's are missing or out of range, `step` likewise on a GPU; STRUCT_SIZE,
/// IN_USE, POISONED, NO_KERNEL_IMAGE. CUDA: the slots may hold anything.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_append(
    step: *mut inflight_step_buffer,
    args: *const inflight_append_args,
    stream: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a step buffer that lives.
        let state = unsafe { shared("step", step.cast_const()) }?.state.enter()?;
        // SAFETY: NULL or arguments.
        let args = unsafe { read("args", args) }?;
        let rope = match args.rope.is_null() {
            true => None,
            // SAFETY: a rotation of the caller's.
            false => Some(unsafe { read("rope", args.rope) }?),
        };
        match (&state.kind, &state.backend) {
            (Kind::Cpu(step), Backend::Cpu(cpu)) => {
                Backend::no_stream(stream)?;
                // SAFETY: as the caller of this function promises.
                unsafe { append(cpu, step, &args, rope) }
            }
            #[cfg(feature = "cuda-driver")]
            (Kind::Cuda(step), Backend::Cuda(backend)) => {
                // SAFETY: NULL or a stream that lives.
                let stream = unsafe { backend.stream(stream) }?;
                // SAFETY: as the caller of this function promises.
                let args = unsafe { device_args(&args, rope) }?;
                let kernel = backend.append(args.k.dtype(), args.cache.layout().dtype)?;
                // SAFETY: as the caller of this function promises.
                unsafe { kernel.run(&stream, step, &args) }.map_err(failure)
            }
            #[cfg(feature = "cuda-driver")]
            _ => Err(Failure::new(inflight_status::Corrupt, "", "a step of two devices")),
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// The failure of an append, its field as C spells it.
fn failure(error: Error) -> Failure {
    let names = [("scales.k", "cache.k.scales"), ("scales.v", "cache.v.scales")];
    Failure::from(error).renamed(&names)
}

/// # Safety
/// Pointers are NULL, or to as much as they are said to have.
unsafe fn append(
    cpu: &Cpu,
    step: &CpuStep,
    args: &inflight_append_args,
    rope: Option<inflight_rope>,
) -> Result<()> {
    let tokens = step.num_tokens;
    if step.slot_mapping.len() != tokens {
        return Err(Failure::argument("slot_mapping", "the step was uploaded without"));
    }
    // SAFETY: as the caller promises.
    let given = unsafe { cache_of(args.cache) }?;
    // SAFETY: as the caller promises.
    let mut cache = unsafe { given.host() }?;
    if tokens > 0 && cache.layout().block_size != step.block_size {
        let (has, of) = (cache.layout().block_size, step.block_size);
        let reason = format!("has blocks of {has}, the step of {of}");
        return Err(Failure::argument("cache.block_size", reason));
    }
    let rope = match rope {
        None => None,
        Some(rope) => {
            if step.positions.len() != tokens {
                return Err(Failure::argument("positions", "the step was uploaded without"));
            }
            let rotary_dim = at_most("rotary_dim", rope.rotary_dim.into(), 256)?;
            let len = at_most_max("max_position", rope.max_position.into())? * rotary_dim;
            Some(cpu::Rope {
                positions: &step.positions,
                // SAFETY: as the caller promises.
                cos_sin: unsafe { array("cos_sin", rope.cos_sin, len) }?,
                rotary_dim,
                pairs: rope.pairs()?,
                q: match rope.q.is_null() {
                    true => None,
                    false => {
                        // SAFETY: as the caller promises.
                        Some(unsafe { host_tensor_mut("q", rope.q) }?)
                    }
                },
            })
        }
    };
    let new = cpu::Append {
        // SAFETY: as the caller promises.
        k: unsafe { host_tensor("k", args.k) }?,
        // SAFETY: as the caller promises.
        v: unsafe { host_tensor("v", args.v) }?,
        slot_mapping: &step.slot_mapping,
        // SAFETY: as the caller promises.
        scales: unsafe { given.host_scales() }?,
        rope,
    };
    cpu::append(cpu, &mut cache, new).map_err(failure)
}

/// # Safety
/// All addresses are as the functions of the ABI ask for.
#[cfg(feature = "cuda-driver")]
unsafe fn device_args(
    args: &inflight_append_args,
    rope: Option<inflight_rope>,
) -> Result<crate::kernels::cuda::AppendArgs> {
    let rope = match rope {
        None => None,
        Some(rope) => Some(crate::kernels::cuda::Rope {
            cos_sin: rope.cos_sin.addr() as u64,
            max_position: rope.max_position,
            rotary_dim: rope.rotary_dim as usize,
            pairs: rope.pairs()?,
            q: match rope.q.is_null() {
                true => None,
                false => {
                    // SAFETY: as the caller promises.
                    Some(unsafe { super::cuda::device_tensor("q", rope.q) }?)
                }
            },
        }),
    };
    // SAFETY: as the caller promises.
    let cache = unsafe { cache_of(args.cache) }?;
    Ok(crate::kernels::cuda::AppendArgs {
        // SAFETY: as the caller promises.
        k: unsafe { super::cuda::device_tensor("k", args.k) }?,
        // SAFETY: as the caller promises.
        v: unsafe { super::cuda::device_tensor("v", args.v) }?,
        // SAFETY: as the caller promises.
        cache: unsafe { cache.device() }?,
        rope,
    })
}
