//! A batch read from its bytes, the same batch made the slow way, and a device that has nothing
//! but the bytes.

use std::collections::HashMap;

use inflight::batch::{ALIGN, DenseTable, MAGIC, RaggedBatch};
use inflight::cache::{BlockOp, CacheConfig};
use inflight::scheduler::{Row, Step};
use inflight::types::PENDING_TOKEN;
use inflight::{Scheduler, Token};

use crate::rng::mix;

/// Everything a batch says, as plain vectors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Arrays {
    pub(crate) step: u64,
    pub(crate) num_rows: u32,
    pub(crate) padded_rows: u32,
    pub(crate) block_size: u32,
    pub(crate) max_q_len: u32,
    pub(crate) max_kv_len: u32,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slot_mapping: Vec<i64>,
    pub(crate) qo_indptr: Vec<u32>,
    pub(crate) kv_indptr: Vec<u32>,
    pub(crate) kv_last_page_len: Vec<u32>,
    pub(crate) logits_indices: Vec<u32>,
    pub(crate) pending: Vec<[u32; 3]>,
    pub(crate) ops: Vec<[u32; 3]>,
    pub(crate) kv_indices: Vec<u32>,
}

impl Arrays {
    /// Reads a batch as a device would: the header at offset 0, the arrays where it says.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4"));
        let i64_at = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8"));
        let word = |i: usize| u32_at(4 * i);
        assert_eq!((word(0), word(1) as usize), (MAGIC, bytes.len()));
        assert!((24..32).all(|i| word(i) == 0), "no plans");
        let [num_rows, padded_rows, tokens, logits, pending, ops, blocks] =
            [4, 5, 6, 7, 8, 9, 10].map(word);
        // Where an array begins; it is behind the one before and inside the buffer.
        let mut end = 128;
        let mut place = |i: usize, len: u32, size: usize| {
            let start = word(i) as usize;
            assert!(start >= end && start.is_multiple_of(ALIGN), "array {i} at {start}, {end}");
            end = start + len as usize * size;
            assert!(end <= bytes.len(), "array {i} ends at {end} of {}", bytes.len());
            start..end
        };
        let words = |range: std::ops::Range<usize>| range.step_by(4).map(u32_at).collect();
        let triples = |range: std::ops::Range<usize>| {
            range.step_by(12).map(|at| [0, 4, 8].map(|i| u32_at(at + i))).collect()
        };
        Self {
            step: u64::from(word(3)) << 32 | u64::from(word(2)),
            num_rows,
            padded_rows,
            block_size: word(11),
            max_q_len: word(12),
            max_kv_len: word(13),
            tokens: words(place(14, tokens, 4)),
            positions: words(place(15, tokens, 4)),
            slot_mapping: place(16, tokens, 8).step_by(8).map(i64_at).collect(),
            qo_indptr: words(place(17, padded_rows + 1, 4)),
            kv_indptr: words(place(18, padded_rows + 1, 4)),
            kv_last_page_len: words(place(19, padded_rows, 4)),
            logits_indices: words(place(20, logits, 4)),
            pending: triples(place(21, pending, 12)),
            ops: triples(place(22, ops, 12)),
            kv_indices: words(place(23, blocks, 4)),
        }
    }

    /// The same through the accessors.
    pub(crate) fn of(batch: &RaggedBatch) -> Self {
        assert_eq!(batch.bytes().as_ptr().addr() % ALIGN, 0);
        let header = batch.header();
        Self {
            step: u64::from(header.step[1]) << 32 | u64::from(header.step[0]),
            num_rows: header.num_rows,
            padded_rows: header.padded_rows,
            block_size: header.block_size,
            max_q_len: header.max_q_len,
            max_kv_len: header.max_kv_len,
            tokens: batch.tokens().to_vec(),
            positions: batch.positions().to_vec(),
            slot_mapping: batch.slot_mapping().to_vec(),
            qo_indptr: batch.qo_indptr().to_vec(),
            kv_indptr: batch.kv_indptr().to_vec(),
            kv_last_page_len: batch.kv_last_page_len().to_vec(),
            logits_indices: batch.logits_indices().to_vec(),
            pending: batch.pending().iter().map(|p| [p.token, p.steps_back, p.logits]).collect(),
            ops: batch.ops().iter().map(|op| [op.kind, op.src, op.dst]).collect(),
            kv_indices: batch.kv_indices().iter().map(|block| block.0).collect(),
        }
    }

    /// The batch of `step`, token by token from what the scheduler says of each row.
    pub(crate) fn naive(scheduler: &Scheduler, step: &Step, sizes: &[u32]) -> Self {
        let block_size = scheduler.config().cache.block_size as u32;
        let mut a = Self { step: step.id().0, block_size, ..Self::default() };
        (a.qo_indptr, a.kv_indptr) = (vec![0], vec![0]);
        for row in step.rows() {
            let sequence = scheduler.sequence(row).expect("a row of a step in flight");
            let known = [sequence.tokens, sequence.draft].concat();
            let end = row.num_computed + row.num_tokens;
            for position in row.num_computed..end {
                let token = known.get(position as usize).copied().unwrap_or_else(|| {
                    let [steps_back, logits] = sampled_at(scheduler, step, row, position);
                    a.pending.push([a.tokens.len() as u32, steps_back, logits]);
                    PENDING_TOKEN
                });
                a.tokens.push(token);
                a.positions.push(position);
                let block = sequence.blocks[(position / block_size) as usize].0;
                a.slot_mapping.push(i64::from(block * block_size + position % block_size));
            }
            let pages = end.div_ceil(block_size);
            a.kv_indices.extend(sequence.blocks[..pages as usize].iter().map(|block| block.0));
            a.kv_last_page_len.push(end - (pages - 1) * block_size);
            if row.samples {
                let after = a.tokens.len() as u32;
                a.logits_indices.extend(after - 1 - row.num_draft..after);
            }
            a.qo_indptr.push(a.tokens.len() as u32);
            a.kv_indptr.push(a.kv_indices.len() as u32);
            a.max_q_len = a.max_q_len.max(row.num_tokens);
            a.max_kv_len = a.max_kv_len.max(end);
        }
        a.num_rows = step.rows().len() as u32;
        let rows = a.num_rows;
        a.padded_rows = sizes.iter().copied().filter(|&s| s >= rows).min().unwrap_or(rows);
        for _ in rows..a.padded_rows {
            a.qo_indptr.push(a.tokens.len() as u32);
            a.kv_indptr.push(a.kv_indices.len() as u32);
            a.kv_last_page_len.push(0);
        }
        a.ops = step.block_ops().iter().map(|op| [op.kind, op.src, op.dst]).collect();
        a
    }

    /// The block table of a row.
    pub(crate) fn table(&self, row: usize) -> &[u32] {
        &self.kv_indices[self.kv_indptr[row] as usize..self.kv_indptr[row + 1] as usize]
    }
}

