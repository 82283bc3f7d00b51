//! A GPU as both libraries know it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use candle_core::Device;
use inflight::device::cuda::{Cuda, CudaStream};

/// What the emulator of the library's tests calls itself.
const EMULATOR: &str = "inflight SIMT emulator";

/// A GPU: candle's device and the library's, and the stream that both use.
pub struct Gpu {
    /// Where candle's tensors are.
    pub tensors: Device,
    /// The same GPU.
    pub cuda: Arc<Cuda>,
    /// All work is queued here.
    pub stream: CudaStream,
}

impl Gpu {
    /// GPU `ordinal`, as the driver counts; each is opened once, and for good: kernels, and handles of
    /// cuBLAS, are its context's.
    pub fn new(ordinal: usize) -> Result<Arc<Self>> {
        static OPEN: Mutex<BTreeMap<usize, Arc<Gpu>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(Arc::clone(gpu));
        }
        let gpu = Arc::new(Self::open(ordinal)?);
        open.insert(ordinal, Arc::clone(&gpu));
        Ok(gpu)
    }

    fn open(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        if cuda.info().name == EMULATOR {
            // Its memory is the host's, and so are candle's tensors.
            let stream = CudaStream::new(&cuda)?;
            return Ok(Self { tensors: Device::Cpu, stream, cuda });
        }
        Self::with_candle(cuda)
    }

    #[cfg(feature = "cuda")]
    fn with_candle(cuda: Arc<Cuda>) -> Result<Self> {
        let tensors = Device::new_cuda_with_stream(cuda.info().ordinal)?;
        let device = tensors.as_cuda_device()?;
        // SAFETY: all work is on candle's one stream, so no tensor is used across streams.
        unsafe { device.disable_event_tracking() };
        let raw = device.cuda_stream().cu_stream();
        // SAFETY: `tensors`, which is kept next to it, keeps the stream.
        let stream = unsafe { CudaStream::borrowed(&cuda, raw.cast()) }?;
        pool::keep_memory(cuda.info().ordinal)?;
        Ok(Self { tensors, cuda, stream })
    }

    #[cfg(not(feature = "cuda"))]
    fn with_candle(_: Arc<Cuda>) -> Result<Self> {
        anyhow::bail!("this program is built without the feature `cuda`: see its README")
    }

    /// Gives back memory that candle has freed.
    pub fn trim(&self) -> Result<()> {
        self.stream.synchronize()?;
        #[cfg(feature = "cuda")]
        if self.tensors.is_cuda() {
            pool::trim(self.cuda.info().ordinal)?;
        }
        Ok(())
    }
}

/// The driver's pool, from which candle allocates.
#[cfg(feature = "cuda")]
mod pool {
    use std::ptr;

    use anyhow::Result;
    use candle_core::cuda_backend::cudarc::driver::sys;

    /// The pool of a device in use.
    fn of(ordinal: usize) -> Result<sys::CUmemoryPool> {
        let (mut device, mut pool) = (0, ptr::null_mut());
        // SAFETY: `device` outlives the call.
        unsafe { sys::cuDeviceGet(&raw mut device, i32::try_from(ordinal)?) }.result()?;
        // SAFETY: `pool` outlives the call.
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) }.result()?;
        Ok(pool)
    }

    /// What is freed stays in the pool: by default all of it goes back with each step, and is mapped
    /// anew in the next.
    pub(super) fn keep_memory(ordinal: usize) -> Result<()> {
        let mut most = u64::MAX;
        let what = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let pool = of(ordinal)?;
        // SAFETY: the attribute is a 64-bit number, which outlives the call.
        unsafe { sys::cuMemPoolSetAttribute(pool, what, (&raw mut most).cast()) }.result()?;
        Ok(())
    }

    /// Gives back what nothing is in.
    pub(super) fn trim(ordinal: usize) -> Result<()> {
        let pool = of(ordinal)?;
        // SAFETY: the pool is the device's own.
        unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result()?;
        Ok(())
    }
}
