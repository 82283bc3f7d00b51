//! What attention computes: its parameters, their meaning, and their checks.
//!
//! A row of the batch has `q_len` queries, the last tokens of a sequence of `kv_len` keys: query
//! `i` is at position `p = kv_len - q_len + i`. For query head `h`, which reads KV head
//! `h / (num_q_heads / num_kv_heads)`, the logit of key `j` is, in this order:
//!
//! 1. `s = scale * dot(q, k)`
//! 2. soft cap `c`: `s = c * tanh(s / c)`
//! 3. ALiBi: `s = s - slope[h] * |p - j|`
//! 4. key `j` is not seen if causal and `j > p`, if there is a window and `j < p - window_left`, or
//!    if the mask has a 0 for it
//!
//! The output is the softmax of the seen logits times V. A **sink** is one more logit, of no value:
//! it joins the denominator once. The **LSE** is the natural logarithm of the denominator, the
//! sink's share included. A query that sees no key has output 0 and LSE -inf (with a sink, the
//! sink's logit): merging it into another result changes nothing.
//!
//! Sums are in f32: dot products, and values summed up before they are divided by the denominator,
//! must not exceed its range. A NaN or infinity among the values of a key may reach the queries of
//! the same row that do not see that key.

use super::KvCache;
use super::kv::{KvLayout, KvScales, check_head_dim};
use super::tensor::{DType, TensorMut, TensorRef};
use crate::batch::RaggedBatch;
use crate::error::{Error, Result};
use crate::types::BlockId;

/// The attention of a group of layers: same heads, types, window and mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads: a multiple of `num_kv_heads`.
    pub num_q_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Elements a head: a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Type of queries and outputs: f32, f16 or bf16.
    pub q_dtype: DType,
    /// Type of the cache: that of the queries, or fp8.
    pub kv_dtype: DType,
    /// Factor of the dot products; within 1e30 of 0.
    pub scale: f32,
    /// Whether a query sees no key after its own position.
    pub causal: bool,
    /// Keys a query sees before its own position; `None` for all.
    pub window_left: Option<u32>,
    /// Logits are bent to stay below this; `None` for no bend.
    pub soft_cap: Option<f32>,
    /// Batch-invariant mode: a row's result depends on nothing but the row, bit by bit. The keys of
    /// a row are then split at multiples of this many, itself a multiple of 128 (2,048 is usual).
    pub fixed_split: Option<u32>,
}

impl AttentionConfig {
    /// Causal attention over a cache of the queries' type, with the usual scale
    /// `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn new(num_q_heads: usize, num_kv_heads: usize, head_dim: usize, dtype: DType) -> Self {
        Self {
            num_q_heads,
            num_kv_heads,
            head_dim,
            q_dtype: dtype,
            kv_dtype: dtype,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: true,
            window_left: None,
            soft_cap: None,
            fixed_split: None,
        }
    }

    /// Query heads that read one KV head.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.num_q_heads / self.num_kv_heads
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        check_head_dim(self.head_dim)?;
        if self.num_kv_heads == 0 || self.num_kv_heads > 1 << 16 {
            let reason = format!("{} is not within 1 to 65536", self.num_kv_heads);
            return Err(Error::argument("num_kv_heads", reason));
        }
        let whole = self.num_q_heads.is_multiple_of(self.num_kv_heads);
        if self.num_q_heads == 0 || self.num_q_heads > 1 << 16 || !whole {
            let reason = format!(
                "{} is no multiple of the {} KV heads, or not within 1 to 65536",
                self.num_q_heads, self.num_kv_heads
            );
            return Err(Error::argument("num_q_heads", reason));
        }
        if self.q_dtype == DType::Fp8E4m3 {
            return Err(Error::argument("q_dtype", "queries are f32, f16 or bf16"));
        }
        if self.kv_dtype != self.q_dtype && self.kv_dtype != DType::Fp8E4m3 {
            let reason = format!(
                "a cache of {} with queries of {}: it is of their type or fp8-e4m3",
                self.kv_dtype, self.q_dtype
            );
            return Err(Error::argument("kv_dtype", reason));
        }
        if self.scale.is_nan() || self.scale.abs() > 1e30 {
            return Err(Error::argument(
                "scale",
                format!("{} is not within 1e30 of 0", self.scale),
            ));
        }
        if let Some(cap) = self.soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(Error::argument("soft_cap", format!("{cap} is not finite and above 0")));
        }
        if let Some(split) = self.fixed_split.filter(|split| *split == 0 || split % 128 != 0) {
            let reason = format!("{split} is no multiple of 128 above 0");
            return Err(Error::argument("fixed_split", reason));
        }
        Ok(())
    }
}

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
    /// Tokens a block.
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

/// Which of the last keys each query sees: a tree of drafts, or any pattern at all.
///
/// Row `r`'s mask is over its last `widths[r]` keys; earlier keys are seen, and with width 0 all
/// are. Query `i` has `ceil(widths[r] / 8)` bytes from byte `indptr[r] + i * ceil(widths[r] / 8)`
/// of `bits`; bit `b % 8` (the least significant is 0) of byte `b / 8` says whether it sees key
/// `kv_len - widths[r] + b`. Causality and window hold as well: a pattern that looks ahead needs
/// `causal` off.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The bits.
    pub bits: &'a [u8],
    /// Where each row's bytes begin; one entry a row, and one past the last.
    pub indptr: &'a [u32],
    /// Keys a row's mask covers; at most its `kv_len`.
    pub widths: &'a [u32],
}

