//! What runs a step.
//!
//! A [`Device`] computes a step's rows and samples their next tokens. Two devices here compute
//! nothing: [`Model`] says how long a GPU would have taken, [`Decisions`] counts steps. They make
//! hours of a trace replay in seconds.

pub mod cost;

use crate::batch::RaggedBatch;
use crate::error::Result;
use crate::scheduler::Step;
use crate::types::{RequestId, Token};
use cost::{CostModel, StepWork};

/// One step, as a device gets it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Which requests, how many tokens.
    pub step: &'a Step,
    /// The flat arrays; `None` for a device that does not want them.
    pub batch: Option<&'a RaggedBatch>,
}

/// Runs steps, one after another.
pub trait Device {
    /// Whether [`run`](Self::run) reads the batch; it is not built otherwise.
    fn wants_batch(&self) -> bool {
        true
    }

    /// Computes a step, appends to `sampled` one token for each of its rows that samples, in
    /// order, and returns the seconds it took.
    ///
    /// # Errors
    /// Any; the step is abandoned, and its requests run again with the next.
    fn run(&mut self, job: Job<'_>, sampled: &mut Vec<Token>) -> Result<f64>;
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

    fn run(&mut self, job: Job<'_>, sampled: &mut Vec<Token>) -> Result<f64> {
        sample(self.sampler, job.step, sampled);
        Ok(1.0)
    }
}

impl Device for Model {
    fn wants_batch(&self) -> bool {
        false
    }

    fn run(&mut self, job: Job<'_>, sampled: &mut Vec<Token>) -> Result<f64> {
        sample(self.sampler, job.step, sampled);
        Ok(self.cost.step_seconds(&work(job.step)))
    }
}

fn sample(sampler: Sampler, step: &Step, sampled: &mut Vec<Token>) {
    let rows = step.rows().iter().filter(|row| row.samples);
    sampled.extend(rows.map(|row| sampler(row.id, row.num_output)));
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
