//! `KvCache` against a naive model of its rules, and the blocks' contents against the tokens.
//!
//! Random operations go to both. After each one every invariant is verified, everything visible is
//! compared, each sequence is read through its table, and each name in the prefix cache is held
//! against the content of its block.

#[path = "common/cache_world.rs"]
mod cache_world;
#[path = "common/device.rs"]
mod device;
#[path = "common/naive_cache.rs"]
mod naive_cache;
#[path = "common/rng.rs"]
mod rng;

use cache_world::{World, field, hashes};
use inflight::cache::{CacheConfig, KvCache};
use inflight::error::Pool;
use inflight::{BlockId, Error};

#[test]
fn the_cache_does_what_the_naive_model_does() {
    let mut operations = 0;
    for (i, (block_size, prefix_cache, num_host_blocks, num_blocks)) in [
        (1, true, 10, 40),
        (3, true, 6, 24),
        (16, true, 5, 16),
        (3, false, 6, 24),
        (16, false, 0, 12),
        (1, true, 0, 20),
        (3, true, 4, 36),
        (16, true, 6, 30),
    ]
    .into_iter()
    .enumerate()
    {
        let config = CacheConfig { num_blocks, block_size, prefix_cache, num_host_blocks };
        let mut world = World::new(i as u64, config);
        (0..12_500).for_each(|_| world.step());
        let c = &world.counts;
        println!("{config:?}\n  {c:?}");
        operations += c.operations;
        let happened = [c.out_of_blocks, c.copies, c.divergences, c.truncations, c.refused];
        assert!(happened.iter().all(|&n| n > 40), "{c:?}");
        let cached = [c.hits, c.hits_rewritten, c.duplicates, c.unregistered, c.evicted as usize];
        assert!(cached.iter().all(|&n| (n > 50) == prefix_cache), "{c:?}");
        let swapped = [c.swaps_out, c.swaps_in];
        assert!(swapped.iter().all(|&n| (n > 50) == (num_host_blocks > 0)), "{c:?}");
        // Without a host pool no sequence ever fits it, which is told otherwise.
        assert_eq!(c.out_of_host_blocks > 5, num_host_blocks > 0, "{c:?}");
        assert!(c.resets > 5, "{c:?}");
        assert_eq!(c.resets_held_back > 2, num_host_blocks > 0, "{c:?}");
    }
    println!("{operations} operations");
    assert_eq!(operations, 100_000);
}

fn small(num_blocks: usize, block_size: usize) -> KvCache {
    let config = CacheConfig { num_blocks, block_size, prefix_cache: true, num_host_blocks: 4 };
    KvCache::new(config).expect("a sound configuration")
}

#[test]
fn a_cache_needs_blocks_and_blocks_need_tokens() {
    let good = CacheConfig { num_blocks: 2, block_size: 1, prefix_cache: true, num_host_blocks: 0 };
    let refused = |config: CacheConfig| field(KvCache::new(config).map(|_| ()));
    assert!(KvCache::new(good).is_ok());
    assert_eq!(refused(CacheConfig { num_blocks: 0, ..good }), "num_blocks");
    assert_eq!(refused(CacheConfig { num_blocks: 1, ..good }), "num_blocks");
    assert_eq!(refused(CacheConfig { num_blocks: usize::MAX, ..good }), "num_blocks");
    assert_eq!(refused(CacheConfig { block_size: 0, ..good }), "block_size");
    assert_eq!(refused(CacheConfig { block_size: usize::MAX, ..good }), "block_size");
    assert_eq!(refused(CacheConfig { num_host_blocks: 1 << 32, ..good }), "num_host_blocks");
}

#[test]
fn handles_of_another_cache_and_empty_sequences_are_refused() {
    let mut cache = small(4, 2);
    let mut other = small(4, 2);
    let strangers = [other.open(), other.open()];
    let seq = cache.open();
    assert_eq!(field(cache.free(strangers[1])), "seq");
    assert_eq!(field(cache.swap_out(seq)), "seq", "nothing to swap");
    assert_eq!(field(cache.swap_in(seq)), "seq", "not swapped out");
    assert_eq!(
        cache.allocate(seq, &[], 0, 7),
        Err(Error::OutOfBlocks { pool: Pool::Device, needed: 4, free: 3 })
    );
    assert_eq!(cache.allocate(seq, &[], 0, 6), Ok(3));
    assert_eq!(cache.num_free(), 0);
    cache.verify().expect("every invariant");
}

