//! Building the batch of a step: carried on from the one before, and anew.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::Decode;
use criterion::{Criterion, criterion_group, criterion_main};
use inflight::batch::{BatchBuilder, RowBuckets};

fn build(load: &mut Decode, builder: &mut BatchBuilder) -> Duration {
    let (_, time) = load.step(|scheduler, step| {
        let start = Instant::now();
        black_box(builder.build(scheduler, step).expect("it is in flight"));
        start.elapsed()
    });
    time
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for rows in [256, 1024] {
        let mut load = None;
        let mut builder = BatchBuilder::new(RowBuckets::none(), None);
        group.bench_function(format!("carried_on/{rows}"), |b| {
            let load = load.get_or_insert_with(|| Decode::new(rows, false));
            b.iter_custom(|times| (0..times).map(|_| build(load, &mut builder)).sum());
        });
        group.bench_function(format!("rebuilt/{rows}"), |b| {
            let load = load.get_or_insert_with(|| Decode::new(rows, false));
            // A builder without a past writes everything.
            let fresh = || BatchBuilder::new(RowBuckets::none(), None);
            b.iter_custom(|times| (0..times).map(|_| build(load, &mut fresh())).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, batches);
criterion_main!(benches);
