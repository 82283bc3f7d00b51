//! Random calls from C against the same calls of the Rust library: every status, every value of
//! every view, every event.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::Command;

use inflight::batch::{BatchBuilder, RaggedBatch, RowBuckets};
use inflight::cache::{CacheConfig, ExtraKey};
use inflight::request::{FinishReason, Repetition};
use inflight::scheduler::{Ended, HeadOfLine, Received, Snapshot, Submitter};
use inflight::{Config, Error, Policy, Request, RequestId, Sampled, Scheduler, Step, StepId, Time};

use super::build::{SANITIZED, program, run};

const NO_TOKEN: u64 = u32::MAX as u64;

/// FNV-1a over the bytes of numbers.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, value: impl Into<u64>) {
        for byte in value.into().to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn add_all<T: Into<u64>>(&mut self, values: impl ExactSizeIterator<Item = T>) {
        self.add(values.len() as u64);
        values.for_each(|value| self.add(value));
    }
}

fn of_step(step: &Step, batch: &RaggedBatch) -> u64 {
    let (mut digest, header) = (Digest::new(), batch.header());
    digest.add(step.id().0);
    digest.add(step.rows().len() as u64);
    for row in step.rows() {
        digest.add(row.id.0);
        for count in [row.num_tokens, row.num_computed, row.num_draft, row.num_output] {
            digest.add(count);
        }
        let flags = [row.samples, row.is_decode, row.admitted].map(u64::from);
        digest.add(flags[0] + 2 * flags[1] + 4 * flags[2]);
    }
    digest.add_all(batch.tokens().iter().copied());
    digest.add_all(batch.positions().iter().copied());
    digest.add_all(batch.slot_mapping().iter().map(|&slot| slot as u64));
    digest.add_all(batch.qo_indptr().iter().copied());
    digest.add_all(batch.kv_indptr().iter().copied());
    digest.add_all(batch.kv_indices().iter().map(|block| block.0));
    digest.add_all(batch.kv_last_page_len().iter().copied());
    digest.add_all(batch.logits_indices().iter().copied());
    let pending = batch.pending().iter().flat_map(|p| [p.token, p.steps_back, p.logits]);
    digest.add_all(pending.collect::<Vec<_>>().into_iter());
    let ops = step.block_ops().iter().flat_map(|op| [op.kind, op.src, op.dst]);
    digest.add_all(ops.collect::<Vec<_>>().into_iter());
    digest.add_all(step.preempted().iter().map(|id| id.0));
    digest.add_all(batch.bytes().iter().copied());
    digest.add(step.num_sampling() as u64);
    for count in [header.block_size, header.max_q_len, header.max_kv_len] {
        digest.add(count);
    }
    for count in [step.running(), step.waiting(), step.free_blocks()] {
        digest.add(count as u64);
    }
    digest.0
}

fn of_finish(finish: Option<FinishReason>) -> [u64; 2] {
    match finish {
        None => [0, NO_TOKEN],
        Some(FinishReason::Eos) => [1, NO_TOKEN],
        Some(FinishReason::StopToken(token)) => [2, token.into()],
        Some(FinishReason::Length) => [3, NO_TOKEN],
        Some(FinishReason::Repetition) => [4, NO_TOKEN],
    }
}

/// The numbers of a line.
struct Numbers<'a>(std::str::SplitWhitespace<'a>);

impl Numbers<'_> {
    fn next<T: std::str::FromStr>(&mut self) -> T {
        let word = self.0.next().expect("the line goes on");
        word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
    }

    fn flag(&mut self) -> bool {
        self.next::<u32>() == 1
    }
}

/// What a request has come to, in the order of `inflight_request_result`.
fn result_of(last: &Snapshot) -> [u64; 8] {
    let time = |time: Option<Time>| time.map_or(u64::MAX, |time| time.0);
    [
        time(last.first_scheduled),
        time(last.first_token),
        last.num_prompt.into(),
        last.num_output.into(),
        last.num_cached.into(),
        last.num_preemptions.into(),
        last.num_drafts.into(),
        last.num_accepted.into(),
    ]
}

/// That of a request that has not ended.
const NO_RESULT: [u64; 8] = [u64::MAX, u64::MAX, 0, 0, 0, 0, 0, 0];

