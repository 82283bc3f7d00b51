//! The paged KV cache manager: blocks, block tables, prefix cache, copy-on-write, swap.
//!
//! It moves no data. It decides which block of the cache tensor holds which tokens of which
//! sequence, and lists the copies a device must make ([`BlockOp`]). It knows no scheduler: a stack
//! that has its own can use [`KvCache`] alone.
//!
//! The life of a sequence: [`open`](KvCache::open) it; extend its [`HashChain`];
//! [`lookup`](KvCache::lookup) what is cached, at most one token less than it has, since a step
//! must compute the logits; [`allocate`](KvCache::allocate) with what was found, writing from its
//! end; [`register`](KvCache::register) what this step fills, so that others who run after or with it
//! can share it; [`take_ops`](KvCache::take_ops) and make the copies; [`close`](KvCache::close).
//!
//! ```
//! use inflight::cache::{CacheConfig, HashChain, KvCache};
//!
//! let config =
//!     CacheConfig { num_blocks: 10, block_size: 4, prefix_cache: true, num_host_blocks: 0 };
//! let mut cache = KvCache::new(config)?;
//! let prompt: Vec<u32> = (0..10).collect();
//! let mut chain = HashChain::new(4, &[]);
//! chain.extend(&prompt);
//! let mut hit = Vec::new();
//!
//! let first = cache.open();
//! cache.allocate(first, &[], 0, prompt.len())?;
//! cache.register(first, chain.hashes(), prompt.len())?;
//!
//! let second = cache.open();
//! let cached = cache.lookup(chain.hashes(), prompt.len() - 1, &mut hit);
//! assert_eq!(cached, 8);
//! cache.allocate(second, &hit, cached, prompt.len())?;
//! assert_eq!(cache.table(first)[..2], cache.table(second)[..2]);
//!
//! // A fork shares everything, until one of the two writes.
//! let child = cache.fork(second)?;
//! cache.allocate(child, &[], 10, 11)?;
//! let mut copies = Vec::new();
//! cache.take_ops(&mut copies);
//! assert_eq!(copies.len(), 1);
//! # Ok::<(), inflight::Error>(())
//! ```
//!
//! Order and rules are vLLM V1's (`KVCacheManager`, `BlockPool`), so that block ids can be
//! compared one by one: the free queue is reused from its front; a freed block joins its front
//! when its content is unknown and its back when it may serve a later prefix, the tail of a
//! sequence before its start; duplicates of a content are kept.

#![forbid(unsafe_code)]

mod hash;
mod pool;
mod prefix;
mod swap;
mod table;

pub use hash::{BlockHash, ExtraKey, HashChain};
pub use pool::BlockPool;
pub use table::SeqId;

pub use crate::params::inflight_block_op as BlockOp;

use crate::error::{Error, Pool, Result};
use crate::types::BlockId;
use prefix::PrefixIndex;
use swap::HostPool;
use table::Tables;

/// What a [`KvCache`] is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Blocks of the device pool, the null block 0 included; at least 2.
    pub num_blocks: usize,
    /// Tokens per block; at least 1.
    pub block_size: usize,
    /// Whether full blocks are kept for later requests that start with the same tokens.
    pub prefix_cache: bool,
    /// Blocks of the host pool that sequences can be swapped out to; 0 for none.
    pub num_host_blocks: usize,
}

impl BlockOp {
    /// Device to device: a sequence is about to write to a block it shares.
    pub const COPY: u32 = 0;
    /// Device to host.
    pub const SWAP_OUT: u32 = 1;
    /// Host to device.
    pub const SWAP_IN: u32 = 2;
}

/// Counters since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Tokens of sequences that looked for a cached prefix.
    pub queried_tokens: u64,
    /// Tokens among them that were found and adopted.
    pub hit_tokens: u64,
    /// Blocks whose known content was given up for a new one.
    pub evicted_blocks: u64,
}