/// What one layer's attention reads and writes.
#[derive(Debug)]
pub struct AttentionArgs<'a> {
    /// Queries: `[tokens, num_q_heads, head_dim]`. Tokens beyond the batch's are not looked at.
    pub q: TensorRef<'a>,
    /// The layer's K and V, this step's already appended.
    pub cache: &'a KvCache<'a>,
    /// Scales of an fp8 cache.
    pub scales: KvScales<'a>,
    /// Outputs: shape and type of `q`.
    pub o: TensorMut<'a>,
    /// LSE: `[tokens, num_q_heads]`.
    pub lse: Option<&'a mut [f32]>,
    /// ALiBi slopes: one a query head.
    pub alibi_slopes: Option<&'a [f32]>,
    /// Sink logits: one a query head.
    pub sinks: Option<&'a [f32]>,
    /// Which keys are seen.
    pub mask: Option<Mask<'a>>,
}

/// Refuses outputs in the place of the queries, which other threads still read. Without tokens there
/// are neither.
pub(crate) fn check_not_in_place<T: PartialEq>(num_tokens: usize, q: T, o: T) -> Result<()> {
    if num_tokens > 0 && q == o {
        return Err(Error::argument("o", "is q: attention does not work in place"));
    }
    Ok(())
}

impl AttentionArgs<'_> {
    /// Checks all against the configuration and the rows planned: `extents` of (q_len, kv_len).
    pub(crate) fn check(
        &self,
        config: &AttentionConfig,
        num_blocks: usize,
        block_size: usize,
        num_tokens: usize,
        extents: impl ExactSizeIterator<Item = (u32, u32)>,
    ) -> Result<()> {
        let AttentionConfig { num_q_heads, num_kv_heads, head_dim, q_dtype, kv_dtype, .. } =
            *config;
        self.q.check("q", q_dtype, num_tokens, num_q_heads, head_dim)?;
        self.o.check("o", q_dtype, num_tokens, num_q_heads, head_dim)?;
        self.o.check_disjoint("o")?;
        check_not_in_place(num_tokens, self.q.as_ptr(), self.o.as_ptr().cast_const())?;
        let KvLayout { dtype, num_heads, head_dim: dim, .. } = *self.cache.layout();
        if dtype != kv_dtype || num_heads != num_kv_heads || dim != head_dim {
            let reason = format!(
                "{num_heads} heads of {dim} {dtype}, not {num_kv_heads} of {head_dim} {kv_dtype}"
            );
            return Err(Error::argument("cache", reason));
        }
        let layout = self.cache.layout();
        if layout.num_blocks < num_blocks || layout.block_size != block_size {
            let reason = format!(
                "{} blocks of {}, planned for {num_blocks} of {block_size}",
                layout.num_blocks, layout.block_size
            );
            return Err(Error::argument("cache", reason));
        }
        self.scales.check(layout)?;
        // What dot products are multiplied with, all together, to be logits to base 2.
        let most = self.scales.k.iter().copied().fold(1.0, f32::max) * 256.0;
        if !(config.scale * most * std::f32::consts::LOG2_E).is_finite() {
            let reason = format!("{} times the scale of attention is beyond f32", most / 256.0);
            return Err(Error::argument("scales.k", reason));
        }
        let lse = num_tokens * num_q_heads;
        if let Some(given) = self.lse.as_ref().map(|lse| lse.len()).filter(|&len| len < lse) {
            let reason = format!("{given} elements are given and the batch has {lse}");
            return Err(Error::argument("lse", reason));
        }
        for (field, numbers) in [("alibi_slopes", self.alibi_slopes), ("sinks", self.sinks)] {
            let Some(numbers) = numbers else { continue };
            if numbers.len() != num_q_heads {
                let reason = format!("has {} numbers for {num_q_heads} heads", numbers.len());
                return Err(Error::argument(field, reason));
            }
            let sinks = field == "sinks";
            // A sink of -inf is none at all.
            let good = |x: &f32| x.is_finite() || (sinks && *x == f32::NEG_INFINITY);
            if let Some(bad) = numbers.iter().find(|x| !good(x)) {
                return Err(Error::argument(field, format!("{bad} is not finite")));
            }
        }
        self.mask.map_or(Ok(()), |mask| mask.check(extents))
    }
}

impl Mask<'_> {
    pub(crate) fn check(&self, extents: impl ExactSizeIterator<Item = (u32, u32)>) -> Result<()> {
        let rows = extents.len();
        if self.widths.len() != rows {
            let reason = format!("has {} entries for {rows} rows", self.widths.len());
            return Err(Error::argument("mask.widths", reason));
        }
        if self.indptr.len() != rows + 1 {
            let reason = format!("has {} entries for {rows} rows", self.indptr.len());
            return Err(Error::argument("mask.indptr", reason));
        }
        for (row, (q_len, kv_len)) in extents.enumerate() {
            let width = self.widths[row];
            if width > kv_len {
                let reason = format!("row {row}: {width} keys, and it has {kv_len}");
                return Err(Error::argument("mask.widths", reason));
            }
            let (start, end) = (u64::from(self.indptr[row]), u64::from(self.indptr[row + 1]));
            let needed = u64::from(q_len) * u64::from(width.div_ceil(8));
            if end > self.bits.len() as u64 {
                let reason = format!("has {} bytes, and row {row} ends at {end}", self.bits.len());
                return Err(Error::argument("mask.bits", reason));
            }
            if start + needed > end {
                let reason = format!("row {row}: {needed} bytes are not within {start} to {end}");
                return Err(Error::argument("mask.indptr", reason));
            }
        }
        Ok(())
    }
}