struct Model {
    scheduler: Scheduler,
    submitter: Submitter,
    builder: BatchBuilder,
    /// Of each: request, client, step, kind, status, reason, stop token; then its result.
    events: VecDeque<([u64; 7], [u64; 8])>,
}

fn status<T>(result: Result<T, Error>) -> i32 {
    result.map_or_else(|error| error.status(), |_| 0)
}

impl Model {
    fn open(line: &mut Numbers<'_>) -> Self {
        let (num_blocks, block_size, num_host_blocks) = (line.next(), line.next(), line.next());
        let max_waiting = line.next::<u64>() as usize;
        let (max_num_seqs, max_num_batched_tokens) = (line.next(), line.next());
        let (max_model_len, long_prefill_token_threshold) = (line.next(), line.next());
        let (max_steps_in_flight, prefix_cache) = (line.next(), line.flag());
        let (overlap, swap) = (line.flag(), line.flag());
        let policy = match line.next::<u32>() {
            0 => Policy::continuous(),
            1 => Policy::static_batch(),
            2 => Policy::priority(),
            3 => Policy::no_evict(),
            4 => Policy::max_utilization(),
            _ => Policy::orca(),
        };
        let head_of_line = match (line.next(), line.next()) {
            (0, _) => HeadOfLine::Strict,
            (bound, lookahead) => HeadOfLine::Bypass { bound, lookahead },
        };
        let buckets = match line.next() {
            0 => RowBuckets::none(),
            most => RowBuckets::ladder(most),
        };
        let cache = CacheConfig { num_blocks, block_size, prefix_cache, num_host_blocks };
        let config = Config {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            long_prefill_token_threshold,
            max_waiting,
            max_steps_in_flight,
            overlap,
            swap,
            ..Config::new(cache)
        };
        let policy = Policy { head_of_line, ..policy };
        let scheduler = Scheduler::new(config, policy).expect("C took it");
        let submitter = scheduler.submitter();
        let builder = BatchBuilder::new(buckets, None);
        Self { scheduler, submitter, builder, events: VecDeque::new() }
    }

    /// The request of a line; its status where C cannot even say it.
    fn request(line: &mut Numbers<'_>) -> Result<Request, i32> {
        let id = RequestId(line.next());
        let (kind, len): (u32, u32) = (line.next(), line.next());
        let prompt = (0..len).map(|at| (kind * 7919 + at * 104_729) % 97).collect();
        let mut request = Request::new(id, prompt, line.next());
        let (eos, stop): (u32, u32) = (line.next(), line.next());
        request.eos = (eos != u32::MAX).then_some(eos);
        if line.flag() {
            request.stop_tokens = vec![stop];
        }
        let salt = line.next();
        if line.flag() {
            request.extra_keys = vec![ExtraKey::Salt(vec![salt])];
        }
        request.client = line.next();
        let arrival = line.next();
        request.arrival = (arrival != u64::MAX).then_some(Time(arrival));
        request.priority = line.next();
        request.min_tokens = line.next();
        let repetition = Repetition { min_pattern: 0, max_pattern: 2, min_count: line.next() };
        request.repetition = (repetition.min_count != 0).then_some(repetition);
        match line.next::<u32>() {
            flag @ 0..=1 => request.read_prefix_cache = flag == 0,
            _ => return Err(100),
        }
        Ok(request)
    }

    fn schedule(&mut self, line: &mut Numbers<'_>) -> (i32, u64) {
        let Self { scheduler, builder, events, .. } = self;
        let received = scheduler.receive(|received| match received {
            Received::Submitted(_) | Received::NothingToEnd(_) => {}
            Received::Refused { id, client, error } => {
                let status = error.status() as u64;
                events.push_back(([id.0, client, u64::MAX, 1, status, 0, NO_TOKEN], NO_RESULT));
            }
            Received::Cancelled(Ended { id, last }) => {
                let event = [id.0, last.client, u64::MAX, 3, 0, 0, NO_TOKEN];
                events.push_back((event, result_of(&last)));
            }
            Received::Finished(Ended { id, last }) => {
                let event = [id.0, last.client, u64::MAX, 2, 0, 5, NO_TOKEN];
                events.push_back((event, result_of(&last)));
            }
        });
        received.expect("nothing is corrupt");
        let id = match scheduler.schedule(Time(line.next())) {
            Ok(step) => step.id(),
            Err(error) => return (error.status(), 0),
        };
        let step = scheduler.step(id).expect("it is in flight");
        let batch = builder.build(scheduler, step).expect("the newest step");
        for &request in step.preempted() {
            let client = scheduler.snapshot(request).expect("it waits").client;
            events.push_back(([request.0, client, id.0, 4, 0, 0, NO_TOKEN], NO_RESULT));
        }
        (0, of_step(step, batch))
    }

