//! `KvCache` against a naive model of its rules, and the blocks' contents against the tokens.
//!
//! Random operations go to both. After each one every invariant is verified, everything visible is
//! compared, each sequence is read through its table, and each name in the prefix cache is held
//! against the content of its block.

#[path = "common/device.rs"]
mod device;
#[path = "common/naive_cache.rs"]
mod naive_cache;
#[path = "common/rng.rs"]
mod rng;

use std::collections::HashMap;

use device::{Device, histories};
use inflight::cache::{BlockHash, CacheConfig, ExtraKey, HashChain, KvCache, SeqId};
use inflight::{BlockId, Error, Token};
use naive_cache::{NaiveCache, Table};
use rng::Rng;

const MOST_SEQUENCES: usize = 10;

struct Sequence {
    id: SeqId,
    salt: u8,
    /// Those written, and those it is going to have.
    tokens: Vec<Token>,
    written: usize,
    table: Table,
}

#[derive(Default, Debug)]
struct Counts {
    operations: usize,
    hits: usize,
    hits_rewritten: usize,
    copies: usize,
    swaps_out: usize,
    swaps_in: usize,
    out_of_blocks: usize,
    out_of_host_blocks: usize,
    duplicates: usize,
    divergences: usize,
    truncations: usize,
    unregistered: usize,
    resets: usize,
    refused: usize,
    evicted: u64,
}

struct World {
    rng: Rng,
    config: CacheConfig,
    cache: KvCache,
    naive: NaiveCache,
    device: Device,
    sequences: Vec<Sequence>,
    closed: Vec<SeqId>,
    /// What a block of this name contains.
    contents: HashMap<BlockHash, Vec<u64>>,
    counts: Counts,
}

fn hashes(block_size: usize, salt: u8, tokens: &[Token]) -> Vec<BlockHash> {
    let keys = if salt == 0 { vec![] } else { vec![ExtraKey::Salt(vec![salt])] };
    let mut chain = HashChain::new(block_size, &keys);
    chain.extend(tokens, block_size);
    chain.hashes().to_vec()
}

fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

fn numbers(blocks: &[BlockId]) -> Vec<u32> {
    blocks.iter().map(|block| block.0).collect()
}

fn field<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.expect_err("a bad argument was taken") {
        Error::InvalidArgument { field, reason } => {
            assert!(!reason.is_empty());
            field
        }
        other => panic!("{other:?} is no argument error"),
    }
}

impl World {
    fn new(seed: u64, config: CacheConfig) -> Self {
        let CacheConfig { num_blocks, block_size, prefix_cache, num_host_blocks } = config;
        Self {
            rng: Rng::new(seed),
            config,
            cache: KvCache::new(config).expect("a sound configuration"),
            naive: NaiveCache::new(num_blocks, block_size, prefix_cache, num_host_blocks),
            device: Device::new(num_blocks, num_host_blocks, block_size),
            sequences: Vec::new(),
            closed: Vec::new(),
            contents: HashMap::new(),
            counts: Counts::default(),
        }
    }

    fn step(&mut self) {
        self.counts.operations += 1;
        let some = !self.sequences.is_empty();
        let at = if some { self.rng.below(self.sequences.len()) } else { 0 };
        match self.rng.below(100) {
            _ if !some => self.open(),
            0..14 => self.open(),
            14..36 => self.admit(at),
            36..60 => self.grow(at),
            60..66 => self.register(at),
            66..70 => self.diverge(at),
            70..74 => self.truncate(at),
            74..76 => self.unregister(at),
            76..79 => self.register_ahead(at),
            79..82 => self.fork(at),
            82..85 => self.free(at),
            85..89 => self.close(at),
            89..92 => self.swap_out(at),
            92..96 => self.swap_in(),
            96..99 => self.misuse(at),
            _ => self.reset(),
        }
        self.settle();
        self.check();
    }

    /// Prompts of few families, so that prefixes are found again, and diverge.
    fn tokens(&mut self, len: usize) -> Vec<Token> {
        let family = self.rng.below(3) as Token * 1000;
        let split = self.rng.below(2 * len.max(1));
        let tokens = (0..len as Token).map(|i| family + i);
        tokens.map(|t| if t % 1000 < split as Token { t } else { self.few() }).collect()
    }

    fn few(&mut self) -> Token {
        self.rng.below(3) as Token
    }

    fn open(&mut self) {
        if self.sequences.len() >= MOST_SEQUENCES {
            return self.close(0);
        }
        let len = self.rng.within(1, 4 * self.config.block_size + 3);
        let tokens = self.tokens(len);
        let salt = u8::from(self.rng.chance(10));
        let (id, table) = (self.cache.open(), Table::default());
        assert!(!self.closed.contains(&id), "a handle came twice");
        self.sequences.push(Sequence { id, salt, tokens, written: 0, table });
    }

