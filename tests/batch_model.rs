//! The ragged batch against a naive construction, and against a device that knows nothing else.
//!
//! Random workloads run through a scheduler. The batch of each step is built by a builder that
//! lives as long as the scheduler, and so carries on where it can, and by a fresh one. Both are
//! read from their raw bytes and compared with arrays made the slow way from
//! [`Scheduler::sequence`]. The bytes then drive a device that stores tokens in place of KV and
//! samples a hash of what it reads back through the block tables: a wrong slot, table, copy or
//! pending input delivers a wrong token.

#[path = "common/batch_world.rs"]
mod batch_world;
#[path = "common/ragged.rs"]
mod ragged;
#[path = "common/rng.rs"]
mod rng;

use std::collections::BTreeMap;

use batch_world::{Counts, Scenario, World, random_request};
use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::CacheConfig;
use inflight::executor::{Executor, Job, Samples};
use inflight::scheduler::Step;
use inflight::{
    Config, Engine, Error, Policy, Request, RequestId, Sampled, Scheduler, Time, Token,
};
use ragged::{Arrays, Memory, check_dense, copy_changes};
use rng::Rng;

fn cache(num_blocks: usize, block_size: usize, prefix_cache: bool) -> CacheConfig {
    CacheConfig { num_blocks, block_size, prefix_cache, num_host_blocks: 0 }
}

/// Six requests at once over a cache that is too small for them.
fn limits(cache: CacheConfig) -> Config {
    let max_model_len = Config::new(cache).max_model_len.min(120);
    Config { max_num_seqs: 6, max_num_batched_tokens: 48, max_model_len, ..Config::new(cache) }
}

fn scenarios() -> Vec<Scenario> {
    let plain = Scenario {
        name: "one step at a time",
        policy: Policy::continuous,
        config: limits(cache(41, 4, false)),
        sizes: vec![],
        buckets: RowBuckets::none(),
        width: 40,
        drafts: false,
        steps: 2500,
    };
    let custom = Scenario {
        sizes: vec![3, 5],
        buckets: RowBuckets::new(vec![3, 5]).expect("they ascend"),
        ..plain.clone()
    };
    let ladder =
        Scenario { sizes: vec![1, 2, 4, 8], buckets: RowBuckets::ladder(8), ..plain.clone() };
    let host = |num_host_blocks: usize, config: Config| Config {
        swap: true,
        cache: CacheConfig { num_host_blocks, ..config.cache },
        ..config
    };
    let flights = |max_steps_in_flight: usize, overlap: bool, config: Config| Config {
        max_steps_in_flight,
        overlap,
        ..config
    };
    vec![
        Scenario {
            name: "prefix cache and drafts",
            config: limits(cache(30, 4, true)),
            drafts: true,
            ..ladder.clone()
        },
        Scenario {
            name: "blocks of one token",
            config: limits(cache(160, 1, true)),
            width: 160,
            steps: 1200,
            ..custom.clone()
        },
        Scenario {
            name: "swapping",
            config: host(25, limits(cache(31, 4, true))),
            ..custom.clone()
        },
        Scenario {
            name: "overlap of two",
            config: flights(2, true, limits(cache(27, 5, true))),
            ..custom.clone()
        },
        Scenario {
            name: "overlap of three, swapping",
            config: flights(3, true, host(40, limits(cache(31, 4, false)))),
            ..ladder.clone()
        },
        Scenario {
            name: "pipeline of two",
            policy: Policy::max_utilization,
            config: flights(2, false, limits(cache(31, 4, true))),
            drafts: true,
            ..plain.clone()
        },
        Scenario {
            name: "pipeline of three, swapping, chunks of five",
            policy: Policy::priority,
            config: Config {
                long_prefill_token_threshold: 5,
                ..flights(3, false, host(30, limits(cache(31, 4, false))))
            },
            ..ladder.clone()
        },
        Scenario {
            name: "static",
            policy: Policy::static_batch,
            config: limits(cache(61, 4, true)),
            ..custom.clone()
        },
        Scenario {
            name: "orca",
            policy: Policy::orca,
            config: limits(cache(61, 4, false)),
            ..ladder.clone()
        },
        Scenario {
            name: "no eviction, overlap",
            policy: Policy::no_evict,
            config: flights(2, true, limits(cache(61, 4, true))),
            ..plain.clone()
        },
        Scenario { name: "a dense table too narrow", width: 24, ..custom },
        plain,
    ]
}

