//! Merging attention over parts of the keys.

use std::ffi::c_void;
use std::ptr;

use super::device::{backend, inflight_device, stream_of};
use super::elements::{Element, elements};
use super::ffi::{Result, Versioned, call, read, versioned};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::{device_tensor, inflight_tensor};
use crate::kernels::State;

/// States of one merge at most.
pub const INFLIGHT_MAX_STATES: usize = 16;

/// The attention of the same queries over some of the keys, in the device's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_merge_state {
    /// Outputs, `[tokens, heads, head_dim]`: F32, F16 or BF16 on a processor, on a GPU of the result's
    /// type and all with the same strides.
    pub o: *const inflight_tensor,
    /// LSE, f32 `[tokens, heads]`. A row of minus infinity, or of plus infinity as FlashAttention
    /// marks rows without keys, is neutral, its outputs not read.
    pub lse: *const f32,
}

// SAFETY: pointers, without padding.
unsafe impl Element for inflight_merge_state {}

/// What a merge reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_merge_args {
    /// `sizeof(inflight_merge_args)`.
    pub struct_size: usize,
    /// The states, over disjoint keys.
    pub states: *const inflight_merge_state,
    /// Elements of `states`, 1 to `INFLIGHT_MAX_STATES`.
    pub num_states: usize,
    /// `sizeof(inflight_merge_state)`.
    pub state_size: usize,
    /// Takes the outputs, of the states' shape. On a GPU it may be that of a state.
    pub o: *const inflight_tensor,
    /// Takes the LSE, f32 `[tokens, heads]`; NULL where it is not wanted. Not that of a state.
    pub lse: *mut f32,
}

versioned! {
    inflight_merge_args_init(args: inflight_merge_args ..= lse) {}
}

/// Merges states over disjoint keys, in the order given, into the attention over all of them: for
/// shared prefixes, cascades, and keys on several devices. A sink belongs to exactly one of them.
///
/// On a GPU it queues the work on `stream`, in capture too; the first call for a type loads a kernel,
/// unless a step buffer has an attention of it, and is not for a capture then. On a processor `stream`
/// is NULL.
///
/// Outputs: `args->o`, and `args->lse` where it is not NULL.
/// Fails, and nothing is written: INVALID_ARGUMENT naming `states`, `o`, `lse` or `stream`;
/// STRUCT_SIZE, NO_KERNEL_IMAGE. CUDA: outputs may be anything.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_merge(
    device: *const inflight_device,
    args: *const inflight_merge_args,
    stream: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        // SAFETY: NULL or arguments.
        let args = unsafe { read("args", args) }?;
        if args.num_states == 0 || args.num_states > INFLIGHT_MAX_STATES {
            let reason = format!("there are {}, not 1 to 16", args.num_states);
            return Err(Failure::argument("states", reason));
        }
        // SAFETY: NULL or of so many states.
        let states = unsafe {
            elements(["states", "state_size"], args.states, args.state_size, args.num_states)
        }?;
        if !args.lse.is_null() && states.iter().any(|state| ptr::eq(state.lse, args.lse)) {
            return Err(Failure::argument("lse", "is that of a state"));
        }
        // SAFETY: NULL or a stream that lives.
        let stream = unsafe { stream_of(backend.device(), stream) }?;
        // SAFETY: as the caller of this function promises.
        let o = unsafe { device_tensor("o", args.o) }?;
        let of = |state: &inflight_merge_state| {
            // SAFETY: as the caller of this function promises.
            let o = unsafe { device_tensor("states", state.o) }?;
            Ok(State { o, lse: state.lse.expose_provenance() as u64 })
        };
        let states = states.iter().map(of).collect::<Result<Vec<_>>>()?;
        let lse = args.lse.expose_provenance() as u64;
        // SAFETY: as the caller of this function promises.
        let merged = unsafe { backend.merge(stream.as_ref(), &states, o, lse) };
        merged.map_err(|error| Failure::from(error).renamed(&[("dtype", "o")]))
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
