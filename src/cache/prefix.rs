//! Which cached block holds a content: hash -> blocks.

use hashbrown::HashTable;

use super::hash::BlockHash;
use crate::error::{Error, Result};
use crate::types::BlockId;

#[derive(Clone, Copy)]
struct Entry {
    hash: BlockHash,
    /// Neighbours in the ring of blocks of the same content; the block itself when alone.
    prev: u32,
    next: u32,
}

/// An index of full blocks by content.
///
/// Two requests that compute the same content at the same time leave two blocks of it. Both stay,
/// in the order they came, since a block table never changes behind a sequence that is running;
/// a look-up finds the oldest.
pub(super) struct PrefixIndex {
    /// The oldest block of each content.
    heads: HashTable<u32>,
    /// By block id; `None` for blocks that hold no known content.
    entries: Vec<Option<Entry>>,
    len: usize,
}

impl PrefixIndex {
    pub(super) fn new(num_blocks: usize) -> Self {
        // Twice what it can hold: a table at most half full makes room for new names by tidying
        // up in place, and never allocates.
        Self {
            heads: HashTable::with_capacity(2 * num_blocks),
            entries: vec![None; num_blocks],
            len: 0,
        }
    }

    /// Blocks with a known content.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, block: BlockId) -> bool {
        matches!(self.entries.get(block.index()), Some(Some(_)))
    }

    /// The oldest block with this content.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        let same = |&head: &u32| self.entry(head).is_some_and(|e| e.hash == *hash);
        self.heads.find(hash.bucket(), same).map(|&head| BlockId(head))
    }

    fn entry(&self, block: u32) -> Option<&Entry> {
        self.entries[block as usize].as_ref()
    }

    /// Records the content of a block that has none.
    pub(super) fn insert(&mut self, block: BlockId, hash: BlockHash) {
        if self.contains(block) {
            return;
        }
        let id = block.0;
        let alone = Entry { hash, prev: id, next: id };
        self.len += 1;
        let Some(BlockId(head)) = self.find(&hash) else {
            self.entries[block.index()] = Some(alone);
            let entries = &self.entries;
            let rehash = |&b: &u32| entries[b as usize].map_or(0, |e| e.hash.bucket());
            self.heads.insert_unique(hash.bucket(), id, rehash);
            return;
        };
        let tail = self.entry(head).map_or(head, |e| e.prev);
        self.entries[block.index()] = Some(Entry { prev: tail, next: head, ..alone });
        self.set_next(tail, id);
        self.set_prev(head, id);
    }

    /// Forgets the content of `block`; true when it had one.
    pub(super) fn remove(&mut self, block: BlockId) -> bool {
        let Some(Entry { hash, prev, next }) = self.entries[block.index()] else {
            return false;
        };
        self.len -= 1;
        let id = block.0;
        // The head is found by its own id, before its entry goes.
        if let Ok(mut slot) = self.heads.find_entry(hash.bucket(), |&head| head == id) {
            if next == id {
                slot.remove();
            } else {
                *slot.get_mut() = next;
            }
        }
        self.entries[block.index()] = None;
        if next != id {
            self.set_next(prev, next);
            self.set_prev(next, prev);
        }
        true
    }

    fn set_next(&mut self, block: u32, next: u32) {
        if let Some(entry) = &mut self.entries[block as usize] {
            entry.next = next;
        }
    }

    fn set_prev(&mut self, block: u32, prev: u32) {
        if let Some(entry) = &mut self.entries[block as usize] {
            entry.prev = prev;
        }
    }

    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.entries.fill(None);
        self.len = 0;
    }

    /// Checks that every block with a content is reached from its head exactly once.
    pub(super) fn verify(&self) -> Result<()> {
        let mut reached = 0;
        for &head in &self.heads {
            let mut at = head;
            loop {
                let (Some(entry), Some(first)) = (self.entry(at), self.entry(head)) else {
                    return Err(Error::Corrupt(format!(
                        "prefix index names block {at} without hash"
                    )));
                };
                let back = self.entry(entry.next).map(|e| e.prev);
                if entry.hash != first.hash || back != Some(at) {
                    return Err(Error::Corrupt(format!(
                        "prefix ring of block {head} breaks at {at}"
                    )));
                }
                reached += 1;
                at = entry.next;
                if at == head {
                    break;
                }
                if reached > self.len {
                    return Err(Error::Corrupt("prefix ring without end".into()));
                }
            }
        }
        let present = self.entries.iter().flatten().count();
        if reached != self.len || present != self.len {
            return Err(Error::Corrupt(format!(
                "prefix index counts {}, holds {present}, reaches {reached}",
                self.len
            )));
        }
        Ok(())
    }
}
