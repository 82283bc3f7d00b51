//! Random workloads through a scheduler, a builder that carries on, one that does not, and a device.

use std::collections::BTreeMap;

use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::scheduler::{Row, Step};
use inflight::{
    Config, Error, FinishReason, Policy, Request, RequestId, Sampled, Scheduler, Time, Token,
};

use crate::ragged::{Arrays, Memory, Transformer, check_dense, copy_changes};
use crate::rng::Rng;

/// What a request must output, and how much of it has come.
pub(crate) struct Truth {
    /// Prompt and output.
    pub(crate) whole: Vec<Token>,
    pub(crate) expected: Vec<Token>,
    pub(crate) finish: FinishReason,
    pub(crate) delivered: usize,
}

/// A request whose prompt often begins like others' or goes on from an answer, and what it must
/// output.
pub(crate) fn random_request(
    rng: &mut Rng,
    id: u64,
    config: &Config,
    past: &[Vec<Token>],
) -> (Request, Truth) {
    let most = config.max_model_len;
    let long = rng.chance(30);
    let prompt_len = rng.within(1, if long { most - 1 } else { most / 3 });
    let (family, shared) = (rng.below(3) as u32, rng.below(prompt_len + 1));
    let unique = |i: usize| (id as u32) << 12 | i as u32;
    let mut prompt: Vec<Token> = (0..prompt_len)
        .map(|i| if i < shared { family << 8 | i as u32 } else { unique(i) })
        .collect();
    if rng.chance(25) && !past.is_empty() {
        let turn = &past[rng.below(past.len())];
        let kept = turn.len().min(prompt_len);
        prompt[..kept].copy_from_slice(&turn[..kept]);
    }
    let wanted = if rng.chance(60) { rng.within(1, most) } else { rng.within(1, 8) };
    let mut model = Transformer::EMPTY;
    prompt.iter().for_each(|&token| model.push(token));
    let mut expected = Vec::new();
    while expected.len() < wanted.min(most - prompt_len) {
        expected.push(model.next_token());
        model.push(model.next_token());
    }
    let mut request = Request::new(RequestId(id), prompt, wanted as u32);
    let mut finish = FinishReason::Length;
    if rng.chance(40) {
        // It stops on its own, while the scheduler must be ready for more.
        expected.truncate(rng.within(1, expected.len()));
        request.eos = expected.last().copied();
        finish = FinishReason::Eos;
    }
    request.priority = rng.below(3) as i32;
    let whole = [&request.prompt[..], &expected].concat();
    (request, Truth { whole, expected, finish, delivered: 0 })
}

/// What is under test in one run.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) policy: fn() -> Policy,
    pub(crate) config: Config,
    /// Sizes that rows are padded to.
    pub(crate) sizes: Vec<u32>,
    pub(crate) buckets: RowBuckets,
    /// Columns of the dense table.
    pub(crate) width: usize,
    pub(crate) drafts: bool,
    pub(crate) steps: u64,
}

/// How often what was tested happened.
#[derive(Debug, Default)]
pub(crate) struct Counts(pub(crate) BTreeMap<&'static str, usize>);

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str, times: usize) {
        *self.0.entry(what).or_default() += times;
    }

    pub(crate) fn of(&self, what: &'static str) -> usize {
        self.0.get(what).copied().unwrap_or_default()
    }
}

