//! What runs a step.
//!
//! An [`Executor`] computes a step's rows and samples their next tokens: it is what a caller of
//! [`Engine`](crate::Engine) writes around a model. [`DryRun`] computes nothing: it lets the
//! scheduler's decisions be looked at by themselves.

#![forbid(unsafe_code)]

use crate::batch::{DenseTable, RaggedBatch};
use crate::error::Result;
use crate::scheduler::{Sampled, Step};
use crate::types::{RequestId, Token};

/// One step, as an executor gets it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Which requests, how many tokens.
    pub step: &'a Step,
    /// The flat arrays; `None` for an executor that does not want them.
    pub batch: Option<&'a RaggedBatch>,
    /// The block tables as a dense matrix, where the engine's builder keeps one.
    pub dense: Option<&'a DenseTable>,
}

/// What a step sampled: a row of tokens for each row of the step that samples, in order.
#[derive(Clone, Debug)]
pub struct Samples {
    tokens: Vec<Token>,
    indptr: Vec<u32>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { tokens: Vec::new(), indptr: vec![0] }
    }
}

impl Samples {
    /// Adds the one token of a row.
    pub fn push(&mut self, token: Token) {
        self.push_row(&[token]);
    }

    /// Adds the tokens of a row with drafts: those accepted, and the one after them.
    pub fn push_row(&mut self, tokens: &[Token]) {
        self.tokens.extend_from_slice(tokens);
        self.indptr.push(self.tokens.len() as u32);
    }

    /// Rows added.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.indptr.truncate(1);
    }

    pub(crate) fn as_sampled(&self) -> Sampled<'_> {
        Sampled::Ragged { tokens: &self.tokens, indptr: &self.indptr }
    }
}

/// Runs steps, one after another.
pub trait Executor {
    /// Whether [`run`](Self::run) reads the batch; it is not built otherwise.
    fn wants_batch(&self) -> bool {
        true
    }

    /// Computes a step, adds to `samples` the tokens of each of its rows that samples, in order,
    /// and returns the seconds it took.
    ///
    /// # Errors
    /// Any; the step is abandoned, and its requests run again with the next.
    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64>;
}

/// Says which token a request outputs: `(request, k)` for its output token `k`, from 0.
///
/// For executors that do not compute. Any function will do, as long as it is one: a token that was
/// sampled before a preemption must come again after it.
pub type Sampler = fn(RequestId, u32) -> Token;

/// Computes nothing and counts steps: each takes one second, which stands for one step.
#[derive(Clone, Copy, Debug)]
pub struct DryRun {
    /// Where tokens come from.
    pub sampler: Sampler,
}

impl DryRun {
    /// Samples without computing; no draft is ever accepted.
    pub fn sample(sampler: Sampler, step: &Step, samples: &mut Samples) {
        let rows = step.rows().iter().filter(|row| row.samples);
        rows.for_each(|row| samples.push(sampler(row.id, row.num_output)));
    }
}

impl Executor for DryRun {
    fn wants_batch(&self) -> bool {
        false
    }

    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64> {
        Self::sample(self.sampler, job.step, samples);
        Ok(1.0)
    }
}
