//! A scheduler under random calls, and a device that holds histories for its KV.
//!
//! The tables, drafts and operations of a step are noted when it is scheduled. It runs later, at
//! the latest when it is committed, after all steps before it: copies first, then every row writes
//! its tokens' histories to its slots, then every row reads all its KV through its table, which
//! must hold its own tokens' histories and nothing else.

use std::collections::{HashMap, VecDeque};

use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::BlockOp;
use inflight::scheduler::{Batching, Row};
use inflight::types::PENDING_TOKEN;
use inflight::{Error, RequestId, Sampled, Scheduler};
use inflight::{Step, StepId, Time, Token};

use crate::device::{Device, GARBAGE, extend};
use crate::flight::{Counts, Fate, Flight, Flying, Setup};
use crate::packed::{self, Expected};
use crate::rng::{Rng, mix};
use crate::workload::{Job, random_job};

pub(crate) struct Sim {
    setup: Setup,
    rng: Rng,
    scheduler: Scheduler,
    is_static: bool,
    builder: BatchBuilder,
    device: Device,
    jobs: Vec<Job>,
    fates: Vec<Fate>,
    /// Requests the scheduler knows.
    live: HashMap<RequestId, usize>,
    flights: VecDeque<Flight>,
    next_id: u64,
    now: u64,
    /// Stands for the model's weights, which change with each reset: KV of others is another.
    weights: u64,
    pub(crate) log: Vec<Step>,
    pub(crate) counts: Counts,
}

impl Sim {
    pub(crate) fn new(setup: Setup) -> Self {
        let policy = (setup.policy)();
        let cache = setup.config.cache;
        Self {
            rng: Rng::new(setup.seed),
            is_static: policy.batching == Batching::Static,
            scheduler: Scheduler::new(setup.config, policy).expect("sound limits"),
            device: Device::new(cache.num_blocks, cache.num_host_blocks, cache.block_size),
            builder: BatchBuilder::new(RowBuckets::ladder(8), Some(cache.num_blocks)),
            jobs: Vec::new(),
            fates: Vec::new(),
            live: HashMap::new(),
            flights: VecDeque::new(),
            next_id: 0,
            now: 0,
            weights: 0,
            log: Vec::new(),
            counts: Counts::default(),
            setup,
        }
    }

    /// Random calls, then whatever it takes until nobody is left.
    pub(crate) fn run(mut self, calls: usize) -> (Vec<Step>, Counts) {
        for _ in 0..calls {
            match self.rng.below(100) {
                _ if self.live.is_empty() => self.submit(),
                0..16 => self.submit(),
                16..50 => self.schedule(),
                50..78 => self.commit(),
                78..82 => self.run_one(),
                82..86 => self.abandon(),
                86..88 => self.cancel(),
                88..97 => self.draft(),
                97..98 => self.reset(),
                _ => self.misuse(),
            }
            self.check();
        }
        let mut patience = 5_000;
        while self.scheduler.num_unfinished() > 0 || !self.flights.is_empty() {
            assert!(patience > 0, "somebody starves: {:?}", &self.log[self.log.len() - 4..]);
            patience -= 1;
            if self.scheduler.num_unfinished() > 0 {
                self.schedule();
                self.check();
            }
            self.commit();
            self.check();
        }
        self.check_end();
        let stats = self.scheduler.cache().stats();
        self.counts.add("hit tokens", stats.hit_tokens as usize);
        self.counts.add("evicted blocks", stats.evicted_blocks as usize);
        (self.log, self.counts)
    }

    fn check(&mut self) {
        self.counts.add("calls", 1);
        self.scheduler.verify().expect("every invariant");
        let known = self.live.keys().all(|&id| self.scheduler.snapshot(id).is_some());
        assert!(known && self.scheduler.num_unfinished() == self.live.len());
        assert!(self.scheduler.steps_in_flight().eq(self.flights.iter().map(|f| &f.step)));
        let held = self.scheduler.cache().pool().num_usable() - self.scheduler.cache().num_free();
        // Blocks that are shared have room in more than one request.
        assert!(held > 0 || self.scheduler.kv_slack() == 0);
        if self.setup.never_preempts {
            assert_eq!(self.scheduler.stats().preemptions, 0, "somebody had to give way");
        }
    }

