//! Block tables of sequences, by handle.

use crate::error::{Error, Result};
use crate::types::BlockId;

/// A sequence of a [`KvCache`](super::KvCache). Handles are not reused: one that was closed stays
/// unknown. None is 0 as a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeqId {
    index: u32,
    generation: u32,
}

impl SeqId {
    /// A number for it, for languages that have no such type.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The handle of a number; any number is one, if only of a sequence that is unknown.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Not 0, so that no sequence's number is.
const FIRST_GENERATION: u32 = 1;

#[derive(Default)]
pub(super) struct Table {
    /// On the device, in the order of the tokens.
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks that are full and registered, or were adopted from the prefix cache.
    pub(super) known: usize,
    /// While swapped out: the host blocks, and `blocks` is empty.
    pub(super) host: Vec<u32>,
    generation: u32,
    open: bool,
}

#[derive(Default)]
pub(super) struct Tables {
    slots: Vec<Table>,
    vacant: Vec<u32>,
}

impl Tables {
    pub(super) fn open(&mut self) -> SeqId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Table { generation: FIRST_GENERATION, ..Table::default() });
            (self.slots.len() - 1) as u32
        });
        let table = &mut self.slots[index as usize];
        table.open = true;
        SeqId { index, generation: table.generation }
    }

    /// Closes a sequence whose blocks were freed; its buffers serve the next one.
    pub(super) fn close(&mut self, seq: SeqId) {
        if let Ok(table) = self.get_mut(seq) {
            table.open = false;
            table.generation = table.generation.checked_add(1).unwrap_or(FIRST_GENERATION);
            self.vacant.push(seq.index);
        }
    }

    pub(super) fn get(&self, seq: SeqId) -> Option<&Table> {
        let table = self.slots.get(seq.index as usize)?;
        (table.open && table.generation == seq.generation).then_some(table)
    }

    pub(super) fn get_mut(&mut self, seq: SeqId) -> Result<&mut Table> {
        let table = self.slots.get_mut(seq.index as usize);
        table
            .filter(|table| table.open && table.generation == seq.generation)
            .ok_or_else(|| Error::argument("seq", "names no open sequence"))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table> {
        self.slots.iter().filter(|table| table.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sequence_is_0() {
        let mut tables = Tables::default();
        let first = tables.open();
        assert_ne!(first.to_bits(), 0);
        let last = &mut tables.slots[0];
        last.generation = u32::MAX;
        tables.close(SeqId { generation: u32::MAX, ..first });
        assert_eq!(tables.open(), first, "numbers start again after 2^32");
        assert!(tables.get(SeqId::from_bits(0)).is_none());
    }
}
