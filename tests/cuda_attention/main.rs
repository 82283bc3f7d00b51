//! Attention on a GPU, or on the emulator that runs its kernels, against a plain f64 computation.
//!
//! Cases are those of the processor's tests: shuffled tables, poison wherever nothing may be read,
//! poisoned outputs. `INFLIGHT_TEST_DRIVER=real` takes a GPU, `INFLIGHT_SIMT=checking` the emulator
//! that looks for races, and `INFLIGHT_CASES` sets how many random cases there are.
#![cfg(feature = "cuda-driver")]

#[path = "../common/attention/mod.rs"]
mod attention;
#[path = "../common/gpu.rs"]
mod device;
#[path = "../common/rng.rs"]
mod rng;

mod gpu;
mod graphs;
mod refused;
mod schedules;
mod sweep;