/// How many steps before `now` the token of a row at `position` is sampled, and where among that
/// step's logits.
fn sampled_at(scheduler: &Scheduler, now: &Step, row: &Row, position: u32) -> [u32; 2] {
    let before: Vec<&Step> = scheduler.steps_in_flight().filter(|s| s.id() < now.id()).collect();
    for step in before.iter().rev() {
        let mut logits = 0;
        for other in step.rows().iter().filter(|other| other.samples) {
            if other.id == row.id && other.num_computed + other.num_tokens == position {
                return [(now.id().0 - step.id().0) as u32, logits];
            }
            logits += 1 + other.num_draft;
        }
    }
    panic!("nobody samples position {position} of request {}", row.id)
}

/// What a transformer is to this test. The KV of a token stands for the sequence up to it, and the
/// next token depends on all of the KV, so that no wrong input goes unnoticed for long.
#[derive(Clone, Copy)]
pub(crate) struct Transformer {
    kv: u64,
    attention: u64,
}

impl Transformer {
    pub(crate) const EMPTY: Self = Self { kv: 0, attention: 0 };

    /// The KV of `token` after a token of KV `before`.
    fn kv(before: u64, token: Token) -> u64 {
        mix(before ^ mix(u64::from(token) + 1))
    }

    fn attend(attention: u64, kv: u64) -> u64 {
        mix(attention.rotate_left(9) ^ kv)
    }

    fn output(attention: u64) -> Token {
        (attention >> 40) as Token
    }

    pub(crate) fn push(&mut self, token: Token) {
        self.kv = Self::kv(self.kv, token);
        self.attention = Self::attend(self.attention, self.kv);
    }

    pub(crate) fn next_token(self) -> Token {
        Self::output(self.attention)
    }
}

