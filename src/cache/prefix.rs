//! Which cached block holds a content: hash -> blocks.

use std::collections::HashMap;

use super::hash::BlockHash;
use super::pool::room;
use crate::error::{Error, Result};
use crate::types::BlockId;

/// The null block, which never has a content.
const FREE: u32 = BlockId::NULL.0;

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
    /// The oldest block of each content: open addressing by tag, the null block where free. At most
    /// half full, and small, so that much of it stays in the processor's caches.
    heads: Vec<u32>,
    /// By block id: the tag of its hash, 0 for a block of no known content.
    tags: Vec<u32>,
    /// By block id; means something where the tag does.
    hashes: Vec<BlockHash>,
    /// Blocks whose content another one holds too.
    twins: HashMap<u32, Twin>,
    len: usize,
}

/// 32 bits of the hash, never 0.
fn tag(hash: &BlockHash) -> u32 {
    hash.tag().max(1)
}

fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut filled = room(len)?;
    filled.resize(len, value);
    Ok(filled)
}

impl PrefixIndex {
    pub(super) fn new(num_blocks: usize) -> Result<Self> {
        Ok(Self {
            heads: filled((2 * num_blocks).next_power_of_two(), FREE)?,
            tags: filled(num_blocks, 0)?,
            hashes: filled(num_blocks, BlockHash([0; 32]))?,
            twins: HashMap::new(),
            len: 0,
        })
    }

    /// Blocks with a known content.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.tags.get(block.index()).is_some_and(|&tag| tag != 0)
    }

    /// Where a tag is looked for first.
    fn home(&self, tag: u32) -> usize {
        // All bits of the product depend on the tag; the upper ones choose.
        let spread = u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        spread as usize & (self.heads.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.heads.len() - 1)
    }

    /// Where the head of this content is, or the free place where it would be.
    fn place(&self, tag: u32, hash: &BlockHash) -> usize {
        let mut at = self.home(tag);
        while self.heads[at] != FREE {
            let head = self.heads[at] as usize;
            if self.tags[head] == tag && self.hashes[head] == *hash {
                break;
            }
            at = self.after(at);
        }
        at
    }

    /// The oldest block with this content.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        let head = self.heads[self.place(tag(hash), hash)];
        (head != FREE).then_some(BlockId(head))
    }

    /// Records the content of a block that has none.
    pub(super) fn insert(&mut self, block: BlockId, hash: BlockHash) {
        if self.contains(block) {
            return;
        }
        let (id, tag) = (block.0, tag(&hash));
        let at = self.place(tag, &hash);
        self.len += 1;
        self.tags[block.index()] = tag;
        self.hashes[block.index()] = hash;
        let head = self.heads[at];
        if head == FREE {
            self.heads[at] = id;
            return;
        }
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
        let id = block.0;
        let mut at = self.home(self.tags[block.index()]);
        // A block that is no head is not in the table.
        while self.heads[at] != id && self.heads[at] != FREE {
            at = self.after(at);
        }
        let was_head = self.heads[at] == id;
        match self.leave_ring(id) {
            Some(heir) if was_head => self.heads[at] = heir,
            None if was_head => self.vacate(at),
            _ => {}
        }
        self.tags[block.index()] = 0;
        self.len -= 1;
        true
    }

    /// Frees a place, and moves up the entry that would no longer be found behind it.
    fn vacate(&mut self, mut free: usize) {
        let mut at = self.after(free);
        while self.heads[at] != FREE {
            let home = self.home(self.tags[self.heads[at] as usize]);
            // Distances go round the end of the table.
            let far = |from: usize| at.wrapping_sub(from) & (self.heads.len() - 1);
            if far(home) >= far(free) {
                self.heads[free] = self.heads[at];
                free = at;
            }
            at = self.after(at);
        }
        self.heads[free] = FREE;
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
        self.heads.fill(FREE);
        self.twins.clear();
        self.tags.fill(0);
        self.len = 0;
    }

    /// Checks that every block with a content is reached from its head exactly once.
    pub(super) fn verify(&self) -> Result<()> {
        let corrupt = |what: String| Err(Error::Corrupt(what));
        let mut reached = 0;
        for &head in self.heads.iter().filter(|&&head| head != FREE) {
            let hash = self.hashes[head as usize];
            if self.find(&hash) != Some(BlockId(head)) {
                return corrupt(format!("the prefix index does not find block {head}"));
            }
            let mut at = head;
            loop {
                let here = self.hashes[at as usize];
                if self.tags[at as usize] != tag(&here) || here != hash {
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
