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

use super::kv::check_head_dim;
use super::tensor::DType;
use crate::error::{Error, Result};
use crate::plan::Extent;

/// The attention of a group of layers: same heads, types, window and mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads: a multiple of `num_kv_heads`.
    pub num_q_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Elements per head: a multiple of 8 up to 256.
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
                "{} is not a multiple of the {} KV heads between 1 and 65536",
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
            return Err(Error::argument(
                "soft_cap",
                format!("{cap} is not a finite number above 0"),
            ));
        }
        if let Some(split) = self.fixed_split.filter(|split| *split == 0 || split % 128 != 0) {
            let reason = format!("{split} is not a positive multiple of 128");
            return Err(Error::argument("fixed_split", reason));
        }
        Ok(())
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
    /// Where each row's bytes begin; one entry per row, and one past the last.
    pub indptr: &'a [u32],
    /// Keys a row's mask covers; at most its `kv_len`.
    pub widths: &'a [u32],
}

/// Refuses outputs in the place of the queries, which other threads still read. Without tokens there
/// are neither.
pub(crate) fn check_not_in_place<T: PartialEq>(num_tokens: usize, q: T, o: T) -> Result<()> {
    if num_tokens > 0 && q == o {
        return Err(Error::argument("o", "is q: attention does not work in place"));
    }
    Ok(())
}

impl Mask<'_> {
    /// Checks it against the rows that it is for.
    pub(crate) fn check(&self, extents: &[Extent]) -> Result<()> {
        let rows = extents.len();
        if self.widths.len() != rows {
            let reason = format!("has {} entries for {rows} rows", self.widths.len());
            return Err(Error::argument("mask.widths", reason));
        }
        if self.indptr.len() != rows + 1 {
            let reason = format!("has {} entries for {rows} rows", self.indptr.len());
            return Err(Error::argument("mask.indptr", reason));
        }
        for (row, &Extent { q_len, kv_len }) in extents.iter().enumerate() {
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
