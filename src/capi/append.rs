//! Appending new keys and values to a cache.

use std::ffi::c_void;

use super::device::stream_of;
use super::ffi::{Result, Versioned, at_most_max, call, read, shared, versioned};
use super::kv::{cache_of, inflight_kv_cache};
use super::rope::inflight_rope;
use super::status::{Failure, inflight_error, inflight_status};
use super::step_buffer::inflight_step_buffer;
use super::tensor::{device_tensor, inflight_tensor};
use crate::error::Error;
use crate::kernels::{AppendArgs, Rope};

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
/// `positions` where the step's are missing or out of range; STRUCT_SIZE, IN_USE, POISONED,
/// NO_KERNEL_IMAGE. CUDA: the slots may hold anything.
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
        // SAFETY: NULL or a stream that lives.
        let stream = unsafe { stream_of(state.backend.device(), stream) }?;
        // SAFETY: as the caller of this function promises.
        let args = unsafe { device_args(&args, rope) }?;
        // SAFETY: as the caller of this function promises.
        unsafe { state.buffer.append(stream.as_ref(), &args) }.map_err(failure)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// The failure of an append, its field as C spells it.
fn failure(error: Error) -> Failure {
    Failure::from(error).renamed(&[
        ("new", "k"),
        ("dtype", "cache.k.dtype"),
        ("scales.k", "cache.k.scales"),
        ("scales.v", "cache.v.scales"),
    ])
}

/// # Safety
/// All addresses are as the functions of the ABI ask for.
unsafe fn device_args(
    args: &inflight_append_args,
    rope: Option<inflight_rope>,
) -> Result<AppendArgs> {
    let rope = match rope {
        None => None,
        Some(rope) => Some(Rope {
            cos_sin: rope.cos_sin.expose_provenance() as u64,
            max_position: at_most_max("max_position", rope.max_position.into())? as u32,
            rotary_dim: rope.rotary_dim as usize,
            pairs: rope.pairs()?,
            q: match rope.q.is_null() {
                true => None,
                false => {
                    // SAFETY: as the caller promises.
                    Some(unsafe { device_tensor("q", rope.q) }?)
                }
            },
        }),
    };
    // SAFETY: as the caller promises.
    let cache = unsafe { cache_of(args.cache) }?;
    Ok(AppendArgs {
        // SAFETY: as the caller promises.
        k: unsafe { device_tensor("k", args.k) }?,
        // SAFETY: as the caller promises.
        v: unsafe { device_tensor("v", args.v) }?,
        // SAFETY: as the caller promises.
        cache: unsafe { cache.device() }?,
        rope,
    })
}