/// Blocks and the tables of the sequences that hold them.
pub struct KvCache {
    block_size: usize,
    pool: BlockPool,
    prefix: Option<PrefixIndex>,
    tables: Tables,
    host: HostPool,
    ops: Vec<BlockOp>,
    stats: CacheStats,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `num_blocks`, `block_size` or `num_host_blocks`;
    /// [`Error::OutOfMemory`] when their records do not fit.
    pub fn new(config: CacheConfig) -> Result<Self> {
        let pool = BlockPool::new(config.num_blocks)?;
        if config.block_size == 0 {
            return Err(Error::argument("block_size", "a block holds at least one token"));
        }
        if config.num_blocks.checked_mul(config.block_size).is_none() {
            return Err(Error::argument("block_size", "the pool's tokens do not fit 64 bits"));
        }
        if config.num_host_blocks > i32::MAX as usize {
            return Err(Error::argument("num_host_blocks", "does not fit 31-bit block ids"));
        }
        Ok(Self {
            block_size: config.block_size,
            pool,
            prefix: match config.prefix_cache {
                true => Some(PrefixIndex::new(config.num_blocks)?),
                false => None,
            },
            tables: Tables::default(),
            host: HostPool::new(config.num_host_blocks)?,
            ops: Vec::new(),
            stats: CacheStats::default(),
        })
    }

