//! Copies of whole blocks on a GPU: copy-on-write, and swaps with page-locked host memory.

use std::sync::Arc;

use super::params::{self, inflight_copy_array, inflight_copy_params};
use crate::cache::BlockOp;
use crate::device::cuda::{
    Cuda, CudaBuffer, CudaEvent, CudaStream, Kernel, Kernels, Launch, PinnedBuffer,
};
use crate::error::{Error, Result};
use crate::kernels::{DeviceCache, KvLayout, KvStrides};

/// Operations of one launch at most.
const MOST: usize = 4096;

/// Lists of operations that may be on their way before [`BlockMover::run`] waits.
const RING: usize = 4;

/// Carries out steps' block operations on every layer's K and V.
#[derive(Debug)]
pub struct BlockMover {
    kernel: Kernel,
    grid: u32,
    /// For each kind of operation: arrays, and how many there are; none without a host cache.
    arrays: [CudaBuffer; 3],
    counts: [u32; 3],
    block_bytes: u64,
    num_blocks: usize,
    host_blocks: usize,
    ring: Vec<List>,
    next: usize,
}

/// A list of operations on its way.
#[derive(Debug)]
struct List {
    // Dropped first: that waits for the device, which still may read what follows.
    device: CudaBuffer,
    host: PinnedBuffer,
    done: CudaEvent,
}

impl BlockMover {
    /// For the caches of all layers and, where operations swap, their counterparts in page-locked
    /// host memory, at the addresses that these have for the device
    /// ([`PinnedBuffer::device_address`]). All have one shape and one set of strides within a block,
    /// in which a block is contiguous; distances between blocks may differ.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `device` or `host`; [`Error::NoKernelImage`];
    /// [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, device: &[DeviceCache], host: &[DeviceCache]) -> Result<Self> {
        let block_bytes = check(device, host)?;
        let kernel = Kernels::new(cuda).prepare("copy", c"inflight_copy_blocks", 0)?;
        let threads = params::INFLIGHT_COPY_THREADS;
        let grid = kernel.blocks_per_multiprocessor(threads, 0)? * cuda.info().multiprocessors;
        let pairs = |from: &[DeviceCache], to: &[DeviceCache]| -> Vec<inflight_copy_array> {
            from.iter().zip(to).flat_map(|(from, to)| halves(from, to)).collect()
        };
        let lists = [pairs(device, device), pairs(device, host), pairs(host, device)];
        let stream = CudaStream::new(cuda)?;
        let upload = |list: &[inflight_copy_array]| {
            let bytes: &[u8] = bytemuck::cast_slice(list);
            let buffer = CudaBuffer::new(cuda, bytes.len())?;
            stream.write(&buffer, 0, bytes)?;
            Ok::<_, Error>(buffer)
        };
        let counts = [lists[0].len() as u32, lists[1].len() as u32, lists[2].len() as u32];
        let ring = (0..RING)
            .map(|_| {
                Ok(List {
                    device: CudaBuffer::new(cuda, MOST * 8)?,
                    host: PinnedBuffer::new(cuda, MOST * 8)?,
                    done: CudaEvent::new(cuda)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            kernel,
            grid: grid.max(1),
            arrays: [upload(&lists[0])?, upload(&lists[1])?, upload(&lists[2])?],
            counts,
            block_bytes,
            num_blocks: device.first().map_or(0, |cache| cache.layout().num_blocks),
            host_blocks: host.first().map_or(0, |cache| cache.layout().num_blocks),
            ring,
            next: 0,
        })
    }

    /// Queues operations, with the result of carrying them out in order: those that do not concern
    /// each other are in one launch.
    ///
    /// Waits where four launches before are not done yet. Not for streams in capture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `ops`, `host` where one swaps and there is none, or `stream`,
    /// nothing being queued then; what the driver refuses.
    pub fn run(&mut self, stream: &CudaStream, ops: &[BlockOp]) -> Result<()> {
        self.check_ops(ops)?;
        if stream.is_capturing()? {
            return Err(Error::argument("stream", "is in capture: operations are a step's own"));
        }
        let mut rest = ops;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(independent(rest));
            self.launch(stream, now)?;
            rest = later;
        }
        Ok(())
    }

