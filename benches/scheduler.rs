//! `schedule` + `commit`: steady decode, and a closed loop of whole lives.

mod common;

use std::time::{Duration, Instant};

use common::{Decode, Life, Shape};
use criterion::{Criterion, criterion_group, criterion_main};

/// All-decode steps; who leaves and comes is outside of what is timed.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode_step");
    for (running, prefix_cache) in [(64, false), (256, false), (1024, false), (256, true)] {
        let name = format!("{running}{}", if prefix_cache { "/prefix_cache" } else { "" });
        let mut load = None;
        group.bench_function(name, |b| {
            let load = load.get_or_insert_with(|| Decode::new(running, prefix_cache));
            b.iter_custom(|times| (0..times).map(|_| load.step(|_, _| ()).0).sum());
        });
    }
    group.finish();
}

/// A request's life: submit, chunks of its prompt, its decode steps, its end.
fn life(c: &mut Criterion) {
    let mut group = c.benchmark_group("life");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let pressed = Shape { num_blocks: 6144, ..Shape::UNIQUE };
    let shared = Shape { shared: 1024, prompt: (64.0, 1.0), ..Shape::UNIQUE };
    for (name, shape) in [("unique", Shape::UNIQUE), ("pressed", pressed), ("shared", shared)] {
        for prefix_cache in [false, true] {
            let mut load = None;
            let cache = if prefix_cache { "on" } else { "off" };
            group.bench_function(format!("{name}/prefix_cache_{cache}"), |b| {
                let shape = Shape { prefix_cache, ..shape };
                let load = load.get_or_insert_with(|| Life::new(shape));
                b.iter_custom(|times| {
                    let spent = load.run(times.max(64) as usize);
                    Duration::from_nanos((spent.per_request() * 1e3 * times as f64) as u64)
                });
            });
        }
    }
    group.finish();
}

/// A submit alone, prompt copied in.
fn submit(c: &mut Criterion) {
    use inflight::{Policy, Request, RequestId, Scheduler};
    let cache = inflight::cache::CacheConfig {
        num_blocks: 4096,
        block_size: 16,
        prefix_cache: true,
        num_host_blocks: 0,
    };
    let config = inflight::Config::new(cache);
    let mut scheduler = Scheduler::new(config, Policy::continuous()).expect("valid limits");
    c.bench_function("submit_and_cancel/256_tokens", |b| {
        b.iter_custom(|times| {
            let requests: Vec<Request> =
                (0..times).map(|id| Request::new(RequestId(id), vec![7; 256], 128)).collect();
            let start = Instant::now();
            for (id, request) in (0..times).zip(requests) {
                scheduler.submit(request).expect("it fits");
                scheduler.cancel(RequestId(id)).expect("it waits");
            }
            start.elapsed()
        });
    });
}

criterion_group!(benches, decode, life, submit);
criterion_main!(benches);
