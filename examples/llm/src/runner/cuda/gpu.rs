//! A GPU as both libraries know it.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream};

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
    /// GPU `ordinal`, as the driver counts.
    pub fn new(ordinal: usize) -> Result<Self> {
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
        // SAFETY: `tensors`, which is kept beside it, keeps the stream.
        let stream = unsafe { CudaStream::borrowed(&cuda, raw.cast()) }?;
        Ok(Self { tensors, cuda, stream })
    }

    #[cfg(not(feature = "cuda"))]
    fn with_candle(_: Arc<Cuda>) -> Result<Self> {
        anyhow::bail!("this program is built without the feature `cuda`: see its README")
    }

    /// Numbers in memory of the GPU, for the library's kernels.
    pub fn floats(&self, values: &[f32]) -> Result<CudaBuffer> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let buffer = CudaBuffer::new(&self.cuda, bytes.len())?;
        self.stream.write(&buffer, 0, &bytes)?;
        Ok(buffer)
    }
}
