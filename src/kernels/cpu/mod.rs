//! The kernels on processors, safe to call: they take slices and views of them.
//!
//! ```
//! use inflight::device::cpu::{Cpu, CpuConfig};
//! use inflight::kernels::cpu::{Append, Attention, AttentionArgs, StepBuffer, append};
//! use inflight::kernels::tensor::Shape;
//! use inflight::kernels::{
//!     AttentionConfig, BatchView, DType, KvCache, KvLayout, KvScales, StepArrays, StepLimits,
//!     TensorMut, TensorRef,
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
//! let (config, limits) = (AttentionConfig::new(4, 2, 16, DType::F32), StepLimits::MAX);
//! let mut attention = Attention::new(&cpu, config, limits)?;
//! let mut step = StepBuffer::new(limits, &[&attention])?;
//! let batch = BatchView {
//!     qo_indptr: &[0, 5],
//!     kv_indptr: &[0, 2],
//!     kv_indices: &[BlockId(3), BlockId(6)],
//!     kv_last_page_len: &[1],
//!     block_size: 4,
//! };
//! // Once per step; then once per layer:
//! attention.plan(batch, layout.num_blocks, None)?;
//! step.upload(&StepArrays::new(batch), &[&attention])?;
//! let (q, mut o) = (vec![1.0_f32; 5 * 4 * 16], vec![0.0_f32; 5 * 4 * 16]);
//! attention.run(&step, 0, AttentionArgs {
//!     q: TensorRef::new(&q, Shape::contiguous(5, 4, 16))?,
//!     cache: &cache,
//!     scales: KvScales::NONE,
//!     o: TensorMut::new(&mut o, Shape::contiguous(5, 4, 16))?,
//!     lse: None,
//!     alibi_slopes: None,
//!     sinks: None,
//! })?;
//! assert!(o.iter().all(|x| (x - 0.5).abs() < 1e-6));
//! # Ok::<(), inflight::Error>(())
//! ```

mod addresses;
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
mod step;

pub(crate) use addresses::{merge_at, move_blocks_at};
pub use append::{Append, Rope, append};
#[cfg(feature = "cuda-driver")]
pub(crate) use append::{check_queries_apart, check_rotary_dim};
pub use attention::{Attention, AttentionArgs};
pub use blocks::move_blocks;
pub use merge::{State, merge};
pub use step::StepBuffer;
