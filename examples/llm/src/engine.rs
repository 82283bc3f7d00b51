//! The loop of continuous batching: schedule, build the batch, run the model, sample, commit.

use anyhow::{Context, Result};
use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::scheduler::{Outputs, Row};
use inflight::{Config, Policy, Sampled, Scheduler, Time, Token};

use crate::model::Model;
use crate::runner::Runner;

/// A scheduler over a model.
pub struct Engine {
    scheduler: Scheduler,
    builder: BatchBuilder,
    runner: Runner,
    sampled: Vec<Token>,
}

impl Engine {
    /// An engine without requests.
    pub fn new(runner: Runner, config: Config, policy: Policy) -> Result<Self> {
        let scheduler = Scheduler::new(config, policy)?;
        let builder = BatchBuilder::new(RowBuckets::none(), None);
        Ok(Self { scheduler, builder, runner, sampled: Vec::new() })
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The scheduler, to submit to.
    pub fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// The model.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// The model, for another engine.
    pub fn into_model(self) -> Model {
        self.runner.into_model()
    }

    /// One iteration. `choose` gets each row that samples with its logits, on any thread and in any
    /// order, and says the token.
    pub fn step(
        &mut self,
        now: Time,
        choose: impl Fn(&Row, &mut [f32]) -> Token + Sync,
    ) -> Result<Outputs<'_>> {
        let id = self.scheduler.schedule(now)?.id();
        let step = self.scheduler.step(id).context("the step that was just scheduled")?;
        self.sampled.clear();
        if !step.is_empty() {
            let batch = self.builder.build(&self.scheduler, step)?;
            let padding = step.num_padded_tokens() - step.num_tokens();
            let vocab = self.runner.model().shape.vocab;
            let (logits, threads) = self.runner.run(batch, padding)?;
            let rows = step.rows().iter().filter(|row| row.samples);
            let mut rows: Vec<(&Row, &mut [f32], Token)> = rows
                .zip(logits.chunks_exact_mut(vocab))
                .map(|(row, logits)| (row, logits, 0))
                .collect();
            threads.run_rows(&mut rows, 1, |_, rows| {
                rows.iter_mut().for_each(|(row, logits, token)| *token = choose(row, logits));
            });
            self.sampled.extend(rows.iter().map(|&(_, _, token)| token));
        }
        Ok(self.scheduler.commit(id, Sampled::One(&self.sampled))?)
    }
}