/// A builder that carries on, one that does not and a naive one agree in every step, and a device
/// that has nothing but their bytes outputs what each request must.
#[test]
fn every_batch_is_that_of_its_step() {
    let mut total = Counts::default();
    for (seed, scenario) in (1..).zip(scenarios()) {
        let counts = World::new(&scenario, seed).run();
        println!("{}: {counts:?}", scenario.name);
        let Config { overlap, swap, .. } = scenario.config;
        assert!(counts.of("delivered") > 1000 && counts.of("finished") > 20, "{}", scenario.name);
        assert_eq!(counts.of("pending") > 500, overlap, "{}", scenario.name);
        assert_eq!(counts.of("copies") > 50, swap, "{}", scenario.name);
        assert_eq!(counts.of("too_wide") > 10, scenario.width == 24, "{}", scenario.name);
        counts.0.into_iter().for_each(|(what, times)| total.add(what, times));
    }
    println!("all: {total:?}");
    let carried = total.of("carried_on");
    assert!(carried > 5000 && total.of("steps") - carried > 5000, "both kinds are tested");
    assert!(total.of("crossed") > 500 && carried - total.of("crossed") > 500);
    assert!(total.of("crossed_by_some_not_all") > 300);
    assert!(total.of("padded") > 2000 && total.of("empty") > 50 && total.of("chunks") > 500);
    assert!(
        total.of("preempted") > 100 && total.of("hits") > 1000 && total.of("drafts_accepted") > 300
    );
    assert!(total.of("drafts") > total.of("drafts_accepted"));
    assert!(total.of("abandoned") > 200 && total.of("skipped") > 100 && total.of("rebuilt") > 200);
    assert!(total.of("unknown") > 50 && total.of("cancelled") > 200);
    assert!(total.of("pending") > 5000 && total.of("copies") > 500);
}

/// A scheduler with these limits, and the requests (id, prompt, output tokens) in its queue.
fn scheduler(config: Config, requests: &[(u64, &[Token], u32)]) -> Scheduler {
    let mut scheduler = Scheduler::new(config, Policy::continuous()).expect("valid limits");
    for &(id, prompt, max_tokens) in requests {
        let request = Request::new(RequestId(id), prompt.to_vec(), max_tokens);
        scheduler.submit(request).expect("it fits");
    }
    scheduler
}

fn schedule(scheduler: &mut Scheduler) -> Step {
    scheduler.schedule(Time(0)).expect("somebody can run").clone()
}

/// Samples token 7 for every row, up to the step in which all decode.
fn run_to_decode(scheduler: &mut Scheduler, builder: &mut BatchBuilder) {
    loop {
        let step = schedule(scheduler);
        builder.build(scheduler, &step).expect("it can be built");
        commit(scheduler, &step);
        if step.rows().iter().all(|row| row.is_decode) {
            return;
        }
    }
}

fn commit(scheduler: &mut Scheduler, step: &Step) {
    let sampled = vec![7; step.num_sampling()];
    scheduler.commit(step.id(), Sampled::One(&sampled)).expect("it is the oldest");
}

