//! The cache manager, step by step against the library's own.

use std::ptr;

use super::super::cache::*;
use super::super::ffi::Versioned;
use super::super::sequence::*;
use super::super::status::{inflight_error, inflight_status};
use super::super::step_view::inflight_block_op;
use super::{Numbers, done, field, refused};
use crate::cache::{BlockOp, CacheConfig, ExtraKey, HashChain, KvCache, SeqId};
use crate::error::{Error, Result};

struct Cache(*mut inflight_cache);

impl Cache {
    fn new(num_blocks: u64, num_host_blocks: u64) -> Self {
        let config = inflight_cache_config {
            num_blocks,
            num_host_blocks,
            block_size: 4,
            ..inflight_cache_config::initial()
        };
        let mut out = ptr::null_mut();
        // SAFETY: all pointers are of this function.
        done(|e| unsafe { inflight_cache_create(&raw const config, &raw mut out, e) });
        Self(out)
    }

    fn open(&self, keys: *const inflight_cache_keys) -> u64 {
        let mut seq = 0;
        // SAFETY: NULL or keys of the caller's.
        done(|e| unsafe { inflight_cache_open(self.0, keys, &raw mut seq, e) });
        seq
    }

    fn table(&self, seq: u64) -> Vec<u32> {
        let (mut blocks, mut len) = (ptr::null(), 0);
        // SAFETY: all pointers are of this function.
        done(|e| unsafe { inflight_cache_table(self.0, seq, &raw mut blocks, &raw mut len, e) });
        if len == 0 {
            assert!(blocks.is_null());
            return Vec::new();
        }
        // SAFETY: the view is of so many blocks.
        unsafe { std::slice::from_raw_parts(blocks, len) }.to_vec()
    }

    fn ops(&self) -> Vec<[u32; 3]> {
        let mut all = Vec::new();
        loop {
            let mut some = [inflight_block_op { kind: 9, src: 9, dst: 9 }; 3];
            let mut len = 0;
            // SAFETY: there are so many.
            done(|e| unsafe {
                let size = size_of_val(&some[0]);
                inflight_cache_take_ops(
                    self.0,
                    some.as_mut_ptr(),
                    size,
                    some.len(),
                    &raw mut len,
                    e,
                )
            });
            all.extend(some[..len].iter().map(|op| [op.kind, op.src, op.dst]));
            if len < some.len() {
                return all;
            }
        }
    }

    fn stats(&self) -> inflight_cache_stats {
        let mut stats = inflight_cache_stats::initial();
        // SAFETY: the stats are of this function.
        done(|e| unsafe { inflight_cache_get_stats(self.0, &raw mut stats, e) });
        stats
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { inflight_cache_free(self.0) }
    }
}

/// A sequence here and there.
struct Pair {
    seq: u64,
    twin: SeqId,
    chain: HashChain,
    tokens: Vec<u32>,
}

fn same(result: Result<()>, call: impl FnOnce(*mut inflight_error) -> inflight_status) -> bool {
    match result {
        Ok(()) => done(call),
        Err(ref error) => assert_eq!(refused(call).0 as i32, error.status(), "{error}"),
    }
    result.is_ok()
}

#[test]
fn any_calls_come_to_what_the_library_makes_of_them() {
    let mut random = Numbers(7);
    for _ in 0..20 {
        let cache = Cache::new(24, 8);
        let mut twin = KvCache::new(CacheConfig {
            num_blocks: 24,
            block_size: 4,
            prefix_cache: true,
            num_host_blocks: 8,
        })
        .expect("a cache");
        let mut pairs: Vec<Pair> = Vec::new();
        for _ in 0..400 {
            step(&cache, &mut twin, &mut pairs, &mut random);
            let stats = cache.stats();
            assert_eq!(stats.num_free_blocks, twin.num_free() as u64);
            assert_eq!(stats.num_cached_blocks, twin.num_cached() as u64);
            assert_eq!(stats.num_free_host_blocks, twin.num_host_free() as u64);
            assert_eq!(stats.num_sequences, pairs.len() as u64);
            let counted = twin.stats();
            assert_eq!(stats.queried_tokens, counted.queried_tokens);
            assert_eq!(stats.hit_tokens, counted.hit_tokens);
            assert_eq!(stats.evicted_blocks, counted.evicted_blocks);
            let mut ops = Vec::new();
            twin.take_ops(&mut ops);
            let ops: Vec<_> =
                ops.iter().map(|&BlockOp { kind, src, dst }| [kind, src, dst]).collect();
            assert_eq!(cache.ops(), ops);
            for pair in &pairs {
                let blocks: Vec<u32> = twin.table(pair.twin).iter().map(|block| block.0).collect();
                assert_eq!(cache.table(pair.seq), blocks);
            }
        }
        // SAFETY: the cache lives.
        done(|e| unsafe { inflight_cache_verify(cache.0, e) });
    }
}