    fn launch(&mut self, stream: &CudaStream, ops: &[BlockOp]) -> Result<()> {
        let List { device, host, done } = &mut self.ring[self.next];
        done.synchronize()?;
        // No block is both read and written, so one that is copied to itself is left out.
        let moves = ops.iter().filter(|op| op.kind != BlockOp::COPY || op.src != op.dst);
        let mut num_pairs = 0;
        for (pair, op) in host.chunks_exact_mut(8).zip(moves) {
            pair[..4].copy_from_slice(&op.src.to_ne_bytes());
            pair[4..].copy_from_slice(&op.dst.to_ne_bytes());
            num_pairs += 1;
        }
        if num_pairs == 0 {
            return Ok(());
        }
        // Every piece of every block looks its pair up: not over the bus.
        // SAFETY: the list is written again only after its event, and freed after the device.
        unsafe { stream.upload(device, 0, &host[..num_pairs as usize * 8]) }?;
        let kind = ops[0].kind as usize;
        let params = inflight_copy_params {
            arrays: self.arrays[kind].address(),
            pairs: device.address(),
            block_bytes: self.block_bytes,
            num_arrays: self.counts[kind],
            num_pairs,
        };
        let launch = Launch::new(self.grid, params::INFLIGHT_COPY_THREADS, 0);
        // SAFETY: these are the kernel's parameters; blocks are within the caches, which are as
        // their makers guarantee, and the pairs stay until the event.
        let launched = unsafe { self.kernel.launch(stream, &launch, &params, &[]) };
        self.next = (self.next + 1) % RING;
        if let Err(error) = launched.and_then(|()| done.record(stream)) {
            // Without its event nothing else says when the list may be written again.
            stream.synchronize()?;
            return Err(error);
        }
        Ok(())
    }

    fn check_ops(&self, ops: &[BlockOp]) -> Result<()> {
        let (device, host) = (self.num_blocks, self.host_blocks);
        for (i, op) in ops.iter().enumerate() {
            let (from, to) = match op.kind {
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
            if op.kind != BlockOp::COPY && host == 0 {
                return Err(Error::argument("host", format!("has no layers, and {i} swaps")));
            }
            if op.src as usize >= from || op.dst as usize >= to {
                let reason = format!("{i} goes from {} of {from} to {} of {to}", op.src, op.dst);
                return Err(Error::argument("ops", reason));
            }
        }
        Ok(())
    }
}

/// How many operations from the first one on can be done at the same time: of one kind, none
/// writing what another reads or writes.
fn independent(ops: &[BlockOp]) -> usize {
    let kind = ops[0].kind;
    let ops = &ops[..ops.len().min(MOST)];
    let mut written = std::collections::HashSet::new();
    let mut read = std::collections::HashSet::new();
    // A copy reads and writes one pool, a swap two.
    let one_pool = kind == BlockOp::COPY;
    let fits = |op: &BlockOp| {
        let meets = written.contains(&op.dst)
            || (one_pool && (written.contains(&op.src) || read.contains(&op.dst)));
        if op.kind != kind || meets {
            return false;
        }
        written.insert(op.dst);
        read.insert(op.src);
        true
    };
    let mut fits = fits;
    ops.iter().take_while(|op| fits(op)).count()
}

/// K and V of a layer on both sides.
fn halves(from: &DeviceCache, to: &DeviceCache) -> [inflight_copy_array; 2] {
    let size = from.layout().dtype.size();
    let bytes = |stride: usize| (stride * size) as u64;
    let ((from_k, from_v), (to_k, to_v)) = (from.addresses(), to.addresses());
    let (from, to) = (from.layout(), to.layout());
    let array = |a: u64, b: u64, from: KvStrides, to: KvStrides| inflight_copy_array {
        from: a,
        to: b,
        from_block: bytes(from.block),
        to_block: bytes(to.block),
    };
    [array(from_k, to_k, from.k, to.k), array(from_v, to_v, from.v, to.v)]
}

/// Bytes of a block.
fn check(device: &[DeviceCache], host: &[DeviceCache]) -> Result<u64> {
    let Some(first) = device.first() else {
        return Err(Error::argument("device", "has no layers"));
    };
    if !host.is_empty() && host.len() != device.len() {
        let reason = format!("has {} layers, device has {}", host.len(), device.len());
        return Err(Error::argument("host", reason));
    }
    let shape = |cache: &DeviceCache| {
        let KvLayout { dtype, block_size, num_heads, head_dim, k, v, .. } = *cache.layout();
        (dtype, block_size, num_heads, head_dim, [k, v].map(|s| (s.token, s.head)))
    };
    for (field, caches) in [("device", device), ("host", host)] {
        let blocks = |cache: &DeviceCache| cache.layout().num_blocks;
        let Some(one) = caches.first() else { continue };
        one.check_on_gpu()?;
        let odd = caches
            .iter()
            .position(|cache| shape(cache) != shape(first) || blocks(cache) != blocks(one));
        if let Some(layer) = odd {
            let reason = format!("layer {layer} differs from the first in shape or strides");
            return Err(Error::argument(field, reason));
        }
    }
    let KvLayout { dtype, block_size, num_heads, head_dim, k, v, .. } = *first.layout();
    for KvStrides { token, head, .. } in [k, v] {
        let span = (block_size - 1) * token + (num_heads - 1) * head + head_dim;
        if span != block_size * num_heads * head_dim {
            return Err(Error::argument("device", "its blocks are not contiguous"));
        }
    }
    let bytes = (block_size * num_heads * head_dim * dtype.size()) as u64;
    if !bytes.is_multiple_of(16) {
        let reason = format!("its blocks are of {bytes} bytes, not a multiple of 16");
        return Err(Error::argument("device", reason));
    }
    Ok(bytes)
}