/// Two rows from their prompts to a step in which one of them gets a block, every array spelt out.
#[test]
fn two_rows_by_hand() {
    let (a, b): (&[Token], &[Token]) = (&[10, 11, 12, 13, 14], &[20, 21, 22]);
    let mut scheduler = scheduler(limits(cache(9, 4, false)), &[(1, a, 8), (2, b, 8)]);
    let buckets = RowBuckets::new(vec![4]).expect("they ascend");
    let mut builder = BatchBuilder::new(buckets, Some(3));
    let common = Arrays { num_rows: 2, padded_rows: 4, block_size: 4, ..Arrays::default() };
    let prompts = Arrays {
        max_q_len: 5,
        max_kv_len: 5,
        tokens: vec![10, 11, 12, 13, 14, 20, 21, 22],
        positions: vec![0, 1, 2, 3, 4, 0, 1, 2],
        slot_mapping: vec![4, 5, 6, 7, 8, 12, 13, 14],
        qo_indptr: vec![0, 5, 8, 8, 8],
        kv_indptr: vec![0, 2, 3, 3, 3],
        kv_last_page_len: vec![1, 3, 0, 0],
        logits_indices: vec![4, 7],
        kv_indices: vec![1, 2, 3],
        ..common.clone()
    };
    let second = Arrays {
        step: 1,
        max_q_len: 1,
        max_kv_len: 6,
        tokens: vec![15, 23],
        positions: vec![5, 3],
        slot_mapping: vec![9, 15],
        qo_indptr: vec![0, 1, 2, 2, 2],
        kv_last_page_len: vec![2, 4, 0, 0],
        logits_indices: vec![0, 1],
        kv_indptr: vec![0, 2, 3, 3, 3],
        kv_indices: vec![1, 2, 3],
        ..common
    };
    let third = Arrays {
        step: 2,
        max_kv_len: 7,
        tokens: vec![16, 24],
        positions: vec![6, 4],
        slot_mapping: vec![10, 16],
        kv_last_page_len: vec![3, 1, 0, 0],
        kv_indptr: vec![0, 2, 4, 4, 4],
        kv_indices: vec![1, 2, 3, 4],
        ..second.clone()
    };
    let tables = [[1, 2, 0, 3, 0, 0], [1, 2, 0, 3, 0, 0], [1, 2, 0, 3, 4, 0]];
    let changed = [&[(0, 2), (3, 4)][..], &[(0, 2), (3, 4)], &[(4, 5)]];
    // Where the arrays begin, in the order of the header.
    let offsets = [
        [128, 160, 192, 256, 288, 320, 336, 352, 352, 352],
        [128, 144, 160, 176, 208, 240, 256, 272, 272, 272],
        [128, 144, 160, 176, 208, 240, 256, 272, 272, 272],
    ];
    let totals = [368, 288, 288];
    for (i, want) in [prompts, second, third].iter().enumerate() {
        let step = schedule(&mut scheduler);
        let batch = builder.build(&scheduler, &step).expect("it can be built");
        assert_eq!(&Arrays::parse(batch.bytes()), want);
        assert_eq!(&Arrays::of(batch), want);
        let h = batch.header();
        let found = [
            [h.tokens, h.positions, h.slot_mapping, h.qo_indptr, h.kv_indptr],
            [h.kv_last_page_len, h.logits_indices, h.pending, h.ops, h.kv_indices],
        ];
        assert_eq!(found.concat(), offsets[i]);
        assert_eq!((h.total_bytes, batch.bytes().len()), (totals[i], totals[i] as usize));
        let dense = builder.dense().expect("it has one");
        assert!(dense.blocks().iter().map(|block| block.0).eq(tables[i]), "{:?}", dense.blocks());
        let mut ranges: Vec<_> = dense.changed().iter().map(|r| (r.start, r.end)).collect();
        ranges.sort_unstable();
        assert_eq!(ranges, changed[i]);
        let sampled = [[15, 23], [16, 24], [17, 25]][i];
        scheduler.commit(step.id(), Sampled::One(&sampled)).expect("it is the oldest");
    }
}

#[test]
fn nobody_is_a_batch_too() {
    let mut scheduler = scheduler(limits(cache(9, 4, false)), &[]);
    for (buckets, padded) in [(RowBuckets::none(), 0), (RowBuckets::ladder(8), 1)] {
        let step = schedule(&mut scheduler);
        let mut builder = BatchBuilder::new(buckets, Some(1));
        let batch = builder.build(&scheduler, &step).expect("it can be built");
        let want = Arrays {
            step: step.id().0,
            padded_rows: padded,
            block_size: 4,
            qo_indptr: vec![0; padded as usize + 1],
            kv_indptr: vec![0; padded as usize + 1],
            kv_last_page_len: vec![0; padded as usize],
            ..Arrays::default()
        };
        assert_eq!(Arrays::parse(batch.bytes()), want);
        commit(&mut scheduler, &step);
    }
}

