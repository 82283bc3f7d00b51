//! The bytes of a step, as kernels read them: the batch's arrays, then the plans.
//!
//! `csrc/kernel_params.h` has the layout. Every array begins at a multiple of 16 bytes, and offsets
//! are what kernels find them by, so a step's buffer may be of any make-up without a captured graph
//! knowing.

#![forbid(unsafe_code)]

use bytemuck::Pod;

use super::params::inflight_plan;
use crate::batch::{ALIGN, Header, MAGIC, RaggedBatch};
use crate::error::{Error, Result};
use crate::kernels::{BatchView, Mask};
use crate::plan::{Merge, Part, Plan, PlanBounds};

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

impl<'a> From<&'a RaggedBatch> for StepArrays<'a> {
    fn from(batch: &'a RaggedBatch) -> Self {
        Self {
            batch: batch.into(),
            slot_mapping: batch.slot_mapping(),
            positions: batch.positions(),
            tokens: bytemuck::cast_slice(batch.tokens()),
        }
    }
}

/// The largest steps that buffers are made for.
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
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        let fields = [
            ("max_rows", self.max_rows),
            ("max_tokens", self.max_tokens),
            ("max_blocks", self.max_blocks),
            ("max_kv_len", self.max_kv_len),
        ];
        for (field, value) in fields {
            if value == 0 || value > 1 << 30 {
                return Err(Error::argument(field, format!("{value} is not within 1 to 2^30")));
            }
        }
        if self.max_mask_bytes > 1 << 30 {
            let reason = format!("{} is not within 0 to 2^30", self.max_mask_bytes);
            return Err(Error::argument("max_mask_bytes", reason));
        }
        Ok(())
    }

    /// Bytes that a step within the limits takes, its plans not counted.
    pub(crate) fn bytes(&self) -> usize {
        let rows = 3 * array::<u32>(self.max_rows + 1);
        let tokens = 2 * array::<u32>(self.max_tokens) + array::<i64>(self.max_tokens);
        let nothing = aligned(size_of::<inflight_plan>()) + array::<u32>(1);
        let blocks = array::<u32>(self.max_blocks);
        aligned(size_of::<Header>()) + rows + tokens + blocks + nothing
    }

    /// Bytes that a plan within the limits and these bounds takes.
    pub(crate) fn plan_bytes(&self, shares: u32, bounds: &PlanBounds) -> usize {
        let mask = match self.max_mask_bytes {
            0 => 0,
            bytes => aligned(bytes) + 2 * array::<u32>(self.max_rows + 1),
        };
        let parts = array::<Part>(bounds.parts as usize);
        let merges = array::<Merge>(bounds.merges as usize);
        aligned(size_of::<inflight_plan>())
            + array::<u32>(shares as usize + 1)
            + parts
            + merges
            + mask
    }
}

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

const fn array<T>(len: usize) -> usize {
    aligned(len * size_of::<T>())
}

/// Writes arrays one after the other.
struct Writer<'a> {
    to: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    /// Leaves room for a header.
    fn skip<T>(&mut self) -> Result<usize> {
        let here = self.at;
        self.at += aligned(size_of::<T>());
        self.fits(here)
    }

    /// Where the array begins.
    fn write<T: Pod>(&mut self, data: &[T]) -> Result<u32> {
        let here = self.at;
        self.at += array::<T>(data.len());
        let start = self.fits(here)?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        self.to[start..start + bytes.len()].copy_from_slice(bytes);
        // Buffers are below 4 GiB.
        Ok(start as u32)
    }

    /// The array, or `n` times the same where there is none.
    fn write_or<T: Pod>(&mut self, data: &[T], instead: T, n: usize) -> Result<u32> {
        if !data.is_empty() {
            return self.write(data);
        }
        let here = self.at;
        self.at += array::<T>(n);
        let start = self.fits(here)?;
        let each = bytemuck::bytes_of(&instead);
        let to = &mut self.to[start..start + n * each.len()];
        to.chunks_exact_mut(each.len()).for_each(|to| to.copy_from_slice(each));
        Ok(start as u32)
    }

    fn fits(&self, here: usize) -> Result<usize> {
        if self.at <= self.to.len() {
            return Ok(here);
        }
        let reason = format!("the step is larger than the {} bytes made for it", self.to.len());
        Err(Error::argument("limits", reason))
    }

    fn header<T: Pod>(&mut self, at: usize, header: &T) {
        self.to[at..at + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(header));
    }
}

