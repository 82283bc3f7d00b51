//! Hashing blocks.

mod common;

use std::hint::black_box;

use common::Rng;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use inflight::cache::HashChain;

fn hash(c: &mut Criterion) {
    let tokens = Rng(1).tokens(4096);
    let mut group = c.benchmark_group("block_hash");
    group.throughput(Throughput::Elements(tokens.len() as u64));
    for block_size in [16, 64] {
        group.bench_function(format!("{block_size}_tokens_a_block"), |b| {
            b.iter(|| {
                let mut chain = HashChain::new(block_size, &[]);
                chain.extend(black_box(&tokens));
                chain
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hash);
criterion_main!(benches);
