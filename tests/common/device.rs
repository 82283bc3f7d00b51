//! What a device's cache tensors would hold, one number a slot.
//!
//! The KV of a token depends on all tokens before it, so a slot holds the token's *history*: a
//! number that stands for the sequence up to and including it. Reading a sequence through its
//! table must give the histories of its own tokens, whatever blocks were shared, copied, moved or
//! reused on the way.

#![allow(dead_code, reason = "each test binary looks at its own side")]

use inflight::Token;
use inflight::cache::BlockOp;

use crate::rng::mix;

/// What no history equals: a slot nobody has written, or whose write failed.
pub(crate) const GARBAGE: u64 = u64::MAX;

/// The history of a token whose predecessor's is `before`.
pub(crate) fn extend(before: u64, token: Token) -> u64 {
    mix(before ^ mix(u64::from(token) + 1)) >> 1
}

/// The history of each token of a sequence. `root` stands for what beside the tokens decides KV.
pub(crate) fn histories(root: u64, tokens: &[Token]) -> Vec<u64> {
    let next = |before: &mut u64, &token: &Token| {
        *before = extend(*before, token);
        Some(*before)
    };
    tokens.iter().scan(mix(root), next).collect()
}

pub(crate) struct Device {
    pub(crate) block_size: usize,
    kv: Vec<u64>,
    host: Vec<u64>,
}

impl Device {
    pub(crate) fn new(num_blocks: usize, num_host_blocks: usize, block_size: usize) -> Self {
        let slots = |blocks: usize| vec![GARBAGE; blocks * block_size];
        Self { block_size, kv: slots(num_blocks), host: slots(num_host_blocks) }
    }

    pub(crate) fn apply(&mut self, op: &BlockOp) {
        let slots = |block: u32| {
            let start = block as usize * self.block_size;
            start..start + self.block_size
        };
        let (from, to) = (slots(op.src), slots(op.dst));
        match op.kind {
            BlockOp::COPY => self.kv.copy_within(from, to.start),
            BlockOp::SWAP_OUT => self.host[to].copy_from_slice(&self.kv[from]),
            BlockOp::SWAP_IN => self.kv[to].copy_from_slice(&self.host[from]),
            kind => panic!("no device knows operation {kind}"),
        }
    }

    fn slot(&self, table: &[u32], position: usize) -> usize {
        let block = table[position / self.block_size];
        assert_ne!(block, 0, "the null block is in a table");
        block as usize * self.block_size + position % self.block_size
    }

    pub(crate) fn write(&mut self, table: &[u32], position: usize, history: u64) {
        let slot = self.slot(table, position);
        self.kv[slot] = history;
    }

    pub(crate) fn read(&self, table: &[u32], position: usize) -> u64 {
        self.kv[self.slot(table, position)]
    }

    /// A host block's slot.
    pub(crate) fn read_host(&self, table: &[u32], position: usize) -> u64 {
        let block = table[position / self.block_size] as usize;
        self.host[block * self.block_size + position % self.block_size]
    }

    pub(crate) fn block(&self, block: u32) -> &[u64] {
        &self.kv[block as usize * self.block_size..][..self.block_size]
    }
}
