//! Attention over a paged cache.

use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::kernels::{AttentionArgs, AttentionConfig, BatchView};

/// Varlen paged attention for one attention group of a model: prefill, chunked prefill, decode and
/// any mixture of them.
///
/// [`plan`](Self::plan) once a step, then [`run`](Self::run) once a layer.
#[derive(Debug)]
pub struct Attention {
    config: AttentionConfig,
}

impl Attention {
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming the field of `config`.
    pub fn new(config: AttentionConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Divides a step's work among the threads, for caches of at least `num_blocks` blocks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming the array of `batch`; the
    /// plan is as it was.
    pub fn plan(&mut self, cpu: &Cpu, batch: BatchView<'_>, num_blocks: usize) -> Result<()> {
        let _ = cpu;
        batch.check(num_blocks, &mut Vec::new())
    }

    /// Computes a layer's attention for the step planned last.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming the field of `args`;
    /// nothing is written then.
    pub fn run(&mut self, cpu: &Cpu, args: AttentionArgs<'_>) -> Result<()> {
        let _ = cpu;
        args.check(&self.config, 0, 0, 0, std::iter::empty())
    }
}
