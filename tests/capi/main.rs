//! The C library as programs in C see it: the header, the symbols, the layout of every type, and
//! programs that call it rightly and wrongly.
//!
//! `INFLIGHT_REGENERATE=1 cargo test --test capi` writes `tests/data/abi.txt` again, and refuses
//! where something that programs rely on has changed; `INFLIGHT_REGENERATE=breaking` does not.
//! `INFLIGHT_LIBRARY_DIR` names the directory of another library to look at, an installed one.

#![cfg(target_os = "linux")]

mod abi;
mod bindings;
mod build;
mod generic;
mod header;
mod parse;
mod programs;
mod replay;
