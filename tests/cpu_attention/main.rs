//! Attention on the processor against a plain f64 computation.
//!
//! Every case has shuffled block tables, poison wherever nothing may be read, and poisoned outputs;
//! seeds are fixed, and a failure prints the case.

#[path = "../common/attention/mod.rs"]
mod attention;
#[path = "../common/rng.rs"]
mod rng;

mod by_hand;
mod cpus;
mod defects;
mod extreme;
mod invariance;
mod large;
mod refused;
mod steps;
mod sweep;
