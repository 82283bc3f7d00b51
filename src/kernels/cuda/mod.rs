//! Kernels for NVIDIA GPUs, sm_80 and up, over a [`Cuda`](crate::device::cuda::Cuda) device.
//!
//! A step goes in three stages. **Plan**: [`Attention::plan`] divides a step's work among thread
//! blocks, on the host. **Upload**: [`StepBuffer::upload`] packs batch and plans into page-locked
//! memory and queues one copy. **Run**: [`Attention::run`], [`Append::run`] and the others queue
//! kernels, once per layer; they never allocate, wait or load, so a stream may be in capture. A graph
//! captured once is replayed with any later step within its
//! [`StepLimits`](crate::kernels::StepLimits): kernels find everything through the one buffer.
//!
//! [`kernels`](crate::kernels) has types of the same names that are for any device: they are what a
//! program uses that is not for GPUs alone.
//!
//! ```no_run
//! use inflight::BlockId;
//! use inflight::device::cuda::{Cuda, CudaBuffer, CudaStream};
//! use inflight::kernels::tensor::Shape;
//! use inflight::kernels::{
//!     AppendArgs, AttentionArgs, AttentionConfig, BatchView, DType, DeviceCache, DeviceTensor,
//!     KvLayout, StepArrays, StepLimits, cuda,
//! };
//!
//! let (q_heads, kv_heads, dim) = (8, 2, 128);
//! let device = Cuda::new(0)?;
//! let stream = CudaStream::new(&device)?;
//! let limits = StepLimits {
//!     max_rows: 8,
//!     max_tokens: 64,
//!     max_blocks: 64,
//!     max_kv_len: 512,
//!     max_mask_bytes: 0,
//! };
//! let config = AttentionConfig::new(q_heads, kv_heads, dim, DType::Bf16);
//! let mut attention = cuda::Attention::new(&device, config, limits)?;
//! let append = cuda::Append::new(&device, DType::Bf16, DType::Bf16)?;
//! let mut step = cuda::StepBuffer::new(&device, limits, &[&attention])?;
//!
//! // A cache of 32 blocks of 16 tokens, and tensors for the most tokens of a step.
//! let layout = KvLayout::nhd(DType::Bf16, 32, 16, kv_heads, dim);
//! let buffer = |elements: usize| CudaBuffer::new(&device, elements * 2);
//! let (k, v) = (buffer(32 * 16 * kv_heads * dim)?, buffer(32 * 16 * kv_heads * dim)?);
//! let (new_k, new_v) = (buffer(64 * kv_heads * dim)?, buffer(64 * kv_heads * dim)?);
//! let (q, o) = (buffer(64 * q_heads * dim)?, buffer(64 * q_heads * dim)?);
//! let tensor = |buffer: &CudaBuffer, heads| {
//!     let shape = Shape::contiguous(64, heads, dim);
//!     // SAFETY: the buffer has as many elements, and lives longer than the work.
//!     unsafe { DeviceTensor::new(buffer.address(), DType::Bf16, shape) }
//! };
//! // SAFETY: as above.
//! let cache = unsafe { DeviceCache::new(k.address(), v.address(), layout, None) }?;
//!
//! // Two rows: a prompt of 3 tokens in block 5, and the 18th token of a sequence in 7 and 9.
//! let batch = BatchView {
//!     qo_indptr: &[0, 3, 4],
//!     kv_indptr: &[0, 1, 3],
//!     kv_indices: &[BlockId(5), BlockId(7), BlockId(9)],
//!     kv_last_page_len: &[3, 2],
//!     block_size: 16,
//! };
//! let slots = [80, 81, 82, 9 * 16 + 1];
//! attention.plan(batch, 32, None)?;
//! let arrays = StepArrays { batch, slot_mapping: &slots, positions: &[], tokens: &[] };
//! step.upload(&stream, &arrays, &[&attention])?;
//!
//! // Once per layer; here as a graph, which computes any later step within the limits.
//! let (k, v) = (tensor(&new_k, kv_heads), tensor(&new_v, kv_heads));
//! let args = AttentionArgs::new(tensor(&q, q_heads), cache, tensor(&o, q_heads));
//! let mut graph = stream.capture(|stream| {
//!     // SAFETY: everything above outlives the graph, and one stream orders all work.
//!     unsafe {
//!         append.run(stream, &step, &AppendArgs { k, v, cache, rope: None })?;
//!         attention.run(stream, &step, 0, &args)
//!     }
//! })?;
//! // SAFETY: as above.
//! unsafe { graph.launch(&stream) }?;
//! stream.synchronize()?;
//! # Ok::<(), inflight::Error>(())
//! ```
//!
//! It needs a GPU and the feature `cuda`. Without either it runs under the emulator that the
//! project's tests use: `LD_PRELOAD=$(cargo run -q -p simt --example library)` before the program.
//!
//! Semantics are those of [`attention`](crate::kernels::attention), limits: queries and outputs of
//! f16 or bf16, caches of the same type or fp8-e4m3, head dimensions 64, 80, 96, 112, 128, 192 and
//! 256, at most 128 query heads a KV head.

mod append;
mod attention;
mod blocks;
mod loaded;
mod merge;
mod mixed;
mod shapes;
mod sides;
mod step;
mod tensor;
mod workspace;

use std::ffi::CString;

pub use append::Append;
pub use attention::Attention;
pub use blocks::BlockMover;
pub(crate) use loaded::Loaded;
pub use merge::Merge;
pub use mixed::Fusion;
pub use shapes::HEAD_DIMS;
pub use step::StepBuffer;

use crate::params;

/// The kernel of a file that is named after it.
fn kernel_name(file: &str) -> CString {
    CString::new(format!("inflight_{file}")).expect("no zero in a file's name")
}
