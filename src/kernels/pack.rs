//! The bytes of a step, as kernels of every device read them: the batch's arrays, and behind them the
//! plans with their masks, in one buffer.
//!
//! `csrc/kernel_params.h` has the layout. Every array begins at a multiple of 16 bytes, and offsets
//! are what kernels find them by, so a step's buffer may be of any make-up without a captured graph
//! knowing.

#![forbid(unsafe_code)]

use bytemuck::Pod;

use super::attention::Mask;
#[cfg(feature = "cuda-driver")]
use super::step::StepLimits;
use super::step::{PackedArrays, StepArrays, StepSource};
use crate::batch::{ALIGN, Header, RaggedBatch};
use crate::error::{Error, Result};
use crate::params::inflight_plan;
#[cfg(feature = "cuda-driver")]
use crate::plan::PlanBounds;
use crate::plan::{Merge, Part, Plan};
use crate::types::BlockId;

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

const fn array<T>(len: usize) -> usize {
    aligned(len * size_of::<T>())
}

/// Bytes of a plan of so many parts and merges; of its mask, if any, the bytes and the rows.
fn plan_bytes(shares: usize, parts: usize, merges: usize, mask: Option<(usize, usize)>) -> usize {
    let mask = mask
        .map_or(0, |(bytes, rows)| aligned(bytes) + array::<u32>(rows + 1) + array::<u32>(rows));
    let work = array::<Part>(parts) + array::<Merge>(merges);
    array::<inflight_plan>(1) + array::<u32>(shares + 1) + work + mask
}

/// Bytes of the plan that nothing is in.
fn no_plan_bytes() -> usize {
    plan_bytes(0, 0, 0, None)
}

#[cfg(feature = "cuda-driver")]
impl StepLimits {
    /// Bytes that a step within the limits takes, its plans not counted; `None` from 4 GiB on.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let [rows, tokens, blocks] =
            [self.max_rows, self.max_tokens, self.max_blocks].map(|n| u32::try_from(n).ok());
        let counts = Header {
            padded_rows: rows?,
            num_tokens: tokens?,
            num_logits: tokens?,
            num_pending: rows?,
            num_kv_blocks: blocks?,
            ..Header::default()
        };
        Some(counts.laid_out()?.total_bytes as usize + no_plan_bytes())
    }

    /// Bytes that a plan within the limits and these bounds takes.
    pub(crate) fn plan_bytes(&self, shares: u32, bounds: &PlanBounds) -> usize {
        let mask = (self.max_mask_bytes > 0).then_some((self.max_mask_bytes, self.max_rows));
        plan_bytes(shares as usize, bounds.parts as usize, bounds.merges as usize, mask)
    }
}

/// Counts and offsets of a step, without plans; `None` from 4 GiB on.
fn header_of(source: &StepSource<'_>) -> Option<Header> {
    match source {
        StepSource::Batch(batch) => Some(without_ops(batch.header())),
        StepSource::Packed(packed) => Some(without_ops(&packed.header)),
        StepSource::Arrays(StepArrays { batch, tokens, .. }) => {
            let rows = batch.num_rows() as u32;
            let header = Header {
                num_rows: rows,
                padded_rows: rows,
                num_tokens: batch.num_tokens() as u32,
                num_kv_blocks: batch.num_blocks() as u32,
                block_size: batch.block_size as u32,
                ..Header::default()
            };
            let header = header.laid_out()?;
            Some(Header { tokens: if tokens.is_empty() { 0 } else { header.tokens }, ..header })
        }
    }
}

/// Counts and offsets of a batch but for its block operations: they are a block mover's, and may be of
/// any number.
fn without_ops(header: &Header) -> Header {
    let kv_indices = header.ops;
    let total_bytes = kv_indices as usize + array::<BlockId>(header.num_kv_blocks as usize);
    Header { num_ops: 0, kv_indices, total_bytes: total_bytes as u32, ..*header }
}