#[test]
fn buckets_ascend_from_one() {
    for bad in [vec![0], vec![0, 1], vec![2, 2], vec![3, 1], vec![1, 4, 4, 8], vec![8, 4, 2]] {
        match RowBuckets::new(bad.clone()) {
            Err(Error::InvalidArgument { field: "row_buckets", .. }) => {}
            other => panic!("{bad:?}: {other:?}"),
        }
    }
    let padded = |buckets: &RowBuckets, rows: &[u32]| -> Vec<u32> {
        rows.iter().map(|&rows| buckets.padded(rows)).collect()
    };
    let none = RowBuckets::new(vec![]).expect("no sizes are in order");
    assert_eq!(none, RowBuckets::none());
    assert_eq!(padded(&none, &[0, 1, 17, 4096]), [0, 1, 17, 4096]);
    let some = RowBuckets::new(vec![1, 6, u32::MAX]).expect("they ascend");
    assert_eq!(padded(&some, &[0, 1, 2, 6, 7, u32::MAX]), [1, 1, 6, 6, u32::MAX, u32::MAX]);
    let two = RowBuckets::new(vec![2, 4]).expect("they ascend");
    assert_eq!(padded(&two, &[0, 1, 2, 3, 4, 5]), [2, 2, 2, 4, 4, 5]);
    let sizes = |max: u32| {
        let mut sizes: Vec<u32> =
            (1..=max + 20).map(|rows| RowBuckets::ladder(max).padded(rows)).collect();
        sizes.dedup();
        sizes.retain(|&size| size <= max);
        sizes
    };
    assert_eq!(sizes(1), [1]);
    assert_eq!(sizes(3), [1, 2, 3]);
    assert_eq!(sizes(8), [1, 2, 4, 8]);
    assert_eq!(sizes(30), [1, 2, 4, 8, 16, 24, 30]);
    let mut large = vec![1, 2, 4];
    large.extend((8..=256).step_by(8));
    large.extend([272, 288, 300]);
    assert_eq!(sizes(300), large);
    assert_eq!(RowBuckets::ladder(300).padded(301), 301);
    assert_eq!(RowBuckets::ladder(0).padded(1), 1);
}

