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
//! One protocol serves every device. **Plan**: [`Attention::plan`] divides the work of a step's rows,
//! on the host. **Upload**: [`StepBuffer::upload`] puts the step's arrays, plans and masks where
//! kernels read them, in one buffer. **Run**: [`StepBuffer::append`] and [`Attention::run`], once per
//! layer. [`Backend::merge`] and [`BlockMover`] stand next to it. These take addresses, for memory may
//! be a GPU's; [`cpu`] has the kernels of processors, which also take slices and are safe to call,
//! `cuda` those of GPUs.

mod args;
pub mod attention;
mod backend;
pub mod cpu;
#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub mod kv;
mod pack;
mod planned;
pub mod rope;
mod step;
pub mod tensor;

pub use args::{AppendArgs, AttentionArgs, Rope, State, Workspace};
pub use attention::{AttentionConfig, Mask};
pub use backend::{Attention, Backend, BlockMover, StepBuffer};
pub use kv::{DeviceCache, DeviceScales, KvCache, KvLayout, KvScales, KvStrides};
pub use step::{BatchView, PackedArrays, StepArrays, StepLimits, StepSource};
pub use tensor::{DType, DeviceTensor, Element, Fp8E4m3, TensorMut, TensorRef};