/// Packs a step with its plans, each with its mask, into memory that `memory` gives for so many bytes;
/// how many they are.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `limits` where the step exceeds 4 GiB, or `plans`; those of
/// `memory`.
pub(crate) fn pack<'a, 'm>(
    source: &StepSource<'_>,
    plans: impl Iterator<Item = (&'a Plan, Option<Mask<'a>>)> + Clone,
    memory: impl FnOnce(usize) -> Result<&'m mut [u8]>,
) -> Result<usize> {
    let too_large = || Error::argument("limits", "the step exceeds 4 GiB");
    let mut header = header_of(source).ok_or_else(too_large)?;
    let each = plans.clone().map(|(plan, mask)| {
        let mask = mask.map(|mask| (mask.bits.len(), mask.widths.len()));
        plan_bytes(plan.num_shares(), plan.parts().len(), plan.merges().len(), mask)
    });
    let total = header.total_bytes as usize + each.sum::<usize>() + no_plan_bytes();
    if u32::try_from(total).is_err() {
        return Err(too_large());
    }
    let mut out = Writer { to: memory(total)?, at: header.total_bytes as usize };
    match source {
        StepSource::Batch(batch) => out.batch(batch.bytes(), batch.header(), batch.kv_indices()),
        StepSource::Packed(PackedArrays { bytes, header, arrays }) => {
            out.batch(bytes, header, arrays.batch.kv_indices);
        }
        StepSource::Arrays(arrays) => out.arrays(&header, arrays),
    }
    let no_plan = Plan::default();
    // A graph may have launches for groups that this step has not: they find nothing to do.
    let nothing = out.plan(&no_plan, None);
    header.plans.fill(nothing);
    for (group, (plan, mask)) in plans.enumerate() {
        let Some(offset) = header.plans.get_mut(group) else {
            let reason = format!("a step has at most {} plans", header.plans.len());
            return Err(Error::argument("plans", reason));
        };
        *offset = out.plan(plan, mask);
    }
    header.total_bytes = total as u32;
    out.put(0, &[header]);
    debug_assert_eq!(out.at, total, "what is written is what was counted");
    Ok(total)
}

/// Writes arrays where they belong, or one after the other.
struct Writer<'a> {
    to: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put<T: Pod>(&mut self, at: u32, data: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        self.to[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// A batch as it is, its block tables in place of its block operations.
    fn batch(&mut self, bytes: &[u8], header: &Header, kv_indices: &[BlockId]) {
        let ops = header.ops as usize;
        self.to[..ops].copy_from_slice(&bytes[..ops]);
        self.put(header.ops, kv_indices);
    }

    /// A caller's arrays, where `header` says.
    fn arrays(&mut self, header: &Header, arrays: &StepArrays<'_>) {
        let StepArrays { batch, slot_mapping, positions, tokens } = *arrays;
        self.put(header.tokens, tokens);
        self.put(header.qo_indptr, batch.qo_indptr);
        self.put(header.kv_indptr, batch.kv_indptr);
        self.put(header.kv_last_page_len, batch.kv_last_page_len);
        self.put(header.kv_indices, &batch.kv_indices[..batch.num_blocks()]);
        // A graph may append all the same: no slot, and no position that a table has.
        self.put(header.positions, positions);
        if positions.is_empty() {
            self.ones(header.positions, array::<u32>(header.num_tokens as usize));
        }
        self.put(header.slot_mapping, slot_mapping);
        if slot_mapping.is_empty() {
            self.ones(header.slot_mapping, array::<i64>(header.num_tokens as usize));
        }
    }

    /// The slot -1, and the largest position.
    fn ones(&mut self, at: u32, bytes: usize) {
        self.to[at as usize..at as usize + bytes].fill(0xff);
    }

    /// Where the next array begins.
    fn push<T: Pod>(&mut self, data: &[T]) -> u32 {
        let here = self.at as u32;
        self.put(here, data);
        self.at += array::<T>(data.len());
        here
    }

    /// Where the plan begins.
    fn plan(&mut self, plan: &Plan, mask: Option<Mask<'_>>) -> u32 {
        let start = self.push(&[inflight_plan::default()]);
        // Offsets count from the plan's header; what is at 0 is not there.
        let indptr = if plan.share_indptr().is_empty() { &[0] } else { plan.share_indptr() };
        let mut header = inflight_plan {
            num_shares: plan.num_shares() as u32,
            num_parts: plan.parts().len() as u32,
            num_merges: plan.merges().len() as u32,
            share_indptr: self.push(indptr) - start,
            parts: self.push(plan.parts()) - start,
            merges: self.push(plan.merges()) - start,
            ..inflight_plan::default()
        };
        if let Some(mask) = mask {
            header.mask_bits = self.push(mask.bits) - start;
            header.mask_indptr = self.push(mask.indptr) - start;
            header.mask_widths = self.push(mask.widths) - start;
        }
        self.put(start, &[header]);
        start
    }
}

/// A plan of a packed step, as kernels of the processor read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedPlan<'a> {
    pub(crate) share_indptr: &'a [u32],
    pub(crate) parts: &'a [Part],
    pub(crate) merges: &'a [Merge],
    pub(crate) mask: Option<Mask<'a>>,
}

impl<'a> PackedPlan<'a> {
    /// The `nth` of a step.
    pub(crate) fn of(step: &'a RaggedBatch, nth: usize) -> Self {
        let rows = step.header().padded_rows;
        let bytes = &step.bytes()[step.header().plans[nth] as usize..];
        let plan: inflight_plan = array_at(bytes, 0, 1)[0];
        let mask = Mask {
            // They end where the next array begins.
            bits: array_at(bytes, plan.mask_bits, plan.mask_indptr - plan.mask_bits),
            indptr: array_at(bytes, plan.mask_indptr, rows + 1),
            widths: array_at(bytes, plan.mask_widths, rows),
        };
        Self {
            share_indptr: array_at(bytes, plan.share_indptr, plan.num_shares + 1),
            parts: array_at(bytes, plan.parts, plan.num_parts),
            merges: array_at(bytes, plan.merges, plan.num_merges),
            mask: (plan.mask_bits != 0).then_some(mask),
        }
    }
}

