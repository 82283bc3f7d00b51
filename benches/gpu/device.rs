//! The GPU, memory filled with numbers, and times.

use std::sync::Arc;

use half::bf16;
use inflight::Result;
use inflight::device::cuda::{Cuda, CudaBuffer, CudaEvent, CudaStream};
use inflight::kernels::{DType, Fp8E4m3};

use crate::ceilings::Ceilings;
use crate::common::Rng;

/// Times the L2 cache is made cold before a sample: once would do, and more give the host the time.
const FLUSHES: usize = 6;
/// Bytes of numbers that larger memory is filled with, again and again.
const PATTERN: usize = 4 << 20;

pub(crate) struct Gpu {
    pub(crate) cuda: Arc<Cuda>,
    pub(crate) stream: CudaStream,
    pub(crate) ceilings: Ceilings,
    /// What cases have their caches in, one case at a time.
    pub(crate) arena: CudaBuffer,
    /// The type of the numbers in the arena.
    filled: Option<DType>,
    /// Read before each sample: more than the L2 cache holds.
    flush: CudaBuffer,
    start: CudaEvent,
    stop: CudaEvent,
    /// Tiny shapes once, to see that all of it runs.
    pub(crate) smoke: bool,
    pub(crate) rounds: usize,
}

impl Gpu {
    pub(crate) fn new(cuda: &Arc<Cuda>, smoke: bool, rounds: usize) -> Result<Self> {
        let l2 = cuda.info().l2_cache;
        let (free, _) = cuda.memory()?;
        let (arena, flush) = if smoke { (8 << 20, 64 << 10) } else { (free / 10 * 7, 4 * l2) };
        let gpu = Self {
            stream: CudaStream::new(cuda)?,
            ceilings: Ceilings::new(cuda, if smoke { 2 } else { 20_000 })?,
            arena: CudaBuffer::new(cuda, arena & !0xff)?,
            filled: None,
            flush: CudaBuffer::new(cuda, flush.max(64 << 10) & !0xff)?,
            start: CudaEvent::timed(cuda)?,
            stop: CudaEvent::timed(cuda)?,
            cuda: Arc::clone(cuda),
            smoke,
            rounds,
        };
        gpu.stream.fill(&gpu.flush, 0, gpu.flush.len(), 1)?;
        gpu.stream.synchronize()?;
        Ok(gpu)
    }

    /// Seconds that the work takes on the device, from a cold L2 cache. Reading what makes it cold
    /// also gives the host time to queue all of it.
    pub(crate) fn time(&self, work: impl FnOnce(&CudaStream) -> Result<()>) -> Result<f64> {
        let (stream, flush) = (&self.stream, &self.flush);
        for _ in 0..if self.smoke { 1 } else { FLUSHES } {
            self.ceilings.read(stream, flush.address(), flush.len())?;
        }
        self.start.record(stream)?;
        work(stream)?;
        self.stop.record(stream)?;
        self.stop.synchronize()?;
        // The clock has steps of half a microsecond.
        Ok(self.stop.seconds_since(&self.start)?.max(1e-7))
    }

    /// How many copies of `bytes` calls take in turn, so that none finds its bytes in the L2 cache;
    /// none if the arena does not even hold one.
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        let wanted = (4 * self.cuda.info().l2_cache).div_ceil(bytes.max(1)).clamp(1, 64);
        let wanted = if self.smoke { wanted.min(2) } else { wanted };
        wanted.min(self.arena.len() / bytes.max(1))
    }

    /// Numbers of `dtype` all over the arena.
    pub(crate) fn fill_arena(&mut self, dtype: DType) -> Result<()> {
        if self.filled != Some(dtype) {
            self.fill(&self.arena, dtype)?;
            self.filled = Some(dtype);
        }
        Ok(())
    }

    /// Something else was written to the arena.
    pub(crate) fn spoil_arena(&mut self) {
        self.filled = None;
    }

    /// Numbers from -1 to 1 all over a buffer.
    pub(crate) fn fill(&self, buffer: &CudaBuffer, dtype: DType) -> Result<()> {
        let mut done = PATTERN.min(buffer.len());
        self.stream.write(buffer, 0, &numbers(dtype, done / dtype.size(), &mut Rng(1)))?;
        while done < buffer.len() {
            let len = done.min(buffer.len() - done);
            self.stream.copy((buffer, done), (buffer, 0), len)?;
            done += len;
        }
        self.stream.synchronize()
    }

    pub(crate) fn buffer(&self, dtype: DType, len: usize) -> Result<CudaBuffer> {
        let buffer = CudaBuffer::new(&self.cuda, (len * dtype.size()).max(16))?;
        self.fill(&buffer, dtype)?;
        Ok(buffer)
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<CudaBuffer> {
        let buffer = CudaBuffer::new(&self.cuda, bytes.len().max(16))?;
        self.stream.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }
}

/// `len` numbers from -1 to 1, those of an fp8 cache to be multiplied with [`SCALE`].
pub(crate) fn numbers(dtype: DType, len: usize, rng: &mut Rng) -> Vec<u8> {
    let unit = |rng: &mut Rng| (rng.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
    match dtype {
        DType::Fp8E4m3 => (0..len)
            .map(|_| bytemuck::cast::<_, u8>(Fp8E4m3::from_f32(unit(rng) / SCALE)))
            .collect(),
        _ => (0..len).flat_map(|_| bf16::from_f32(unit(rng)).to_ne_bytes()).collect(),
    }
}

/// Scale of fp8 caches.
pub(crate) const SCALE: f32 = 1.0 / 256.0;
