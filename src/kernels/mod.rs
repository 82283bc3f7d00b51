//! Kernels over the paged KV cache: append, attention, merge, block copies.
//!
//! What they compute is defined once, here and in [`attention`], for every device:
//!
//! * A **KV cache** is memory that the caller owns, given by pointers and 64-bit strides for K and
//!   V each ([`KvLayout`]): NHD, HND and a host's own layouts are used in place.
//! * **Accumulation** is in f32, whatever the types of queries, cache and output.
//! * **Nothing beyond a sequence's length is read**: stale bytes there, NaN included, reach no
//!   output.
//! * **Anything unsupported is an error** naming the field, before a byte is written.
//!
//! [`cpu`] has the kernels for processors, `cuda` those for GPUs.

pub mod attention;
pub mod cpu;
#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub mod kv;
pub mod rope;
pub mod tensor;

pub use attention::{AttentionArgs, AttentionConfig, BatchView, Mask};
pub use kv::{KvCache, KvLayout, KvScales, KvStrides};
pub use tensor::{DType, Element, Fp8E4m3, TensorMut, TensorRef};