    /// Looks a prefix up, takes it or not, and computes some of the rest.
    fn admit(&mut self, at: usize) {
        let block_size = self.config.block_size;
        let s = &self.sequences[at];
        if !s.table.blocks.is_empty() || !s.table.host.is_empty() {
            return self.grow(at);
        }
        let names = hashes(block_size, s.salt, &s.tokens);
        let most = self.rng.within(0, s.tokens.len());
        let mut hit = vec![BlockId(7)];
        let found = self.cache.lookup(&names, most, &mut hit);
        assert_eq!(numbers(&hit), self.naive.lookup(&names, most));
        assert_eq!(found, hit.len() * block_size);
        assert!(found <= most);
        let own = histories(u64::from(s.salt), &s.tokens);
        for (block, own) in numbers(&hit).iter().zip(own.chunks(block_size)) {
            assert_eq!(self.device.block(*block), own, "a hit of another content");
        }
        // Sometimes it computes what it could have had: duplicates.
        if self.rng.chance(20) {
            hit.clear();
        }
        let adopted = hit.len() * block_size;
        let mut from = adopted;
        if adopted > 0 && self.rng.chance(25) {
            from -= self.rng.within(1, adopted.min(block_size + 1));
            self.counts.hits_rewritten += 1;
        }
        let end = self.rng.within(adopted, s.tokens.len());
        self.counts.hits += usize::from(adopted > 0);
        if self.allocate(at, &hit, from, end) && self.rng.chance(85) {
            self.register(at);
        }
    }

    /// Allocates, and if that works writes tokens `from..end`.
    fn allocate(&mut self, at: usize, hit: &[BlockId], from: usize, end: usize) -> bool {
        let s = &mut self.sequences[at];
        let (table, hits) = (&mut s.table, numbers(hit));
        let needed = self.naive.blocks_needed(table, &hits, from, end);
        let free = self.naive.free.len();
        assert_eq!(self.cache.blocks_needed(s.id, hit, from, end), needed, "the prediction");
        let result = self.cache.allocate(s.id, hit, from, end);
        if needed > free {
            self.counts.out_of_blocks += 1;
            assert_eq!(result, Err(Error::OutOfBlocks { needed, free }));
            return false;
        }
        assert_eq!(result, Ok(needed));
        self.naive.allocate(table, &hits, from, end);
        s.written = end;
        self.settle();
        let s = &self.sequences[at];
        let own = histories(u64::from(s.salt), &s.tokens);
        (from..end).for_each(|i| self.device.write(&s.table.blocks, i, own[i]));
        true
    }

    fn grow(&mut self, at: usize) {
        let s = &self.sequences[at];
        if !s.table.host.is_empty() {
            return self.swap_in();
        }
        let (from, most) = (s.written, 2 * self.config.block_size + 1);
        let end = from + self.rng.within(1, most);
        while self.sequences[at].tokens.len() < end {
            let token = self.few();
            self.sequences[at].tokens.push(token);
        }
        if self.allocate(at, &[], from, end) && self.rng.chance(70) {
            self.register(at);
        }
    }

    /// Other tokens from somewhere on: a beam that takes another's, a draft that was rejected.
    fn diverge(&mut self, at: usize) {
        let s = &self.sequences[at];
        if s.written == 0 || !s.table.host.is_empty() {
            return self.grow(at);
        }
        let (was, written) = (s.tokens.clone(), s.written);
        let from = self.rng.below(written);
        let truncated = self.rng.chance(50);
        if truncated {
            self.cut(at, from);
        }
        let end = from + self.rng.within(1, self.config.block_size + 1);
        let s = &mut self.sequences[at];
        s.tokens.truncate(from);
        s.tokens.extend((from..end).map(|_| self.rng.below(3) as Token));
        if self.allocate(at, &[], from, end) {
            self.counts.divergences += 1;
        } else if !truncated {
            self.sequences[at].tokens = was;
        }
    }

    fn register(&mut self, at: usize) {
        let block_size = self.config.block_size;
        let s = &mut self.sequences[at];
        let names = hashes(block_size, s.salt, &s.tokens);
        let before = self.naive.names.len();
        self.cache.register(s.id, &names, s.written).expect("it is open");
        self.naive.register(&mut s.table, &names, s.written);
        let fresh = &self.naive.names[before..];
        let again = |name| self.naive.names[..before].iter().any(|(n, _)| n == name);
        self.counts.duplicates += fresh.iter().filter(|(name, _)| again(name)).count();
        self.note(at, names);
    }

    fn note(&mut self, at: usize, names: Vec<BlockHash>) {
        let s = &self.sequences[at];
        let own = histories(u64::from(s.salt), &s.tokens);
        for (name, content) in names.into_iter().zip(own.chunks_exact(self.config.block_size)) {
            self.contents.insert(name, content.to_vec());
        }
    }

