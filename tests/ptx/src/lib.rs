//! Executes PTX, as nvcc makes it of the kernels, on a CPU: the third way to run a kernel under the
//! emulator (`tests/simt`).
//!
//! What instructions do is written from the PTX ISA alone, and shares nothing with the emulator's
//! C++: two readings of the same pages, which check each other.

#![cfg_attr(
    not(emulated),
    allow(
        dead_code,
        unused_imports,
        reason = "what executes is for the emulator's library, which compiles these files itself"
    )
)]

pub(crate) mod boxes;
pub(crate) mod numbers;
pub(crate) mod tensor;
#[cfg(test)]
mod testing;