pub(crate) struct World {
    scenario: Scenario,
    scheduler: Scheduler,
    builder: BatchBuilder,
    memory: Memory,
    /// Steps that the device has yet to run.
    queue: Vec<(u64, Vec<u8>)>,
    /// The device's copy of the dense table, from changed ranges only.
    mirror: Vec<u32>,
    /// Rows (request, position after the step) of the batch the builder holds, if it can go on.
    last: Option<Vec<(RequestId, u32)>>,
    truths: BTreeMap<u64, Truth>,
    /// Prompt and output of the latest to finish.
    past: Vec<Vec<Token>>,
    rng: Rng,
    next_id: u64,
    counts: Counts,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Self {
        let Scenario { policy, config, buckets, width, .. } = scenario.clone();
        Self {
            scheduler: Scheduler::new(config, policy()).expect("valid limits"),
            builder: BatchBuilder::new(buckets, Some(width)),
            memory: Memory::new(&config.cache),
            scenario: scenario.clone(),
            queue: Vec::new(),
            mirror: Vec::new(),
            last: None,
            truths: BTreeMap::new(),
            past: Vec::new(),
            rng: Rng::new(seed),
            next_id: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn run(mut self) -> Counts {
        let steps = self.scenario.steps as usize;
        while self.counts.of("steps") < steps || self.scheduler.num_unfinished() > 0 {
            assert!(self.counts.of("steps") < 20 * steps, "it does not end");
            // Arrivals come in waves: between them batches are steady.
            let wave = self.counts.of("steps") % 200 < 60;
            if self.counts.of("steps") < steps && self.rng.chance(if wave { 25 } else { 1 }) {
                self.submit();
            }
            if self.rng.chance(1) && !self.truths.is_empty() {
                self.cancel_any();
            }
            let in_flight = self.scheduler.steps_in_flight().len();
            let depth = self.scenario.config.max_steps_in_flight;
            if in_flight == 0 || (in_flight < depth && self.rng.chance(85)) {
                self.step();
            } else {
                self.commit();
            }
            self.scheduler.verify().expect("the scheduler's invariants");
        }
        while self.scheduler.steps_in_flight().len() > 0 {
            self.commit();
        }
        let stats = self.scheduler.cache().stats();
        self.counts.add("hits", stats.hit_tokens as usize);
        self.counts.add("copies", self.memory.copied);
        self.counts.add("pending", self.memory.resolved);
        assert!(self.truths.is_empty(), "requests were forgotten");
        self.counts
    }

    fn submit(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        let config = &self.scenario.config;
        let (request, truth) = random_request(&mut self.rng, id, config, &self.past);
        self.scheduler.submit(request).expect("it fits");
        self.truths.insert(id, truth);
    }

    fn cancel_any(&mut self) {
        let at = self.rng.below(self.truths.len());
        let id = *self.truths.keys().nth(at).expect("it is there");
        self.cancel(RequestId(id));
    }

    fn cancel(&mut self, id: RequestId) {
        // Under static batching, one that has ended may still hold its slot.
        self.scheduler.cancel(id).expect("it has not finished");
        self.truths.remove(&id.0);
        self.counts.add("cancelled", 1);
    }

    /// Some running requests guess what they will output, some of it right.
    fn draft(&mut self) {
        let busy: Vec<RequestId> =
            self.scheduler.steps_in_flight().flat_map(Step::rows).map(|row| row.id).collect();
        for (&id, truth) in &self.truths {
            let running = self.scheduler.snapshot(RequestId(id)).is_some_and(|s| s.running);
            if !running || busy.contains(&RequestId(id)) || !self.rng.chance(50) {
                continue;
            }
            let to_come = truth.expected[truth.delivered..].iter().take(self.rng.below(5));
            let wrong = |token: &Token| token ^ u32::from(self.rng.chance(20));
            let draft: Vec<Token> = to_come.map(wrong).collect();
            self.scheduler.set_draft(RequestId(id), &draft).expect("drafts are allowed");
        }
    }

    /// Schedules a step, builds its batch in every way, and runs it.
    fn step(&mut self) {
        if self.scenario.drafts {
            self.draft();
        }
        self.counts.add("steps", 1);
        let now = Time(self.counts.of("steps") as u64);
        let step = self.scheduler.schedule(now).expect("somebody can run").clone();
        // Of two faults either may be named: there is one at a time.
        if self.rng.chance(1) && !step.is_empty() && self.too_wide(&step).is_empty() {
            let at = self.rng.below(step.rows().len());
            let id = step.rows()[at].id;
            if self.truths.contains_key(&id.0) {
                self.cancel(id);
                self.expect_error(&step, &Error::UnknownStep(step.id()));
                self.counts.add("unknown", 1);
                return;
            }
        }
        let bytes = match self.fresh(&step) {
            Ok(bytes) => bytes,
            Err(error @ Error::InvalidArgument { field: "dense_width", .. }) => {
                self.expect_error(&step, &error);
                self.counts.add("too_wide", 1);
                let wide = self.too_wide(&step);
                assert!(!wide.is_empty(), "every table fits {} columns", self.scenario.width);
                wide.into_iter().for_each(|id| self.cancel(id));
                return;
            }
            Err(error) => panic!("step {}: {error}", step.id()),
        };
        match self.rng.below(100) {
            // A builder that has not seen a step must not go on as if it had.
            0..2 => {
                self.counts.add("skipped", 1);
                self.last = None;
            }
            // One that sees a step again must build the same again.
            2..5 => {
                self.carried(&step);
                self.last = None;
                self.carried(&step);
                self.counts.add("rebuilt", 1);
            }
            _ => self.carried(&step),
        }
        self.count(&step);
        self.queue.push((step.id().0, bytes));
        if self.rng.chance(50) {
            self.run_queue(u64::MAX);
        }
        // More often where there is more to undo.
        let much = !step.block_ops().is_empty() || !step.preempted().is_empty();
        if self.rng.chance(if much { 25 } else { 3 }) {
            self.abandon();
        }
    }

    /// Runs what is queued up to this step.
    fn run_queue(&mut self, last: u64) {
        let due = self.queue.partition_point(|&(step, _)| step <= last);
        self.queue.drain(..due).for_each(|(_, bytes)| self.memory.run(&bytes));
    }

    /// Undoes the newest step, or several, whether they have run or not.
    fn abandon(&mut self) {
        while let Some(id) = self.scheduler.steps_in_flight().last().map(Step::id) {
            self.scheduler.abandon(id).expect("it is the newest in flight");
            self.scheduler.verify().expect("the scheduler's invariants");
            self.queue.retain(|&(step, _)| step != id.0);
            self.counts.add("abandoned", 1);
            if self.rng.chance(50) {
                break;
            }
        }
    }

    /// Both builders refuse the step with this error, each time they are asked.
    fn expect_error(&mut self, step: &Step, error: &Error) {
        assert_eq!(self.fresh(step).as_ref().err(), Some(error));
        for _ in 0..2 {
            let carried = self.builder.build(&self.scheduler, step);
            assert_eq!(carried.err().as_ref(), Some(error), "step {}", step.id());
        }
        self.last = None;
        self.scheduler.abandon(step.id()).expect("it is the newest in flight");
    }

    /// The requests of a step whose tables are wider than the dense one.
    fn too_wide(&self, step: &Step) -> Vec<RequestId> {
        let room = (self.scenario.width * self.scenario.config.cache.block_size) as u32;
        let too_wide = |row: &&Row| row.num_computed + row.num_tokens > room;
        step.rows().iter().filter(too_wide).map(|row| row.id).collect()
    }

    /// A builder that knows nothing of earlier steps.
    fn fresh(&self, step: &Step) -> Result<Vec<u8>, Error> {
        let Scenario { buckets, width, sizes, .. } = &self.scenario;
        let mut builder = BatchBuilder::new(buckets.clone(), Some(*width));
        let bytes = builder.build(&self.scheduler, step)?.bytes().to_vec();
        let batch = builder.batch();
        let want = Arrays::naive(&self.scheduler, step, sizes);
        assert_eq!(Arrays::parse(batch.bytes()), want, "fresh, {}", self.scenario.name);
        check_dense(builder.dense().expect("it has one"), &want);
        Ok(bytes)
    }

    /// The builder that lives as long as the scheduler.
    fn carried(&mut self, step: &Step) {
        let at = format!("{}, step {}", self.scenario.name, step.id());
        let want = Arrays::naive(&self.scheduler, step, &self.scenario.sizes);
        let batch = self.builder.build(&self.scheduler, step).expect(&at);
        assert_eq!(Arrays::parse(batch.bytes()), want, "carried, {at}");
        assert_eq!(Arrays::of(batch), want, "through accessors, {at}");
        let dense = self.builder.dense().expect("it has one");
        check_dense(dense, &want);
        copy_changes(dense, &mut self.mirror);
        let same = self.mirror.iter().copied().eq(dense.blocks().iter().map(|block| block.0));
        assert!(same, "what changed is not all that changed, {at}");

        let rows = step.rows();
        let (now, next): (Vec<_>, Vec<_>) =
            rows.iter().map(|r| ((r.id, r.num_computed), (r.id, r.num_computed + 1))).unzip();
        let plain = !rows.is_empty()
            && rows.iter().all(|r| r.is_decode && r.num_tokens == 1 && !r.admitted)
            && step.block_ops().is_empty()
            && step.sources().is_empty();
        if plain && self.last.as_ref() == Some(&now) {
            let block_size = self.scenario.config.cache.block_size as u32;
            let grown = rows.iter().filter(|r| r.num_computed % block_size == 0).count();
            self.counts.add("carried_on", 1);
            self.counts.add("crossed", usize::from(grown > 0));
            self.counts
                .add("crossed_by_some_not_all", usize::from((1..rows.len()).contains(&grown)));
            let written: usize = dense.changed().iter().map(ExactSizeIterator::len).sum();
            assert_eq!(written, grown, "a steady step writes new blocks only, {at}");
        }
        self.last = plain.then_some(next);
    }

    fn count(&mut self, step: &Step) {
        let counts = &mut self.counts;
        let rows = step.rows();
        counts.add("empty", usize::from(rows.is_empty()));
        let padded = self.scenario.buckets.padded(rows.len() as u32);
        counts.add("padded", usize::from(padded > rows.len() as u32));
        counts.add("chunks", rows.iter().filter(|row| !row.samples).count());
        counts.add("admitted", rows.iter().filter(|row| row.admitted).count());
        counts.add("preempted", step.preempted().len());
        counts.add("drafts", rows.iter().map(|row| row.num_draft as usize).sum::<usize>());
    }

    /// Takes the samples of the oldest step; every token delivered is the one to come.
    fn commit(&mut self) {
        let id = self.scheduler.steps_in_flight().next().expect("one is in flight").id();
        self.run_queue(id.0);
        let rows = self.memory.accepted.remove(&id.0).expect("it has run");
        let tokens = rows.concat();
        let indptr: Vec<u32> = (0..=rows.len()).map(|n| rows[..n].concat().len() as u32).collect();
        self.counts.add("drafts_accepted", tokens.len() - rows.len());
        let sampled = match self.scenario.drafts {
            true => Sampled::Ragged { tokens: &tokens, indptr: &indptr },
            false => Sampled::One(&tokens),
        };
        let outputs = self.scheduler.commit(id, sampled).expect("it is the oldest");
        for output in outputs.as_slice() {
            let truth = self.truths.get_mut(&output.id.0).expect("it has not finished");
            for &token in outputs.tokens(output) {
                let want = truth.expected.get(truth.delivered).copied();
                let (name, k) = (self.scenario.name, truth.delivered);
                assert_eq!(Some(token), want, "{name}, token {k} of {}", output.id);
                truth.delivered += 1;
                self.counts.add("delivered", 1);
            }
            let all = truth.delivered == truth.expected.len();
            assert_eq!(output.finish, all.then_some(truth.finish), "request {}", output.id);
            if all {
                self.counts.add("finished", 1);
                let truth = self.truths.remove(&output.id.0).expect("it was there");
                self.past.insert(0, truth.whole);
                self.past.truncate(4);
            }
        }
        self.memory.sampled.retain(|&step, _| step >= id.0);
    }
}
