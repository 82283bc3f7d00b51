//! The ragged batch of one step: flat arrays in one packed buffer.
//!
//! A device gets one buffer. It starts with a [`Header`] of counts and byte offsets, the arrays
//! follow, each at a multiple of [`ALIGN`] bytes:
//!
//! | array | type | length | meaning |
//! |---|---|---|---|
//! | `tokens` | u32 | `num_tokens` | input tokens, row by row; [`PENDING_TOKEN`] where `pending` says whence |
//! | `positions` | u32 | `num_tokens` | position of each in its sequence |
//! | `slot_mapping` | i64 | `num_tokens` | where its KV is written: `block * block_size + offset` |
//! | `qo_indptr` | u32 | `padded_rows + 1` | row `r` owns tokens `qo_indptr[r]..qo_indptr[r + 1]` |
//! | `kv_indptr` | u32 | `padded_rows + 1` | row `r` reads blocks `kv_indices[kv_indptr[r]..kv_indptr[r + 1]]` |
//! | `kv_last_page_len` | u32 | `padded_rows` | tokens in a row's last block, this step's included |
//! | `logits_indices` | u32 | `num_logits` | tokens whose logits are needed, ascending |
//! | `pending` | [`Pending`] | `num_pending` | inputs that a step in flight samples (overlap) |
//! | `ops` | [`BlockOp`] | `num_ops` | copies to make first, in order |
//! | `kv_indices` | u32 | `num_kv_blocks` | block tables, compressed rows (CSR) |
//!
//! There are no padding tokens. For CUDA graphs the *number of rows* is padded to a bucket with
//! rows that own no token and no block, so the offsets before `kv_indices`, which comes last, are
//! those of the bucket. In a steady decode step only what changed is written again.

#![forbid(unsafe_code)]

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::cache::BlockOp;
use crate::error::{Error, Result};
pub use crate::params::{
    INFLIGHT_STEP_MAGIC as MAGIC, inflight_pending as Pending, inflight_step as Header,
};
use crate::scheduler::{Row, Scheduler, Step};
use crate::types::{BlockId, PENDING_TOKEN, StepId, Token};

/// Each array starts at a multiple of this many bytes.
pub const ALIGN: usize = 16;

impl Header {
    /// The same counts, and the offsets of their arrays, one behind the other; `None` where they do
    /// not fit 4 GiB. The one place that lays a step out.
    pub(crate) fn laid_out(mut self) -> Option<Self> {
        let mut at = size_of::<Self>() as u64;
        let mut place = |len: u32, size: usize| {
            let start = at;
            at = (at + u64::from(len) * size as u64).next_multiple_of(ALIGN as u64);
            start as u32
        };
        self.magic = MAGIC;
        self.tokens = place(self.num_tokens, size_of::<Token>());
        self.positions = place(self.num_tokens, size_of::<u32>());
        self.slot_mapping = place(self.num_tokens, size_of::<i64>());
        self.qo_indptr = place(self.padded_rows + 1, size_of::<u32>());
        self.kv_indptr = place(self.padded_rows + 1, size_of::<u32>());
        self.kv_last_page_len = place(self.padded_rows, size_of::<u32>());
        self.logits_indices = place(self.num_logits, size_of::<u32>());
        self.pending = place(self.num_pending, size_of::<Pending>());
        self.ops = place(self.num_ops, size_of::<BlockOp>());
        self.kv_indices = place(self.num_kv_blocks, size_of::<BlockId>());
        self.total_bytes = u32::try_from(at).ok()?;
        Some(self)
    }
}

/// The numbers of rows that batches are padded to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowBuckets(Vec<u32>);

impl RowBuckets {
    /// No padding.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// These sizes; a batch larger than all of them is not padded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless they ascend strictly from at least 1.
    pub fn new(sizes: Vec<u32>) -> Result<Self> {
        let ascends = sizes.windows(2).all(|w| w[0] < w[1]);
        if !ascends || sizes.first() == Some(&0) {
            return Err(Error::argument("row_buckets", "must ascend strictly from at least 1"));
        }
        Ok(Self(sizes))
    }

