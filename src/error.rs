//! One error type, and the status numbers it has in C.

use std::fmt;

use crate::types::{RequestId, StepId};

/// What can go wrong. Every variant leaves the state it was raised from unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A parameter is outside its range.
    InvalidArgument {
        /// The field at fault, as it is spelt in the API.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A request of this id has not finished yet.
    DuplicateRequest(RequestId),
    /// No request of this id is waiting or running.
    UnknownRequest(RequestId),
    /// The prompt leaves no room for one output token below `max_model_len`.
    PromptTooLong {
        /// The request.
        id: RequestId,
        /// Its prompt, in tokens.
        prompt_len: usize,
        /// The limit, in tokens of prompt and output together.
        max_model_len: usize,
    },
    /// The request would not fit even if it had the whole cache to itself.
    NeverFits {
        /// The request.
        id: RequestId,
        /// Blocks it may come to need.
        needed: usize,
        /// Blocks there are.
        usable: usize,
    },
    /// The waiting queue is at `max_waiting`: retry when requests have been admitted.
    QueueFull {
        /// The limit.
        max_waiting: usize,
    },
    /// The pool cannot give that many blocks now: retry when some have been freed.
    OutOfBlocks {
        /// Blocks asked for.
        needed: usize,
        /// Blocks free.
        free: usize,
    },
    /// `max_steps_in_flight` steps await their commit.
    TooManyStepsInFlight {
        /// The limit.
        limit: usize,
    },
    /// The step is not in flight: never scheduled, or already committed or abandoned.
    UnknownStep(StepId),
    /// Steps are committed oldest first and abandoned newest first.
    StepOutOfOrder {
        /// The step named by the caller.
        step: StepId,
        /// The step whose turn it is.
        expected: StepId,
    },
    /// The outputs do not match the rows of the step.
    OutputMismatch {
        /// The step.
        step: StepId,
        /// Rows that sample in it.
        expected: usize,
        /// Rows given.
        given: usize,
    },
    /// Requests wait, nothing runs, and the policy admits none of them.
    Stalled {
        /// The request at the head of the queue.
        head: RequestId,
        /// Blocks it needs now.
        needed: usize,
        /// Blocks free.
        free: usize,
    },
    /// An invariant does not hold: a bug in this library or a policy that broke its contract.
    Corrupt(String),
    /// The device could not run the step.
    Device(String),
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub(crate) fn argument(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }

    /// The number this error has in C: 1xx argument, 2xx capacity (retry later), 3xx device,
    /// 9xx internal. Numbers are never reused.
    #[must_use]
    pub fn status(&self) -> i32 {
        match self {
            Self::InvalidArgument { .. } => 100,
            Self::DuplicateRequest(_) => 101,
            Self::UnknownRequest(_) => 102,
            Self::PromptTooLong { .. } => 103,
            Self::NeverFits { .. } => 104,
            Self::UnknownStep(_) => 105,
            Self::StepOutOfOrder { .. } => 106,
            Self::OutputMismatch { .. } => 107,
            Self::QueueFull { .. } => 200,
            Self::OutOfBlocks { .. } => 201,
            Self::TooManyStepsInFlight { .. } => 202,
            Self::Stalled { .. } => 203,
            Self::Device(_) => 300,
            Self::Corrupt(_) => 900,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument { field, reason } => write!(f, "{field}: {reason}"),
            Self::DuplicateRequest(id) => write!(f, "request {id} is already waiting or running"),
            Self::UnknownRequest(id) => write!(f, "request {id} is neither waiting nor running"),
            Self::PromptTooLong { id, prompt_len, max_model_len } => write!(
                f,
                "request {id}: a prompt of {prompt_len} tokens leaves no room for output below \
                 max_model_len {max_model_len}"
            ),
            Self::NeverFits { id, needed, usable } => write!(
                f,
                "request {id} may come to need {needed} blocks, and the cache has {usable}"
            ),
            Self::QueueFull { max_waiting } => {
                write!(f, "max_waiting: {max_waiting} requests are waiting already")
            }
            Self::OutOfBlocks { needed, free } => {
                write!(f, "{needed} blocks are needed and {free} are free")
            }
            Self::TooManyStepsInFlight { limit } => {
                write!(f, "max_steps_in_flight: {limit} steps await their commit")
            }
            Self::UnknownStep(step) => write!(f, "step {step} is not in flight"),
            Self::StepOutOfOrder { step, expected } => {
                write!(f, "step {step} was named where step {expected} is due")
            }
            Self::OutputMismatch { step, expected, given } => {
                write!(f, "step {step} samples {expected} rows, and outputs came for {given}")
            }
            Self::Stalled { head, needed, free } if needed <= free => write!(
                f,
                "nothing runs and the policy admits nobody: request {head} needs {needed} blocks, \
                 and {free} are free"
            ),
            Self::Stalled { head, needed, free } => write!(
                f,
                "nothing runs and nothing is admitted: request {head} needs {needed} blocks, \
                 {free} are free"
            ),
            Self::Corrupt(what) => write!(f, "broken invariant: {what}"),
            Self::Device(what) => write!(f, "device: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// The result of a fallible call.
pub type Result<T> = std::result::Result<T, Error>;
