//! A step as callers give it: its rows, its arrays, and the largest that something is made for.

#![forbid(unsafe_code)]

use crate::batch::{Header, MAGIC, RaggedBatch};
use crate::error::{Error, Result};
use crate::plan::Extent;
use crate::types::BlockId;

/// The rows of a step: how many queries each has, and where its keys are.
///
/// `BatchView::from(&batch)` views the [`RaggedBatch`] that an engine hands to its
/// [`Executor`](crate::executor::Executor), whose `slot_mapping` and `positions` are what
/// [`append`](super::cpu::append) wants. A row's keys are those in its blocks: the full ones, and
/// `kv_last_page_len` in the last. They include its own new tokens; where there are fewer keys than
/// queries the first queries lie before the sequence and see nothing.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// Row `r` owns query tokens `qo_indptr[r]..qo_indptr[r + 1]`.
    pub qo_indptr: &'a [u32],
    /// Row `r` reads blocks `kv_indices[kv_indptr[r]..kv_indptr[r + 1]]`.
    pub kv_indptr: &'a [u32],
    /// Block tables, one after the other; what lies beyond `kv_indptr`'s last is not looked at. Rows
    /// may share a block, and a row may name one several times.
    pub kv_indices: &'a [BlockId],
    /// Tokens in the last block of each row, this step's included; 0 for a row without blocks.
    pub kv_last_page_len: &'a [u32],
    /// Tokens per block.
    pub block_size: usize,
}

impl<'a> From<&'a RaggedBatch> for BatchView<'a> {
    fn from(batch: &'a RaggedBatch) -> Self {
        Self {
            qo_indptr: batch.qo_indptr(),
            kv_indptr: batch.kv_indptr(),
            kv_indices: batch.kv_indices(),
            kv_last_page_len: batch.kv_last_page_len(),
            block_size: batch.header().block_size as usize,
        }
    }
}

impl BatchView<'_> {
    /// Rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.kv_last_page_len.len()
    }

    /// Query tokens; 0 without rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.qo_indptr.last().map_or(0, |&end| end as usize)
    }

    /// Entries of `kv_indices` that rows name.
    pub(crate) fn num_blocks(&self) -> usize {
        self.kv_indptr.last().map_or(0, |&end| end as usize)
    }

    /// Queries and keys of each row.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> + Clone {
        (0..self.num_rows()).map(|row| Extent {
            q_len: self.qo_indptr[row + 1] - self.qo_indptr[row],
            kv_len: self.kv_len(row),
        })
    }

    /// Checks all arrays against each other and against a cache of `num_blocks` blocks. A row may name
    /// a block several times: attention only reads it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array and the row.
    pub(crate) fn check(&self, num_blocks: usize) -> Result<()> {
        self.check_shape()?;
        for row in 0..self.num_rows() {
            self.check_lengths(row)?;
        }
        let used = self.kv_indptr[self.num_rows()] as usize;
        // A maximum is what compilers make vector code of; who it was matters only if it is wrong.
        let largest = self.kv_indices[..used].iter().map(|block| block.0).max().unwrap_or(0);
        if used == 0 || (largest as usize) < num_blocks {
            return Ok(());
        }
        let at = self.kv_indices.iter().position(|block| block.0 == largest).unwrap_or(0);
        let row = self.kv_indptr.partition_point(|&start| start as usize <= at) - 1;
        Err(Self::no_block(row, BlockId(largest)))
    }

    fn no_block(row: usize, block: BlockId) -> Error {
        Error::argument("kv_indices", format!("row {row}: there is no block {}", block.0))
    }

    /// Checks that a row's blocks and its last page fit each other.
    fn check_lengths(&self, row: usize) -> Result<()> {
        let blocks = self.kv_indptr[row + 1] - self.kv_indptr[row];
        let last = self.kv_last_page_len[row] as usize;
        let fits = if blocks == 0 { last == 0 } else { (1..=self.block_size).contains(&last) };
        if !fits {
            let reason = format!("row {row} has {blocks} blocks and {last} tokens in the last");
            return Err(Error::argument("kv_last_page_len", reason));
        }
        if u64::from(blocks) * self.block_size as u64 > u64::from(u32::MAX >> 1) {
            let reason = format!("row {row}: its keys do not fit 31 bits");
            return Err(Error::argument("kv_indptr", reason));
        }
        Ok(())
    }

    /// Checks the lengths of the arrays, and what they say of each other.
    pub(crate) fn check_shape(&self) -> Result<()> {
        let rows = self.num_rows();
        if self.block_size == 0 {
            return Err(Error::argument("block_size", "a block holds at least one token"));
        }
        for (field, indptr) in [("qo_indptr", self.qo_indptr), ("kv_indptr", self.kv_indptr)] {
            if indptr.len() != rows + 1 || indptr[0] != 0 {
                let reason = format!("must have {} entries, the first of them 0", rows + 1);
                return Err(Error::argument(field, reason));
            }
            if let Some(row) = indptr.windows(2).position(|w| w[0] > w[1]) {
                return Err(Error::argument(field, format!("descends at row {row}")));
            }
        }
        let used = self.kv_indptr[rows] as usize;
        if self.kv_indices.len() < used {
            let reason = format!("has {} entries, kv_indptr names {used}", self.kv_indices.len());
            return Err(Error::argument("kv_indices", reason));
        }
        Ok(())
    }

    /// A row's keys.
    pub(crate) fn kv_len(&self, row: usize) -> u32 {
        match self.kv_indptr[row + 1] - self.kv_indptr[row] {
            0 => 0,
            blocks => (blocks - 1) * self.block_size as u32 + self.kv_last_page_len[row],
        }
    }
}