    /// The field's usual ladder for CUDA graphs: 1, 2, 4, then by 8 to 256, by 16 to `max`.
    #[must_use]
    pub fn ladder(max: u32) -> Self {
        let small = [1, 2, 4].into_iter();
        let all = small.chain((8..=256).step_by(8)).chain((272..=max.max(272)).step_by(16));
        let mut sizes: Vec<u32> = all.filter(|&size| size < max).collect();
        sizes.push(max.max(1));
        Self(sizes)
    }

    /// The size that `rows` are padded to.
    #[must_use]
    pub fn padded(&self, rows: u32) -> u32 {
        let at = self.0.partition_point(|&size| size < rows);
        self.0.get(at).copied().unwrap_or(rows)
    }
}

/// 16 bytes, so that the buffer is aligned for the widest loads.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C, align(16))]
struct Chunk([u32; 4]);

/// Memory for a packed step, which grows.
#[derive(Clone, Debug, Default)]
struct Memory(Vec<Chunk>);

impl Memory {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// Makes room for so many bytes.
    fn reserve(&mut self, bytes: usize) {
        let chunks = bytes.div_ceil(size_of::<Chunk>());
        if chunks > self.0.len() {
            self.0.resize(chunks.next_power_of_two(), Chunk::default());
        }
    }

    /// Takes the place of what is here, without giving memory back.
    fn copy_from(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    }
}

/// The batch of one step; see the [module](self) for its layout.
#[derive(Debug, Default)]
pub struct RaggedBatch {
    header: Header,
    buffer: Memory,
}

impl Clone for RaggedBatch {
    fn clone(&self) -> Self {
        Self { header: self.header, buffer: self.buffer.clone() }
    }

    /// Copies only the bytes in use, into the memory that is there.
    fn clone_from(&mut self, other: &Self) {
        self.header = other.header;
        self.buffer.copy_from(other.bytes());
    }
}

macro_rules! arrays {
    ($($(#[$doc:meta])* $name:ident, $write:ident: $type:ty, $len:expr;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> &[$type] {
            let range = Self::range::<$type>(self.header.$name, $len(&self.header));
            // Before the first build there is no buffer.
            bytemuck::cast_slice(self.bytes().get(range).unwrap_or_default())
        }

        fn $write(&mut self) -> &mut [$type] {
            let range = Self::range::<$type>(self.header.$name, $len(&self.header));
            bytemuck::cast_slice_mut(&mut self.buffer.bytes_mut()[range])
        }
    )*};
}

impl RaggedBatch {
    arrays! {
        /// Input tokens, row by row.
        tokens, tokens_mut: Token, |h: &Header| h.num_tokens;
        /// The position of each token in its sequence.
        positions, positions_mut: u32, |h: &Header| h.num_tokens;
        /// Where each token's KV is written: `block * block_size + offset`.
        slot_mapping, slot_mapping_mut: i64, |h: &Header| h.num_tokens;
        /// Offsets of the rows into the tokens.
        qo_indptr, qo_indptr_mut: u32, |h: &Header| h.padded_rows + 1;
        /// Offsets of the rows into `kv_indices`.
        kv_indptr, kv_indptr_mut: u32, |h: &Header| h.padded_rows + 1;
        /// Tokens in each row's last block.
        kv_last_page_len, kv_last_page_len_mut: u32, |h: &Header| h.padded_rows;
        /// Tokens whose logits are needed.
        logits_indices, logits_indices_mut: u32, |h: &Header| h.num_logits;
        /// Inputs that a step in flight samples.
        pending, pending_mut: Pending, |h: &Header| h.num_pending;
        /// Copies to make first, in order.
        ops, ops_mut: BlockOp, |h: &Header| h.num_ops;
        /// Block tables of the rows, one after the other.
        kv_indices, kv_indices_mut: BlockId, |h: &Header| h.num_kv_blocks;
    }

    fn range<T>(offset: u32, len: u32) -> Range<usize> {
        let start = offset as usize;
        start..start + len as usize * size_of::<T>()
    }

