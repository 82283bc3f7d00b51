//! The C ABI: every function and type of `include/inflight.h`.
//!
//! One file a noun. Documentation here is the header's: it goes there as it stands, so it is
//! written for C. Nothing else in the library uses this module.

#![allow(
    non_camel_case_types,
    unreachable_pub,
    dead_code,
    reason = "names are those of C, and reachable and used from there alone"
)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the C ABI is for 64-bit machines: its structs have no padding there alone");

mod append;
mod attention;
mod attention_run;
mod batch;
mod blocks;
mod cache;
mod device;
mod dlpack;
mod elements;
mod event;
mod ffi;
mod handle;
mod kv;
mod library;
mod merge;
mod request;
mod rope;
mod scheduler;
mod sequence;
mod stats;
mod status;
mod step_buffer;
mod step_view;
mod submitter;
mod tensor;
mod versioned;

#[cfg(test)]
mod tests;