/// A builder sees each of these after a steady step, and must not take it for the next one.
#[test]
fn a_step_that_does_not_follow_is_not_carried_on() {
    let prompt: &[Token] = &[1, 2, 3, 4, 5];
    type Between = fn(&mut Scheduler, &mut BatchBuilder) -> Step;
    let cases: [(&str, Between); 4] = [
        ("the next step", |scheduler, _| schedule(scheduler)),
        ("the same step again", |scheduler, builder| {
            let step = schedule(scheduler);
            builder.build(scheduler, &step).expect("it can be built");
            step
        }),
        ("a step in place of one abandoned", |scheduler, builder| {
            let step = schedule(scheduler);
            builder.build(scheduler, &step).expect("it can be built");
            scheduler.abandon(step.id()).expect("it is the newest in flight");
            schedule(scheduler)
        }),
        ("a step after one it has not seen", |scheduler, _| {
            let step = schedule(scheduler);
            commit(scheduler, &step);
            schedule(scheduler)
        }),
    ];
    let mut wrong = Vec::new();
    for (what, between) in cases {
        // Twelve steps cross blocks, too.
        for lead in 0..12 {
            let config = limits(cache(40, 4, false));
            let mut scheduler = scheduler(config, &[(1, prompt, 60), (2, &prompt[..3], 60)]);
            let mut builder = BatchBuilder::new(RowBuckets::none(), Some(20));
            (0..=lead).for_each(|_| run_to_decode(&mut scheduler, &mut builder));
            let step = between(&mut scheduler, &mut builder);
            let want = Arrays::naive(&scheduler, &step, &[]);
            let batch = builder.build(&scheduler, &step).expect("it can be built");
            if Arrays::of(batch) != want {
                wrong.push(format!("{what}, {lead}: {:?}, {want:?}", Arrays::of(batch)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of 48:\n{}", wrong.len(), wrong[0]);
}

#[test]
fn only_the_newest_step_in_flight_is_built() {
    let prompt: &[Token] = &[1, 2, 3, 4, 5];
    let config = Config { max_steps_in_flight: 3, ..limits(cache(20, 4, false)) };
    let mut scheduler = scheduler(config, &[(1, prompt, 20), (2, prompt, 20)]);
    let mut builder = BatchBuilder::new(RowBuckets::none(), None);
    let unknown = |scheduler: &Scheduler, builder: &mut BatchBuilder, step: &Step, what: &str| {
        let error = builder.build(scheduler, step).err();
        assert_eq!(error, Some(Error::UnknownStep(step.id())), "{what}");
    };
    let step = schedule(&mut scheduler);
    let before = scheduler.snapshot(RequestId(2));
    scheduler.cancel(RequestId(2)).expect("it runs");
    unknown(&scheduler, &mut builder, &step, "its request was cancelled");
    assert!(before.is_some() && scheduler.snapshot(RequestId(2)).is_none());
    scheduler.abandon(step.id()).expect("it is the newest in flight");
    unknown(&scheduler, &mut builder, &step, "it was abandoned");
    // Another request in the same slot is another request.
    let again = Request::new(RequestId(2), prompt.to_vec(), 20);
    scheduler.submit(again).expect("it fits");
    unknown(&scheduler, &mut builder, &step, "its request is another");
    let step = schedule(&mut scheduler);
    builder.build(&scheduler, &step).expect("it can be built");
    commit(&mut scheduler, &step);
    unknown(&scheduler, &mut builder, &step, "it was committed");
}

/// Whoever builds a step late finds its rows changed, blocks taken away included: that is an error,
/// not a batch and not a panic.
#[test]
fn a_step_built_too_late() {
    let prompt: &[Token] = &[1, 2, 3, 4, 5, 6, 7, 8];
    let config = Config { max_steps_in_flight: 2, overlap: true, ..limits(cache(5, 4, false)) };
    let mut scheduler = scheduler(config, &[(1, prompt, 8), (2, &prompt[..7], 8)]);
    let mut builder = BatchBuilder::new(RowBuckets::none(), None);
    let first = schedule(&mut scheduler);
    let second = schedule(&mut scheduler);
    assert_eq!((first.rows().len(), second.preempted()), (2, &[RequestId(2)][..]));
    assert_eq!(builder.build(&scheduler, &first).err(), Some(Error::UnknownStep(first.id())));
    let want = Arrays::naive(&scheduler, &second, &[]);
    let batch = builder.build(&scheduler, &second).expect("it is the newest");
    assert_eq!(Arrays::parse(batch.bytes()), want);
}

/// What fails leaves nothing behind: the batch and the dense table are as before, and what is
/// built next is right.
#[test]
fn a_table_outgrows_the_dense_one() {
    let prompt: &[Token] = &[1, 2, 3, 4, 5];
    let config = limits(cache(40, 4, false));
    let mut scheduler = scheduler(config, &[(1, &prompt[..2], 40), (2, prompt, 40)]);
    let mut builder = BatchBuilder::new(RowBuckets::none(), Some(2));
    let (step, error) = loop {
        let step = schedule(&mut scheduler);
        match builder.build(&scheduler, &step) {
            Ok(_) => commit(&mut scheduler, &step),
            Err(error) => break (step, error),
        }
    };
    assert_eq!(step.rows()[1].num_computed, 8);
    assert!(matches!(error, Error::InvalidArgument { field: "dense_width", .. }), "{error:?}");
    assert!(error.to_string().starts_with("dense_width: "), "{error}");
    let again = builder.build(&scheduler, &step).err();
    assert_eq!(again, Some(error), "the same step again");
    scheduler.abandon(step.id()).expect("it is the newest in flight");
    scheduler.cancel(RequestId(2)).expect("it runs");
    let step = schedule(&mut scheduler);
    let want = Arrays::naive(&scheduler, &step, &[]);
    let batch = builder.build(&scheduler, &step).expect("two blocks fit");
    assert_eq!(Arrays::parse(batch.bytes()), want);
    check_dense(builder.dense().expect("it has one"), &want);
}

/// A build that fails half way has not changed rows of the dense table that nobody hears of.
#[test]
fn the_dense_table_changes_only_as_it_says() {
    let prompt: Vec<Token> = (0..16).collect();
    let config = limits(cache(40, 4, false));
    let mut scheduler = scheduler(config, &[(1, &prompt[..12], 1), (2, &prompt[..12], 1)]);
    let mut builder = BatchBuilder::new(RowBuckets::none(), Some(3));
    let mut mirror = Vec::new();
    let step = schedule(&mut scheduler);
    builder.build(&scheduler, &step).expect("three blocks fit");
    copy_changes(builder.dense().expect("it has one"), &mut mirror);
    commit(&mut scheduler, &step);
    for (id, len) in [(3, 2), (4, 2), (5, 16)] {
        let request = Request::new(RequestId(id), prompt[..len].to_vec(), 4);
        scheduler.submit(request).expect("it fits");
    }
    let step = schedule(&mut scheduler);
    builder.build(&scheduler, &step).expect_err("four blocks do not fit");
    scheduler.cancel(RequestId(5)).expect("it runs");
    builder.build(&scheduler, &step).expect_err("a request is gone");
    scheduler.abandon(step.id()).expect("it is the newest in flight");
    let step = schedule(&mut scheduler);
    builder.build(&scheduler, &step).expect("two rows of one block fit");
    let dense = builder.dense().expect("it has one");
    copy_changes(dense, &mut mirror);
    let blocks: Vec<u32> = dense.blocks().iter().map(|block| block.0).collect();
    assert_eq!(mirror, blocks);
}

/// Fails one step in five, before or after it has run.
struct Flaky {
    memory: Memory,
    rng: Rng,
    failures: usize,
}

impl Executor for Flaky {
    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64, Error> {
        let fails = self.rng.chance(20);
        if !fails || self.rng.chance(50) {
            let bytes = job.batch.expect("it wants the batch").bytes();
            self.memory.run(bytes);
            let rows = &self.memory.accepted[&job.step.id().0];
            rows.iter().for_each(|row| samples.push_row(row));
        }
        self.failures += usize::from(fails);
        if fails { Err(Error::Device("flaky".into())) } else { Ok(1e-3) }
    }
}

/// An engine whose device fails now and then delivers what it would with one that does not.
#[test]
fn failed_steps_leave_no_trace() {
    let config = limits(cache(24, 4, true));
    let device = Flaky { memory: Memory::new(&config.cache), rng: Rng::new(5), failures: 0 };
    let mut engine = Engine::new(config, Policy::continuous(), device).expect("valid limits");
    let mut rng = Rng::new(6);
    let mut truths = BTreeMap::new();
    for id in 0..60 {
        let (request, truth) = random_request(&mut rng, id, &config, &[]);
        engine.submit(request).expect("it fits");
        truths.insert(RequestId(id), truth.expected);
    }
    let mut steps = 0;
    let mut found = BTreeMap::<RequestId, Vec<Token>>::new();
    loop {
        match engine.step(Time(steps)) {
            Ok(None) => break,
            Ok(Some(ran)) => {
                for output in ran.outputs.as_slice() {
                    found.entry(output.id).or_default().extend(ran.outputs.tokens(output));
                }
            }
            Err(Error::Device(_)) => {}
            Err(error) => panic!("{error}"),
        }
        steps += 1;
        assert!(steps < 20_000, "it does not end");
    }
    let failures = engine.executor().failures;
    println!("{steps} steps, {failures} failed");
    assert!(failures > 100);
    let wrong = truths.iter().filter(|&(id, want)| found.get(id) != Some(want)).count();
    assert_eq!(wrong, 0, "of {} requests", truths.len());
}