/// The arrays of a step that kernels read.
#[derive(Clone, Copy, Debug)]
pub struct StepArrays<'a> {
    /// Rows and block tables.
    pub batch: BatchView<'a>,
    /// Where each token's KV is written: `block * block_size + offset`; a negative one is skipped.
    /// Empty where nothing is appended.
    pub slot_mapping: &'a [i64],
    /// Position of each token, for rotary embeddings. Empty where nothing is rotated.
    pub positions: &'a [u32],
    /// Input tokens, for kernels of the caller's. May be empty.
    pub tokens: &'a [u32],
}

impl<'a> StepArrays<'a> {
    /// Rows alone: for attention without an append.
    #[must_use]
    pub fn new(batch: BatchView<'a>) -> Self {
        Self { batch, slot_mapping: &[], positions: &[], tokens: &[] }
    }
}

impl<'a> From<&'a RaggedBatch> for StepArrays<'a> {
    fn from(batch: &'a RaggedBatch) -> Self {
        Self {
            batch: batch.into(),
            slot_mapping: batch.slot_mapping(),
            positions: batch.positions(),
            tokens: batch.tokens(),
        }
    }
}

/// What a step buffer is given.
#[derive(Clone, Copy, Debug)]
pub enum StepSource<'a> {
    /// A batch, which is packed as kernels read it: it is copied as it is.
    Batch(&'a RaggedBatch),
    /// A caller's own arrays.
    Arrays(StepArrays<'a>),
    /// A caller's arrays that lie in the bytes of a batch: see [`packed`](Self::packed).
    Packed(PackedArrays<'a>),
}

/// Arrays, and the bytes of a batch that they lie in.
#[derive(Clone, Copy, Debug)]
pub struct PackedArrays<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) header: Header,
    pub(crate) arrays: StepArrays<'a>,
}

impl<'a> StepSource<'a> {
    /// The arrays of either.
    #[must_use]
    pub fn arrays(&self) -> StepArrays<'a> {
        match *self {
            Self::Batch(batch) => batch.into(),
            Self::Arrays(arrays) => arrays,
            Self::Packed(packed) => packed.arrays,
        }
    }

    /// Arrays that are said to be those of a batch, whose bytes are then copied as they are; where the
    /// bytes do not hold all of them, as their header says, they are arrays like others.
    #[must_use]
    pub fn packed(bytes: &'a [u8], arrays: StepArrays<'a>) -> Self {
        let StepArrays { batch, slot_mapping, positions, tokens } = arrays;
        let header = bytes.get(..size_of::<Header>()).map(bytemuck::pod_read_unaligned::<Header>);
        let found = header.filter(|header| {
            let lies_at = |at: u32, array: &[u8], end: usize| {
                let starts = bytes.as_ptr().addr() + at as usize == array.as_ptr().addr();
                starts && at as usize + array.len() <= end
            };
            let ops = header.ops as usize;
            let numbers = |at, array: &[u32]| lies_at(at, bytemuck::cast_slice(array), ops);
            let tokens_each = [slot_mapping.len(), positions.len(), tokens.len()];
            header.magic == MAGIC
                && header.block_size as usize == batch.block_size
                && header.padded_rows as usize == batch.num_rows()
                && header.num_kv_blocks as usize == batch.kv_indices.len()
                && tokens_each == [header.num_tokens as usize; 3]
                && ops <= bytes.len()
                && numbers(header.qo_indptr, batch.qo_indptr)
                && numbers(header.kv_indptr, batch.kv_indptr)
                && numbers(header.kv_last_page_len, batch.kv_last_page_len)
                && numbers(header.positions, positions)
                && numbers(header.tokens, tokens)
                && lies_at(header.slot_mapping, bytemuck::cast_slice(slot_mapping), ops)
                && lies_at(header.kv_indices, bytemuck::cast_slice(batch.kv_indices), bytes.len())
        });
        match found {
            Some(header) => Self::Packed(PackedArrays { bytes, header, arrays }),
            None => Self::Arrays(arrays),
        }
    }
}

