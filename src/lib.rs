//! Continuous batching as a library.
//!
//! Three things a serving stack needs, each usable on its own:
//! a [`scheduler`] that decides at every iteration which requests run and with how many tokens,
//! a paged KV [`cache`] manager, and the [ragged batch](batch) that carries a step to a device.
//! [`engine::Engine`] joins them: schedule, run, commit.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod batch;
pub mod cache;
pub mod device;
pub mod engine;
pub mod error;
pub mod request;
pub mod scheduler;
pub mod types;

pub use engine::Engine;
pub use error::{Error, Result};
pub use request::{FinishReason, Request};
pub use scheduler::{Config, Policy, Sampled, Scheduler, Step};
pub use types::{BlockId, RequestId, StepId, Time, Token};
