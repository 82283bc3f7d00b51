//! What kernels run on: the threads and memory of a processor, the contexts, memory, streams and graphs of a GPU.

mod buffer;
pub mod cpu;
#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub(crate) mod fork;
pub mod memory;

#[cfg(feature = "cuda-driver")]
use std::sync::Arc;

pub use buffer::DeviceBuffer;
use cpu::Cpu;

/// A device that kernels run on: a handle, whose clones are the same device.
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor: calls return when their work is done.
    Cpu(Cpu),
    /// A GPU: calls queue their work on a stream.
    #[cfg(feature = "cuda-driver")]
    Cuda(Arc<cuda::Cuda>),
}

impl Device {
    /// Whether both are one device.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu(one), Self::Cpu(other)) => one.is(other),
            #[cfg(feature = "cuda-driver")]
            (Self::Cuda(one), Self::Cuda(other)) => one.context() == other.context(),
            #[cfg(feature = "cuda-driver")]
            _ => false,
        }
    }
}

impl From<&Cpu> for Device {
    fn from(cpu: &Cpu) -> Self {
        Self::Cpu(cpu.clone())
    }
}

#[cfg(feature = "cuda-driver")]
impl From<&Arc<cuda::Cuda>> for Device {
    fn from(cuda: &Arc<cuda::Cuda>) -> Self {
        Self::Cuda(Arc::clone(cuda))
    }
}

/// What a GPU's work is queued on. This build has none.
#[cfg(not(feature = "cuda-driver"))]
pub(crate) type Queue = std::convert::Infallible;
#[cfg(feature = "cuda-driver")]
pub(crate) type Queue = cuda::CudaStream;

/// Where calls for any device queue their work: on a GPU's stream. A processor has none.
pub type Stream<'a> = Option<&'a Queue>;

/// The stream of a GPU.
#[cfg(feature = "cuda-driver")]
pub(crate) fn queue(stream: Stream<'_>) -> crate::error::Result<&Queue> {
    let missing = "is missing: a GPU's work is queued on one";
    stream.ok_or_else(|| crate::error::Error::argument("stream", missing))
}
