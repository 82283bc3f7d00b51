//! Iteration-level scheduling: which requests run in the next step, and with how many tokens.
//!
//! There is no prefill and no decode phase. A request has `num_computed` tokens that catch up with
//! its prompt and output, and a step is a list of `request: num_tokens` under a token budget. The
//! default policy takes vLLM V1's decisions one by one (vllm/v1/core/sched/scheduler.py, 0.33);
//! other policies are put together in [`Policy`].
//!
//! [`schedule`](Scheduler::schedule) makes a [`Step`], [`commit`](Scheduler::commit) takes its
//! samples, [`abandon`](Scheduler::abandon) undoes it. The scheduler reads no clock, draws no
//! random numbers and does no I/O: the same calls give the same steps.

#![forbid(unsafe_code)]

pub mod capacity;
mod commit;
mod config;
mod entry;
mod inbox;
mod policy;
pub mod preempt;
pub mod queue;
mod schedule;
mod step;
mod verify;

pub use config::Config;
pub use inbox::{Received, Submitter, Wake};
pub use policy::{Batching, HeadOfLine, Policy};
pub use step::{Output, Outputs, Padding, Row, Sampled, Source, Step};

use std::collections::{HashMap, VecDeque};

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::request::Request;
use crate::types::{BlockId, RequestId, StepId, Time, Token, known};
use entry::{Entry, State};
use inbox::{Inbox, Limits};
use queue::{Clock, Waiting};

/// Counters since the scheduler was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps scheduled, empty ones included.
    pub steps: u64,
    /// Admissions, those after a preemption included.
    pub admissions: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Requests that finished: by themselves, or by [`Scheduler::finish`].
    pub finished: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Tokens delivered.
    pub output_tokens: u64,
}

/// A request at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether it is among the running requests.
    pub running: bool,
    /// Tokens of its prompt.
    pub num_prompt: u32,
    /// Tokens output so far.
    pub num_output: u32,
    /// Tokens whose KV is computed or in flight.
    pub num_computed: u32,
    /// Tokens that it found in the prefix cache when it was first admitted.
    pub num_cached: u32,
    /// Times it was preempted.
    pub num_preemptions: u32,
    /// Draft tokens that were verified.
    pub num_drafts: u32,
    /// Draft tokens among them that were accepted.
    pub num_accepted: u32,
    /// The time given to the `schedule` that first admitted it.
    pub first_scheduled: Option<Time>,
    /// The time given to the `schedule` of the step that sampled its first token, once that step is
    /// committed.
    pub first_token: Option<Time>,
    /// The client it belongs to.
    pub client: u64,
}

/// A request that has ended, as it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The request.
    pub id: RequestId,
    /// Its last state.
    pub last: Snapshot,
}

/// The tokens and blocks of a row's request.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Prompt and output so far.
    pub tokens: &'a [Token],
    /// Draft tokens that follow them.
    pub draft: &'a [Token],
    /// Its block table.
    pub blocks: &'a [BlockId],
}

/// The tokens a static batch is padded to.
#[derive(Clone, Copy, Debug, Default)]
struct Rectangle {
    longest_prompt: u32,
    steps: u32,
}