    /// The packed buffer, header included: what is copied to the device.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[..self.header.total_bytes as usize]
    }

    /// Counts and offsets.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Memory for a step of so many bytes, to be packed by another; then
    /// [`read_header`](Self::read_header).
    pub(crate) fn memory(&mut self, bytes: usize) -> &mut [u8] {
        self.buffer.reserve(bytes);
        self.buffer.bytes_mut()
    }

    /// The step that was packed into the memory is this batch.
    pub(crate) fn read_header(&mut self) {
        let header = &self.buffer.bytes()[..size_of::<Header>()];
        self.header = *bytemuck::from_bytes(header);
    }

    /// Makes room for arrays of these counts.
    fn lay_out(&mut self, counts: Header) -> Result<()> {
        self.header = counts.laid_out().ok_or_else(too_large)?;
        self.buffer.reserve(self.header.total_bytes as usize);
        Ok(())
    }

    fn write_header(&mut self) {
        let header = self.header;
        let to = &mut self.buffer.bytes_mut()[..size_of::<Header>()];
        to.copy_from_slice(bytemuck::bytes_of(&header));
    }
}

fn too_large() -> Error {
    Error::argument("step", "its batch does not fit 4 GiB")
}

/// Block tables as a dense matrix, one row a row of the batch, `width` columns; 0, the null
/// block, past a row's end; rows past the batch's last keep what they had. It stays resident: a device copies what [`changed`](Self::changed)
/// names.
#[derive(Clone, Debug, Default)]
pub struct DenseTable {
    width: usize,
    blocks: Vec<BlockId>,
    used: Vec<u32>,
    changed: Vec<Range<usize>>,
    /// Whether the last build came to its end.
    complete: bool,
}

impl DenseTable {
    /// Columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The matrix, row-major.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Ranges of [`blocks`](Self::blocks) written since the build before the last one that worked.
    #[must_use]
    pub fn changed(&self) -> &[Range<usize>] {
        &self.changed
    }

    /// Writes a row's blocks from column `from`, and clears what the row before it left.
    fn write(&mut self, row: usize, from: usize, blocks: &[BlockId]) -> Result<()> {
        if blocks.len() > self.width {
            let reason = format!("{} blocks, {} columns", blocks.len(), self.width);
            return Err(Error::argument("dense_width", reason));
        }
        if self.used.len() <= row {
            self.used.resize(row + 1, 0);
            self.blocks.resize((row + 1) * self.width, BlockId::NULL);
        }
        let start = row * self.width;
        let end = blocks.len().max(self.used[row] as usize);
        let line = &mut self.blocks[start..start + end];
        line[from..blocks.len()].copy_from_slice(&blocks[from..]);
        line[blocks.len()..].fill(BlockId::NULL);
        self.used[row] = blocks.len() as u32;
        self.changed.push(start + from..start + end);
        Ok(())
    }
}

/// Builds the batch of each step, from that of the step before where the rows are the same.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    buckets: RowBuckets,
    batch: RaggedBatch,
    dense: Option<DenseTable>,
    /// The rows of the batch, while it is one token each and can be carried on.
    steady: Vec<(u32, u32)>,
    grown: Vec<u32>,
}

impl BatchBuilder {
    /// A builder that pads the number of rows to `buckets` and, with `dense_width`, keeps a
    /// [`DenseTable`] of so many columns next to the compressed one.
    #[must_use]
    pub fn new(buckets: RowBuckets, dense_width: Option<usize>) -> Self {
        let dense = dense_width.map(|width| DenseTable { width, ..DenseTable::default() });
        Self { buckets, dense, ..Self::default() }
    }

    /// The last batch built; half written when the last build failed.
    #[must_use]
    pub fn batch(&self) -> &RaggedBatch {
        &self.batch
    }

    /// The dense block tables of the last batch built.
    #[must_use]
    pub fn dense(&self) -> Option<&DenseTable> {
        self.dense.as_ref()
    }

    /// Builds the batch of `step`, the newest step of `scheduler` that is in flight.
    ///
    /// # Errors
    /// [`Error::UnknownStep`] when it is not that, or one of its requests was cancelled;
    /// [`Error::InvalidArgument`] naming `dense_width` when a table outgrew it.
    pub fn build(&mut self, scheduler: &Scheduler, step: &Step) -> Result<&RaggedBatch> {
        if scheduler.steps_in_flight().last().map(Step::id) != Some(step.id()) {
            return Err(Error::UnknownStep(step.id()));
        }
        if let Some(dense) = &mut self.dense {
            // What a failed build wrote has not been copied yet.
            if std::mem::replace(&mut dense.complete, false) {
                dense.changed.clear();
            }
        }
        if !self.carry_on(scheduler, step)? {
            self.steady.clear();
            self.rebuild(scheduler, step)?;
            if step.rows().iter().all(is_steady) && step.sources().is_empty() {
                self.steady.extend(step.rows().iter().map(Row::key));
            }
        }
        self.batch.write_header();
        if let Some(dense) = &mut self.dense {
            dense.complete = true;
        }
        Ok(&self.batch)
    }

