//! Moving sequences between the device pool and the host pool.

use super::pool::room;
use super::{BlockOp, KvCache, SeqId, pop, release_all};
use crate::error::{Error, Pool, Result};

/// Free blocks of the host pool.
pub(super) struct HostPool {
    free: Vec<u32>,
    num_blocks: usize,
}

impl HostPool {
    pub(super) fn new(num_blocks: usize) -> Result<Self> {
        let mut free = room(num_blocks)?;
        free.extend((0..num_blocks as u32).rev());
        Ok(Self { free, num_blocks })
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub(super) fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Whether no sequence is swapped out.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.num_blocks
    }

    pub(super) fn release(&mut self, blocks: &mut Vec<u32>) {
        self.free.extend(blocks.drain(..).rev());
    }

    pub(super) fn verify<'a>(&'a self, tables: impl Iterator<Item = &'a [u32]>) -> Result<()> {
        let mut seen = vec![false; self.num_blocks];
        let mut count = 0;
        for block in tables.flatten().chain(&self.free).copied() {
            count += 1;
            if std::mem::replace(&mut seen[block as usize], true) {
                return Err(Error::Corrupt(format!("host block {block} is in two places")));
            }
        }
        if count != self.num_blocks {
            return Err(Error::Corrupt(format!("{count} of {} host blocks", self.num_blocks)));
        }
        Ok(())
    }
}

impl KvCache {
    /// Whether the sequence's blocks are in the host pool.
    #[must_use]
    pub fn is_swapped_out(&self, seq: SeqId) -> bool {
        self.tables.get(seq).is_some_and(|table| !table.host.is_empty())
    }

    /// Blocks that [`swap_in`](Self::swap_in) would take.
    #[must_use]
    pub fn swapped_blocks(&self, seq: SeqId) -> usize {
        self.tables.get(seq).map_or(0, |table| table.host.len())
    }

    /// Moves a sequence to the host pool: lists the copies and frees its device blocks.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`] of the host pool, [`Error::InvalidArgument`] when `seq` is unknown,
    /// swapped out already, without blocks or larger than the host pool; nothing has changed.
    pub fn swap_out(&mut self, seq: SeqId) -> Result<()> {
        let table = self.tables.get_mut(seq)?;
        if !table.host.is_empty() || table.blocks.is_empty() {
            return Err(Error::argument("seq", "has no blocks on the device"));
        }
        let (needed, free) = (table.blocks.len(), self.host.free.len());
        if needed > self.host.num_blocks {
            let reason = format!("has {needed} blocks, and the host pool {}", self.host.num_blocks);
            return Err(Error::argument("seq", reason));
        }
        if needed > free {
            return Err(Error::OutOfBlocks { pool: Pool::Host, needed, free });
        }
        table.host.extend(self.host.free.drain(free - needed..).rev());
        for (block, &host) in table.blocks.iter().zip(&table.host) {
            self.ops.push(BlockOp { kind: BlockOp::SWAP_OUT, src: block.0, dst: host });
        }
        release_all(&mut self.pool, self.prefix.as_ref(), &table.blocks);
        table.blocks.clear();
        table.known = 0;
        Ok(())
    }

    /// Moves a sequence back to the device pool: takes device blocks, lists the copies and frees
    /// its host blocks. Its full blocks have no names until they are registered again.
    ///
    /// # Errors
    /// [`Error::OutOfBlocks`], [`Error::InvalidArgument`] when `seq` is unknown or not swapped
    /// out; nothing has changed.
    pub fn swap_in(&mut self, seq: SeqId) -> Result<()> {
        let table = self.tables.get_mut(seq)?;
        if table.host.is_empty() {
            return Err(Error::argument("seq", "is not swapped out"));
        }
        let (needed, free) = (table.host.len(), self.pool.num_free());
        if needed > free {
            return Err(Error::OutOfBlocks { pool: Pool::Device, needed, free });
        }
        for &host in &table.host {
            let block = pop(&mut self.pool, &mut self.prefix, &mut self.stats)?;
            self.ops.push(BlockOp { kind: BlockOp::SWAP_IN, src: host, dst: block.0 });
            table.blocks.push(block);
        }
        self.host.release(&mut table.host);
        Ok(())
    }
}
