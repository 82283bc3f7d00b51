//! `inflight replay` from outside: what it prints, writes, refuses, and decides.

mod decisions;
mod errors;
mod figures;
mod outputs;
mod program;
