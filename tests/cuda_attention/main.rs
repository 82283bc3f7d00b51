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

mod backend;
#[path = "../common/every_backend/by_hand.rs"]
mod by_hand;
mod chain;
#[path = "../common/every_backend/defects.rs"]
mod defects;
mod drivers;
#[path = "../common/every_backend/extreme.rs"]
mod extreme;
mod faults;
mod gpu;
mod graphs;
mod invariance;
mod large;
#[path = "../common/every_backend/layer.rs"]
mod layer;
mod limits;
mod mixed;
#[path = "../common/every_backend/sweep.rs"]
mod pairs;
mod refused;
mod schedules;
#[path = "../common/every_backend/steps.rs"]
mod steps;
mod streams;
mod sweep;
mod workspace;
