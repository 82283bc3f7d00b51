//! Kernels for NVIDIA GPUs, sm_80 and up, over a [`Cuda`](crate::device::cuda::Cuda) device.
//!
//! A step goes in three stages. **Plan**: [`Attention::plan`] divides a step's work among thread
//! blocks, on the host. **Upload**: [`StepBuffer::upload`] packs batch and plans into page-locked
//! memory and queues one copy. **Run**: [`Attention::run`], [`Append::run`] and the others queue
//! kernels, once a layer; they never allocate, wait or load, so a stream may be in capture. A graph
//! captured once is replayed with any later step within its [`StepLimits`]: kernels find everything
//! through the one buffer.
//!
//! Semantics are those of [`attention`](crate::kernels::attention), limits: queries and outputs of
//! f16 or bf16, caches of the same type or fp8-e4m3, head dimensions 64, 80, 96, 112, 128, 192 and
//! 256, at most 128 query heads a KV head.

mod append;
mod attention;
mod blocks;
mod merge;
mod mixed;
mod pack;
#[allow(
    missing_docs,
    non_camel_case_types,
    rustdoc::broken_intra_doc_links,
    clippy::allow_attributes_without_reason,
    clippy::unnecessary_operation,
    clippy::identity_op,
    reason = "names and comments are those of csrc/kernel_params.h"
)]
pub mod params;
mod shapes;
mod sides;
mod step;
mod tensor;

use std::ffi::CString;

pub use append::{Append, AppendArgs, Rope};
pub use attention::{Attention, AttentionArgs};
pub use blocks::BlockMover;
pub use merge::{Merge, State};
pub use mixed::Fusion;
pub use pack::{StepArrays, StepLimits};
pub use step::StepBuffer;
pub use tensor::{DeviceCache, DeviceScales, DeviceTensor};

/// The kernel of a file that is named after it.
fn kernel_name(file: &str) -> CString {
    CString::new(format!("inflight_{file}")).expect("no zero in a file's name")
}
