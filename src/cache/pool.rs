//! Reference counts and the free queue of one pool of blocks.

use crate::error::{Error, Result};
use crate::types::BlockId;

/// Not in the free queue.
const UNLINKED: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Block {
    refs: u32,
    prev: u32,
    next: u32,
}

/// Blocks `1..num_blocks`, each either referenced or in the free queue; block 0 is the null block.
///
/// The free queue is a doubly linked list threaded through the blocks, so that a prefix hit leaves
/// the middle of it in O(1). Its front is reused first. Same rules as vLLM's
/// `BlockPool`/`FreeKVCacheBlockQueue` (vllm/v1/core/block_pool.py), so block ids come out alike.
pub struct BlockPool {
    /// One entry per block, and the list's sentinel last.
    blocks: Vec<Block>,
    num_free: usize,
}

/// An empty vector with room for so many, where there is memory for them.
pub(super) fn room<T>(len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    room.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes })?;
    Ok(room)
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, the null block included.
    ///
    /// # Errors
    /// `num_blocks` below 2 (nothing usable) or above `i32::MAX`; [`Error::OutOfMemory`].
    pub fn new(num_blocks: usize) -> Result<Self> {
        if num_blocks < 2 {
            let reason = format!("{num_blocks} blocks; the null block and one more are the least");
            return Err(Error::argument("num_blocks", reason));
        }
        if num_blocks > i32::MAX as usize {
            return Err(Error::argument("num_blocks", "does not fit 31-bit block ids"));
        }
        let last = num_blocks as u32;
        let mut blocks = room(num_blocks + 1)?;
        blocks.extend((0..=last).map(|i| Block { refs: 0, prev: i.wrapping_sub(1), next: i + 1 }));
        blocks[0] = Block { refs: 0, prev: UNLINKED, next: UNLINKED };
        blocks[1].prev = last;
        blocks[num_blocks].next = 1;
        Ok(Self { blocks, num_free: num_blocks - 1 })
    }

    fn sentinel(&self) -> u32 {
        (self.blocks.len() - 1) as u32
    }

    /// Blocks of the pool, the null block included.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that can be handed out when all are free: all but the null block.
    #[must_use]
    pub fn num_usable(&self) -> usize {
        self.num_blocks() - 1
    }

    /// Blocks in the free queue.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Sequences that hold `block`; 0 for one that is not of this pool.
    #[must_use]
    pub fn refs(&self, block: BlockId) -> u32 {
        self.blocks.get(block.index()).map_or(0, |block| block.refs)
    }

    /// Whether `block` is in the free queue.
    #[must_use]
    pub fn is_free(&self, block: BlockId) -> bool {
        let entry = self.blocks.get(block.index());
        block.index() < self.num_blocks() && entry.is_some_and(|block| block.next != UNLINKED)
    }

    /// Takes the front of the free queue with one reference.
    pub(super) fn pop(&mut self) -> Option<BlockId> {
        let front = self.blocks[self.sentinel() as usize].next;
        if front == self.sentinel() {
            return None;
        }
        self.unlink(front);
        self.blocks[front as usize].refs = 1;
        Some(BlockId(front))
    }

    /// Adds a reference; a free block leaves the queue.
    pub(super) fn acquire(&mut self, block: BlockId) {
        if self.blocks[block.index()].refs == 0 {
            self.unlink(block.0);
        }
        self.blocks[block.index()].refs += 1;
    }

    /// Drops a reference and returns how many are left. At 0 the caller queues the block.
    pub(super) fn release(&mut self, block: BlockId) -> u32 {
        let refs = &mut self.blocks[block.index()].refs;
        debug_assert!(*refs > 0, "block {block} released more often than acquired");
        *refs = refs.saturating_sub(1);
        *refs
    }

    /// Queues an unreferenced block to be reused first.
    pub(super) fn push_front(&mut self, block: BlockId) {
        let sentinel = self.sentinel();
        let first = self.blocks[sentinel as usize].next;
        self.link(block.0, sentinel, first);
    }

    /// Queues an unreferenced block to be reused last.
    pub(super) fn push_back(&mut self, block: BlockId) {
        let sentinel = self.sentinel();
        let last = self.blocks[sentinel as usize].prev;
        self.link(block.0, last, sentinel);
    }

    fn link(&mut self, block: u32, prev: u32, next: u32) {
        self.blocks[prev as usize].next = block;
        self.blocks[next as usize].prev = block;
        let entry = &mut self.blocks[block as usize];
        (entry.prev, entry.next) = (prev, next);
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { prev, next, .. } = self.blocks[block as usize];
        self.blocks[prev as usize].next = next;
        self.blocks[next as usize].prev = prev;
        let entry = &mut self.blocks[block as usize];
        (entry.prev, entry.next) = (UNLINKED, UNLINKED);
        self.num_free -= 1;
    }

    /// The free queue from its front, the block to be reused next.
    pub fn free_queue(&self) -> impl Iterator<Item = BlockId> + '_ {
        let sentinel = self.sentinel();
        let mut at = self.blocks[sentinel as usize].next;
        std::iter::from_fn(move || {
            let block = at;
            at = self.blocks[block as usize].next;
            (block != sentinel).then_some(BlockId(block))
        })
    }

    /// Checks the list and that a block is free exactly when no sequence holds it.
    pub(super) fn verify(&self) -> Result<()> {
        let corrupt = |what: String| Err(Error::Corrupt(what));
        let mut before = self.sentinel();
        let mut counted = 0;
        for block in self.free_queue() {
            let entry = self.blocks[block.index()];
            counted += 1;
            if counted > self.num_free {
                return corrupt("the free queue is longer than its count".into());
            }
            if entry.prev != before {
                return corrupt(format!("free block {block} links back to {}", entry.prev));
            }
            if entry.refs != 0 || block == BlockId::NULL {
                return corrupt(format!("block {block} is free with {} references", entry.refs));
            }
            before = block.0;
        }
        if counted != self.num_free {
            return corrupt(format!(
                "{counted} blocks in the free queue, {} counted",
                self.num_free
            ));
        }
        let unlinked = self.blocks[1..self.num_blocks()].iter().filter(|b| b.next == UNLINKED);
        let held = unlinked.clone().filter(|b| b.refs > 0).count();
        if unlinked.count() != held || held + counted + 1 != self.num_blocks() {
            return corrupt(format!(
                "{counted} free + {held} referenced + the null block are not {} blocks",
                self.num_blocks()
            ));
        }
        Ok(())
    }
}
