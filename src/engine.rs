//! The loop that joins the parts: schedule, run, commit.

use crate::batch::{BatchBuilder, RowBuckets};
use crate::error::{Error, Result};
use crate::executor::{Executor, Job, Samples};
use crate::request::Request;
use crate::scheduler::{Config, Ended, Outputs, Policy, Scheduler};
use crate::types::{RequestId, StepId, Time, Token};

/// A scheduler, a batch builder and an executor.
#[derive(Debug)]
pub struct Engine<E> {
    scheduler: Scheduler,
    builder: BatchBuilder,
    executor: E,
    samples: Samples,
}

/// A step that ran.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// What it delivered, and the step itself.
    pub outputs: Outputs<'a>,
    /// Seconds it took.
    pub seconds: f64,
    /// [`Scheduler::kv_slack`] while it ran.
    pub kv_slack: usize,
}

impl<E: Executor> Engine<E> {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` at fault.
    pub fn new(config: Config, policy: Policy, executor: E) -> Result<Self> {
        Self::with_builder(
            Scheduler::new(config, policy)?,
            BatchBuilder::new(RowBuckets::none(), None),
            executor,
        )
    }

    /// An engine of these parts. It runs one step at a time, so the scheduler must not overlap.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `overlap` is on or steps are in flight.
    pub fn with_builder(scheduler: Scheduler, builder: BatchBuilder, executor: E) -> Result<Self> {
        if scheduler.config().overlap || scheduler.steps_in_flight().len() > 0 {
            return Err(Error::argument("overlap", "an engine runs one step at a time"));
        }
        Ok(Self { scheduler, builder, executor, samples: Samples::default() })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Those of [`Scheduler::submit`].
    pub fn submit(&mut self, request: Request) -> Result<()> {
        self.scheduler.submit(request)
    }

    /// Ends a request wherever it is.
    ///
    /// # Errors
    /// Those of [`Scheduler::cancel`].
    pub fn cancel(&mut self, id: RequestId) -> Result<Ended> {
        self.scheduler.cancel(id)
    }

    /// Ends a request after its first `keep_tokens` output tokens: see [`Scheduler::finish`].
    ///
    /// # Errors
    /// Those of [`Scheduler::finish`].
    pub fn finish(&mut self, id: RequestId, keep_tokens: u32) -> Result<Ended> {
        self.scheduler.finish(id, keep_tokens)
    }

    /// Runs one step at time `now`; `None` when there is no request.
    ///
    /// # Errors
    /// [`Error::Stalled`] when the policy lets no request run; what the executor reports, and the step
    /// is undone: the same requests run with the next call.
    pub fn step(&mut self, now: Time) -> Result<Option<Ran<'_>>> {
        if self.scheduler.num_unfinished() == 0 {
            return Ok(None);
        }
        let id = self.scheduler.schedule(now)?.id();
        let seconds = match self.run(id) {
            Ok(seconds) => seconds,
            Err(error) => {
                self.scheduler.abandon(id)?;
                return Err(error);
            }
        };
        let kv_slack = self.scheduler.kv_slack();
        let outputs = self.scheduler.commit(id, self.samples.as_sampled())?;
        Ok(Some(Ran { outputs, seconds, kv_slack }))
    }

    fn run(&mut self, id: StepId) -> Result<f64> {
        let step = self.scheduler.step(id).ok_or(Error::UnknownStep(id))?;
        self.samples.clear();
        if step.is_empty() {
            return Ok(0.0);
        }
        let wanted = self.executor.wants_batch();
        if wanted {
            self.builder.build(&self.scheduler, step)?;
        }
        let batch = wanted.then(|| self.builder.batch());
        let dense = self.builder.dense().filter(|_| wanted);
        let seconds = self.executor.run(Job { step, batch, dense }, &mut self.samples)?;
        match self.samples.num_rows() {
            given if given == step.num_sampling() => Ok(seconds),
            given => Err(Error::OutputMismatch { step: id, expected: step.num_sampling(), given }),
        }
    }

    /// Draft tokens for a request: see [`Scheduler::set_draft`].
    ///
    /// # Errors
    /// Those of [`Scheduler::set_draft`].
    pub fn set_draft(&mut self, id: RequestId, draft: &[Token]) -> Result<()> {
        self.scheduler.set_draft(id, draft)
    }

    /// Forgets cached prefixes: see [`Scheduler::reset_prefix_cache`].
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.scheduler.reset_prefix_cache()
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The executor.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// Takes the engine apart, between two steps.
    pub fn into_parts(self) -> (Scheduler, BatchBuilder, E) {
        (self.scheduler, self.builder, self.executor)
    }
}