fn step(cache: &Cache, twin: &mut KvCache, pairs: &mut Vec<Pair>, random: &mut Numbers) {
    let c = cache.0;
    if pairs.is_empty() || (pairs.len() < 6 && random.below(8) == 0) {
        let (seq, other) = (cache.open(ptr::null()), twin.open());
        let chain = HashChain::new(4, &[]);
        pairs.push(Pair { seq, twin: other, chain, tokens: Vec::new() });
        return;
    }
    let at = random.below(pairs.len());
    let n = random.below(40);
    let pair = &mut pairs[at];
    let (seq, other) = (pair.seq, pair.twin);
    match random.below(10) {
        0 => {
            same(twin.close(other), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_close(c, seq, e) }
            });
            pairs.swap_remove(at);
        }
        1 => {
            let forked = twin.fork(other);
            let mut child = 0;
            let worked = same(forked.clone().map(drop), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_fork(c, seq, &raw mut child, e) }
            });
            if let (true, Ok(other)) = (worked, forked) {
                let (chain, tokens) = (pair.chain.clone(), pair.tokens.clone());
                pairs.push(Pair { seq: child, twin: other, chain, tokens });
            }
        }
        2 => {
            let worked = same(twin.truncate(other, n), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_truncate(c, seq, n as u64, e) }
            });
            if worked {
                pair.tokens.truncate(n);
                pair.chain.truncate(n);
            }
        }
        3 => {
            same(twin.swap_out(other), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_swap_out(c, seq, e) }
            });
        }
        4 => {
            same(twin.swap_in(other), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_swap_in(c, seq, e) }
            });
        }
        5 => {
            same(twin.free(other), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_release(c, seq, e) }
            });
        }
        6 => {
            let tokens: Vec<u32> = (0..n as u32).map(|i| i / 20).collect();
            pair.tokens.extend(&tokens);
            pair.chain.extend(&pair.tokens);
            // SAFETY: there are so many tokens.
            done(|e| unsafe { inflight_cache_extend(c, seq, tokens.as_ptr(), tokens.len(), e) });
        }
        7 => {
            let n = n.min(pair.tokens.len());
            same(twin.register(other, pair.chain.hashes(), n), |e| {
                // SAFETY: the cache lives.
                unsafe { inflight_cache_register(c, seq, n as u64, e) }
            });
        }
        _ => allocate(cache, twin, pair, n),
    }
}

fn allocate(cache: &Cache, twin: &mut KvCache, pair: &Pair, n: usize) {
    let (c, seq, other) = (cache.0, pair.seq, pair.twin);
    let (mut hit, mut cached) = (Vec::new(), 0);
    let mut found = 0;
    let fresh = twin.table(other).is_empty();
    if fresh {
        found = twin.lookup(pair.chain.hashes(), n.saturating_sub(1), &mut hit);
        let most = n.saturating_sub(1) as u64;
        // SAFETY: the cache lives.
        done(|e| unsafe { inflight_cache_lookup(c, seq, most, &raw mut cached, e) });
        assert_eq!(cached, found as u64);
    }
    let (mut needed, mut taken) = (0, u64::MAX);
    let from = found.max(n / 2);
    let can_tell = match twin.is_swapped_out(other) {
        true => Err(Error::argument("seq", "is swapped out")),
        false => Ok(()),
    };
    same(can_tell, |e| {
        let needed = &raw mut needed;
        // SAFETY: the cache lives.
        unsafe { inflight_cache_blocks_needed(c, seq, cached, from as u64, n as u64, needed, e) }
    });
    let result = twin.allocate(other, &hit, from, n);
    let worked = same(result.map(|taken| assert_eq!(taken as u64, needed)), |e| {
        // SAFETY: the cache lives.
        unsafe { inflight_cache_allocate(c, seq, cached, from as u64, n as u64, &raw mut taken, e) }
    });
    if worked {
        assert_eq!(taken, needed);
        if fresh {
            twin.record_lookup(pair.tokens.len(), found);
        }
    }
}

#[test]
fn keys_keep_sequences_apart() {
    let cache = Cache::new(20, 0);
    let tokens: Vec<u32> = (0..9).collect();
    let salt = *b"tenant";
    let keys = inflight_cache_keys {
        salt: salt.as_ptr(),
        salt_len: salt.len(),
        ..inflight_cache_keys::initial()
    };
    let cached_after = |first: *const inflight_cache_keys, second: *const inflight_cache_keys| {
        let mut cached = 0;
        for (i, keys) in [first, second].into_iter().enumerate() {
            let seq = cache.open(keys);
            let c = cache.0;
            // SAFETY: the cache lives, and there are so many tokens.
            done(|e| unsafe { inflight_cache_extend(c, seq, tokens.as_ptr(), 9, e) });
            // SAFETY: the cache lives.
            done(|e| unsafe { inflight_cache_lookup(c, seq, 8, &raw mut cached, e) });
            if i == 0 {
                let none = ptr::null_mut();
                // SAFETY: the cache lives.
                done(|e| unsafe { inflight_cache_allocate(c, seq, 0, 0, 9, none, e) });
                // SAFETY: the cache lives.
                done(|e| unsafe { inflight_cache_register(c, seq, 9, e) });
            }
            // SAFETY: the cache lives.
            done(|e| unsafe { inflight_cache_close(c, seq, e) });
        }
        // SAFETY: the cache lives.
        done(|e| unsafe { inflight_cache_reset(cache.0, e) });
        cached
    };
    assert_eq!(cached_after(ptr::null(), ptr::null()), 8);
    assert_eq!(cached_after(&raw const keys, ptr::null()), 0);
    assert_eq!(cached_after(&raw const keys, &raw const keys), 8);
    // What C names is what the library names.
    let mut chain = HashChain::new(4, &[ExtraKey::Salt(salt.to_vec())]);
    chain.extend(&tokens);
    assert_eq!(chain.hashes().len(), 2);
}

