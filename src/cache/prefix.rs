//! Which cached block holds a content: hash -> blocks.

use std::collections::HashMap;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::hash::BlockHash;
use crate::error::{Error, Result};
use crate::types::BlockId;

/// Neighbours in a ring of blocks of one content.
#[derive(Clone, Copy)]
struct Twin {
    prev: u32,
    next: u32,
}

/// An index of full blocks by content.
///
/// Two requests that compute the same content at the same time leave two blocks of it. Both stay,
/// in the order they came, since a block table never changes behind a sequence that is running;
/// a look-up finds the oldest.
pub(super) struct PrefixIndex {
    /// The oldest block of each content, with the tag of its hash: probing reads no other memory.
    heads: HashTable<(u32, u32)>,
    /// By block id: the tag of its hash, 0 for a block of no known content.
    tags: Vec<u32>,
    /// By block id; means something where the tag does.
    hashes: Vec<BlockHash>,
    /// Blocks whose content another one holds too.
    twins: HashMap<u32, Twin>,
    len: usize,
}

/// 32 bits of the hash, never 0: enough to find it, and small, so that much of the table stays in
/// the processor's caches.
fn tag(hash: &BlockHash) -> u32 {
    hash.tag().max(1)
}

/// A tag's place in the table; all bits of the product depend on it.
fn place(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl PrefixIndex {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self {
            // Twice what it can hold: a table at most half full makes room for new names by tidying
            // up in place, and never allocates.
            heads: HashTable::with_capacity(2 * num_blocks),
            tags: vec![0; num_blocks],
            hashes: vec![BlockHash([0; 32]); num_blocks],
            twins: HashMap::new(),
            len: 0,
        }
    }

    /// Blocks with a known content.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.tags.get(block.index()).is_some_and(|&tag| tag != 0)
    }

    /// The oldest block with this content.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        let wanted = tag(hash);
        let same = |&(tag, head): &(u32, u32)| tag == wanted && self.hashes[head as usize] == *hash;
        self.heads.find(place(wanted), same).map(|&(_, head)| BlockId(head))
    }

    /// Records the content of a block that has none.
    pub(super) fn insert(&mut self, block: BlockId, hash: BlockHash) {
        if self.contains(block) {
            return;
        }
        let (id, wanted) = (block.0, tag(&hash));
        self.len += 1;
        self.tags[block.index()] = wanted;
        self.hashes[block.index()] = hash;
        let hashes = &self.hashes;
        let same = |&(tag, head): &(u32, u32)| tag == wanted && hashes[head as usize] == hash;
        let head = match self.heads.entry(place(wanted), same, |&(tag, _)| place(tag)) {
            Entry::Occupied(entry) => entry.get().1,
            Entry::Vacant(entry) => {
                entry.insert((wanted, id));
                return;
            }
        };
        let tail = self.twins.entry(head).or_insert(Twin { prev: head, next: head }).prev;
        self.twins.insert(id, Twin { prev: tail, next: head });
        self.link(tail, id);
        self.link(id, head);
    }

    /// Makes two blocks of a ring neighbours.
    fn link(&mut self, before: u32, after: u32) {
        if let Some(twin) = self.twins.get_mut(&before) {
            twin.next = after;
        }
        if let Some(twin) = self.twins.get_mut(&after) {
            twin.prev = before;
        }
    }

    /// Forgets the content of `block`; true when it had one.
    pub(super) fn remove(&mut self, block: BlockId) -> bool {
        if !self.contains(block) {
            return false;
        }
        let (id, tag) = (block.0, std::mem::take(&mut self.tags[block.index()]));
        self.len -= 1;
        let heir = self.leave_ring(id);
        // Found by its own id: a block that is no head leaves the table as it is.
        if let Ok(mut slot) = self.heads.find_entry(place(tag), |&(_, head)| head == id) {
            match heir {
                Some(next) => slot.get_mut().1 = next,
                None => {
                    slot.remove();
                }
            }
        }
        true
    }

    /// Takes a block out of its ring; the one after it, if there is a ring.
    fn leave_ring(&mut self, id: u32) -> Option<u32> {
        if self.twins.is_empty() {
            return None;
        }
        let Twin { prev, next } = self.twins.remove(&id)?;
        if prev == next {
            // The other is alone now.
            self.twins.remove(&next);
        } else {
            self.link(prev, next);
        }
        Some(next)
    }

    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.twins.clear();
        self.tags.fill(0);
        self.len = 0;
    }

    /// Checks that every block with a content is reached from its head exactly once.
    pub(super) fn verify(&self) -> Result<()> {
        let corrupt = |what: String| Err(Error::Corrupt(what));
        let mut reached = 0;
        for &(tag_of_head, head) in &self.heads {
            let hash = self.hashes[head as usize];
            let mut at = head;
            loop {
                let here = self.hashes[at as usize];
                if self.tags[at as usize] != tag(&here) || here != hash || tag_of_head != tag(&hash)
                {
                    return corrupt(format!(
                        "the prefix index finds block {at} under another name"
                    ));
                }
                reached += 1;
                let next = self.twins.get(&at).map_or(head, |twin| twin.next);
                let back = self.twins.get(&next).map_or(at, |twin| twin.prev);
                if back != at || reached > self.len {
                    return corrupt(format!("the ring of block {head} breaks at {at}"));
                }
                at = next;
                if at == head {
                    break;
                }
            }
        }
        let present = self.tags.iter().filter(|&&tag| tag != 0).count();
        if reached != self.len || present != self.len {
            let len = self.len;
            return corrupt(format!(
                "prefix index counts {len}, holds {present}, reaches {reached}"
            ));
        }
        Ok(())
    }
}
