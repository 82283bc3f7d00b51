//! Sequences that fork: the library's cache and kernels without its scheduler.
//!
//! A fork shares every block of its parent. The first branch that writes to a shared block gets a copy of it,
//! made by the device before the step's kernels run, so branches cost memory only where they differ.

use anyhow::{Result, bail};
use inflight::cache::{BlockOp, CacheConfig, KvCache, SeqId};
use inflight::kernels::{BatchView, StepArrays};
use inflight::{BlockId, Token};

use crate::runner::{Given, Runner, Step};

/// A model, and the sequences in its cache.
pub struct Branches {
    runner: Runner,
    cache: KvCache,
    arrays: Arrays,
    has_failed: bool,
}

/// A sequence goes on.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The sequence.
    pub seq: SeqId,
    /// Tokens that it has.
    pub start: usize,
    /// Those that follow; at least one.
    pub tokens: &'a [Token],
}

/// A step's arrays.
#[derive(Default)]
struct Arrays {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<BlockId>,
    kv_last_page_len: Vec<u32>,
    tokens: Vec<Token>,
    positions: Vec<u32>,
    slots: Vec<i64>,
    wanted: Vec<u32>,
    ops: Vec<BlockOp>,
}

impl Branches {
    /// An empty cache; `config` is what the runner was made for.
    pub fn new(runner: Runner, config: CacheConfig) -> Result<Self> {
        Ok(Self {
            runner,
            cache: KvCache::new(config)?,
            arrays: Arrays::default(),
            has_failed: false,
        })
    }

    /// The cache, to look at.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The model's numbers of tokens.
    pub fn vocab(&self) -> usize {
        self.runner.shape().vocab
    }

    /// A sequence without tokens.
    pub fn open(&mut self) -> SeqId {
        self.cache.open()
    }

    /// A sequence with all that another has so far.
    pub fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        Ok(self.cache.fork(seq)?)
    }

    /// Ends a sequence.
    pub fn close(&mut self, seq: SeqId) -> Result<()> {
        Ok(self.cache.close(seq)?)
    }

    /// Computes tokens of sequences, each at most once, in one step: the logits after each one's
    /// last, `[rows, vocab]`. Where the cache has no room, or a row is wrong, nothing is computed;
    /// where the device fails, what the cache holds is not known, and there are no steps any more.
    pub fn run(&mut self, rows: &[Row<'_>]) -> Result<&mut [f32]> {
        let vocab = self.vocab();
        if self.has_failed {
            bail!("a step before has failed");
        }
        for row in rows {
            if row.tokens.is_empty() || row.tokens.iter().any(|&token| token as usize >= vocab) {
                bail!("a row has tokens, all below {vocab}");
            }
        }
        let arrays = &mut self.arrays;
        arrays.clear();
        for row in rows {
            self.cache.allocate(row.seq, &[], row.start, row.start + row.tokens.len())?;
        }
        // After all have what they write to: the tables are those of this step.
        for row in rows {
            arrays.add(row, self.cache.table(row.seq), self.cache.block_size());
        }
        self.cache.take_ops(&mut arrays.ops);
        let of_step = StepArrays {
            batch: BatchView {
                qo_indptr: &arrays.qo_indptr,
                kv_indptr: &arrays.kv_indptr,
                kv_indices: &arrays.kv_indices,
                kv_last_page_len: &arrays.kv_last_page_len,
                block_size: self.cache.block_size(),
            },
            slot_mapping: &arrays.slots,
            positions: &arrays.positions,
            tokens: &arrays.tokens,
        };
        let step = Step {
            source: (&of_step).into(),
            arrays: of_step,
            logits_indices: &arrays.wanted,
            ops: &arrays.ops,
        };
        self.has_failed = true;
        let given = self.runner.run(step, 0, false)?;
        self.has_failed = false;
        match given {
            Given::Logits(logits, _) => Ok(logits),
            Given::Likeliest(_) => bail!("the logits were asked for"),
        }
    }
}

impl Arrays {
    fn clear(&mut self) {
        let Self { qo_indptr, kv_indptr, kv_indices, kv_last_page_len, .. } = self;
        qo_indptr.clear();
        qo_indptr.push(0);
        kv_indptr.clear();
        kv_indptr.push(0);
        kv_indices.clear();
        kv_last_page_len.clear();
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.wanted.clear();
        self.ops.clear();
    }

    fn add(&mut self, row: &Row<'_>, table: &[BlockId], block_size: usize) {
        let end = row.start + row.tokens.len();
        self.tokens.extend(row.tokens);
        self.positions.extend((row.start..end).map(|position| position as u32));
        self.slots.extend((row.start..end).map(|position| {
            let block = table[position / block_size].0 as usize;
            (block * block_size + position % block_size) as i64
        }));
        self.wanted.push(self.tokens.len() as u32 - 1);
        self.qo_indptr.push(self.tokens.len() as u32);
        self.kv_indices.extend(table);
        self.kv_indptr.push(self.kv_indices.len() as u32);
        self.kv_last_page_len.push(((end - 1) % block_size) as u32 + 1);
    }
}
