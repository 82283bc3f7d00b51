//! Copies of whole blocks: copy-on-write, swap out, swap in.

use std::ffi::c_void;

use super::device::{backend, inflight_device, stream_of};
use super::elements::elements;
use super::ffi::{Exclusive, Handle, Result, at_most, at_most_max, call, create, free, shared};
use super::kv::{caches_of, inflight_kv_cache};
use super::status::{Failure, inflight_error, inflight_status};
use super::step_view::inflight_block_op;
use crate::cache::BlockOp;
use crate::kernels::{Backend, BlockMover};

/// Carries out block operations on every layer's K and V: those of a step, or of
/// `inflight_cache_take_ops`.
///
/// One thread at a time: a call that finds another inside returns IN_USE.
pub struct inflight_block_mover {
    state: Exclusive<Mover>,
}

impl Handle for inflight_block_mover {}

#[derive(Debug)]
struct Mover {
    backend: Backend,
    mover: BlockMover,
}

/// Layers of a mover at most.
const MAX_LAYERS: u64 = 1 << 16;

/// A mover for the caches of `num_layers` layers, 1 to 65536: `device_caches`, and where operations
/// swap `host_caches`, their counterparts in the host pool (NULL otherwise), which may have another
/// number of blocks and distance between them. All of an array have one `struct_size`. The structs are copied; the memory that they name
/// stays until the mover is freed.
///
/// On a GPU all have one shape, blocks are contiguous, and the host's are page-locked memory, at the
/// addresses that it has for the device.
///
/// Outputs: `*out`, to be freed with `inflight_block_mover_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming `num_layers`, `device_caches`, `host_caches`, or the field of one;
/// NO_KERNEL_IMAGE, OUT_OF_DEVICE_MEMORY, CUDA.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_block_mover_create(
    device: *const inflight_device,
    device_caches: *const inflight_kv_cache,
    host_caches: *const inflight_kv_cache,
    num_layers: usize,
    out: *mut *mut inflight_block_mover,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a device that lives.
        let backend = unsafe { backend(device) }?;
        at_most("num_layers", num_layers as u64, MAX_LAYERS)?;
        // SAFETY: NULL or of so many layers.
        let caches = unsafe { caches_of("device_caches", device_caches, num_layers) }?;
        let hosts = if host_caches.is_null() { 0 } else { num_layers };
        // SAFETY: NULL or of so many layers.
        let hosts = unsafe { caches_of("host_caches", host_caches, hosts) }?;
        if caches.is_empty() {
            return Err(Failure::argument("num_layers", "is 0"));
        }
        // SAFETY: as the caller of this function promises.
        let of = |cache: &inflight_kv_cache| unsafe { cache.device() };
        let device = caches.iter().map(of).collect::<Result<Vec<_>>>()?;
        let host = hosts.iter().map(of).collect::<Result<Vec<_>>>()?;
        let mover = BlockMover::new(&backend, &device, &host)
            .map_err(|error| super::kv::failure(error).for_layers())?;
        Ok(inflight_block_mover { state: Exclusive::new(Mover { backend, mover }) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

/// Frees a mover. NULL does nothing. On a GPU this waits for the device's work.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_block_mover_free(mover: *mut inflight_block_mover) {
    // SAFETY: NULL, or from `inflight_block_mover_create` and not used any more.
    unsafe { free(mover) }
}

/// Carries out at most `INFLIGHT_MAX_COUNT` operations, with the result of doing so in order; each has
/// `op_size` bytes, as a view's `block_op_size` says, or `sizeof(inflight_block_op)`. A block copied to
/// itself stays.
///
/// On a GPU it queues the work on `stream`, which may not be in capture, and waits where four calls
/// before it are not done yet. On a processor `stream` is NULL.
///
/// Fails, and nothing is copied: INVALID_ARGUMENT naming `ops` where one is of no kind or names a
/// block that is not there, `host_caches` where one swaps and there are none, or `stream`; IN_USE,
/// POISONED. CUDA: some may have been carried out.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_block_mover_run(
    mover: *mut inflight_block_mover,
    ops: *const inflight_block_op,
    op_size: usize,
    num_ops: usize,
    stream: *mut c_void,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a mover that lives.
        let mut state = unsafe { shared("mover", mover.cast_const()) }?.state.enter()?;
        at_most_max("num_ops", num_ops as u64)?;
        // The same three numbers.
        // SAFETY: NULL or of so many operations.
        let ops = unsafe { elements(["ops", "op_size"], ops.cast::<BlockOp>(), op_size, num_ops) }?;
        let Mover { backend, mover } = &mut *state;
        // SAFETY: NULL or a stream that lives.
        let stream = unsafe { stream_of(backend.device(), stream) }?;
        mover.run(stream.as_ref(), &ops).map_err(|error| Failure::from(error).for_layers())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

impl Failure {
    /// The same, with the field as this file's functions spell it.
    fn for_layers(self) -> Self {
        self.renamed(&[("device", "device_caches"), ("host", "host_caches")])
    }
}