#[test]
#[allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls of one kind, of which none follows a pointer that is not NULL or this function's"
)]
fn what_cannot_be_is_refused() {
    let cache = Cache::new(4, 0);
    let c = cache.0;
    let (seq, none) = (cache.open(ptr::null()), ptr::null_mut());
    let mut taken = 0;
    // SAFETY: the cache lives; other pointers are NULL.
    unsafe {
        assert_eq!(field(|e| inflight_cache_close(ptr::null_mut(), seq, e)), "cache");
        assert_eq!(field(|e| inflight_cache_close(c, seq + 1, e)), "seq");
        assert_eq!(field(|e| inflight_cache_close(c, u64::MAX, e)), "seq");
        assert_eq!(field(|e| inflight_cache_open(c, ptr::null(), ptr::null_mut(), e)), "seq");
        assert_eq!(field(|e| inflight_cache_extend(c, seq, ptr::null(), 1, e)), "tokens");
        assert_eq!(field(|e| inflight_cache_lookup(c, seq, 1, ptr::null_mut(), e)), "num_cached");
        let huge = u64::MAX;
        assert_eq!(field(|e| inflight_cache_allocate(c, seq, 0, 0, huge, none, e)), "num_tokens");
        assert_eq!(field(|e| inflight_cache_allocate(c, seq, 0, 0, 13, none, e)), "num_tokens");
        assert_eq!(field(|e| inflight_cache_allocate(c, seq, 3, 3, 8, none, e)), "num_cached");
        assert_eq!(field(|e| inflight_cache_allocate(c, seq, 4, 4, 8, none, e)), "num_cached");
        let mut needed = 0;
        let needed = &raw mut needed;
        let tokens: Vec<u32> = (0..5).collect();
        done(|e| inflight_cache_extend(c, seq, tokens.as_ptr(), 5, e));
        done(|e| inflight_cache_allocate(c, seq, 0, 0, 5, none, e));
        done(|e| inflight_cache_register(c, seq, 5, e));
        assert_eq!(
            field(|e| inflight_cache_blocks_needed(c, seq, 4, 4, 8, needed, e)),
            "num_cached"
        );
        done(|e| inflight_cache_release(c, seq, e));
        done(|e| inflight_cache_blocks_needed(c, seq, 4, 4, 8, needed, e));
        done(|e| inflight_cache_allocate(c, seq, 0, huge, 12, none, e));
        let other = cache.open(ptr::null());
        let full = refused(|e| inflight_cache_allocate(c, other, 0, 0, 1, none, e)).0;
        assert_eq!(full, inflight_status::OutOfBlocks);
        assert_eq!(field(|e| inflight_cache_swap_out(c, seq, e)), "seq");
        assert_eq!(field(|e| inflight_cache_swap_in(c, seq, e)), "seq");
        done(|e| inflight_cache_truncate(c, seq, huge, e));
        done(|e| inflight_cache_register(c, seq, huge, e));
        done(|e| inflight_cache_unregister(c, seq, huge, e));
        assert_eq!(
            field(|e| inflight_cache_take_ops(c, ptr::null_mut(), 12, 1, &raw mut taken, e)),
            "ops"
        );
        assert_eq!(refused(|e| inflight_cache_reset(c, e)).0, inflight_status::OutOfBlocks);
    }
}

#[test]
fn configurations_are_checked() {
    let mut out = ptr::dangling_mut();
    let create = |config: inflight_cache_config, out: *mut *mut inflight_cache| {
        // SAFETY: the config is of this function.
        move |e| unsafe { inflight_cache_create(&raw const config, out, e) }
    };
    let good = inflight_cache_config { num_blocks: 4, ..inflight_cache_config::initial() };
    assert_eq!(field(create(good, ptr::null_mut())), "out");
    for (bad, name) in [
        (inflight_cache_config { num_blocks: 0, ..good }, "num_blocks"),
        (inflight_cache_config { num_blocks: u64::MAX, ..good }, "num_blocks"),
        (inflight_cache_config { block_size: 0, ..good }, "block_size"),
        (inflight_cache_config { num_host_blocks: 1 << 32, ..good }, "num_host_blocks"),
        (inflight_cache_config { prefix_cache: 2, ..good }, "prefix_cache"),
    ] {
        out = ptr::dangling_mut();
        assert_eq!(field(create(bad, &raw mut out)), name);
        assert!(out.is_null());
    }
    let bad = inflight_cache_config { struct_size: 3, ..good };
    assert_eq!(refused(create(bad, &raw mut out)).0, inflight_status::StructSize);
}
