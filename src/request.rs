//! What a caller asks for, and how a request ends.

#![forbid(unsafe_code)]

use crate::cache::ExtraKey;
use crate::error::{Error, Result};
use crate::types::{RequestId, Time, Token};

/// A request to generate from a prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique among unfinished requests.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Vec<Token>,
    /// Output tokens at most; at least 1. `max_model_len` caps prompt and output together.
    pub max_tokens: u32,
    /// Ends the request when sampled.
    pub eos: Option<Token>,
    /// Each ends the request when sampled, and is reported as the reason.
    pub stop_tokens: Vec<Token>,
    /// Outputs below which [`repetition`](Self::repetition) does not end the request. The end of
    /// sequence is not affected, as in vLLM: the sampler must not sample it too early.
    pub min_tokens: u32,
    /// Ends the request when its output goes round in circles.
    pub repetition: Option<Repetition>,
    /// Lower runs first, under a policy that looks at it.
    pub priority: i32,
    /// The client that the request belongs to.
    pub client: u64,
    /// When it came; breaks ties of priority, and ageing counts from it. `None` for the time of the
    /// last `schedule` before its submission.
    pub arrival: Option<Time>,
    /// What, besides the tokens, decides the KV: salt, adapter, images.
    pub extra_keys: Vec<ExtraKey>,
    /// Whether it may start from a cached prefix. False where every prompt position's logits are
    /// wanted. Its blocks serve others either way.
    pub read_prefix_cache: bool,
}

impl Request {
    /// A request with no stop condition but `max_tokens`.
    #[must_use]
    pub fn new(id: RequestId, prompt: Vec<Token>, max_tokens: u32) -> Self {
        Self {
            id,
            prompt,
            max_tokens,
            eos: None,
            stop_tokens: Vec::new(),
            min_tokens: 0,
            repetition: None,
            priority: 0,
            client: 0,
            arrival: None,
            extra_keys: Vec::new(),
            read_prefix_cache: true,
        }
    }
}

/// A request ends when its last `min_count * n` outputs are one pattern of `n` tokens repeated,
/// for an `n` of `min_pattern..=max_pattern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// Shortest pattern looked for, in tokens; 0 reads as 1.
    pub min_pattern: u32,
    /// Longest pattern looked for, in tokens.
    pub max_pattern: u32,
    /// Repetitions that end the request; at least 2.
    pub min_count: u32,
}

impl Repetition {
    /// Checks that the fields fit together.
    pub(crate) fn check(&self, id: RequestId) -> Result<()> {
        let &Self { min_pattern, max_pattern, min_count } = self;
        if min_count < 2 {
            let reason = format!("request {id}: {min_count} is below 2");
            return Err(Error::argument("repetition.min_count", reason));
        }
        if max_pattern < min_pattern.max(1) {
            let (has, least) = (max_pattern, min_pattern.max(1));
            let reason = format!("request {id}: {has} is below the shortest pattern, {least}");
            return Err(Error::argument("repetition.max_pattern", reason));
        }
        Ok(())
    }

    /// Whether `output` ends in such a repetition.
    #[must_use]
    pub fn found_in(&self, output: &[Token]) -> bool {
        let repeats = |n: usize, count: usize| {
            let tail = &output[output.len() - n * count..];
            tail.windows(n + 1).all(|w| w[0] == w[n])
        };
        let count = self.min_count as usize;
        (self.min_pattern.max(1) as usize..=self.max_pattern as usize)
            .take_while(|n| n.saturating_mul(count) <= output.len())
            .any(|n| count >= 2 && repeats(n, count))
    }
}

/// Why a request produces no more tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It sampled its end-of-sequence token.
    Eos,
    /// It sampled one of its stop tokens, this one.
    StopToken(Token),
    /// It reached `max_tokens` or `max_model_len`.
    Length,
    /// Its output repeats itself.
    Repetition,
}

#[cfg(test)]
mod tests {
    use super::Repetition;

    #[test]
    fn repetition_is_found_at_the_tail_only() {
        let rule = Repetition { min_pattern: 0, max_pattern: 3, min_count: 3 };
        assert!(rule.found_in(&[9, 7, 7, 7]));
        assert!(rule.found_in(&[1, 2, 1, 2, 1, 2]));
        assert!(rule.found_in(&[4, 1, 2, 3, 1, 2, 3, 1, 2, 3]));
        assert!(!rule.found_in(&[7, 7, 7, 8]));
        assert!(!rule.found_in(&[7, 7]));
        assert!(!rule.found_in(&[1, 2, 2, 1, 1, 2]));
        assert!(!rule.found_in(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]), "pattern too long");
    }
}