/// Decides, step by step, which requests run.
pub struct Scheduler {
    config: Config,
    policy: Policy,
    cache: KvCache,
    entries: Vec<Entry>,
    /// By slot, apart from the entries: a step's rows name their requests.
    ids: Vec<RequestId>,
    vacant: Vec<u32>,
    by_id: HashMap<RequestId, u32>,
    /// In order of admission.
    running: Vec<u32>,
    in_flight: VecDeque<Step>,
    /// Steps whose buffers serve again.
    spare: Vec<Step>,
    next_step: StepId,
    rectangle: Rectangle,
    clock: Clock,
    stats: Stats,
    limits: Limits,
    inbox: Inbox,
    // Buffers that live as long as the scheduler, so that a steady step does not allocate.
    hit: Vec<BlockId>,
    passed_over: Vec<Waiting>,
    sources: Vec<Source>,
    outputs: Vec<Output>,
    output_tokens: Vec<Token>,
    released: Vec<RequestId>,
    ended: Vec<Ended>,
    /// Released since no request of their static batch was left, to be told with the next commit.
    released_early: Vec<RequestId>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("config", &self.config)
            .field("policy", &self.policy)
            .field("running", &self.running.len())
            .field("waiting", &self.policy.queue.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `config` at fault, or `policy`.
    pub fn new(config: Config, policy: Policy) -> Result<Self> {
        config.check()?;
        if !policy.queue.is_empty() {
            return Err(Error::argument("policy", "its queue is not empty"));
        }
        if policy.batching == Batching::Static && !policy.capacity.reserves() {
            let reason = "a static batch needs a capacity that reserves what its members may need";
            return Err(Error::argument("policy", reason));
        }
        let cache = KvCache::new(config.cache)?;
        let limits = Limits::new(&config, cache.pool().num_usable());
        Ok(Self {
            cache,
            limits,
            inbox: Inbox::new(limits),
            config,
            policy,
            entries: Vec::new(),
            ids: Vec::new(),
            vacant: Vec::new(),
            by_id: HashMap::new(),
            running: Vec::with_capacity(config.max_num_seqs.min(1 << 16)),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            next_step: StepId(0),
            rectangle: Rectangle::default(),
            clock: Clock::default(),
            stats: Stats::default(),
            hit: Vec::new(),
            passed_over: Vec::new(),
            sources: Vec::new(),
            outputs: Vec::new(),
            output_tokens: Vec::new(),
            released: Vec::new(),
            ended: Vec::new(),
            released_early: Vec::new(),
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Nothing has changed on any of them: [`Error::DuplicateRequest`]; [`Error::InvalidArgument`]
    /// for an empty prompt, `max_tokens` 0 or a bad `repetition`; [`Error::PromptTooLong`] when
    /// the prompt leaves no room for output; [`Error::NeverFits`] when its prompt and the output
    /// it may ask for need more blocks than there are; [`Error::QueueFull`].
    pub fn submit(&mut self, request: Request) -> Result<()> {
        self.check(&request)?;
        let waiting = Waiting {
            slot: self.vacant.last().map_or(self.entries.len() as u32, |&slot| slot),
            id: request.id,
            priority: request.priority,
            arrival: request.arrival.unwrap_or(self.clock.now),
            since: self.clock.admissions,
            client: request.client,
            num_prompt: request.prompt.len() as u32,
            max_tokens: request.max_tokens,
        };
        let seq = self.cache.open();
        let limits = (self.config.max_model_len as u32, self.config.cache.block_size as u32);
        let mut entry = Entry::new(request, waiting, seq, limits);
        self.by_id.insert(entry.id, waiting.slot);
        self.policy.queue.push(waiting);
        match self.vacant.pop() {
            Some(slot) => {
                self.ids[slot as usize] = entry.id;
                let old = &mut self.entries[slot as usize];
                entry.generation = old.generation;
                *old = entry;
            }
            None => {
                self.ids.push(entry.id);
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// What `submit` would say, changing nothing.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit).
    pub fn check(&self, request: &Request) -> Result<()> {
        let id = request.id;
        if self.by_id.contains_key(&id) {
            return Err(Error::DuplicateRequest(id));
        }
        self.limits.check(request)?;
        if self.policy.queue.len() >= self.config.max_waiting {
            return Err(Error::QueueFull { max_waiting: self.config.max_waiting });
        }
        Ok(())
    }

    /// Ends a request wherever it is, and frees its slot and blocks. Samples of it that are still
    /// in flight are dropped.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`] when it has finished, or never was.
    pub fn cancel(&mut self, id: RequestId) -> Result<Ended> {
        let slot = self.unfinished(id)?;
        let ended = self.entries[slot as usize].ended();
        self.stats.cancelled += 1;
        self.drop_out(slot)?;
        Ok(ended)
    }

    /// Ends a request after its first `keep_tokens` output tokens, or after all that it has output if
    /// those are fewer: for a condition that the caller looks for, such as a stop string. It counts as
    /// finished. Output tokens past them do not count, samples in flight are dropped, and its full
    /// blocks serve later requests.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`] when it has finished, or never was.
    pub fn finish(&mut self, id: RequestId, keep_tokens: u32) -> Result<Ended> {
        let slot = self.unfinished(id)?;
        let entry = &mut self.entries[slot as usize];
        let kept = entry.num_output().min(keep_tokens);
        let mut ended = entry.ended();
        ended.last.num_output = kept;
        self.stats.finished += 1;
        // A static batch holds on to what its members had.
        match (entry.state, self.policy.batching) {
            (State::Running, Batching::Static) => entry.state = State::Ended,
            _ => self.drop_out(slot)?,
        }
        Ok(ended)
    }

    /// The record of a request that has not finished.
    fn unfinished(&self, id: RequestId) -> Result<u32> {
        let slot = *self.by_id.get(&id).ok_or(Error::UnknownRequest(id))?;
        match self.entries[slot as usize].state {
            State::Ended => Err(Error::UnknownRequest(id)),
            _ => Ok(slot),
        }
    }

    /// Takes a request out of its queue or the running list, and frees all that it holds.
    fn drop_out(&mut self, slot: u32) -> Result<()> {
        let entry = &self.entries[slot as usize];
        match entry.state {
            State::Waiting => {
                self.policy.queue.remove(&entry.waiting);
            }
            _ => self.running.retain(|&other| other != slot),
        }
        self.vacate(slot)
    }

    /// Has `wake` called each time that something is handed over to an empty inbox, on the thread that
    /// does it: to wake a thread that has nothing to step. At once, if something is there already.
    /// `None` for no more calls; none is under way once this returns. It must not use this scheduler or
    /// its submitters.
    pub fn set_wake(&mut self, wake: Option<Wake>) {
        self.inbox.set_wake(wake);
    }

    /// Draft tokens to be verified in the step in which the request samples next; they replace
    /// earlier ones. A preemption drops them, and so does the admission of a request that waits.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`]; [`Error::InvalidArgument`] while tokens of it are in flight and
    /// under overlap, where the tokens before the drafts are not known yet, and under static
    /// batching.
    pub fn set_draft(&mut self, id: RequestId, draft: &[Token]) -> Result<()> {
        let slot = *self.by_id.get(&id).ok_or(Error::UnknownRequest(id))?;
        if self.config.overlap || self.policy.batching == Batching::Static {
            return Err(Error::argument("draft", "needs continuous batching without overlap"));
        }
        known("draft", draft)?;
        let entry = &mut self.entries[slot as usize];
        if entry.num_in_flight > 0 {
            return Err(Error::argument("draft", format!("request {id} has tokens in flight")));
        }
        entry.set_draft(draft);
        Ok(())
    }

    /// Takes the names off blocks that steps in flight compute, before they are given up: once they
    /// are, it is too late when such a step is abandoned.
    fn take_back_names(&mut self, slot: u32) -> Result<()> {
        let entry = &self.entries[slot as usize];
        let computed = entry.num_computed.saturating_sub(entry.num_in_flight);
        match entry.num_in_flight {
            0 => Ok(()),
            _ => self.cache.unregister(entry.seq, computed as usize),
        }
    }

    /// Frees everything a request holds and forgets it; it is in no queue any more.
    fn vacate(&mut self, slot: u32) -> Result<()> {
        self.take_back_names(slot)?;
        let entry = &mut self.entries[slot as usize];
        entry.state = State::Vacant;
        entry.generation = entry.generation.wrapping_add(1);
        entry.tokens = Vec::new();
        self.by_id.remove(&entry.id);
        self.vacant.push(slot);
        self.cache.close(entry.seq)
    }

    /// The limits it keeps.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The KV cache it manages.
    #[must_use]
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Counters since the scheduler was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Requests that hold a slot.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.policy.queue.len()
    }

    /// Requests that have not finished.
    #[must_use]
    pub fn num_unfinished(&self) -> usize {
        self.by_id.len()
    }

    /// Tokens that the running requests' blocks have room for and that none needs: the rest of last
    /// blocks, what is reserved ahead, and all that ended requests of a static batch hold.
    #[must_use]
    pub fn kv_slack(&self) -> usize {
        let slack = |&slot: &u32| {
            let entry = &self.entries[slot as usize];
            if entry.state != State::Ended {
                return (entry.capacity - entry.num_computed) as usize;
            }
            if !self.cache.has_prefix_cache() {
                return entry.capacity as usize;
            }
            // What others share with it serves them.
            let alone = |&&block: &&BlockId| self.cache.pool().refs(block) == 1;
            self.cache.table(entry.seq).iter().filter(alone).count() * self.cache.block_size()
        };
        self.running.iter().map(slack).sum()
    }

    /// Steps scheduled and not yet committed or abandoned, oldest first.
    pub fn steps_in_flight(&self) -> impl ExactSizeIterator<Item = &Step> {
        self.in_flight.iter()
    }

    /// The step of this id, while it is in flight.
    #[must_use]
    pub fn step(&self, id: StepId) -> Option<&Step> {
        self.in_flight.iter().find(|step| step.id == id)
    }

    /// A request at this moment.
    #[must_use]
    pub fn snapshot(&self, id: RequestId) -> Option<Snapshot> {
        Some(self.entries[*self.by_id.get(&id)? as usize].snapshot())
    }

    /// The tokens and blocks of a row of a step in flight; `None` when its request is gone.
    #[must_use]
    pub fn sequence(&self, row: &Row) -> Option<Sequence<'_>> {
        let entry = self.entries.get(row.slot as usize)?;
        (entry.state != State::Vacant && entry.generation == row.generation).then(|| Sequence {
            tokens: &entry.tokens,
            draft: entry.draft(),
            blocks: self.cache.table(entry.seq),
        })
    }

    /// The tokens of a row's request so far; `None` when it is gone.
    pub(crate) fn tokens(&self, row: &Row) -> Option<&[Token]> {
        let entry = self.entries.get(row.slot as usize)?;
        (entry.generation == row.generation).then_some(&entry.tokens[..])
    }

    /// The block table of a row's request.
    pub(crate) fn blocks(&self, row: &Row) -> &[BlockId] {
        self.entries.get(row.slot as usize).map_or(&[], |entry| self.cache.table(entry.seq))
    }

    /// Forgets cached prefixes, for a model whose weights have changed; false, and nothing is
    /// forgotten, while a request holds KV: one that runs, or one that is swapped out.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.cache.reset_prefix_cache()
    }

    /// Requests admitted so far, and the time of the last `schedule`.
    fn tick(&mut self, now: Time) {
        self.clock.now = self.clock.now.max(now);
    }
}
