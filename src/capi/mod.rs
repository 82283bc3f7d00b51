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

mod event;
mod guard;
mod library;
mod report;
mod request;
mod scheduler;
mod status;
mod step;
mod submitter;
