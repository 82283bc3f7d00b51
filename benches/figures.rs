//! All figures of the table in `docs/figures.md`, by alternation in one run.
//!
//! Contenders take turns; each turn gives one sample, and the figures are medians over the turns,
//! so that a slow moment of the machine falls on all of them. Ratios are made turn by turn.

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{BLOCK_SIZE, Decode, Life, Rng, STREAM, Shape, micros, spread};
use inflight::Token;
use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::{BlockHash, CacheConfig, HashChain, KvCache};
use serde_json::json;

const TURNS: usize = 25;

/// Samples of one figure, in the order of the turns.
struct Figure {
    name: &'static str,
    unit: &'static str,
    target: Option<f64>,
    samples: Vec<f64>,
}

#[derive(Default)]
struct Figures(Vec<Figure>);

impl Figures {
    fn add(&mut self, name: &'static str, unit: &'static str, target: Option<f64>, sample: f64) {
        match self.0.iter_mut().find(|f| f.name == name) {
            Some(figure) => figure.samples.push(sample),
            None => self.0.push(Figure { name, unit, target, samples: vec![sample] }),
        }
    }

    fn print(&self) {
        println!(
            "{:<52} {:>9} {:>9} {:>9} {:>8}  unit",
            "figure", "median", "10 %", "90 %", "target"
        );
        for figure in &self.0 {
            let s = spread(&figure.samples);
            let target = figure.target.map_or("-".into(), |t| t.to_string());
            println!(
                "{:<52} {:>9.2} {:>9.2} {:>9.2} {target:>8}  {}",
                figure.name, s.median, s.p10, s.p90, figure.unit
            );
        }
        let rows = self.0.iter().map(|figure| {
            let s = spread(&figure.samples);
            json!({
                "name": figure.name, "unit": figure.unit, "target": figure.target,
                "median": s.median, "p10": s.p10, "p90": s.p90, "turns": figure.samples.len(),
            })
        });
        println!("{}", json!({ "figures": rows.collect::<Vec<_>>() }));
    }
}

/// The median step of some streams.
fn median_step(load: &mut Decode, streams: u32) -> f64 {
    let steps = (0..streams * STREAM).map(|_| micros(load.step(|_, _| ()).0));
    spread(&steps.collect::<Vec<_>>()).median
}

/// The same while something else uses the processor's caches between two steps.
fn median_cold_step(load: &mut Decode, other: &mut [u64]) -> f64 {
    let mut step = || {
        // The device runs for milliseconds, and its driver, the tokenizer and the server work.
        other.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(1));
        black_box(&other);
        micros(load.step(|_, _| ()).0)
    };
    spread(&(0..STREAM).map(|_| step()).collect::<Vec<_>>()).median
}

/// The median build of a batch that is carried on.
fn median_build(load: &mut Decode, builder: &mut BatchBuilder, streams: u32) -> f64 {
    let mut times = Vec::new();
    for _ in 0..streams * STREAM {
        let (_, time) = load.step(|scheduler, step| {
            let start = Instant::now();
            black_box(builder.build(scheduler, step).expect("it is in flight"));
            micros(start.elapsed())
        });
        times.push(time);
    }
    spread(&times).median
}

/// The median build of batches that have nothing in common with the one before.
fn median_rebuild(loads: [&mut Decode; 2], builder: &mut BatchBuilder, times: usize) -> f64 {
    let mut samples = Vec::new();
    let [a, b] = loads;
    for _ in 0..times {
        for load in [&mut *a, &mut *b] {
            samples.push(
                load.step(|scheduler, step| {
                    let start = Instant::now();
                    black_box(builder.build(scheduler, step).expect("it is in flight"));
                    micros(start.elapsed())
                })
                .1,
            );
        }
    }
    spread(&samples).median
}

/// Nanoseconds a token to extend the chain of a prompt.
fn hash_ns(tokens: &[Token], block_size: usize) -> f64 {
    let mut chains: Vec<HashChain> = (0..16).map(|_| HashChain::new(block_size, &[])).collect();
    chains.iter_mut().for_each(|chain| chain.reserve(tokens.len()));
    let start = Instant::now();
    for chain in &mut chains {
        chain.extend(black_box(tokens));
    }
    let time = start.elapsed();
    black_box(&chains);
    time.as_nanos() as f64 / (16 * tokens.len()) as f64
}

/// A cache with some sequences registered in it, and their hashes.
fn cached(sequences: usize, blocks: usize) -> (KvCache, Vec<Vec<BlockHash>>) {
    let mut rng = Rng(3);
    let config = CacheConfig {
        num_blocks: sequences * blocks + 1,
        block_size: BLOCK_SIZE,
        prefix_cache: true,
        num_host_blocks: 0,
    };
    let mut cache = KvCache::new(config).expect("valid limits");
    let mut hashes = Vec::new();
    for _ in 0..sequences {
        let tokens = rng.tokens(blocks * BLOCK_SIZE);
        let mut chain = HashChain::new(BLOCK_SIZE, &[]);
        chain.extend(&tokens);
        let seq = cache.open();
        cache.allocate(seq, &[], 0, tokens.len()).expect("it fits");
        cache.register(seq, chain.hashes(), tokens.len()).expect("it is open");
        hashes.push(chain.hashes().to_vec());
    }
    (cache, hashes)
}