    /// Tokens per block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that `num_tokens` fill.
    #[must_use]
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// The device pool.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Blocks that can be handed out now; cached prefixes that no sequence holds count as free.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.pool.num_free()
    }

    /// Blocks of the host pool.
    #[must_use]
    pub fn num_host_blocks(&self) -> usize {
        self.host.num_blocks()
    }

    /// Free blocks of the host pool.
    #[must_use]
    pub fn num_host_free(&self) -> usize {
        self.host.num_free()
    }

    /// Whether full blocks are kept for later requests.
    #[must_use]
    pub fn has_prefix_cache(&self) -> bool {
        self.prefix.is_some()
    }

    /// Blocks with a known content, held or free.
    #[must_use]
    pub fn num_cached(&self) -> usize {
        self.prefix.as_ref().map_or(0, PrefixIndex::len)
    }

    /// Counters since the cache was made.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// Starts a sequence without blocks.
    pub fn open(&mut self) -> SeqId {
        self.tables.open()
    }

    /// The blocks of a sequence in the order of its tokens; empty when it is unknown or swapped
    /// out.
    #[must_use]
    pub fn table(&self, seq: SeqId) -> &[BlockId] {
        self.tables.get(seq).map_or(&[], |t| &t.blocks)
    }

    /// Makes room in the sequence's table for `num_tokens`, so that growing it to there does not
    /// allocate on the heap.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown.
    pub fn reserve_table(&mut self, seq: SeqId, num_tokens: usize) -> Result<()> {
        let blocks = self.blocks_for(num_tokens).min(self.pool.num_usable());
        let table = &mut self.tables.get_mut(seq)?.blocks;
        table.reserve(blocks.saturating_sub(table.len()));
        Ok(())
    }

    /// Looks up the longest cached prefix of at most `max_tokens` tokens and puts its blocks into
    /// `hit`; returns its tokens. Nothing is held until [`allocate`](Self::allocate), and what was found
    /// is good until the next call that changes the cache: a block may have other content then.
    pub fn lookup(&self, hashes: &[BlockHash], max_tokens: usize, hit: &mut Vec<BlockId>) -> usize {
        hit.clear();
        if let Some(prefix) = &self.prefix {
            let most = max_tokens / self.block_size;
            hit.extend(hashes.iter().take(most).map_while(|hash| prefix.find(hash)));
        }
        hit.len() * self.block_size
    }

    /// Counts a look-up whose result was adopted; separate, since one that did not lead to an
    /// admission is repeated and must not count twice.
    pub fn record_lookup(&mut self, queried_tokens: usize, hit_tokens: usize) {
        self.stats.queried_tokens += queried_tokens as u64;
        self.stats.hit_tokens += hit_tokens as u64;
    }

    /// Blocks the free queue would lose if [`allocate`](Self::allocate) were called alike.
    #[must_use]
    pub fn blocks_needed(
        &self,
        seq: SeqId,
        hit: &[BlockId],
        write_from: usize,
        num_tokens: usize,
    ) -> usize {
        let table = self.table(seq);
        let new = self.blocks_for(num_tokens).saturating_sub(table.len() + hit.len());
        // A hit that no sequence holds is in the free queue, and leaves it.
        let revived = hit.iter().filter(|&&block| self.pool.refs(block) == 0).count();
        let adopted = hit.iter().skip(write_from / self.block_size);
        let held = adopted.filter(|&&block| self.pool.refs(block) > 0).count();
        new + revived + held + self.shared_from(table, write_from).count()
    }

    /// Blocks of `table` from the one that `write_from` falls into that others hold too.
    fn shared_from<'a>(
        &'a self,
        table: &'a [BlockId],
        write_from: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let first = (write_from / self.block_size).min(table.len());
        (first..table.len()).filter(|&i| self.pool.refs(table[i]) > 1)
    }

    /// Gives a sequence the blocks for its first `num_tokens` tokens, of which those from
    /// `write_from` are about to be written: `hit` is adopted first (only by a sequence without
    /// blocks), blocks that others share and this sequence will write are replaced by copies, and
    /// new blocks are appended. Returns how many blocks the free queue lost.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`], and nothing has changed; [`Error::InvalidArgument`] when `seq` is
    /// unknown or swapped out, or `hit` is given to a sequence that has blocks.
    pub fn allocate(
        &mut self,
        seq: SeqId,
        hit: &[BlockId],
        write_from: usize,
        num_tokens: usize,
    ) -> Result<usize> {
        let table = self.tables.get_mut(seq)?;
        if !table.host.is_empty() {
            return Err(Error::argument("seq", "is swapped out"));
        }
        if !hit.is_empty() && !table.blocks.is_empty() {
            return Err(Error::argument("hit", "the sequence has blocks already"));
        }
        let cached = |&block: &BlockId| self.prefix.as_ref().is_some_and(|p| p.contains(block));
        if !hit.iter().all(cached) {
            return Err(Error::argument("hit", "is no longer cached"));
        }
        let needed = self.blocks_needed(seq, hit, write_from, num_tokens);
        if needed > self.pool.num_free() {
            return Err(Error::OutOfBlocks {
                pool: Pool::Device,
                needed,
                free: self.pool.num_free(),
            });
        }
        let mut blocks = std::mem::take(&mut self.tables.get_mut(seq)?.blocks);
        hit.iter().for_each(|&block| self.pool.acquire(block));
        blocks.extend_from_slice(hit);
        let first = write_from / self.block_size;
        let known = first.min(blocks.len());
        for block in blocks.iter_mut().skip(first) {
            if self.pool.refs(*block) > 1 {
                let copy = pop(&mut self.pool, &mut self.prefix, &mut self.stats)?;
                self.ops.push(BlockOp { kind: BlockOp::COPY, src: block.0, dst: copy.0 });
                self.pool.release(*block);
                *block = copy;
            } else if let Some(prefix) = &mut self.prefix {
                // It is not shared: written in place, it loses the name of what it held.
                prefix.remove(*block);
            }
        }
        for _ in blocks.len()..self.blocks_for(num_tokens) {
            blocks.push(pop(&mut self.pool, &mut self.prefix, &mut self.stats)?);
        }
        let table = self.tables.get_mut(seq)?;
        table.known = table.known.max(hit.len()).min(known);
        table.blocks = blocks;
        Ok(needed)
    }

    /// Makes the sequence's full blocks among its first `num_tokens` tokens findable under
    /// `hashes`. Blocks registered before stay as they are.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown.
    pub fn register(&mut self, seq: SeqId, hashes: &[BlockHash], num_tokens: usize) -> Result<()> {
        let table = self.tables.get_mut(seq)?;
        let full = (num_tokens / self.block_size).min(hashes.len()).min(table.blocks.len());
        let Some(prefix) = &mut self.prefix else { return Ok(()) };
        for (&block, &hash) in table.blocks.iter().zip(hashes).take(full).skip(table.known) {
            prefix.insert(block, hash);
        }
        table.known = table.known.max(full);
        Ok(())
    }

    /// Takes the names off the sequence's full blocks past its first `num_tokens` tokens: they
    /// were registered ahead of a computation that will not take place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown.
    pub fn unregister(&mut self, seq: SeqId, num_tokens: usize) -> Result<()> {
        let full = num_tokens / self.block_size;
        let table = self.tables.get_mut(seq)?;
        if let (Some(prefix), true) = (&mut self.prefix, table.known > full) {
            table.blocks[full..table.known].iter().for_each(|&block| {
                prefix.remove(block);
            });
            table.known = full;
        }
        Ok(())
    }

    /// Takes the name off a block that did not get its content.
    pub(crate) fn forget(&mut self, block: BlockId) {
        if let Some(prefix) = &mut self.prefix {
            prefix.remove(block);
        }
    }

    /// Shortens a sequence to its first `num_tokens` tokens: blocks past them are freed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown or swapped out.
    pub fn truncate(&mut self, seq: SeqId, num_tokens: usize) -> Result<()> {
        if self.is_swapped_out(seq) {
            return Err(Error::argument("seq", "is swapped out"));
        }
        self.unregister(seq, num_tokens)?;
        let keep = self.blocks_for(num_tokens);
        let table = self.tables.get_mut(seq)?;
        table.known = table.known.min(keep);
        let tail = table.blocks.split_off(keep.min(table.blocks.len()));
        release_all(&mut self.pool, self.prefix.as_ref(), &tail);
        Ok(())
    }

    /// Starts a sequence that shares all blocks of `seq`. The first of them to write to a shared block
    /// gets a copy of it (see [`allocate`](Self::allocate)).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown or swapped out.
    pub fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let parent = self.tables.get_mut(seq)?;
        if !parent.host.is_empty() {
            return Err(Error::argument("seq", "is swapped out"));
        }
        let (blocks, known) = (parent.blocks.clone(), parent.known);
        blocks.iter().for_each(|&block| self.pool.acquire(block));
        let child = self.tables.open();
        let table = self.tables.get_mut(child)?;
        (table.blocks, table.known) = (blocks, known);
        Ok(child)
    }

    /// Frees the blocks of a sequence, which stays open.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown.
    pub fn free(&mut self, seq: SeqId) -> Result<()> {
        let table = self.tables.get_mut(seq)?;
        release_all(&mut self.pool, self.prefix.as_ref(), &table.blocks);
        self.host.release(&mut table.host);
        table.blocks.clear();
        table.known = 0;
        Ok(())
    }

    /// Ends a sequence and frees its blocks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `seq` is unknown.
    pub fn close(&mut self, seq: SeqId) -> Result<()> {
        self.free(seq)?;
        self.tables.close(seq);
        Ok(())
    }

    /// Moves the copies decided since the last call to the end of `ops`.
    pub fn take_ops(&mut self, ops: &mut Vec<BlockOp>) {
        ops.append(&mut self.ops);
    }

    /// Forgets all cached prefixes; false, and nothing is forgotten, while any block is held, of the
    /// device pool or of the host pool: KV that is swapped out comes back, and would be registered
    /// again.
    pub fn reset_prefix_cache(&mut self) -> bool {
        let idle = self.pool.num_free() == self.pool.num_usable() && self.host.is_idle();
        if let (true, Some(prefix)) = (idle, &mut self.prefix) {
            prefix.clear();
        }
        idle
    }

    /// Checks every invariant: free + referenced + null = total; a block is in the free queue
    /// exactly when no table holds it; reference counts equal the tables' entries; the prefix
    /// index and the blocks agree; host blocks are held once or free.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the first that does not hold.
    pub fn verify(&self) -> Result<()> {
        self.pool.verify()?;
        let mut held = vec![0u32; self.pool.num_blocks()];
        for table in self.tables.iter() {
            table.blocks.iter().for_each(|block| held[block.index()] += 1);
            if table.known > table.blocks.len() {
                return Err(Error::Corrupt("a table knows more blocks than it has".into()));
            }
        }
        for (i, &count) in held.iter().enumerate() {
            let refs = self.pool.refs(BlockId(i as u32));
            if refs != count {
                let what = format!("block {i} has {refs} references, {count} tables hold it");
                return Err(Error::Corrupt(what));
            }
        }
        self.host.verify(self.tables.iter().map(|t| &t.host[..]))?;
        self.prefix.as_ref().map_or(Ok(()), PrefixIndex::verify)
    }
}

/// Takes the front of the free queue; what it held is forgotten.
fn pop(
    pool: &mut BlockPool,
    prefix: &mut Option<PrefixIndex>,
    stats: &mut CacheStats,
) -> Result<BlockId> {
    let block = pool.pop().ok_or(Error::OutOfBlocks { pool: Pool::Device, needed: 1, free: 0 })?;
    if prefix.as_mut().is_some_and(|prefix| prefix.remove(block)) {
        stats.evicted_blocks += 1;
    }
    Ok(block)
}

/// Drops one reference to each block of a sequence. Blocks without a known content join the front
/// of the free queue, its last one foremost; blocks with one join the back, its last one first.
fn release_all(pool: &mut BlockPool, prefix: Option<&PrefixIndex>, blocks: &[BlockId]) {
    let known = |block| prefix.is_some_and(|prefix| prefix.contains(block));
    for &block in blocks {
        if pool.release(block) == 0 && !known(block) {
            pool.push_front(block);
        }
    }
    for &block in blocks.iter().rev() {
        if pool.refs(block) == 0 && !pool.is_free(block) {
            pool.push_back(block);
        }
    }
}