    /// Names blocks before they are computed, and takes the names back, as an abandoned step does.
    fn register_ahead(&mut self, at: usize) {
        let s = &mut self.sequences[at];
        let (id, from, end) = (s.id, s.written, s.tokens.len());
        let needed = self.naive.blocks_needed(&s.table, &[], from, end);
        if !s.table.host.is_empty() || needed > self.naive.free.len() {
            return;
        }
        let names = hashes(self.config.block_size, s.salt, &s.tokens);
        self.cache.allocate(id, &[], from, end).expect("there is room");
        self.naive.allocate(&mut s.table, &[], from, end);
        self.cache.register(id, &names, end).expect("it is open");
        self.naive.register(&mut s.table, &names, end);
        self.cache.unregister(id, from).expect("it is open");
        self.naive.unregister(&mut s.table, from);
        self.note(at, names);
        if self.rng.chance(70) {
            self.cut(at, from);
        }
    }

    fn unregister(&mut self, at: usize) {
        let s = &mut self.sequences[at];
        let keep = self.rng.within(0, s.written);
        let before = self.naive.names.len();
        self.cache.unregister(s.id, keep).expect("it is open");
        self.naive.unregister(&mut s.table, keep);
        self.counts.unregistered += before - self.naive.names.len();
    }

    fn truncate(&mut self, at: usize) {
        let s = &self.sequences[at];
        if s.table.host.is_empty() {
            let keep = self.rng.below(s.written + 2);
            self.cut(at, keep);
            self.counts.truncations += 1;
        }
    }

    fn cut(&mut self, at: usize, keep: usize) {
        let s = &mut self.sequences[at];
        self.cache.truncate(s.id, keep).expect("it is open");
        self.naive.truncate(&mut s.table, keep);
        s.written = s.written.min(keep);
    }

    fn fork(&mut self, at: usize) {
        let s = &self.sequences[at];
        if !s.table.host.is_empty() {
            let refused = field(self.cache.fork(s.id));
            return assert_eq!(refused, "seq");
        }
        if self.sequences.len() < MOST_SEQUENCES {
            let id = self.cache.fork(s.id).expect("it is on the device");
            let table = self.naive.fork(&s.table);
            let (salt, tokens, written) = (s.salt, s.tokens.clone(), s.written);
            self.sequences.push(Sequence { id, salt, tokens, written, table });
        }
    }

    fn free(&mut self, at: usize) {
        let s = &mut self.sequences[at];
        self.cache.free(s.id).expect("it is open");
        self.naive.free(&mut s.table);
        s.written = 0;
    }

    fn close(&mut self, at: usize) {
        let mut s = self.sequences.swap_remove(at);
        self.cache.close(s.id).expect("it is open");
        self.naive.free(&mut s.table);
        self.closed.push(s.id);
    }

    fn swap_out(&mut self, at: usize) {
        let s = &mut self.sequences[at];
        let (needed, free) = (s.table.blocks.len(), self.naive.host_free);
        let result = self.cache.swap_out(s.id);
        if needed == 0 {
            return assert_eq!(field(result), "seq", "nothing to swap, or swapped already");
        }
        if needed > free {
            self.counts.out_of_host_blocks += 1;
            return assert_eq!(result, Err(Error::OutOfBlocks { needed, free }));
        }
        assert_eq!(result, Ok(()));
        let mut ops = Vec::new();
        self.cache.take_ops(&mut ops);
        let host: Vec<u32> = ops.iter().map(|op| op.dst).collect();
        self.naive.swap_out(&mut s.table, &host);
        assert_eq!(ops, self.naive.ops);
        self.naive.ops.clear();
        ops.iter().for_each(|op| self.device.apply(op));
        self.counts.swaps_out += 1;
    }

    /// Brings back somebody who is swapped out.
    fn swap_in(&mut self) {
        let Some(s) = self.sequences.iter_mut().find(|s| !s.table.host.is_empty()) else { return };
        let (needed, free) = (s.table.host.len(), self.naive.free.len());
        assert_eq!(self.cache.swapped_blocks(s.id), needed);
        assert!(self.cache.is_swapped_out(s.id));
        assert_eq!(field(self.cache.allocate(s.id, &[], s.written, s.written + 1)), "seq");
        let result = self.cache.swap_in(s.id);
        if needed > free {
            self.counts.out_of_blocks += 1;
            return assert_eq!(result, Err(Error::OutOfBlocks { needed, free }));
        }
        assert_eq!(result, Ok(()));
        self.naive.swap_in(&mut s.table);
        self.counts.swaps_in += 1;
    }

