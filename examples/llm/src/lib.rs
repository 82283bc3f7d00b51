//! The parts of the `llm` program: a language model served by [`inflight`].
//!
//! Where to begin: [`engine`] is the loop of continuous batching, [`runner`] a step of the model over
//! the library's paged cache, [`worker`] the thread that requests come to and tokens come from.

pub mod batch;
pub mod beam;
pub mod bench;
pub mod branches;
pub mod chat;
pub mod compare;
pub mod engine;
pub mod generate;
pub mod gguf;
pub mod hub;
pub mod markers;
pub mod matmul;
pub mod model;
pub mod numbers;
pub mod ops;
pub mod options;
pub mod print;
pub mod prompts;
pub mod runner;
pub mod sampling;
pub mod server;
pub mod tokenizer;
pub mod trace;
pub mod worker;
