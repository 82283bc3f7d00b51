//! Traffic that the benches share: a used pool, a shuffled request table, lognormal lengths.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::time::{Duration, Instant};

use inflight::cache::CacheConfig;
use inflight::scheduler::Outputs;
use inflight::{Config, Policy, Request, RequestId, Sampled, Scheduler, Step, Time, Token};

pub(crate) const BLOCK_SIZE: usize = 16;

/// SplitMix64: the same traffic in every run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub(crate) fn lognormal(&mut self, median: f64, sigma: f64) -> u32 {
        let (u, v) = (self.unit(), self.unit());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        (median * (sigma * normal).exp()).round().clamp(1.0, 8192.0) as u32
    }

    pub(crate) fn tokens(&mut self, n: usize) -> Vec<Token> {
        (0..n).map(|_| self.next() as Token % 128_000).collect()
    }
}

/// Median, and the 10th and 90th percentile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub p10: f64,
    pub p90: f64,
}

pub(crate) fn spread(samples: &[f64]) -> Spread {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
    Spread { median: at(0.5), p10: at(0.1), p90: at(0.9) }
}

/// What a bench prints after criterion's own output.
pub(crate) fn summary(name: &str, samples_us: &[f64], target_us: Option<f64>) {
    if samples_us.is_empty() {
        return;
    }
    let Spread { median, p10, p90 } = spread(samples_us);
    let target = target_us.map_or(String::new(), |t| format!(" (target {t} us)"));
    println!("{name}: {median:.2} us{target}, 10..90 % {p10:.2}..{p90:.2}");
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn scheduler(max_num_seqs: usize, budget: usize, num_blocks: usize, prefix: bool) -> Scheduler {
    let cache = CacheConfig {
        num_blocks,
        block_size: BLOCK_SIZE,
        prefix_cache: prefix,
        num_host_blocks: 0,
    };
    let config = Config {
        max_num_seqs,
        max_num_batched_tokens: budget,
        max_model_len: 32_768.min((num_blocks - 1) * BLOCK_SIZE),
        ..Config::new(cache)
    };
    Scheduler::new(config, Policy::continuous()).expect("valid limits")
}

/// Samples to commit: a window of random tokens that moves on with each step.
struct Samples(Vec<Token>);

impl Samples {
    fn new(rng: &mut Rng) -> Self {
        Self(rng.tokens(1 << 13))
    }

    fn of(&self, step: u64, n: usize) -> &[Token] {
        let at = (step as usize * 1031) % (self.0.len() - n);
        &self.0[at..at + n]
    }
}

/// Decode steps of a batch that never changes during `STREAM` steps; then, outside of what is
/// timed, the requests that have their tokens leave, others come, and their prompts are computed.
///
/// Contexts have a mean of about 1,000 tokens. Requests live for 350 steps on average, so after
/// the warm-up of 2,000 steps tables, token buffers, slots and the free queue are in no order.
pub(crate) struct Decode {
    pub(crate) scheduler: Scheduler,
    rng: Rng,
    samples: Samples,
    /// When each request leaves, in output tokens.
    wanted: Vec<(RequestId, u32)>,
    running: usize,
    next_id: u64,
    steps: u64,
    left: u32,
}

pub(crate) const STREAM: u32 = 64;

impl Decode {
    pub(crate) fn new(running: usize, prefix_cache: bool) -> Self {
        let mut rng = Rng(running as u64);
        let samples = Samples::new(&mut rng);
        let scheduler = scheduler(running, 8192, running * 96 + 2048, prefix_cache);
        let wanted = Vec::new();
        let mut load =
            Self { scheduler, rng, samples, wanted, running, next_id: 0, steps: 0, left: 0 };
        load.churn();
        while load.steps < 2000 {
            load.step(|_, _| ());
        }
        load
    }

    /// Replaces who is due, and computes the prompts of the new.
    fn churn(&mut self) {
        let scheduler = &mut self.scheduler;
        self.wanted.retain(|&(id, outputs)| {
            let stays = scheduler.snapshot(id).is_some_and(|s| s.num_output < outputs);
            if !stays {
                scheduler.cancel(id).expect("it runs");
            }
            stays
        });
        while self.wanted.len() < self.running {
            let id = RequestId(self.next_id);
            self.next_id += 1;
            let prompt = self.rng.lognormal(400.0, 1.0) as usize;
            let request = Request::new(id, self.rng.tokens(prompt), 16_384);
            self.scheduler.submit(request).expect("it fits");
            self.wanted.push((id, self.rng.lognormal(256.0, 0.8)));
        }
        while !self.one(|_, _| ()).2 {}
        self.left = STREAM;
    }

    /// One decode step. The time is that of `schedule` and `commit` without `between`.
    pub(crate) fn step<T>(
        &mut self,
        between: impl FnOnce(&Scheduler, &Step) -> T,
    ) -> (Duration, T) {
        if self.left == 0 {
            self.churn();
        }
        self.left -= 1;
        let (time, value, decode) = self.one(between);
        assert!(decode, "a decode step has other rows");
        (time, value)
    }

    fn one<T>(&mut self, between: impl FnOnce(&Scheduler, &Step) -> T) -> (Duration, T, bool) {
        self.steps += 1;
        let now = Time(self.steps);
        let start = Instant::now();
        let id = self.scheduler.schedule(now).expect("a request runs").id();
        let scheduled = start.elapsed();
        let step = self.scheduler.step(id).expect("it is in flight");
        let value = between(&self.scheduler, step);
        let decode = step.rows().iter().all(|row| row.is_decode);
        assert!(step.preempted().is_empty(), "the pool is large enough");
        let given = Sampled::One(self.samples.of(self.steps, step.num_sampling()));
        let start = Instant::now();
        std::hint::black_box(self.scheduler.commit(id, given).expect("its own samples"));
        (scheduled + start.elapsed(), value, decode)
    }

    pub(crate) fn mean_context(&self) -> f64 {
        let snapshot = |&(id, _): &(RequestId, u32)| self.scheduler.snapshot(id);
        let tokens: u32 = self.wanted.iter().filter_map(snapshot).map(|s| s.num_computed).sum();
        f64::from(tokens) / self.wanted.len() as f64
    }
}

/// What requests a [`Life`] serves, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) running: usize,
    pub(crate) budget: usize,
    pub(crate) num_blocks: usize,
    pub(crate) prefix_cache: bool,
    /// Tokens that all prompts start with.
    pub(crate) shared: usize,
    pub(crate) prompt: (f64, f64),
    pub(crate) output: (f64, f64),
}