    /// None of these may change anything: `check` looks.
    fn misuse(&mut self, at: usize) {
        self.counts.refused += 1;
        if let Some(&id) = self.closed.last() {
            assert_eq!(field(self.cache.allocate(id, &[], 0, 1)), "seq");
            assert_eq!(field(self.cache.register(id, &[], 0)), "seq");
            assert_eq!(field(self.cache.unregister(id, 0)), "seq");
            assert_eq!(field(self.cache.truncate(id, 0)), "seq");
            assert_eq!(field(self.cache.reserve_table(id, 1)), "seq");
            assert_eq!(field(self.cache.free(id)), "seq");
            assert_eq!(field(self.cache.close(id)), "seq");
            assert_eq!(field(self.cache.fork(id)), "seq");
            assert_eq!(field(self.cache.swap_out(id)), "seq");
            assert_eq!(field(self.cache.swap_in(id)), "seq");
            assert!(self.cache.table(id).is_empty() && !self.cache.is_swapped_out(id));
        }
        let s = &self.sequences[at];
        if !s.table.blocks.is_empty() {
            let hit = ids(&s.table.blocks[..1]);
            let end = s.written + 1;
            assert_eq!(field(self.cache.allocate(s.id, &hit, s.written, end)), "hit");
            assert_eq!(field(self.cache.swap_in(s.id)), "seq");
        }
    }

    /// Mostly refused; now and then everybody leaves first.
    fn reset(&mut self) {
        while self.rng.chance(90) && !self.sequences.is_empty() {
            self.close(0);
        }
        let idle = self.naive.reset();
        assert_eq!(self.cache.reset_prefix_cache(), idle);
        self.counts.resets += usize::from(idle);
    }

    /// The copies decided are those of the model; the device makes them.
    fn settle(&mut self) {
        let mut ops = Vec::new();
        self.cache.take_ops(&mut ops);
        assert_eq!(ops, self.naive.ops, "block operations");
        self.naive.ops.clear();
        self.counts.copies += ops.iter().filter(|op| op.kind == 0).count();
        ops.iter().for_each(|op| self.device.apply(op));
    }

    fn check(&mut self) {
        let (cache, naive) = (&self.cache, &self.naive);
        cache.verify().expect("every invariant");
        let free: Vec<u32> = cache.pool().free_queue().map(|block| block.0).collect();
        assert_eq!(free, naive.free, "the free queue");
        assert_eq!(cache.num_free(), free.len());
        assert_eq!(cache.num_host_free(), naive.host_free);
        assert_eq!(cache.num_cached(), naive.names.len());
        assert_eq!(cache.stats().evicted_blocks, naive.evicted);
        let mut hit = Vec::new();
        for (name, block) in &naive.names {
            cache.lookup(&[*name], usize::MAX, &mut hit);
            assert_eq!(numbers(&hit), naive.lookup(&[*name], usize::MAX));
            let content = self.contents.get(name).expect("a name that was given");
            assert_eq!(self.device.block(*block), content, "block {block} is not what it is called");
        }
        for s in &self.sequences {
            assert_eq!(numbers(cache.table(s.id)), s.table.blocks, "a table");
            assert_eq!(cache.is_swapped_out(s.id), !s.table.host.is_empty());
            let own = histories(u64::from(s.salt), &s.tokens);
            let there = |i| match s.table.host.is_empty() {
                true => self.device.read(&s.table.blocks, i),
                false => self.device.read_host(&s.table.host, i),
            };
            (0..s.written).for_each(|i| assert_eq!(there(i), own[i], "token {i} of {:?}", s.id));
        }
        self.counts.evicted = naive.evicted;
    }
}

#[test]
fn the_cache_does_what_the_naive_model_does() {
    let mut operations = 0;
    for (i, (block_size, prefix_cache, num_host_blocks, num_blocks)) in [
        (1, true, 20, 40),
        (3, true, 12, 24),
        (16, true, 8, 16),
        (3, false, 12, 24),
        (16, false, 0, 12),
        (1, true, 0, 12),
        (3, true, 4, 60),
        (16, true, 30, 40),
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
        assert!(happened.iter().all(|&n| n > 30), "{c:?}");
        let cached = [c.hits, c.hits_rewritten, c.duplicates, c.unregistered, c.evicted as usize];
        assert!(cached.iter().all(|&n| (n > 20) == prefix_cache), "{c:?}");
        let swapped = [c.swaps_out, c.swaps_in];
        assert!(swapped.iter().all(|&n| (n > 20) == (num_host_blocks > 0)), "{c:?}");
        assert!(c.out_of_host_blocks > 5 && c.resets > 5, "{c:?}");
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
    assert_eq!(cache.allocate(seq, &[], 0, 7), Err(Error::OutOfBlocks { needed: 4, free: 3 }));
    assert_eq!(cache.allocate(seq, &[], 0, 6), Ok(3));
    assert_eq!(cache.num_free(), 0);
    cache.verify().expect("every invariant");
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