    fn commit(&mut self, line: &str) -> (i32, u64) {
        let (head, indptr) = line.split_once(" / ").unwrap_or((line, ""));
        let mut head = Numbers(head.split_whitespace());
        let (id, ragged) = (StepId(head.next()), head.flag());
        let tokens: Vec<u32> = head.0.map(|word| word.parse().expect("a token")).collect();
        let indptr: Vec<u32> =
            indptr.split_whitespace().map(|word| word.parse().expect("an offset")).collect();
        let sampled = match ragged {
            true => Sampled::Ragged { tokens: &tokens, indptr: &indptr },
            false => Sampled::One(&tokens),
        };
        let outputs = match self.scheduler.commit(id, sampled) {
            Ok(outputs) => outputs,
            Err(error) => return (error.status(), 0),
        };
        let mut digest = Digest::new();
        digest.add(id.0);
        let mut ended = outputs.ended().iter();
        for output in outputs.as_slice() {
            let [finish, stop_token] = of_finish(output.finish);
            digest.add(output.id.0);
            digest.add(finish);
            digest.add(stop_token);
            digest.add_all(outputs.tokens(output).iter().copied());
            if finish != 0 {
                let Ended { id: of, last } = ended.next().expect("one for each that ends");
                assert_eq!((*of, last.client), (output.id, output.client));
                digest.add_all(result_of(last).into_iter());
                let event = [of.0, last.client, id.0, 2, 0, finish, stop_token];
                self.events.push_back((event, result_of(last)));
            }
        }
        digest.add(outputs.num_tokens() as u64);
        digest.add_all(outputs.released().iter().map(|id| id.0));
        digest.add(outputs.free_blocks() as u64);
        (0, digest.0)
    }

    fn events(&mut self, line: &mut Numbers<'_>) -> (usize, u64) {
        let taken = line.next::<usize>().min(self.events.len());
        let mut digest = Digest::new();
        for (event, result) in self.events.drain(..taken) {
            event.into_iter().for_each(|value| digest.add(value));
            digest.add_all(result.into_iter());
        }
        (taken, digest.0)
    }

    fn look(&self, id: RequestId) -> (i32, u64) {
        let (scheduler, cache) = (&self.scheduler, self.scheduler.cache());
        let (stats, cached) = (scheduler.stats(), cache.stats());
        let mut digest = Digest::new();
        let counts = [
            stats.steps,
            stats.admissions,
            stats.preemptions,
            stats.finished,
            stats.cancelled,
            stats.output_tokens,
            cached.queried_tokens,
            cached.hit_tokens,
            cached.evicted_blocks,
            scheduler.num_running() as u64,
            scheduler.num_waiting() as u64,
            cache.num_free() as u64,
            cache.num_host_free() as u64,
        ];
        digest.add_all(counts.into_iter());
        let Some(now) = scheduler.snapshot(id) else {
            return (Error::UnknownRequest(id).status(), digest.0);
        };
        let of = [now.num_prompt, now.num_output, now.num_computed, now.num_preemptions];
        let [first_scheduled_at, first_token_at, _, _, cached, _, drafts, accepted] =
            result_of(&now);
        let of = [now.client, now.running.into()].into_iter().chain(of.map(u64::from));
        let of = of.chain([cached, drafts, accepted, first_scheduled_at, first_token_at]);
        digest.add_all(of.collect::<Vec<_>>().into_iter());
        (0, digest.0)
    }