/// A device made of nothing but memory, which reads nothing but the bytes of batches.
#[derive(Default)]
pub(crate) struct Memory {
    kv: Vec<u64>,
    host: Vec<u64>,
    /// What each step sampled, by its logits.
    pub(crate) sampled: HashMap<u64, Vec<Token>>,
    /// What each row that samples delivers: drafts it confirms, and the token after them.
    pub(crate) accepted: HashMap<u64, Vec<Vec<Token>>>,
    pub(crate) resolved: usize,
    pub(crate) copied: usize,
}

impl Memory {
    pub(crate) fn new(cache: &CacheConfig) -> Self {
        let garbage = |blocks: usize| vec![0xdead; blocks * cache.block_size];
        Self {
            kv: garbage(cache.num_blocks),
            host: garbage(cache.num_host_blocks),
            ..Self::default()
        }
    }

    pub(crate) fn run(&mut self, bytes: &[u8]) {
        let mut batch = Arrays::parse(bytes);
        let size = batch.block_size as usize;
        let block = |at: u32| at as usize * size..(at as usize + 1) * size;
        for &[kind, src, dst] in &batch.ops {
            self.copied += 1;
            match kind {
                BlockOp::COPY => self.kv.copy_within(block(src), block(dst).start),
                BlockOp::SWAP_OUT => self.host[block(dst)].copy_from_slice(&self.kv[block(src)]),
                BlockOp::SWAP_IN => self.kv[block(dst)].copy_from_slice(&self.host[block(src)]),
                other => panic!("copy of kind {other}"),
            }
        }
        for &[token, steps_back, logits] in &batch.pending {
            assert_eq!(batch.tokens[token as usize], PENDING_TOKEN);
            let source = batch.step - u64::from(steps_back);
            batch.tokens[token as usize] = self.sampled[&source][logits as usize];
            self.resolved += 1;
        }
        assert!(!batch.tokens.contains(&PENDING_TOKEN), "nobody says where a token comes from");
        let (mut sampled, mut accepted) = (Vec::new(), Vec::new());
        for row in 0..batch.num_rows as usize {
            let mine = batch.qo_indptr[row]..batch.qo_indptr[row + 1];
            let len = (batch.kv_indptr[row + 1] - batch.kv_indptr[row]) as usize * size - size
                + batch.kv_last_page_len[row] as usize;
            let slots: Vec<usize> =
                batch.table(row).iter().flat_map(|&b| block(b)).take(len).collect();
            for at in mine.clone().map(|at| at as usize) {
                let before = match batch.positions[at] as usize {
                    0 => 0,
                    position => self.kv[slots[position - 1]],
                };
                let slot = batch.slot_mapping[at] as usize;
                self.kv[slot] = Transformer::kv(before, batch.tokens[at]);
            }
            let mut outputs = Vec::new();
            let mut right = true;
            for &at in batch.logits_indices.iter().filter(|at| mine.contains(at)) {
                let seen = &slots[..=batch.positions[at as usize] as usize];
                let kv = seen.iter().map(|&slot| self.kv[slot]);
                let token = Transformer::output(kv.fold(0, Transformer::attend));
                sampled.push(token);
                outputs.extend(right.then_some(token));
                right &= batch.tokens.get(at as usize + 1) == Some(&token);
            }
            accepted.extend((!outputs.is_empty()).then_some(outputs));
        }
        assert_eq!(sampled.len(), batch.logits_indices.len(), "logits that no row owns");
        self.sampled.insert(batch.step, sampled);
        self.accepted.insert(batch.step, accepted);
    }
}

/// The rows of the dense table are those of the batch, with the null block behind them.
pub(crate) fn check_dense(dense: &DenseTable, want: &Arrays) {
    for row in 0..want.num_rows as usize {
        let line = &dense.blocks()[row * dense.width()..(row + 1) * dense.width()];
        let (used, rest) = line.split_at(want.table(row).len());
        let same = used.iter().map(|block| block.0).eq(want.table(row).iter().copied());
        assert!(same && rest.iter().all(|block| block.0 == 0), "row {row}: {line:?} {want:?}");
    }
}

/// Brings a device's copy of the dense table up to date as a device would: by what has changed.
pub(crate) fn copy_changes(dense: &DenseTable, mirror: &mut Vec<u32>) {
    let blocks = dense.blocks();
    mirror.resize(blocks.len().max(mirror.len()), 0);
    for range in dense.changed() {
        let fresh = blocks[range.clone()].iter().map(|block| block.0);
        mirror[range.clone()].iter_mut().zip(fresh).for_each(|(old, new)| *old = new);
    }
}
