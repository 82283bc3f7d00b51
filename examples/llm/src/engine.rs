//! The loop of continuous batching: schedule, build the batch, run the model, sample, commit.

use anyhow::{Context, Result};
use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::scheduler::{Outputs, Row};
use inflight::{Config, Policy, Sampled, Scheduler, Time, Token};

use crate::runner::{Given, Runner, Weights};

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

    /// The model with its cache, for a caller who does without the scheduler.
    pub fn into_runner(self) -> Runner {
        self.runner
    }

    /// The weights, for another engine.
    pub fn into_weights(self) -> Weights {
        self.runner.into_weights()
    }

    /// One iteration. `choose` gets each row that samples with its logits, on any thread and in any
    /// order, and says the token.
    pub fn step(
        &mut self,
        now: Time,
        choose: impl Fn(&Row, &mut [f32]) -> Token + Sync,
    ) -> Result<Outputs<'_>> {
        self.step_with(now, |_| false, choose)
    }

    /// The same, of which rows `is_likeliest` names are certain to choose the likeliest token: where
    /// all do, a GPU chooses.
    pub fn step_with(
        &mut self,
        now: Time,
        is_likeliest: impl Fn(&Row) -> bool,
        choose: impl Fn(&Row, &mut [f32]) -> Token + Sync,
    ) -> Result<Outputs<'_>> {
        let id = self.scheduler.schedule(now)?.id();
        let step = self.scheduler.step(id).context("the step that was just scheduled")?;
        self.sampled.clear();
        if !step.is_empty() {
            let batch = self.builder.build(&self.scheduler, step)?;
            let padding = step.num_padded_tokens() - step.num_tokens();
            let vocab = self.runner.shape().vocab;
            let rows = || step.rows().iter().filter(|row| row.samples);
            match self.runner.run(batch.into(), padding, rows().all(is_likeliest))? {
                Given::Likeliest(tokens) => self.sampled.extend(tokens),
                Given::Logits(logits, threads) => {
                    let mut rows: Vec<(&Row, &mut [f32], Token)> = rows()
                        .zip(logits.chunks_exact_mut(vocab))
                        .map(|(row, logits)| (row, logits, 0))
                        .collect();
                    threads.run_rows(&mut rows, 1, |_, rows| {
                        rows.iter_mut().for_each(|(row, logits, token)| {
                            *token = choose(row, logits);
                        });
                    });
                    self.sampled.extend(rows.iter().map(|&(_, _, token)| token));
                }
            }
        }
        Ok(self.scheduler.commit(id, Sampled::One(&self.sampled))?)
    }
}
