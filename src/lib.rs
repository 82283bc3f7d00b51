//! Continuous batching as a library.
//!
//! What a serving stack needs, each usable on its own:
//! a [`scheduler`] that decides at every iteration which requests run and with how many tokens,
//! a paged KV [`cache`] manager, the [ragged batch](batch) that carries a step to a device, and
//! [`kernels`] for attention over the paged cache. [`engine::Engine`] joins the first three: schedule,
//! run, commit.
//!
//! ```
//! use inflight::cache::CacheConfig;
//! use inflight::executor::{Executor, Job, Samples};
//! use inflight::{Config, Engine, Policy, Request, RequestId, Time};
//!
//! /// "Computes" the sum of a row's input tokens.
//! struct Sum;
//!
//! impl Executor for Sum {
//!     fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> inflight::Result<f64> {
//!         let batch = job.batch.expect("it is built unless `wants_batch` says no");
//!         for (row, bounds) in job.step.rows().iter().zip(batch.qo_indptr().windows(2)) {
//!             let tokens = &batch.tokens()[bounds[0] as usize..bounds[1] as usize];
//!             // Its KV goes to `slot_mapping`, what it attends to is behind `kv_indices`.
//!             if row.samples {
//!                 samples.push(tokens.iter().sum());
//!             }
//!         }
//!         Ok(0.001)
//!     }
//! }
//!
//! let cache =
//!     CacheConfig { num_blocks: 64, block_size: 16, prefix_cache: true, num_host_blocks: 0 };
//! let mut engine = Engine::new(Config::new(cache), Policy::continuous(), Sum)?;
//! engine.submit(Request::new(RequestId(1), vec![1, 2, 3], 2))?;
//! let mut output = Vec::new();
//! while let Some(ran) = engine.step(Time(0))? {
//!     for request in ran.outputs.as_slice() {
//!         output.extend_from_slice(ran.outputs.tokens(request));
//!     }
//! }
//! assert_eq!(output, [6, 6]);
//! # Ok::<(), inflight::Error>(())
//! ```

#[cfg(doctest)]
#[doc = include_str!("../docs/features.md")]
struct Features;

pub mod batch;
pub mod cache;
mod capi;
pub mod device;
pub mod engine;
pub mod error;
pub mod executor;
pub mod kernels;
#[allow(
    missing_docs,
    non_camel_case_types,
    rustdoc::broken_intra_doc_links,
    clippy::allow_attributes_without_reason,
    clippy::unnecessary_operation,
    clippy::identity_op,
    reason = "names and comments are those of csrc/kernel_params.h"
)]
pub mod params;
pub mod plan;
pub mod request;
pub mod scheduler;
pub mod types;

pub use engine::Engine;
pub use error::{Error, Result};
pub use request::{FinishReason, Request};
pub use scheduler::{Config, Policy, Sampled, Scheduler, Step};
pub use types::{BlockId, RequestId, StepId, Time, Token};
