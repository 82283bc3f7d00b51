//! CUDA: contexts, memory, streams, events, graphs, and the kernels compiled into this build.
//!
//! Nothing here needs a driver before it is used: [`probe`] says whether there is one. Every call
//! makes the device's primary context current and puts back what was current before, so the
//! caller's own choice of device stays as it is, and memory and streams are shared with whatever
//! else in the process uses the runtime API. It relaxes the thread's capture mode as well, so that
//! buffers may be made and dropped while a thread records a graph.
//!
//! Work is queued on [`CudaStream`]s and done later. What queues it ([`Kernel::launch`],
//! [`CudaStream::copy`], ...) never allocates, waits or loads: a stream may be in capture.

mod check;
mod context;
mod driver;
mod event;
mod graph;
mod images;
mod kernels;
mod memory;
mod pointer;
mod probe;
mod stream;
mod tensor_map;

pub use context::Cuda;
pub use event::CudaEvent;
pub use graph::CudaGraph;
pub use images::{architectures, driver_needed, families, has_kernels, toolkit};
pub use kernels::{Dim, Kernel, Kernels, Launch};
pub use memory::{CudaBuffer, PinnedBuffer};
pub use pointer::{check_alignment, check_pointer};
pub use probe::{CudaDeviceInfo, NEEDED_VERSION, REQUIRED_SYMBOLS, driver_version, probe};
pub use stream::CudaStream;
pub use tensor_map::{TensorMap, Tile};
