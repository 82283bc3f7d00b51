//! The kernels on processors.
//!
//! ```
//! use inflight::device::cpu::{Cpu, CpuConfig};
//! use inflight::kernels::cpu::{Append, Attention, append};
//! use inflight::kernels::tensor::Shape;
//! use inflight::kernels::{
//!     AttentionArgs, AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, TensorMut,
//!     TensorRef,
//! };
//! use inflight::BlockId;
//!
//! let cpu = Cpu::new(&CpuConfig::default())?;
//! // A cache of 8 blocks of 4 tokens, 2 KV heads of 16 elements.
//! let layout = KvLayout::nhd(DType::F32, 8, 4, 2, 16);
//! let (mut k, mut v) = (vec![0.0_f32; 8 * 4 * 2 * 16], vec![0.0_f32; 8 * 4 * 2 * 16]);
//! let mut cache = KvCache::new(&mut k, &mut v, layout)?;
//!
//! // One sequence of 5 tokens in blocks 3 and 6, all of them new.
//! let new = vec![0.5_f32; 5 * 2 * 16];
//! let rows = TensorRef::new(&new, Shape::contiguous(5, 2, 16))?;
//! let slots = [12, 13, 14, 15, 24];
//! append(&cpu, &mut cache, Append::new(rows, rows, &slots))?;
//!
//! let mut attention = Attention::new(AttentionConfig::new(4, 2, 16, DType::F32))?;
//! let batch = BatchView {
//!     qo_indptr: &[0, 5],
//!     kv_indptr: &[0, 2],
//!     kv_indices: &[BlockId(3), BlockId(6)],
//!     kv_last_page_len: &[1],
//!     block_size: 4,
//! };
//! // Once a step; then once a layer:
//! attention.plan(&cpu, batch, layout.num_blocks)?;
//! let (q, mut o) = (vec![1.0_f32; 5 * 4 * 16], vec![0.0_f32; 5 * 4 * 16]);
//! attention.run(&cpu, AttentionArgs {
//!     q: TensorRef::new(&q, Shape::contiguous(5, 4, 16))?,
//!     cache: &cache,
//!     scales: KvScales::NONE,
//!     o: TensorMut::new(&mut o, Shape::contiguous(5, 4, 16))?,
//!     lse: None,
//!     alibi_slopes: None,
//!     sinks: None,
//!     mask: None,
//! })?;
//! assert!(o.iter().all(|x| (x - 0.5).abs() < 1e-6));
//! # Ok::<(), inflight::Error>(())
//! ```

mod append;
mod attention;
mod blocks;
mod dispatch;
mod dot;
mod finish;
mod gemm;
mod lanes;
mod merge;
mod part;
mod simd;
mod softmax;

#[cfg(feature = "cuda-driver")]
pub(crate) use append::check_queries_apart;
pub use append::{Append, Rope, append};
pub use attention::Attention;
pub use blocks::move_blocks;
pub use merge::{State, merge};
