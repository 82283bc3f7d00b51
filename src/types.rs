//! Newtypes of the vocabulary: requests, blocks, steps, tokens, time.

use std::fmt;

use crate::error::{Error, Result};

/// A token id of the model's vocabulary.
pub type Token = u32;

/// Stands in the batch for a token that an earlier step still in flight will sample.
///
/// Only with [`overlap`](crate::scheduler::Config::overlap): the row's source is in
/// [`RaggedBatch::pending`](crate::batch::RaggedBatch::pending).
pub const PENDING_TOKEN: Token = Token::MAX;

/// Refuses [`PENDING_TOKEN`] among tokens that are known.
pub(crate) fn known(field: &'static str, tokens: &[Token]) -> Result<()> {
    match tokens.iter().position(|&token| token == PENDING_TOKEN) {
        None => Ok(()),
        Some(at) => {
            let reason = format!("index {at} is {PENDING_TOKEN}, which stands for no token");
            Err(Error::argument(field, reason))
        }
    }
}

/// Names a request; chosen by the caller, unique among requests that have not finished.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(transparent)]
pub struct RequestId(pub u64);

/// A block (a page of KV) of one pool: an index into the cache tensor's block dimension.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Debug,
    Default,
    bytemuck::Pod,
    bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Block 0 of a device pool: never handed out, a safe target for padding.
    pub const NULL: Self = Self(0);

    /// The id as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names a step (one iteration): consecutive from 0 in the order of `schedule` calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct StepId(pub u64);

/// A point in time, in nanoseconds from any origin the caller likes.
///
/// The library reads no clock: its caller says what time it is, so a trace replays to the
/// same decisions. A caller that counts steps may pass them as time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The time `seconds` after the origin; negative and NaN become the origin.
    #[must_use]
    pub fn from_secs_f64(seconds: f64) -> Self {
        // A float-to-int cast saturates and maps NaN to 0.
        Self((seconds * 1e9).round() as u64)
    }

    /// Seconds since the origin.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// Nanoseconds from `earlier` to `self`, 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
