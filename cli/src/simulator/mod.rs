//! Time without a GPU: executors that say how long a step would have taken.
//!
//! They make hours of a trace replay in seconds.

pub(crate) mod cost;

use inflight::Result;
use inflight::executor::{DryRun, Executor, Job, Sampler, Samples};
use inflight::scheduler::Step;

use cost::{CostModel, StepWork};

/// A GPU as arithmetic: see [`cost`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simulator {
    /// The GPU and the language model on it.
    pub(crate) cost: CostModel,
    /// Where tokens come from.
    pub(crate) sampler: Sampler,
}

impl Executor for Simulator {
    fn wants_batch(&self) -> bool {
        false
    }

    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64> {
        DryRun::sample(self.sampler, job.step, samples);
        Ok(self.cost.step_seconds(&work(job.step)))
    }
}

/// What a step asks of a GPU; a static batch's padding is computed like anything else.
pub(crate) fn work(step: &Step) -> StepWork {
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
