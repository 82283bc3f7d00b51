//! What kernels run on: the threads and memory of a processor, the contexts, memory, streams and graphs of a GPU.

pub mod cpu;
#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub(crate) mod fork;
pub mod memory;