    /// Turns the last batch into that of `step` if each row goes on by one token; says whether.
    fn carry_on(&mut self, scheduler: &Scheduler, step: &Step) -> Result<bool> {
        let rows = step.rows();
        let header = &self.batch.header;
        let last = u64::from(header.step[0]) | u64::from(header.step[1]) << 32;
        let follows = |(row, (key, &position)): (&Row, (&(u32, u32), &u32))| {
            is_steady(row) && row.key() == *key && row.num_computed == position + 1
        };
        let same = rows.len() == self.steady.len()
            && !rows.is_empty()
            && step.id().0 == last + 1
            && step.block_ops().is_empty()
            && self.batch.header.num_ops == 0
            && step.sources().is_empty()
            && rows.iter().zip(self.steady.iter().zip(self.batch.positions())).all(follows);
        if !same {
            return Ok(false);
        }
        let block_size = self.batch.header.block_size;
        self.grown.clear();
        let mut longest = 0;
        let (id, batch) = (step.id(), &mut self.batch);
        for (row, token) in rows.iter().zip(batch.tokens_mut()) {
            let tokens = scheduler.tokens(row).ok_or(Error::UnknownStep(id))?;
            *token = *tokens.get(row.num_computed as usize).ok_or(Error::UnknownStep(id))?;
            longest = longest.max(row.num_computed + 1);
        }
        for (row, position) in rows.iter().zip(batch.positions_mut()) {
            *position = row.num_computed;
        }
        // The next slot of the same block, or, below, the first of a new one.
        batch.slot_mapping_mut().iter_mut().for_each(|slot| *slot += 1);
        for (i, len) in (0..).zip(&mut batch.kv_last_page_len_mut()[..rows.len()]) {
            *len += 1;
            if *len > block_size {
                self.grown.push(i);
            }
        }
        batch.header.max_kv_len = longest;
        batch.header.step = [id.0 as u32, (id.0 >> 32) as u32];
        if !self.grown.is_empty() {
            self.insert_blocks(scheduler, step)?;
        }
        Ok(true)
    }

    /// Appends a block to the tables of the `grown` rows, moving what lies behind them once.
    fn insert_blocks(&mut self, scheduler: &Scheduler, step: &Step) -> Result<()> {
        let batch = &mut self.batch;
        let old_len = batch.header.num_kv_blocks as usize;
        batch.header.num_kv_blocks += self.grown.len() as u32;
        let end = batch.header.kv_indices as usize + batch.header.num_kv_blocks as usize * 4;
        let total = end.next_multiple_of(ALIGN);
        batch.header.total_bytes = u32::try_from(total).map_err(|_| too_large())?;
        batch.buffer.reserve(total);
        let block_size = i64::from(batch.header.block_size);
        let mut tail = old_len;
        for (before, &at) in self.grown.iter().enumerate().rev() {
            let shift = before + 1;
            let row = at as usize;
            // Its table may be longer: a policy can reserve ahead.
            let column = batch.positions()[row] as usize / block_size as usize;
            let blocks = scheduler.blocks(&step.rows()[row]);
            let blocks = blocks.get(..=column).ok_or(Error::UnknownStep(step.id()))?;
            let block = blocks[column];
            let row_end = batch.kv_indptr()[row + 1] as usize;
            let indices = batch.kv_indices_mut();
            indices.copy_within(row_end..tail, row_end + shift);
            indices[row_end + shift - 1] = block;
            tail = row_end;
            batch.slot_mapping_mut()[row] = i64::from(block.0) * block_size;
            batch.kv_last_page_len_mut()[row] = 1;
            if let Some(dense) = &mut self.dense {
                dense.write(row, column, blocks)?;
            }
        }
        let mut grown = self.grown.iter().peekable();
        let mut shift = 0;
        for (i, offset) in batch.kv_indptr_mut().iter_mut().enumerate() {
            *offset += shift;
            shift += u32::from(grown.next_if(|&&row| row as usize == i).is_some());
        }
        Ok(())
    }