/// Packs a step with its plans, each with its mask; the bytes used.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `limits` where the step does not fit.
pub(crate) fn pack<'a>(
    arrays: &StepArrays<'_>,
    plans: impl Iterator<Item = (&'a Plan, Option<Mask<'a>>)>,
    to: &mut [u8],
) -> Result<usize> {
    let StepArrays { batch, slot_mapping, positions, tokens } = *arrays;
    let (rows, n) = (batch.num_rows(), batch.num_tokens());
    let used = batch.kv_indptr.last().map_or(0, |&end| end as usize);
    let mut out = Writer { to, at: 0 };
    let start = out.skip::<Header>()?;
    let mut header = Header {
        magic: MAGIC,
        num_rows: rows as u32,
        padded_rows: rows as u32,
        num_tokens: batch.num_tokens() as u32,
        num_kv_blocks: used as u32,
        block_size: batch.block_size as u32,
        tokens: if tokens.is_empty() { 0 } else { out.write(tokens)? },
        // A graph may append all the same: no slot, and no position that a table has.
        positions: out.write_or(positions, u32::MAX, n)?,
        slot_mapping: out.write_or(slot_mapping, -1, n)?,
        qo_indptr: out.write(batch.qo_indptr)?,
        kv_indptr: out.write(batch.kv_indptr)?,
        kv_last_page_len: out.write(batch.kv_last_page_len)?,
        kv_indices: out.write(&batch.kv_indices[..used])?,
        ..Header::default()
    };
    for (group, (plan, mask)) in plans.enumerate() {
        let Some(offset) = header.plans.get_mut(group) else {
            let reason = format!("a step has at most {} plans", header.plans.len());
            return Err(Error::argument("plans", reason));
        };
        *offset = pack_plan(plan, mask, &mut out)?;
    }
    // A graph may have launches for groups that this step has not: they find nothing to do.
    let nothing = pack_plan(&Plan::default(), None, &mut out)?;
    header.plans.iter_mut().filter(|offset| **offset == 0).for_each(|offset| *offset = nothing);
    header.total_bytes = out.at as u32;
    out.header(start, &header);
    Ok(out.at)
}

fn pack_plan(plan: &Plan, mask: Option<Mask<'_>>, out: &mut Writer<'_>) -> Result<u32> {
    let start = out.skip::<inflight_plan>()?;
    // Offsets count from the plan's header; what is at 0 is not there.
    let from_here = |at: u32| at - start as u32;
    let mut header = inflight_plan {
        num_shares: plan.share_indptr().len().saturating_sub(1) as u32,
        num_parts: plan.parts().len() as u32,
        num_merges: plan.merges().len() as u32,
        share_indptr: from_here(out.write(plan.share_indptr())?),
        parts: from_here(out.write(plan.parts())?),
        merges: from_here(out.write(plan.merges())?),
        ..inflight_plan::default()
    };
    if let Some(mask) = mask {
        header.mask_bits = from_here(out.write(mask.bits)?);
        header.mask_indptr = from_here(out.write(mask.indptr)?);
        header.mask_widths = from_here(out.write(mask.widths)?);
    }
    out.header(start, &header);
    Ok(start as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BlockId;

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
            joint_q: 0,
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

        let mut bytes = vec![0xaa; 4096];
        let plans = [(&plan, None), (&plan, Some(mask))].into_iter();
        let used = pack(&arrays, plans, &mut bytes).unwrap();
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

        let plans = std::iter::once((&plan, None));
        let error = pack(&arrays, plans, &mut [0; 200]).unwrap_err();
        assert!(error.to_string().contains("limits"), "{error}");
    }
}