fn array_at<T: Pod>(bytes: &[u8], at: u32, len: u32) -> &[T] {
    let at = at as usize;
    bytemuck::cast_slice(&bytes[at..at + len as usize * size_of::<T>()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::MAGIC;
    use crate::kernels::BatchView;

    fn u32s(bytes: &[u8], at: u32, len: usize) -> Vec<u32> {
        bytes[at as usize..at as usize + 4 * len]
            .chunks_exact(4)
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }

    #[test]
    fn every_array_is_found_by_its_offset() {
        let blocks = [BlockId(7), BlockId(3), BlockId(u32::MAX)];
        let batch = BatchView {
            qo_indptr: &[0, 1, 4],
            kv_indptr: &[0, 1, 2],
            kv_indices: &blocks,
            kv_last_page_len: &[5, 9],
            block_size: 16,
        };
        let arrays = StepArrays {
            batch,
            slot_mapping: &[-1, 2, 3, 4],
            positions: &[4, 6, 7, 8],
            tokens: &[],
        };
        let mut plan = Plan::default();
        let config = crate::plan::PlanConfig {
            shares: 3,
            heads: 2,
            max_packed_q: 0,
            q_tile: 2,
            kv_granularity: 4,
            causal: true,
            window_left: None,
            fixed_split: None,
            split_q: 1,
            costs: crate::plan::Costs::default(),
        };
        let rows = [(1, 5), (3, 9)].map(|(q_len, kv_len)| crate::plan::Extent { q_len, kv_len });
        plan.make(&config, rows.into_iter()).unwrap();
        let mask = Mask { bits: &[1, 2, 3], indptr: &[0, 0, 3], widths: &[0, 3] };

        let mut bytes = vec![0xaa; 8192];
        let plans = [(&plan, None), (&plan, Some(mask))].into_iter();
        let source = StepSource::Arrays(arrays);
        let (mut asked, to) = (0, &mut bytes[..]);
        let noted = &mut asked;
        let memory = move |needed: usize| {
            *noted = needed;
            Ok(to)
        };
        let used = pack(&source, plans, memory).unwrap();
        assert_eq!(asked, used);
        let header: Header = bytemuck::pod_read_unaligned(&bytes[..size_of::<Header>()]);
        assert_eq!((header.magic, header.total_bytes as usize), (MAGIC, used));
        assert_eq!((header.num_tokens, header.num_rows, header.block_size), (4, 2, 16));
        assert_eq!(u32s(&bytes, header.qo_indptr, 3), [0, 1, 4]);
        assert_eq!(u32s(&bytes, header.kv_indptr, 3), [0, 1, 2]);
        assert_eq!(u32s(&bytes, header.kv_indices, 2), [7, 3]);
        assert_eq!(u32s(&bytes, header.kv_last_page_len, 2), [5, 9]);
        assert_eq!(u32s(&bytes, header.positions, 4), [4, 6, 7, 8]);
        assert_eq!(u32s(&bytes, header.slot_mapping, 2), [u32::MAX, u32::MAX]);
        for (group, at) in header.plans[..2].iter().copied().enumerate() {
            let here = &bytes[at as usize..];
            let found: inflight_plan =
                bytemuck::pod_read_unaligned(&here[..size_of::<inflight_plan>()]);
            assert_eq!(found.num_parts as usize, plan.parts().len());
            assert_eq!(u32s(here, found.share_indptr, 4), plan.share_indptr());
            let words = size_of_val(plan.parts()) / 4;
            let parts: &[u32] = bytemuck::cast_slice(plan.parts());
            assert_eq!(u32s(here, found.parts, words), parts);
            assert_eq!(found.mask_bits != 0, group == 1);
            if group == 1 {
                assert_eq!(u32s(here, found.mask_widths, 2), [0, 3]);
                assert_eq!(here[found.mask_bits as usize..][..3], [1, 2, 3]);
            }
        }
        for at in header.plans[2..].iter().map(|&at| at as usize) {
            let none: inflight_plan =
                bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<inflight_plan>()]);
            assert_eq!((none.num_shares, none.num_parts), (0, 0));
        }
        assert_eq!(used % ALIGN, 0);

        let plans = std::iter::repeat_n((&plan, None), 9);
        let to = &mut bytes[..];
        let error = pack(&source, plans, move |_| Ok(to)).unwrap_err();
        assert!(error.to_string().contains("plans"), "{error}");
    }
}
