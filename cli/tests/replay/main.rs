//! The program from outside: what it prints, writes, refuses, decides, and computes.

mod cpu;
mod decisions;
mod errors;
mod figures;
mod machine;
mod outputs;
mod program;
mod traces;