#[test]
fn kv_that_is_swapped_out_holds_back_a_reset() {
    let mut cache = small(8, 4);
    let names = hashes(4, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let seq = cache.open();
    cache.allocate(seq, &[], 0, 8).expect("room");
    cache.register(seq, &names, 8).expect("open");
    assert!(!cache.reset_prefix_cache(), "on the device");
    cache.swap_out(seq).expect("room");
    assert_eq!((cache.num_free(), cache.num_host_free(), cache.num_host_blocks()), (7, 2, 4));
    // It would come back, be registered, and be found by requests that want KV of the new weights.
    assert!(!cache.reset_prefix_cache(), "on the host");
    cache.swap_in(seq).expect("room");
    cache.register(seq, &names, 8).expect("open");
    cache.swap_out(seq).expect("room");
    cache.free(seq).expect("open");
    assert!(cache.reset_prefix_cache());
    assert_eq!(cache.lookup(&names, 8, &mut Vec::new()), 0);
}

#[test]
fn a_name_goes_with_the_content_it_named() {
    // The child holds a block that its parent named later, and outlives it.
    let mut cache = small(8, 2);
    let names = hashes(2, 0, &[1, 2]);
    let parent = cache.open();
    cache.allocate(parent, &[], 0, 2).expect("room");
    let child = cache.fork(parent).expect("on the device");
    cache.register(parent, &names, 2).expect("open");
    cache.close(parent).expect("open");
    // Nobody shares it any more: written in place, it no longer holds [1, 2].
    cache.truncate(child, 1).expect("open");
    cache.allocate(child, &[], 1, 2).expect("room");
    let mut hit = Vec::new();
    assert_eq!(cache.lookup(&names, 2, &mut hit), 0, "{hit:?} holds [1, 9] by now");
}

#[test]
fn a_name_goes_when_its_block_is_overwritten_in_place() {
    let mut cache = small(8, 2);
    let names = hashes(2, 0, &[1, 2]);
    let seq = cache.open();
    cache.allocate(seq, &[], 0, 2).expect("room");
    cache.register(seq, &names, 2).expect("open");
    // Tokens from 1 "are about to be written".
    cache.allocate(seq, &[], 1, 2).expect("room");
    assert_eq!(cache.lookup(&names, 2, &mut Vec::new()), 0);
    // Registered anew, it is found again.
    cache.register(seq, &names, 2).expect("open");
    assert_eq!(cache.lookup(&names, 2, &mut Vec::new()), 2);
}

#[test]
fn an_adopted_block_is_copied_when_its_last_token_is_computed_again() {
    let mut cache = small(8, 2);
    let names = hashes(2, 0, &[1, 2]);
    let first = cache.open();
    cache.allocate(first, &[], 0, 2).expect("room");
    cache.register(first, &names, 2).expect("open");
    let second = cache.open();
    let mut hit = Vec::new();
    assert_eq!(cache.lookup(&names, 2, &mut hit), 2);
    assert_eq!(cache.blocks_needed(second, &hit, 1, 2), 1);
    cache.allocate(second, &hit, 1, 2).expect("room");
    assert_ne!(cache.table(first), cache.table(second), "both would write to one block");
    let mut ops = Vec::new();
    cache.take_ops(&mut ops);
    assert_eq!(ops.len(), 1);
    cache.verify().expect("every invariant");
}

#[test]
fn a_hit_must_be_cached() {
    let mut cache = small(8, 2);
    let names = hashes(2, 0, &[1, 2]);
    let first = cache.open();
    cache.allocate(first, &[], 0, 2).expect("room");
    cache.register(first, &names, 2).expect("open");
    cache.free(first).expect("open");
    let mut hit = Vec::new();
    assert_eq!(cache.lookup(&names, 2, &mut hit), 2);
    // Meanwhile somebody takes every block, and what was found is gone.
    let second = cache.open();
    cache.allocate(second, &[], 0, 14).expect("room");
    cache.free(second).expect("open");
    for stale in [hit[0], BlockId::NULL, BlockId(8), BlockId(u32::MAX)] {
        let refused = field(cache.allocate(first, &[stale], 2, 3));
        assert_eq!(refused, "hit", "block {stale}");
        cache.verify().expect("every invariant");
    }
    assert_eq!((cache.num_free(), cache.table(first)), (7, &[][..]));
}
