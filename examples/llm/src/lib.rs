//! The parts of the `llm` program.

pub mod matmul;
