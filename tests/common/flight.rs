//! What a simulation keeps of a run: its set-up, its steps in flight, the fate of its requests.

use std::collections::BTreeMap;

use inflight::scheduler::Row;
use inflight::{Config, FinishReason, Policy, Step, Token};

pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    pub(crate) policy: fn() -> Policy,
    /// Whether nobody may ever be preempted.
    pub(crate) never_preempts: bool,
    pub(crate) drafts: bool,
}

/// How often what happened.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts(pub(crate) BTreeMap<&'static str, usize>);

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str, n: usize) {
        *self.0.entry(what).or_default() += n;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, n)| self.add(what, *n));
    }

    pub(crate) fn of(&self, what: &'static str) -> usize {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// A row as it was scheduled.
pub(crate) struct Flying {
    pub(crate) job: usize,
    pub(crate) row: Row,
    pub(crate) draft: Vec<Token>,
    pub(crate) table: Vec<u32>,
    /// What it samples, once it ran.
    pub(crate) given: Vec<Token>,
}

impl Flying {
    /// Positions it computes.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.row.num_computed as usize;
        start..start + self.row.num_tokens as usize
    }

    /// Tokens of the sequence up to its drafts.
    pub(crate) fn known(&self) -> usize {
        self.range().end - self.row.num_draft as usize
    }
}

pub(crate) struct Flight {
    pub(crate) step: Step,
    pub(crate) rows: Vec<Flying>,
    /// The model's, when it was scheduled.
    pub(crate) weights: u64,
    pub(crate) ran: bool,
}

/// What became of a job.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Fate {
    pub(crate) delivered: usize,
    /// Outputs the device has sampled.
    pub(crate) sampled: usize,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) cancelled: bool,
}