fn main() {
    // `cargo test --benches` runs this too; figures of such builds mean nothing.
    let turns = if std::env::args().any(|arg| arg == "--bench") { TURNS } else { 1 };
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let mut figures = Figures::default();
    let mut decode64 = Decode::new(64, false);
    let mut decode = Decode::new(256, false);
    let mut decode_on = Decode::new(256, true);
    let mut decode1024 = Decode::new(1024, false);
    let mut other256 = Decode::new(256, true);
    let mut other1024 = Decode::new(1024, true);
    let builder = || BatchBuilder::new(RowBuckets::none(), None);
    let (mut b256, mut b1024, mut r256, mut r1024) = (builder(), builder(), builder(), builder());
    let on = Shape { prefix_cache: true, ..Shape::UNIQUE };
    let (mut life_off, mut life_on) = (Life::new(Shape::UNIQUE), Life::new(on));
    // A third of what the requests want.
    let pressed = |prefix_cache| Shape { prefix_cache, num_blocks: 6144, ..Shape::UNIQUE };
    let (mut press_off, mut press_on) = (Life::new(pressed(false)), Life::new(pressed(true)));
    let system =
        |prefix_cache| Shape { prefix_cache, shared: 1024, prompt: (64.0, 1.0), ..Shape::UNIQUE };
    let (mut system_off, mut system_on) = (Life::new(system(false)), Life::new(system(true)));
    let prompt = Rng(1).tokens(1024);
    let (cache, hashes) = cached(256, 64);
    let unknown: Vec<Vec<BlockHash>> = hashes
        .iter()
        .map(|h| h.iter().map(|h| BlockHash(h.0.map(|byte| !byte))).collect())
        .collect();
    let mut hit = Vec::new();
    let mut other = vec![0u64; 1 << 20];

    for _ in 0..turns {
        let t = Some;
        figures.add("decode step, 64 running", "us", None, median_step(&mut decode64, 4));
        figures.add("decode step, 256 running", "us", t(12.0), median_step(&mut decode, 4));
        figures.add("decode step, 1024 running", "us", t(60.0), median_step(&mut decode1024, 4));
        let sample = median_step(&mut decode_on, 4);
        figures.add("decode step, 256 running, prefix cache", "us", None, sample);
        let sample = median_cold_step(&mut decode, &mut other);
        figures.add("decode step, 256 running, cold caches", "us", None, sample);
        let sample = median_cold_step(&mut decode1024, &mut other);
        figures.add("decode step, 1024 running, cold caches", "us", None, sample);

        let sample = median_build(&mut decode, &mut b256, 4);
        figures.add("batch carried on, 256 rows", "us", t(6.0), sample);
        let sample = median_build(&mut decode1024, &mut b1024, 4);
        figures.add("batch carried on, 1024 rows", "us", t(25.0), sample);
        let sample = median_rebuild([&mut decode, &mut other256], &mut r256, 32);
        figures.add("batch rebuilt, 256 rows", "us", None, sample);
        let sample = median_rebuild([&mut decode1024, &mut other1024], &mut r1024, 32);
        figures.add("batch rebuilt, 1024 rows", "us", None, sample);

        // The same requests on both sides, so turn by turn the same work.
        let (off, on) = (life_off.run(512), life_on.run(512));
        let per_row = |s: &common::Spent| 1e3 * s.steps.iter().sum::<f64>() / s.rows as f64;
        figures.add(
            "mixed step (2048 tokens, 256 rows), cache off",
            "us",
            None,
            spread(&off.steps).median,
        );
        figures.add(
            "mixed step (2048 tokens, 256 rows), cache on",
            "us",
            None,
            spread(&on.steps).median,
        );
        figures.add("  a row of it, off", "ns", None, per_row(&off));
        figures.add("  admissions a step", "", None, off.admitted as f64 / off.steps.len() as f64);
        figures.add("  submit, off", "us", None, micros(off.submit) / 512.0);
        figures.add("a request's life, prefix cache off", "us", None, off.per_request());
        figures.add("a request's life, prefix cache on", "us", None, on.per_request());
        let ratio = on.per_request() / off.per_request();
        figures.add("a request's life, on / off", "x", t(1.3), ratio);

        let (off, on) = (press_off.run(256), press_on.run(256));
        figures.add("step under memory pressure, cache off", "us", None, spread(&off.steps).median);
        figures.add("step under memory pressure, cache on", "us", None, spread(&on.steps).median);
        figures.add(
            "  preemptions a step, off",
            "",
            None,
            off.preempted as f64 / off.steps.len() as f64,
        );
        figures.add(
            "  preemptions a step, on",
            "",
            None,
            on.preempted as f64 / on.steps.len() as f64,
        );

        let (off, on) = (system_off.run(256), system_on.run(256));
        figures.add(
            "shared system prompt (1,024 tokens): a life, off",
            "us",
            None,
            off.per_request(),
        );
        figures.add(
            "shared system prompt (1,024 tokens): a life, on",
            "us",
            None,
            on.per_request(),
        );
        let (off, on) = (off.steps.len() as f64, on.steps.len() as f64);
        figures.add("  steps for the same requests, on / off", "x", None, on / off);

        figures.add("block hash, 16 tokens a block", "ns/token", t(6.0), hash_ns(&prompt, 16));
        figures.add("block hash, 64 tokens a block", "ns/token", None, hash_ns(&prompt, 64));
        for (name, hashes) in
            [("look-up, a block found", &hashes), ("look-up of 64 blocks, none found", &unknown)]
        {
            let start = Instant::now();
            let mut found = 0;
            for hashes in hashes {
                found += cache.lookup(black_box(hashes), usize::MAX, &mut hit);
            }
            let ns = start.elapsed().as_nanos() as f64;
            figures.add(name, "ns", None, ns / (found / BLOCK_SIZE).max(hashes.len()) as f64);
        }
    }
    println!(
        "contexts of {:.0} tokens (256 running), {:.0} (1024) on average",
        decode.mean_context(),
        decode1024.mean_context()
    );
    figures.print();
}
