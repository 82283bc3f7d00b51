//! Copies of whole blocks: copy-on-write, swap out, swap in.

use crate::cache::BlockOp;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::KvCache;

/// Carries out a step's block operations, in order, on every layer's K and V.
///
/// `device` and `host` have one cache a layer; `host` may be empty where no operation swaps. A
/// device cache and its host cache may differ in strides and in number of blocks.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `ops`, `device` or `host`; nothing is copied then.
pub fn move_blocks(
    cpu: &Cpu,
    ops: &[BlockOp],
    device: &mut [KvCache<'_>],
    host: &mut [KvCache<'_>],
) -> Result<()> {
    let _ = (cpu, ops, device, host);
    Err(Error::argument("ops", "draft"))
}
