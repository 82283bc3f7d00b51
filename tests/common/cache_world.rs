//! Random operations on a `KvCache`, its naive model and a device of histories, compared after each.

use std::collections::HashMap;

use inflight::cache::{BlockHash, CacheConfig, ExtraKey, HashChain, KvCache, SeqId};
use inflight::error::Pool;
use inflight::{BlockId, Error, Token};

use crate::device::{Device, histories};
use crate::naive_cache::{NaiveCache, Table};
use crate::rng::Rng;

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
pub(crate) struct Counts {
    pub(crate) operations: usize,
    pub(crate) hits: usize,
    pub(crate) hits_rewritten: usize,
    pub(crate) copies: usize,
    pub(crate) swaps_out: usize,
    pub(crate) swaps_in: usize,
    pub(crate) out_of_blocks: usize,
    pub(crate) out_of_host_blocks: usize,
    pub(crate) duplicates: usize,
    pub(crate) divergences: usize,
    pub(crate) truncations: usize,
    pub(crate) unregistered: usize,
    pub(crate) resets: usize,
    /// By swapped-out sequences alone.
    pub(crate) resets_held_back: usize,
    pub(crate) refused: usize,
    pub(crate) evicted: u64,
}

pub(crate) struct World {
    rng: Rng,
    config: CacheConfig,
    cache: KvCache,
    naive: NaiveCache,
    device: Device,
    sequences: Vec<Sequence>,
    closed: Vec<SeqId>,
    /// Stands for the model's weights, which change with each reset.
    weights: u64,
    /// What a block of this name contains.
    contents: HashMap<BlockHash, Vec<u64>>,
    pub(crate) counts: Counts,
}

pub(crate) fn hashes(block_size: usize, salt: u8, tokens: &[Token]) -> Vec<BlockHash> {
    let keys = if salt == 0 { vec![] } else { vec![ExtraKey::Salt(vec![salt])] };
    let mut chain = HashChain::new(block_size, &keys);
    chain.extend(tokens);
    chain.hashes().to_vec()
}

fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

fn numbers(blocks: &[BlockId]) -> Vec<u32> {
    blocks.iter().map(|block| block.0).collect()
}

pub(crate) fn field<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result.expect_err("a bad argument was taken") {
        Error::InvalidArgument { field, reason } => {
            assert!(!reason.is_empty());
            field
        }
        other => panic!("{other:?} is no argument error"),
    }
}

impl World {
    pub(crate) fn new(seed: u64, config: CacheConfig) -> Self {
        let CacheConfig { num_blocks, block_size, prefix_cache, num_host_blocks } = config;
        Self {
            rng: Rng::new(seed),
            config,
            cache: KvCache::new(config).expect("a sound configuration"),
            naive: NaiveCache::new(num_blocks, block_size, prefix_cache, num_host_blocks),
            device: Device::new(num_blocks, num_host_blocks, block_size),
            sequences: Vec::new(),
            closed: Vec::new(),
            weights: 0,
            contents: HashMap::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn step(&mut self) {
        self.counts.operations += 1;
        let some = !self.sequences.is_empty();
        let at = if some { self.rng.below(self.sequences.len()) } else { 0 };
        match self.rng.below(100) {
            _ if !some => self.open(),
            0..14 => self.open(),
            14..34 => self.admit(),
            34..50 => self.grow(at),
            50..55 => self.register(at),
            55..60 => self.diverge(at),
            60..63 => self.truncate(at),
            63..65 => self.unregister(at),
            65..68 => self.register_ahead(at),
            68..75 => self.fork(at),
            75..78 => self.free(at),
            78..88 => self.close(at),
            88..92 => self.swap_out(at),
            92..97 => self.swap_in(),
            97..99 => self.misuse(at),
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

    /// What the sequence's KV must be.
    fn histories(&self, s: &Sequence) -> Vec<u64> {
        histories(self.weights << 8 | u64::from(s.salt), &s.tokens)
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
    fn admit(&mut self) {
        let block_size = self.config.block_size;
        let bare = |s: &Sequence| s.table.blocks.is_empty() && s.table.host.is_empty();
        let Some(at) = self.sequences.iter().position(bare) else { return self.open() };
        let s = &self.sequences[at];
        let names = hashes(block_size, s.salt, &s.tokens);
        let shorter = self.rng.chance(30);
        let most = if shorter { self.rng.below(s.tokens.len()) } else { s.tokens.len() };
        let mut hit = vec![BlockId(7)];
        let found = self.cache.lookup(&names, most, &mut hit);
        assert_eq!(numbers(&hit), self.naive.lookup(&names, most));
        assert_eq!(found, hit.len() * block_size);
        assert!(found <= most);
        let own = self.histories(s);
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
            assert_eq!(result, Err(Error::OutOfBlocks { pool: Pool::Device, needed, free }));
            return false;
        }
        assert_eq!(result, Ok(needed));
        self.naive.allocate(table, &hits, from, end);
        s.written = end;
        self.settle();
        let s = &self.sequences[at];
        let own = self.histories(s);
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
        let own = self.histories(s);
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
        if needed > self.config.num_host_blocks {
            return assert_eq!(field(result), "seq", "it never fits");
        }
        if needed > free {
            self.counts.out_of_host_blocks += 1;
            return assert_eq!(result, Err(Error::OutOfBlocks { pool: Pool::Host, needed, free }));
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
            return assert_eq!(
                result,
                Err(Error::OutOfBlocks { pool: Pool::Device, needed, free })
            );
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

    /// Mostly refused; now and then all leave first, or all but those that are swapped out.
    fn reset(&mut self) {
        let swapped_stay = self.rng.chance(50);
        let leaves = |s: &Sequence| !swapped_stay || s.table.host.is_empty();
        while self.rng.chance(90)
            && let Some(at) = self.sequences.iter().position(leaves)
        {
            self.close(at);
        }
        let idle = self.naive.reset();
        self.counts.resets_held_back +=
            usize::from(!idle && self.naive.free.len() + 1 == self.config.num_blocks);
        assert_eq!(self.cache.reset_prefix_cache(), idle);
        if idle {
            self.counts.resets += 1;
            self.weights += 1;
            self.contents.clear();
        }
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
            assert_eq!(
                self.device.block(*block),
                content,
                "block {block} is not what it is called"
            );
        }
        for s in &self.sequences {
            assert_eq!(numbers(cache.table(s.id)), s.table.blocks, "a table");
            assert_eq!(cache.is_swapped_out(s.id), !s.table.host.is_empty());
            let own = self.histories(s);
            let there = |i| match s.table.host.is_empty() {
                true => self.device.read(&s.table.blocks, i),
                false => self.device.read_host(&s.table.host, i),
            };
            (0..s.written).for_each(|i| assert_eq!(there(i), own[i], "token {i} of {:?}", s.id));
        }
        self.counts.evicted = naive.evicted;
    }
}
