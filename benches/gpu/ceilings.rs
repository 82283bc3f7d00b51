//! What the GPU can do at most, by the kernels of `csrc/bench/ceilings.cu`.

use std::ffi::CStr;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use inflight::Result;
use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream, Kernel, Kernels, Launch};

const THREADS: u32 = 256;
/// Of one warp in one turn of the loop: 8 products of 16 x 8 x 16.
const MMA_OPERATIONS: f64 = 8.0 * 2.0 * 16.0 * 8.0 * 16.0;

/// `ceiling_params` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    from: u64,
    to: u64,
    vectors: u64,
}

pub(crate) struct Ceilings {
    read: (Kernel, u32),
    copy: (Kernel, u32),
    mma: (Kernel, u32),
    /// A word for each warp of the largest grid.
    words: CudaBuffer,
    /// Turns of the product's loop.
    turns: u64,
}

impl Ceilings {
    pub(crate) fn new(cuda: &Arc<Cuda>, turns: u64) -> Result<Self> {
        let kernels = Kernels::new(cuda);
        let load = |name: &CStr| {
            let kernel = kernels.prepare("ceilings", name, 0)?;
            let blocks = kernel.blocks_per_multiprocessor(THREADS, 0)?.max(1);
            Ok((kernel, blocks * cuda.info().multiprocessors))
        };
        let read: (Kernel, u32) = load(c"inflight_ceiling_read")?;
        let copy = load(c"inflight_ceiling_copy")?;
        let mma: (Kernel, u32) = load(c"inflight_ceiling_mma")?;
        let warps = read.1.max(mma.1) * THREADS / 32;
        let words = CudaBuffer::new(cuda, warps as usize * 4)?;
        Ok(Self { read, copy, mma, words, turns })
    }

    /// Queues reading `bytes`, a multiple of 16, from an address on.
    pub(crate) fn read(&self, stream: &CudaStream, from: u64, bytes: usize) -> Result<()> {
        self.launch(stream, &self.read, from, self.words.address(), bytes)
    }

    /// Queues copying `bytes`, a multiple of 16.
    pub(crate) fn copy(
        &self,
        stream: &CudaStream,
        (to, from): (u64, u64),
        bytes: usize,
    ) -> Result<()> {
        self.launch(stream, &self.copy, from, to, bytes)
    }

    fn launch(
        &self,
        stream: &CudaStream,
        (kernel, most): &(Kernel, u32),
        from: u64,
        to: u64,
        bytes: usize,
    ) -> Result<()> {
        let vectors = bytes as u64 / 16;
        let needed = vectors.div_ceil(u64::from(THREADS)).clamp(1, u64::from(*most)) as u32;
        let params = Params { from, to, vectors };
        // SAFETY: these are the kernel's parameters; the callers' buffers have so many bytes, and
        // live until the stream is done.
        unsafe { kernel.launch(stream, &Launch::new(needed, THREADS, 0), &params, &[]) }
    }

    /// Queues products of tensor cores, and says how many operations they are.
    pub(crate) fn mma(&self, stream: &CudaStream) -> Result<f64> {
        let (kernel, grid) = &self.mma;
        let params = Params { from: 0, to: self.words.address(), vectors: self.turns };
        // SAFETY: these are the kernel's parameters; there is a word for each warp.
        unsafe { kernel.launch(stream, &Launch::new(*grid, THREADS, 0), &params, &[]) }?;
        Ok(f64::from(grid * THREADS / 32) * self.turns as f64 * MMA_OPERATIONS)
    }

    /// The exclusive or of the words that the last reading has written, of `bytes` read.
    pub(crate) fn word(&self, stream: &CudaStream, bytes: usize) -> Result<u32> {
        let blocks = (bytes as u64 / 16).div_ceil(u64::from(THREADS));
        let blocks = blocks.clamp(1, u64::from(self.read.1)) as usize;
        let mut words = vec![0_u32; blocks * THREADS as usize / 32];
        stream.read(bytemuck::cast_slice_mut(&mut words), &self.words, 0)?;
        Ok(words.into_iter().fold(0, |all, word| all ^ word))
    }
}
