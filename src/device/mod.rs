//! What runs a step.
//!
//! A [`Device`] computes a step's rows and samples their next tokens. Two devices here compute
//! nothing: [`Model`] says how long a GPU would have taken, [`Decisions`] counts steps. They make
//! hours of a trace replay in seconds.

pub mod cost;
pub mod cpu;
#[cfg(feature = "cuda-driver")]
pub mod cuda;
pub(crate) mod fork;
pub mod memory;

use crate::batch::{DenseTable, RaggedBatch};
use crate::error::Result;
use crate::scheduler::{Sampled, Step};
use crate::types::{RequestId, Token};
use cost::{CostModel, StepWork};

/// One step, as a device gets it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Which requests, how many tokens.
    pub step: &'a Step,
    /// The flat arrays; `None` for a device that does not want them.
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
pub trait Device {
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
/// For devices that do not compute. Any function will do, as long as it is one: a token that was
/// sampled before a preemption must come again after it.
pub type Sampler = fn(RequestId, u32) -> Token;

/// Counts steps: each takes one second, which stands for one step.
#[derive(Clone, Copy, Debug)]
pub struct Decisions {
    /// Where tokens come from.
    pub sampler: Sampler,
}

/// A GPU as arithmetic: see [`cost`].
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The GPU and the language model on it.
    pub cost: CostModel,
    /// Where tokens come from.
    pub sampler: Sampler,
}

impl Device for Decisions {
    fn wants_batch(&self) -> bool {
        false
    }

    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64> {
        sample(self.sampler, job.step, samples);
        Ok(1.0)
    }
}

impl Device for Model {
    fn wants_batch(&self) -> bool {
        false
    }

    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64> {
        sample(self.sampler, job.step, samples);
        Ok(self.cost.step_seconds(&work(job.step)))
    }
}

/// No draft is ever accepted.
fn sample(sampler: Sampler, step: &Step, samples: &mut Samples) {
    let rows = step.rows().iter().filter(|row| row.samples);
    rows.for_each(|row| samples.push(sampler(row.id, row.num_output)));
}

/// What a step asks of a device; a static batch's padding is computed like anything else.
#[must_use]
pub fn work(step: &Step) -> StepWork {
    // A row's queries see what was there before and, causally, each other.
    let pairs = |n: u64, before: u64| n * before + n * (n + 1) / 2;
    if let Some(padding) = step.padding() {
        let rows = u64::from(padding.rows);
        let (n, kv) = (u64::from(padding.num_tokens), u64::from(padding.kv_len));
        return StepWork {
            rows,
            tokens: rows * n,
            logits_rows: rows,
            kv_read_tokens: rows * kv,
            attn_pairs: rows * pairs(n, kv.saturating_sub(n)),
        };
    }
    let mut work = StepWork {
        rows: step.rows().len() as u64,
        tokens: step.num_tokens() as u64,
        logits_rows: step.num_logits() as u64,
        ..StepWork::default()
    };
    for row in step.rows() {
        let (n, before) = (u64::from(row.num_tokens), u64::from(row.num_computed));
        work.kv_read_tokens += before + n;
        work.attn_pairs += pairs(n, before);
    }
    work
}
