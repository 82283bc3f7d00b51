//! Copies of whole blocks: copy-on-write, swap out, swap in.

use super::lanes::split;
use crate::cache::BlockOp;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::kv::{KvLayout, KvStrides};
use crate::kernels::{DType, KvCache};

/// Carries out a step's block operations, in order, on every layer's K and V.
///
/// `device` and `host` have one cache a layer; `host` may be empty where no operation swaps. A
/// device cache and its host cache may differ in strides and in number of blocks; layers may differ
/// in everything. A block copied to itself stays as it is.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `ops`, `device` or `host`; [`Error::Forked`]. Nothing is copied
/// then.
pub fn move_blocks(
    cpu: &Cpu,
    ops: &[BlockOp],
    device: &mut [KvCache<'_>],
    host: &mut [KvCache<'_>],
) -> Result<()> {
    check(ops, device, host)?;
    let mut halves = Vec::with_capacity(2 * device.len());
    let mut bytes = 0_usize;
    for (layer, cache) in device.iter().enumerate() {
        let layout = cache.layout();
        // Without host caches no operation looks at them.
        let host = host.get(layer).unwrap_or(cache);
        let k = [Side::new(cache.k_ptr(), layout.k), Side::new(host.k_ptr(), host.layout().k)];
        let v = [Side::new(cache.v_ptr(), layout.v), Side::new(host.v_ptr(), host.layout().v)];
        for sides in [k, v] {
            let half = Half::new(sides, layout);
            // Read and written.
            bytes = bytes.saturating_add(2 * half.heads * half.tokens * half.row);
            halves.push(half);
        }
    }
    split(cpu, halves.len(), bytes.saturating_mul(ops.len()), |part| {
        for half in &halves[part] {
            ops.iter().for_each(|&op| half.carry_out(op));
        }
    })
}

fn check(ops: &[BlockOp], device: &[KvCache<'_>], host: &[KvCache<'_>]) -> Result<()> {
    if device.is_empty() && !ops.is_empty() {
        return Err(Error::argument("device", "has no layers"));
    }
    if !host.is_empty() && host.len() != device.len() {
        let reason = format!("has {} layers, device has {}", host.len(), device.len());
        return Err(Error::argument("host", reason));
    }
    for (layer, (device, host)) in device.iter().zip(host).enumerate() {
        let shape = |cache: &KvCache<'_>| {
            let &KvLayout { dtype, block_size, num_heads, head_dim, .. } = cache.layout();
            (dtype, block_size, num_heads, head_dim)
        };
        if shape(device) != shape(host) {
            let text = |(dtype, block_size, heads, dim): (DType, usize, usize, usize)| {
                format!("blocks of {block_size} tokens, {heads} heads of {dim} {dtype}")
            };
            let (here, there) = (text(shape(device)), text(shape(host)));
            let reason = format!("layer {layer} has {there}, device has {here}");
            return Err(Error::argument("host", reason));
        }
    }
    let least = |caches: &[KvCache<'_>]| {
        caches.iter().map(|cache| cache.layout().num_blocks).min().unwrap_or(0)
    };
    let (device, host) = (("device", least(device)), ("host", least(host)));
    for (i, op) in ops.iter().enumerate() {
        let (src, dst) = match op.kind {
            BlockOp::COPY => (device, device),
            BlockOp::SWAP_OUT => (device, host),
            BlockOp::SWAP_IN => (host, device),
            kind => {
                return Err(Error::argument(
                    "ops",
                    format!("operation {i} is of the unknown kind {kind}"),
                ));
            }
        };
        if op.kind != BlockOp::COPY && host.1 == 0 {
            return Err(Error::argument("host", format!("has no layers, and operation {i} swaps")));
        }
        for (block, (pool, blocks)) in [(op.src, src), (op.dst, dst)] {
            if block as usize >= blocks {
                let reason = format!("operation {i}: block {block}, and {pool} has {blocks}");
                return Err(Error::argument("ops", reason));
            }
        }
    }
    Ok(())
}

/// K or V of a cache; strides in elements.
#[derive(Clone, Copy)]
struct Side {
    base: *mut u8,
    strides: KvStrides,
}

impl Side {
    fn new(base: *mut u8, strides: KvStrides) -> Self {
        Self { base, strides }
    }
}

/// K or V of a layer.
struct Half {
    device: Side,
    host: Side,
    tokens: usize,
    heads: usize,
    /// Bytes of a head.
    row: usize,
    /// Bytes per element.
    size: usize,
}

// SAFETY: it stands for exclusive borrows of a device and a host cache; one thread has it.
unsafe impl Sync for Half {}

impl Half {
    fn new([device, host]: [Side; 2], layout: &KvLayout) -> Self {
        let size = layout.dtype.size();
        let (tokens, heads) = (layout.block_size, layout.num_heads);
        Self { device, host, tokens, heads, row: layout.head_dim * size, size }
    }

    fn carry_out(&self, op: BlockOp) {
        let (src, dst) = match op.kind {
            BlockOp::SWAP_OUT => (self.device, self.host),
            BlockOp::SWAP_IN => (self.host, self.device),
            _ if op.src == op.dst => return,
            _ => (self.device, self.device),
        };
        // Count, and bytes from one to the next here and there.
        let dim = |count: usize, stride: fn(&KvStrides) -> usize| {
            (count, stride(&src.strides) * self.size, stride(&dst.strides) * self.size)
        };
        let (heads, tokens) = (dim(self.heads, |s| s.head), dim(self.tokens, |s| s.token));
        let (mut inner, mut outer) =
            if heads.2 <= tokens.2 { (heads, tokens) } else { (tokens, heads) };
        // What lies without gaps in both is one row: a whole block if the layouts agree.
        let mut row = self.row;
        for _ in 0..2 {
            if inner.0 == 1 || (inner.1, inner.2) == (row, row) {
                row *= inner.0;
                (inner, outer) = (outer, (1, 0, 0));
            }
        }
        let from = src.base.wrapping_add(op.src as usize * src.strides.block * self.size);
        let to = dst.base.wrapping_add(op.dst as usize * dst.strides.block * self.size);
        for i in 0..outer.0 {
            for j in 0..inner.0 {
                let from = from.wrapping_add(i * outer.1 + j * inner.1);
                let to = to.wrapping_add(i * outer.2 + j * inner.2);
                // SAFETY: `check` found both blocks within their caches, which are borrowed
                // exclusively; different blocks, and different caches, do not overlap.
                unsafe { to.copy_from_nonoverlapping(from, row) };
            }
        }
    }
}