    fn submit(&mut self) {
        let max_model_len = self.setup.config.max_model_len;
        // Ids come back when their first owner is gone.
        let id = match self.next_id {
            0 => RequestId(0),
            n if self.rng.chance(15) => RequestId(self.rng.below(n as usize) as u64),
            n => RequestId(n),
        };
        let job = random_job(&mut self.rng, id, &self.jobs, max_model_len, self.now);
        let cache = self.setup.config.cache;
        let needed = (job.max_total - 1).div_ceil(cache.block_size);
        let prompt_len = job.prompt();
        let expected = if self.live.contains_key(&id) {
            Err(Error::DuplicateRequest(id))
        } else if prompt_len >= max_model_len {
            let usable = cache.num_blocks - 1;
            let blocks = (usable * cache.block_size == max_model_len).then_some(usable);
            Err(Error::PromptTooLong { id, prompt_len, max_model_len, blocks })
        } else if needed > cache.num_blocks - 1 {
            Err(Error::NeverFits { id, needed, usable: cache.num_blocks - 1 })
        } else if self.scheduler.num_waiting() >= self.setup.config.max_waiting {
            Err(Error::QueueFull { max_waiting: self.setup.config.max_waiting })
        } else {
            Ok(())
        };
        assert_eq!(self.scheduler.check(&job.request), expected);
        assert_eq!(self.scheduler.submit(job.request.clone()), expected);
        if expected.is_err() {
            self.counts.add("refused", 1);
            return;
        }
        self.next_id = self.next_id.max(id.0 + 1);
        self.live.insert(id, self.jobs.len());
        self.jobs.push(job);
        self.fates.push(Fate::default());
    }

    fn cancel(&mut self) {
        let mut live: Vec<_> = self.live.iter().map(|(&id, &job)| (id, job)).collect();
        live.sort();
        let (id, job) = self.rng.pick(&live);
        if self.fates[job].finish.is_some() {
            return;
        }
        let in_flight = self.in_flight(job);
        self.scheduler.cancel(id).expect("it has not finished");
        assert_eq!(self.scheduler.cancel(id), Err(Error::UnknownRequest(id)));
        self.fates[job].cancelled = true;
        self.live.remove(&id);
        self.counts.add("cancelled", 1);
        self.counts.add("cancelled in flight", usize::from(in_flight));
    }

