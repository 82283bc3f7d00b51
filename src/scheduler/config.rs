//! The limits a scheduler keeps.

use crate::cache::CacheConfig;
use crate::error::{Error, Result};

/// The limits a scheduler keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests that run at once; at least 1.
    pub max_num_seqs: usize,
    /// Tokens computed in a step; at least 1. A static batch's prefill is one pass beyond it.
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and output together; at least 2.
    pub max_model_len: usize,
    /// The KV cache.
    pub cache: CacheConfig,
    /// Whether a prompt may be computed in several steps.
    pub chunked_prefill: bool,
    /// Tokens one request may compute in a step while others run or wait; 0 for no such cap.
    pub long_prefill_token_threshold: usize,
    /// Requests that may wait; a submit beyond it is refused.
    pub max_waiting: usize,
    /// Steps that may be scheduled before the first is committed; at least 1.
    pub max_steps_in_flight: usize,
    /// Whether a request may run on before its last token has returned: the device takes that
    /// token from its own earlier step (vLLM's async scheduling). Otherwise a request that samples
    /// is in one step in flight at a time, as in pipeline parallelism; chunks of one prompt may
    /// follow each other.
    pub overlap: bool,
    /// Whether a preempted request's blocks move to the host pool, while it has room, instead of
    /// being computed again.
    pub swap: bool,
}

impl Config {
    /// vLLM's defaults for a server, over this cache: 256 requests, 8,192 tokens per step,
    /// sequences as long as the cache, one step at a time.
    #[must_use]
    pub fn new(cache: CacheConfig) -> Self {
        Self {
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            max_model_len: cache
                .num_blocks
                .saturating_sub(1)
                .saturating_mul(cache.block_size)
                .clamp(2, i32::MAX as usize),
            cache,
            chunked_prefill: true,
            long_prefill_token_threshold: 0,
            max_waiting: usize::MAX,
            max_steps_in_flight: 1,
            overlap: false,
            swap: false,
        }
    }

    /// Checks every field but those of `cache`, which the cache checks itself: just that a block's
    /// tokens can be counted in 32 bits here.
    pub(super) fn check(&self) -> Result<()> {
        let at_least = |field, value: usize, least: usize| match value {
            v if v < least => Err(Error::argument(field, format!("{v} is below {least}"))),
            // Counts of one request are kept in 32 bits, sums of two of them included.
            v if v > (i32::MAX as usize) => {
                Err(Error::argument(field, format!("{v} is too large")))
            }
            _ => Ok(()),
        };
        at_least("max_num_seqs", self.max_num_seqs, 1)?;
        at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)?;
        at_least("max_model_len", self.max_model_len, 2)?;
        at_least("max_steps_in_flight", self.max_steps_in_flight, 1)?;
        at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)?;
        at_least("block_size", self.cache.block_size, 1)?;
        if !self.chunked_prefill && self.max_num_batched_tokens < self.max_model_len {
            let reason = format!(
                "{} is below max_model_len {}, and chunked_prefill is off: a long prompt would \
                 wait for ever",
                self.max_num_batched_tokens, self.max_model_len
            );
            return Err(Error::argument("max_num_batched_tokens", reason));
        }
        Ok(())
    }
}