impl Shape {
    /// Unique prompts of 256 and outputs of 128 tokens, median; a pool that never fills up.
    pub(crate) const UNIQUE: Self = Self {
        running: 256,
        budget: 2048,
        num_blocks: 32_768,
        prefix_cache: false,
        shared: 0,
        prompt: (256.0, 1.0),
        output: (128.0, 0.8),
    };
}

/// A closed loop of whole lives: a request that ends is replaced by another.
pub(crate) struct Life {
    pub(crate) scheduler: Scheduler,
    shape: Shape,
    rng: Rng,
    samples: Samples,
    shared: Vec<Token>,
    next_id: u64,
    steps: u64,
}

/// Where a closed loop spent its time.
#[derive(Default)]
pub(crate) struct Spent {
    pub(crate) submit: Duration,
    /// Of each step, `schedule` and `commit`.
    pub(crate) steps: Vec<f64>,
    pub(crate) rows: usize,
    pub(crate) tokens: usize,
    pub(crate) admitted: usize,
    pub(crate) preempted: usize,
    pub(crate) requests: usize,
}

impl Spent {
    /// Microseconds a request, submit included.
    pub(crate) fn per_request(&self) -> f64 {
        (micros(self.submit) + self.steps.iter().sum::<f64>()) / self.requests as f64
    }
}

impl Life {
    pub(crate) fn new(shape: Shape) -> Self {
        let mut rng = Rng(7);
        let samples = Samples::new(&mut rng);
        let shared = rng.tokens(shape.shared);
        let scheduler =
            scheduler(shape.running, shape.budget, shape.num_blocks, shape.prefix_cache);
        let mut load = Self { scheduler, shape, rng, samples, shared, next_id: 0, steps: 0 };
        // The pool has been through several hands.
        while load.scheduler.stats().finished < 8 * shape.running as u64 {
            load.run(shape.running);
        }
        load
    }

    /// Runs until so many requests have ended.
    pub(crate) fn run(&mut self, requests: usize) -> Spent {
        let mut spent = Spent::default();
        while spent.requests < requests {
            // A request always waits, so that admissions are tried in each step.
            while self.scheduler.num_unfinished() < self.shape.running + 16 {
                let request = self.request();
                let start = Instant::now();
                self.scheduler.submit(request).expect("it fits");
                spent.submit += start.elapsed();
            }
            self.step(&mut spent);
        }
        spent
    }

    fn request(&mut self) -> Request {
        let (median, sigma) = self.shape.prompt;
        let unique = self.rng.lognormal(median, sigma) as usize;
        let (median, sigma) = self.shape.output;
        let outputs = self.rng.lognormal(median, sigma);
        let mut prompt = self.rng.tokens(self.shape.shared + unique);
        prompt[..self.shape.shared].copy_from_slice(&self.shared);
        self.next_id += 1;
        Request::new(RequestId(self.next_id), prompt, outputs)
    }

    fn step(&mut self, spent: &mut Spent) {
        self.steps += 1;
        let now = Time(self.steps);
        let start = Instant::now();
        let id = self.scheduler.schedule(now).expect("a request runs").id();
        let mut time = start.elapsed();
        let step = self.scheduler.step(id).expect("it is in flight");
        spent.rows += step.rows().len();
        spent.tokens += step.num_tokens();
        spent.preempted += step.preempted().len();
        spent.admitted += step.rows().iter().filter(|row| row.admitted).count();
        let given = Sampled::One(self.samples.of(self.steps, step.num_sampling()));
        let start = Instant::now();
        let outputs: Outputs<'_> = self.scheduler.commit(id, given).expect("its own samples");
        spent.requests += std::hint::black_box(outputs).released().len();
        time += start.elapsed();
        spent.steps.push(micros(time));
    }
}
