//! Attention on the processor against a plain f64 computation.
//!
//! Every case has shuffled block tables, poison wherever nothing may be read, and poisoned outputs;
//! seeds are fixed, and a failure prints the case.

#[path = "../common/attention/mod.rs"]
mod attention;
#[path = "../common/rng.rs"]
mod rng;

mod backend;
#[path = "../common/every_backend/by_hand.rs"]
mod by_hand;
mod cpus;
#[path = "../common/every_backend/defects.rs"]
mod defects;
#[path = "../common/every_backend/extreme.rs"]
mod extreme;
mod invariance;
mod large;
#[path = "../common/every_backend/layer.rs"]
mod layer;
mod refused;
#[path = "../common/every_backend/steps.rs"]
mod steps;
#[path = "../common/every_backend/sweep.rs"]
mod sweep;