impl<'a> From<&'a RaggedBatch> for StepSource<'a> {
    fn from(batch: &'a RaggedBatch) -> Self {
        Self::Batch(batch)
    }
}

impl<'a> From<&StepArrays<'a>> for StepSource<'a> {
    fn from(arrays: &StepArrays<'a>) -> Self {
        Self::Arrays(*arrays)
    }
}

/// The largest steps that attentions and step buffers are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows, empty ones of a CUDA graph's bucket included.
    pub max_rows: usize,
    /// Query tokens.
    pub max_tokens: usize,
    /// Entries of all block tables together.
    pub max_blocks: usize,
    /// Keys of a row.
    pub max_kv_len: usize,
    /// Bytes of masks; 0 for steps without.
    pub max_mask_bytes: usize,
}

impl StepLimits {
    /// The largest there may be: for a processor, whose memory grows with the steps. A GPU's is
    /// allocated for them, and does not hold these.
    pub const MAX: Self = Self {
        max_rows: 1 << 30,
        max_tokens: 1 << 30,
        max_blocks: 1 << 30,
        max_kv_len: 1 << 30,
        max_mask_bytes: 1 << 30,
    };

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        let fields = [
            ("max_rows", self.max_rows, 1),
            ("max_tokens", self.max_tokens, 1),
            ("max_blocks", self.max_blocks, 1),
            ("max_kv_len", self.max_kv_len, 1),
            ("max_mask_bytes", self.max_mask_bytes, 0),
        ];
        match fields.into_iter().find(|&(_, value, least)| value < least || value > 1 << 30) {
            Some((field, value, least)) => {
                Err(Error::argument(field, format!("{value} is not within {least} to 2^30")))
            }
            None => Ok(()),
        }
    }

    /// Refuses a batch that is larger; `what` is made for the limits.
    pub(super) fn hold(&self, batch: &BatchView<'_>, what: &str) -> Result<()> {
        self.hold_each(
            what,
            &[
                ("rows", batch.num_rows(), self.max_rows),
                ("tokens", batch.num_tokens(), self.max_tokens),
                ("blocks", batch.num_blocks(), self.max_blocks),
            ],
        )
    }

    pub(super) fn hold_each(&self, what: &str, sizes: &[(&str, usize, usize)]) -> Result<()> {
        match sizes.iter().find(|&&(_, has, most)| has > most) {
            Some((name, has, most)) => {
                let reason = format!("{has} {name}, and the {what} is made for {most}");
                Err(Error::argument("limits", reason))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, RowBuckets};
    use crate::cache::CacheConfig;
    use crate::request::Request;
    use crate::scheduler::{Config, Policy, Scheduler};
    use crate::types::{RequestId, Time};

    #[test]
    fn arrays_that_lie_in_the_bytes_of_a_batch_are_found_there() {
        let cache =
            CacheConfig { num_blocks: 8, block_size: 4, prefix_cache: true, num_host_blocks: 0 };
        let mut scheduler = Scheduler::new(Config::new(cache), Policy::continuous()).unwrap();
        scheduler.submit(Request::new(RequestId(1), vec![5; 10], 3)).unwrap();
        let id = scheduler.schedule(Time(0)).unwrap().id();
        let mut builder = BatchBuilder::new(RowBuckets::none(), None);
        let batch = builder.build(&scheduler, scheduler.step(id).unwrap()).unwrap();
        let (bytes, arrays) = (batch.bytes(), StepArrays::from(batch));
        assert!(matches!(StepSource::packed(bytes, arrays), StepSource::Packed(_)));
        let copy = bytes.to_vec();
        let elsewhere = arrays.positions.to_vec();
        let fewer = StepArrays { tokens: &[], ..arrays };
        let moved = StepArrays { positions: &elsewhere, ..arrays };
        for (bytes, arrays) in [
            (&copy[..], arrays),
            (&bytes[..64], arrays),
            (&[], arrays),
            (bytes, fewer),
            (bytes, moved),
        ] {
            assert!(matches!(StepSource::packed(bytes, arrays), StepSource::Arrays(_)));
        }
    }
}
