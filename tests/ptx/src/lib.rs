//! Executes PTX, as nvcc makes it of the kernels, on a CPU: the third way to run a kernel under the
//! emulator (`tests/simt`).
//!
//! What instructions do is written from the PTX ISA alone, and shares nothing with the emulator's
//! C++: two readings of the same pages, which check each other.

#![cfg_attr(
    not(emulated),
    allow(
        dead_code,
        reason = "what executes is for the emulator's library, which compiles these files itself"
    )
)]

pub(crate) mod block;
pub(crate) mod boxes;
pub(crate) mod bulk;
#[cfg(emulated)]
pub mod emulator;
pub(crate) mod execute;
pub(crate) mod folder;
pub(crate) mod graph;
pub(crate) mod host;
pub(crate) mod lanes;
pub(crate) mod library;
pub(crate) mod lint;
pub(crate) mod memory;
pub(crate) mod numbers;
pub(crate) mod operations;
pub(crate) mod parse;
pub(crate) mod products;
pub(crate) mod program;
pub(crate) mod sync;
pub(crate) mod tensor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod warp;

pub use folder::{lint, opcodes};
