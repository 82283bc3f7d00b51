//! Executes PTX, as nvcc makes it of the kernels, on a CPU: the third way to run a kernel under the
//! emulator (`tests/simt`).
//!
//! What instructions do is written from the PTX ISA alone, and shares nothing with the emulator's
//! C++: two readings of the same pages, which check each other.

pub mod boxes;
pub mod numbers;
pub mod tensor;
#[cfg(test)]
mod testing;
