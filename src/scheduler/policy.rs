//! The rules a scheduler runs by, put together from parts.

use super::capacity::{Capacity, GuaranteedNoEvict, MaxUtilization, Optimistic, Orca, StaticBatch};
use super::preempt::{LastIn, LowestPriority, Victim};
use super::queue::{Fcfs, Priority, Queue, UrgentFirst};
use crate::error::{Error, Result};

/// What happens behind a request that must wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadOfLine {
    /// All wait: a large request is never starved by small ones (vLLM).
    #[default]
    Strict,
    /// Up to `lookahead` requests behind it are tried, until `bound` of them have passed it.
    Bypass {
        /// Requests that may pass one that waits; then the line is strict until it is admitted.
        bound: u32,
        /// Requests looked at behind the head in one step.
        lookahead: u32,
    },
}

/// When requests may join a batch, and leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batching {
    /// At every iteration.
    #[default]
    Continuous,
    /// Together: prompts are padded to the longest and prefilled in one pass, whatever the token
    /// budget; a request that has ended keeps its slot and its blocks until the last has.
    Static,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { head_of_line, batching, .. } = self;
        f.debug_struct("Policy")
            .field("head_of_line", head_of_line)
            .field("batching", batching)
            .finish_non_exhaustive()
    }
}

/// A scheduling policy. Each part is a trait with more than one implementation here; bring your
/// own where none fits.
pub struct Policy {
    /// Order of admission.
    pub queue: Box<dyn Queue>,
    /// Who may be admitted.
    pub capacity: Box<dyn Capacity>,
    /// Who gives way.
    pub victim: Box<dyn Victim>,
    /// What happens behind a request that waits.
    pub head_of_line: HeadOfLine,
    /// When requests join and leave.
    pub batching: Batching,
}

impl Default for Policy {
    fn default() -> Self {
        Self::continuous()
    }
}

impl Policy {
    /// The names [`by_name`](Self::by_name) knows.
    pub const NAMES: [&str; 6] =
        ["static", "continuous", "priority", "no-evict", "max-utilization", "orca"];

    /// vLLM V1's default: FCFS, optimistic admission, preemption of the request admitted last.
    #[must_use]
    pub fn continuous() -> Self {
        Self {
            queue: Box::new(Fcfs::default()),
            capacity: Box::new(Optimistic::default()),
            victim: Box::new(LastIn),
            head_of_line: HeadOfLine::Strict,
            batching: Batching::Continuous,
        }
    }

    /// Request-level batching, the baseline.
    #[must_use]
    pub fn static_batch() -> Self {
        Self { capacity: Box::new(StaticBatch), batching: Batching::Static, ..Self::continuous() }
    }

    /// The urgent first, with ageing; the least urgent gives way.
    #[must_use]
    pub fn priority() -> Self {
        Self {
            queue: Box::new(Priority::default()),
            victim: Box::new(LowestPriority),
            ..Self::continuous()
        }
    }

    /// TensorRT-LLM's default: no request is admitted that might have to be preempted.
    #[must_use]
    pub fn no_evict() -> Self {
        Self { capacity: Box::new(GuaranteedNoEvict), ..Self::continuous() }
    }

    /// TensorRT-LLM's `MAX_UTILIZATION`.
    #[must_use]
    pub fn max_utilization() -> Self {
        Self { capacity: Box::new(MaxUtilization), ..Self::continuous() }
    }

    /// Orca: iteration-level admission, worst-case memory.
    #[must_use]
    pub fn orca() -> Self {
        let rule = Orca::default();
        Self {
            queue: Box::new(UrgentFirst::new(rule.at_once)),
            capacity: Box::new(rule),
            ..Self::continuous()
        }
    }

    /// The policy the program knows by this name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] listing the names there are.
    pub fn by_name(name: &str) -> Result<Self> {
        Ok(match name {
            "static" => Self::static_batch(),
            "continuous" => Self::continuous(),
            "priority" => Self::priority(),
            "no-evict" => Self::no_evict(),
            "max-utilization" => Self::max_utilization(),
            "orca" => Self::orca(),
            _ => {
                let known = Self::NAMES.join(", ");
                return Err(Error::argument("policy", format!("`{name}` is not one of {known}")));
            }
        })
    }
}