    /// Makes a call and compares what it came to.
    fn replay(&mut self, call: &str, rest: &str, given: i32) {
        let mut line = Numbers(rest.split_whitespace());
        let expected = match call {
            "submit" | "hand-over" => match Self::request(&mut line) {
                Ok(request) if call == "submit" => status(self.scheduler.submit(request)),
                Ok(request) => status(self.submitter.submit(request)),
                Err(status) => status,
            },
            "cancel" => status(self.scheduler.cancel(RequestId(line.next()))),
            "finish" => {
                let (id, keep, wanted) = (line.next(), line.next(), line.flag());
                let ended = self.scheduler.finish(RequestId(id), keep);
                let mut digest = Digest::new();
                if let (true, Ok(ended)) = (wanted, &ended) {
                    digest.add_all(result_of(&ended.last).into_iter());
                }
                assert_eq!(line.next::<u64>(), digest.0, "it came to something else");
                status(ended)
            }
            "ask-finish" => status(self.submitter.finish(RequestId(line.next()), line.next())),
            "ask-cancel" => status(self.submitter.cancel(RequestId(line.next()))),
            "schedule" => {
                let (status, digest) = self.schedule(&mut line);
                assert_eq!(line.next::<u64>(), digest, "the step is another");
                status
            }
            "commit" => {
                let (rest, seen) = rest.split_once(" | ").expect("it ends with a digest");
                let (status, digest) = self.commit(rest);
                assert_eq!(seen, digest.to_string(), "what is delivered is other");
                status
            }
            "abandon" => status(self.scheduler.abandon(StepId(line.next()))),
            "draft" => {
                let (id, base, len): (_, u32, u32) = (line.next(), line.next(), line.next());
                let draft: Vec<u32> = (base..base + len).collect();
                status(self.scheduler.set_draft(RequestId(id), &draft))
            }
            "events" => {
                let (taken, digest) = self.events(&mut line);
                assert_eq!((line.next(), line.next()), (taken, digest), "events are others");
                0
            }
            "look" => {
                let (status, digest) = self.look(RequestId(line.next()));
                assert_eq!(line.next::<u64>(), digest, "the state is another");
                status
            }
            "reset" => {
                if self.scheduler.reset_prefix_cache() {
                    0
                } else {
                    201
                }
            }
            "verify" => status(self.scheduler.verify()),
            "wrong" => given,
            other => panic!("no call is named {other}"),
        };
        assert_eq!(given, expected, "the status");
    }
}

fn compare(seed: &str, calls: usize, flags: &[&str]) -> BTreeMap<String, usize> {
    let name = if flags.is_empty() { "sequence" } else { "sequence_sanitized" };
    let program = program(name, Path::new("sequence.c"), flags);
    let output = run(Command::new(program).args([seed, &calls.to_string()]));
    let log = String::from_utf8(output.stdout).expect("the log is ASCII");
    let mut counts = BTreeMap::new();
    let mut model = None;
    for (at, line) in log.lines().enumerate() {
        let (rest, given) = line.rsplit_once(" = ").expect("every line ends with a status");
        let given: i32 = given.parse().expect("a status");
        let (call, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        *counts.entry(format!("{call} {given}")).or_default() += 1;
        if call == "open" {
            model = Some(Model::open(&mut Numbers(rest.split_whitespace())));
            continue;
        }
        let model = model.as_mut().expect("it opens first");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            model.replay(call, rest, given);
        }));
        assert!(outcome.is_ok(), "line {}, seed {seed}: {line}", at + 1);
    }
    counts
}

#[test]
fn a_hundred_thousand_calls_from_c_are_those_of_rust() {
    let counts = compare("1", 100_000, &[]);
    println!("{counts:#?}");
    for (what, least) in [
        ("submit 0", 3_000),
        ("submit 100", 100),
        ("submit 101", 100),
        ("submit 103", 100),
        ("hand-over 0", 1_000),
        ("schedule 0", 10_000),
        ("schedule 202", 100),
        ("commit 0", 10_000),
        ("commit 105", 100),
        ("commit 106", 20),
        ("commit 107", 100),
        ("abandon 0", 500),
        ("abandon 106", 5),
        ("cancel 0", 200),
        ("finish 0", 100),
        ("ask-finish 0", 400),
        ("draft 0", 50),
        ("events 0", 1_000),
        ("look 0", 500),
        ("reset 201", 50),
    ] {
        assert!(counts.get(what).is_some_and(|&n| n >= least), "{what}");
    }
}

#[test]
fn a_sanitizer_sees_nothing_in_them() {
    compare("2", 20_000, &SANITIZED);
}