    /// Proposes some true tokens and some false ones to whoever is there.
    fn draft(&mut self) {
        let mut live: Vec<_> = self.live.iter().map(|(&id, &job)| (id, job)).collect();
        live.sort();
        for (id, at) in live {
            let (job, from) = (&self.jobs[at], self.fates[at].delivered);
            let wrong = |rng: &mut Rng| rng.chance(20).then(|| rng.below(9) as Token);
            let draft: Vec<Token> = (from..from + self.rng.within(0, 5))
                .map(|i| wrong(&mut self.rng).unwrap_or(job.says(i)))
                .collect();
            match self.scheduler.set_draft(id, &draft) {
                Ok(()) => assert!(self.setup.drafts),
                // With tokens on their way nobody knows what the draft follows.
                Err(Error::InvalidArgument { field: "draft", .. }) => {
                    assert!(!self.setup.drafts || self.in_flight(at));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn reset(&mut self) {
        let cache = self.scheduler.cache();
        let on_device = cache.num_free() < cache.pool().num_usable();
        let on_host = cache.num_host_free() < self.setup.config.cache.num_host_blocks;
        assert_eq!(self.scheduler.reset_prefix_cache(), !on_device && !on_host);
        if !on_device && !on_host {
            self.weights = mix(self.weights) >> 1;
            self.counts.add("reset", 1);
        }
        self.counts.add("reset held back by swap", usize::from(!on_device && on_host));
    }

    fn in_flight(&self, job: usize) -> bool {
        self.flights.iter().flat_map(|flight| &flight.rows).any(|flying| flying.job == job)
    }

    /// Samples of a job that are on their way.
    fn pending(&self, job: usize) -> usize {
        let rows = self.flights.iter().flat_map(|flight| &flight.rows);
        rows.filter(|flying| flying.job == job && flying.row.samples).count()
    }

    fn schedule(&mut self) {
        self.now += self.rng.below(5) as u64;
        let limit = self.setup.config.max_steps_in_flight;
        let step = match self.scheduler.schedule(Time(self.now)) {
            Ok(step) => step.clone(),
            Err(error) => {
                assert_eq!(error, Error::TooManyStepsInFlight { limit });
                return assert_eq!(self.flights.len(), limit);
            }
        };
        if self.is_static {
            // Cancellations may have left nobody of a batch but those that have ended.
            self.live.retain(|&id, _| self.scheduler.snapshot(id).is_some());
        }
        assert!(self.flights.len() < limit);
        assert_eq!(step.id(), StepId(self.log.len() as u64));
        self.check_step(&step);
        let rows: Vec<_> = step.rows().iter().map(|row| self.note(row)).collect();
        self.counts.add("steps", 1);
        self.counts.add("rows", step.rows().len());
        self.counts.add("preemptions", step.preempted().len());
        let kinds = |kind| step.block_ops().iter().filter(|op| op.kind == kind).count();
        self.counts.add("swapped out", kinds(BlockOp::SWAP_OUT));
        self.counts.add("swapped in", kinds(BlockOp::SWAP_IN));
        // Not every step's batch is wanted.
        if self.rng.chance(90) {
            self.check_batch(&step, &rows);
        }
        self.log.push(step.clone());
        self.flights.push_back(Flight { step, rows, weights: self.weights, ran: false });
    }

    fn check_batch(&mut self, step: &Step, rows: &[Flying]) {
        self.builder.build(&self.scheduler, step).expect("the newest step");
        let expect = |flying: &'_ Flying| {
            let job = &self.jobs[flying.job];
            let known = job.prompt() + self.fates[flying.job].delivered;
            let token = |at: usize| match at.checked_sub(flying.known()) {
                Some(draft) => flying.draft[draft],
                None if at < known => job.token(at),
                None => PENDING_TOKEN,
            };
            flying.range().map(token).collect()
        };
        let rows: Vec<_> = rows
            .iter()
            .map(|flying| Expected {
                row: &flying.row,
                table: &flying.table,
                tokens: expect(flying),
            })
            .collect();
        let block_size = self.device.block_size;
        packed::check(self.builder.batch(), self.builder.dense(), step, &rows, block_size);
        self.counts.add("batches", 1);
    }

    fn note(&mut self, row: &Row) -> Flying {
        let sequence = self.scheduler.sequence(row).expect("a row of this step");
        let flying = Flying {
            job: self.live[&row.id],
            row: *row,
            draft: sequence.draft[..row.num_draft as usize].to_vec(),
            table: sequence.blocks.iter().map(|block| block.0).collect(),
            given: Vec::new(),
        };
        let (job, fate) = (&self.jobs[flying.job], self.fates[flying.job]);
        let pending = self.pending(flying.job);
        let known = job.prompt() + fate.delivered + pending;
        // A chunk that does not sample leaves the draft to the step that does.
        assert!(!row.samples || sequence.draft.len() == row.num_draft as usize);
        assert!(flying.known() <= known, "{row:?} of {known} tokens");
        assert_eq!(row.samples, flying.known() == known, "{row:?} of {known} tokens");
        assert!(row.num_tokens > row.num_draft, "{row:?} has but drafts");
        assert!(flying.range().end < job.max_total, "{row:?} past {}", job.max_total);
        assert!(row.samples || row.num_draft == 0);
        assert_eq!(row.num_output as usize, known - job.prompt());
        let overlap = self.setup.config.overlap;
        assert!(pending == 0 || overlap, "its sample has not returned");
        let decode = row.samples && row.num_tokens == 1 + row.num_draft && row.num_output > 0;
        assert_eq!(row.is_decode, decode);
        self.counts.add("overlapped", usize::from(pending > 0));
        self.counts.add("chunks", usize::from(!row.samples));
        flying
    }

    fn check_step(&mut self, step: &Step) {
        let (rows, config) = (step.rows(), &self.setup.config);
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let twice = |(i, id)| ids[..i].contains(id) || step.preempted().contains(id);
        assert!(!ids.iter().enumerate().any(twice), "{step:?}");
        assert!(rows.len() <= config.max_num_seqs && step.running() <= config.max_num_seqs);
        let tokens: usize = rows.iter().map(|row| row.num_tokens as usize).sum();
        assert_eq!(step.num_tokens(), tokens);
        assert!(self.is_static || tokens <= config.max_num_batched_tokens);
        assert_eq!(step.num_sampling(), rows.iter().filter(|row| row.samples).count());
        let logits = rows.iter().filter(|row| row.samples).map(|row| 1 + row.num_draft as usize);
        assert_eq!(step.num_logits(), logits.sum::<usize>());
        assert!(rows.is_sorted_by_key(|row| row.admitted), "admissions come last");
        assert!(step.preempted().is_empty() || !rows.iter().any(|row| row.admitted));
        assert_eq!(step.free_blocks(), self.scheduler.cache().num_free());
        assert_eq!(step.running(), self.scheduler.num_running());
        assert_eq!(step.waiting(), self.scheduler.num_waiting());
        for id in step.preempted() {
            assert!(!self.scheduler.snapshot(*id).expect("it waits").running);
            self.counts.add("preempted in flight", usize::from(self.pending(self.live[id]) > 0));
        }
        // The token before the row's first comes from where `sources` says.
        for source in step.sources() {
            let row = &rows[source.row as usize];
            let job = self.live[&row.id];
            let from = self.flights.iter().find(|f| f.step.id() == source.step);
            let sampling = from.into_iter().flat_map(|f| &f.rows).filter(|r| r.row.samples);
            let sample = sampling.clone().nth(source.logits as usize).expect("in flight");
            let output = sample.known() - self.jobs[job].prompt();
            let wanted = row.num_computed as usize - self.jobs[job].prompt();
            assert_eq!((sample.job, output), (job, wanted), "{source:?} of {row:?}");
        }
        let unknown = |row: &&Row| {
            let job = self.live[&row.id];
            row.num_computed as usize >= self.jobs[job].prompt() + self.fates[job].delivered
        };
        assert_eq!(rows.iter().filter(unknown).count(), step.sources().len());
    }

    /// Runs the oldest step that has not run.
    fn run_one(&mut self) {
        let Some(at) = self.flights.iter().position(|flight| !flight.ran) else { return };
        let mut flight = self.flights.remove(at).expect("there is one");
        flight.step.block_ops().iter().for_each(|op| self.device.apply(op));
        for flying in &flight.rows {
            let (job, fate) = (&self.jobs[flying.job], self.fates[flying.job]);
            let mut before = GARBAGE;
            for position in flying.range() {
                before = match position.checked_sub(flying.known()) {
                    None => job.histories[position],
                    Some(0) => extend(job.histories[position - 1], flying.draft[0]),
                    Some(i) => extend(before, flying.draft[i]),
                };
                let there = job.prompt() + fate.sampled > position || position >= flying.known();
                assert!(there, "nobody has sampled token {position} of {:?}", flying.row);
                self.device.write(&flying.table, position, before ^ flight.weights);
            }
        }
        for flying in &mut flight.rows {
            let job = &self.jobs[flying.job];
            let end = flying.known();
            for position in 0..end {
                let kv = self.device.read(&flying.table, position);
                let own = job.histories[position] ^ flight.weights;
                assert_eq!(kv, own, "token {position} of {:?}, {}", flying.row, flight.step.id());
            }
            if flying.row.samples {
                let output = end - job.prompt();
                let right = |(token, i): &(&Token, usize)| **token == job.says(*i);
                let accepted = flying.draft.iter().zip(output..).take_while(right).count();
                flying.given = (output..=output + accepted).map(|i| job.says(i)).collect();
                self.fates[flying.job].sampled =
                    self.fates[flying.job].sampled.max(output + accepted + 1);
                self.counts.add("drafts accepted", accepted);
                self.counts.add("drafts rejected", flying.draft.len() - accepted);
            }
        }
        flight.ran = true;
        self.flights.insert(at, flight);
    }

    fn commit(&mut self) {
        while self.flights.front().is_some_and(|flight| !flight.ran) {
            self.run_one();
        }
        let Some(flight) = self.flights.pop_front() else { return };
        let sampling = || flight.rows.iter().filter(|flying| flying.row.samples);
        let tokens: Vec<Token> = sampling().flat_map(|flying| &flying.given).copied().collect();
        let mut indptr = vec![0];
        indptr.extend(sampling().scan(0, |at, flying| {
            *at += flying.given.len() as u32;
            Some(*at)
        }));
        let plain = tokens.len() == sampling().count() && self.rng.chance(50);
        let sampled = match plain {
            true => Sampled::One(&tokens),
            false => Sampled::Ragged { tokens: &tokens, indptr: &indptr },
        };
        // What is to be delivered: to those who are still there, up to their end.
        let mut expected = Vec::new();
        let mut finished = Vec::new();
        for flying in sampling() {
            let (job, fate) = (&self.jobs[flying.job], &mut self.fates[flying.job]);
            if fate.cancelled || fate.finish.is_some() {
                self.counts.add("dropped", 1);
                continue;
            }
            let snapshot = self.scheduler.snapshot(job.request.id).expect("it is unfinished");
            let rest = &job.answer[fate.delivered..];
            let len = flying.given.len().min(rest.len());
            assert_eq!(&flying.given[..len], &rest[..len], "the model is at odds with itself");
            fate.delivered += len;
            if len == rest.len() {
                fate.finish = Some(job.finish);
                finished.push(job.request.id);
                self.counts.add("finished", 1);
                self.counts.add("finished waiting", usize::from(!snapshot.running));
            }
            self.counts.add("stale", usize::from(!snapshot.running));
            expected.push((job.request.id, rest[..len].to_vec(), fate.finish));
        }
        let outputs = self.scheduler.commit(flight.step.id(), sampled).expect("it is due");
        let given = outputs.as_slice().iter().map(|o| (o.id, outputs.tokens(o).to_vec(), o.finish));
        assert_eq!(given.collect::<Vec<_>>(), expected, "outputs of {:?}", flight.step);
        let released = outputs.released().to_vec();
        if !self.is_static {
            assert_eq!(released, finished);
        }
        for (id, &job) in &self.live {
            // A static batch goes with its last; told may also be one gone by a cancellation.
            let gone = self.scheduler.snapshot(*id).is_none();
            assert!(!gone || self.fates[job].finish.is_some() && released.contains(id), "{id}");
        }
        self.live.retain(|&id, _| self.scheduler.snapshot(id).is_some());
    }

    /// Undoes the newest step: not run, run in vain, or failed on the way.
    fn abandon(&mut self) {
        let Some(newest) = self.flights.back().map(|flight| flight.step.id()) else { return };
        if self.rng.chance(60) {
            while self.flights.iter().rev().skip(1).any(|flight| !flight.ran) {
                self.run_one();
            }
            match self.rng.chance(30) {
                true => self.run_one(),
                false => self.fail_midway(),
            }
        }
        let flight = self.flights.pop_back().expect("there is one");
        self.scheduler.abandon(newest).expect("it is the newest");
        self.counts.add("abandoned", 1);
        self.counts.add("abandoned after copies", usize::from(!flight.step.block_ops().is_empty()));
        let gone = flight.rows.iter().filter(|r| r.row.admitted).map(|r| r.row.id);
        for id in gone.chain(flight.step.preempted().iter().copied()) {
            let snapshot = self.scheduler.snapshot(id);
            assert!(snapshot.is_none_or(|s| !s.running), "{id} runs on");
        }
    }

    /// Some copies were made, and some rows wrote something.
    fn fail_midway(&mut self) {
        let Some(flight) = self.flights.back().filter(|flight| !flight.ran) else { return };
        let ops = flight.step.block_ops();
        let made = self.rng.within(0, ops.len());
        ops[..made].iter().for_each(|op| self.device.apply(op));
        if made == ops.len() {
            for flying in &flight.rows {
                let spoil = |position| self.device.write(&flying.table, position, GARBAGE);
                flying.range().for_each(spoil);
            }
        }
        self.counts.add("abandoned midway", 1);
    }

    /// Calls out of turn: refused, and nothing changes.
    fn misuse(&mut self) {
        let future = StepId(self.log.len() as u64);
        let none = || Sampled::One(&[]);
        let refused = |result: Result<(), Error>| result.expect_err("it was out of turn");
        let mut commit = |id| refused(self.scheduler.commit(id, none()).map(|_| ()));
        assert_eq!(commit(future), Error::UnknownStep(future));
        if let (Some(oldest), Some(newest)) = (self.flights.front(), self.flights.back()) {
            let (oldest, newest) = (oldest.step.id(), newest.step.id());
            if oldest != newest {
                let error = Error::StepOutOfOrder { step: newest, expected: oldest };
                assert_eq!(commit(newest), error);
                let error = Error::StepOutOfOrder { step: oldest, expected: newest };
                assert_eq!(refused(self.scheduler.abandon(oldest)), error);
            }
        }
    }

    fn check_end(&self) {
        for (job, fate) in self.jobs.iter().zip(&self.fates) {
            let complete = fate.finish == Some(job.finish) && fate.delivered == job.answer.len();
            assert!(complete || fate.cancelled, "{:?}: {fate:?}", job.request);
        }
        let (cache, stats) = (self.scheduler.cache(), self.scheduler.stats());
        assert_eq!(cache.num_free(), cache.pool().num_usable(), "blocks are lost");
        assert_eq!(cache.num_host_free(), self.setup.config.cache.num_host_blocks);
        assert_eq!(stats.finished as usize, self.counts.of("finished"));
        assert_eq!(stats.cancelled as usize, self.counts.of("cancelled"));
        assert_eq!(stats.preemptions as usize, self.counts.of("preemptions"));
        assert_eq!(stats.steps as usize, self.counts.of("steps"));
        let delivered: usize = self.fates.iter().map(|fate| fate.delivered).sum();
        assert_eq!(stats.output_tokens as usize, delivered);
    }
}