    /// Writes every array anew.
    fn rebuild(&mut self, scheduler: &Scheduler, step: &Step) -> Result<()> {
        let (id, rows) = (step.id(), step.rows());
        let block_size = scheduler.config().cache.block_size as u32;
        let kv_len = |row: &Row| row.num_computed + row.num_tokens;
        let num_kv_blocks: u64 =
            rows.iter().map(|row| u64::from(kv_len(row).div_ceil(block_size))).sum();
        let batch = &mut self.batch;
        batch.lay_out(Header {
            step: [id.0 as u32, (id.0 >> 32) as u32],
            num_rows: rows.len() as u32,
            padded_rows: self.buckets.padded(rows.len() as u32),
            num_tokens: step.num_tokens() as u32,
            num_logits: step.num_logits() as u32,
            num_pending: step.sources().len() as u32,
            num_ops: step.block_ops().len() as u32,
            num_kv_blocks: u32::try_from(num_kv_blocks)
                .map_err(|_| Error::argument("step", "its block tables do not fit 32 bits"))?,
            block_size,
            max_q_len: rows.iter().map(|row| row.num_tokens).max().unwrap_or(0),
            max_kv_len: rows.iter().map(kv_len).max().unwrap_or(0),
            ..Header::default()
        })?;
        // Room for the blocks these rows may come to hold, so that going on does not allocate.
        let longest = scheduler.cache().blocks_for(scheduler.config().max_model_len);
        let most = rows.len().saturating_mul(longest).min(scheduler.cache().pool().num_usable());
        batch
            .buffer
            .reserve(batch.header.kv_indices as usize + 4 * most.max(num_kv_blocks as usize));
        let (mut token, mut logit, mut index) = (0, 0, 0);
        for (i, row) in rows.iter().enumerate() {
            let sequence = scheduler.sequence(row).ok_or(Error::UnknownStep(id))?;
            let n = row.num_tokens as usize;
            let start = row.num_computed as usize;
            let len = kv_len(row).div_ceil(block_size) as usize;
            // Reserved blocks beyond the row's KV are not read. Fewer: it was preempted since.
            let blocks = sequence.blocks.get(..len).ok_or(Error::UnknownStep(id))?;
            let known = sequence.tokens.iter().chain(sequence.draft).skip(start);
            let inputs = known.copied().chain(std::iter::repeat(PENDING_TOKEN)).take(n);
            batch.tokens_mut()[token..token + n].iter_mut().zip(inputs).for_each(|(t, x)| *t = x);
            let positions = &mut batch.positions_mut()[token..token + n];
            positions.iter_mut().zip(row.num_computed..).for_each(|(p, x)| *p = x);
            let slots = &mut batch.slot_mapping_mut()[token..token + n];
            for (slot, at) in slots.iter_mut().zip(start..) {
                let block = i64::from(blocks[at / block_size as usize].0);
                *slot = block * i64::from(block_size) + (at % block_size as usize) as i64;
            }
            batch.kv_indices_mut()[index..index + len].copy_from_slice(blocks);
            batch.qo_indptr_mut()[i] = token as u32;
            batch.kv_indptr_mut()[i] = index as u32;
            batch.kv_last_page_len_mut()[i] = (kv_len(row) - 1) % block_size + 1;
            if let Some(dense) = &mut self.dense {
                dense.write(i, 0, blocks)?;
            }
            (token, index) = (token + n, index + len);
            if row.samples {
                let wanted = 1 + row.num_draft as usize;
                let indices = &mut batch.logits_indices_mut()[logit..logit + wanted];
                indices.iter_mut().zip(token - wanted..).for_each(|(l, x)| *l = x as u32);
                logit += wanted;
            }
        }
        batch.qo_indptr_mut()[rows.len()..].fill(token as u32);
        batch.kv_indptr_mut()[rows.len()..].fill(index as u32);
        batch.kv_last_page_len_mut()[rows.len()..].fill(0);
        batch.ops_mut().copy_from_slice(step.block_ops());
        for (at, source) in step.sources().iter().enumerate() {
            let StepId(now) = id;
            let pending = Pending {
                token: batch.qo_indptr()[source.row as usize],
                steps_back: (now - source.step.0) as u32,
                logits: source.logits,
            };
            batch.pending_mut()[at] = pending;
        }
        Ok(())
    }
}

/// One token after output it already had, and known.
fn is_steady(row: &Row) -> bool {
    row.is_decode && row.num_tokens == 1
}
