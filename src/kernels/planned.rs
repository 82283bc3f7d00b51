//! What attentions and step buffers of every device know of each other: a step buffer holds the plans
//! that were made of its rows, and a layer is run with the plan that was uploaded last.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::attention::{AttentionConfig, Mask};
use super::kv::KvLayout;
use super::step::{BatchView, StepArrays, StepLimits};
use crate::error::{Error, Result};
use crate::plan::Extent;

/// What an attention has planned, on any device: what for, and which plan it is.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    /// A number that no other plan has; 0 where there is none.
    generation: u64,
    pub(crate) num_tokens: usize,
    num_blocks: usize,
    block_size: usize,
    extents: Vec<Extent>,
    has_mask: bool,
    bits: Vec<u8>,
    indptr: Vec<u32>,
    widths: Vec<u32>,
}

impl Planned {
    /// Forgets the plan made last, and takes what the next is for: the rows and their mask, checked.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array of `batch` or `mask`, or `limits` where the step
    /// is larger.
    pub(crate) fn begin(
        &mut self,
        limits: &StepLimits,
        batch: &BatchView<'_>,
        num_blocks: usize,
        mask: Option<Mask<'_>>,
    ) -> Result<()> {
        self.generation = 0;
        batch.check(num_blocks)?;
        self.extents.clear();
        self.extents.extend(batch.extents());
        limits.hold(batch, "plan")?;
        let longest = self.extents.iter().map(|extent| extent.kv_len as usize).max().unwrap_or(0);
        let bytes = mask.map_or(0, |mask| mask.bits.len());
        limits.hold_each(
            "plan",
            &[
                ("keys in a row", longest, limits.max_kv_len),
                ("bytes of mask", bytes, limits.max_mask_bytes),
            ],
        )?;
        if let Some(mask) = mask {
            mask.check(&self.extents)?;
            self.bits.clear();
            self.bits.extend_from_slice(mask.bits);
            self.indptr.clear();
            self.indptr.extend_from_slice(mask.indptr);
            self.widths.clear();
            self.widths.extend_from_slice(mask.widths);
        }
        // Without bits it hides nothing, and buffers for steps without masks have no room for it.
        self.has_mask = mask.is_some_and(|mask| !mask.bits.is_empty());
        (self.num_tokens, self.num_blocks) = (batch.num_tokens(), num_blocks);
        self.block_size = batch.block_size;
        Ok(())
    }

    /// There is a plan now.
    pub(crate) fn finish(&mut self) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.generation = NEXT.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn forget(&mut self) {
        self.generation = 0;
    }

    /// The rows.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    pub(crate) fn mask(&self) -> Option<Mask<'_>> {
        let Self { bits, indptr, widths, .. } = self;
        self.has_mask.then_some(Mask { bits, indptr, widths })
    }

    /// Whether there is a plan, and of this batch, as far as lengths go.
    fn is_of(&self, batch: &BatchView<'_>) -> bool {
        self.generation != 0
            && self.block_size == batch.block_size
            && self.extents.iter().copied().eq(batch.extents())
    }

    /// Checks that there is a plan, and that a step buffer holds it as its `group`-th.
    pub(crate) fn check_uploaded(&self, step: &Uploaded, group: usize) -> Result<()> {
        if self.generation == 0 {
            return Err(Error::argument("plan", "no plan was made: plan a step first"));
        }
        match step.generations.get(group) {
            Some(&uploaded) if uploaded == self.generation => Ok(()),
            Some(_) => {
                Err(Error::argument("step", "does not hold the plan made last as this group"))
            }
            None if !step.is_there => Err(Error::argument("step", "holds nothing: upload one")),
            None => {
                let reason = format!("{group} is not one of those uploaded with the step");
                Err(Error::argument("group", reason))
            }
        }
    }

    /// Checks a cache against the configuration, and against what was planned.
    pub(crate) fn check_cache(&self, config: &AttentionConfig, layout: &KvLayout) -> Result<()> {
        let AttentionConfig { num_kv_heads, head_dim, kv_dtype, .. } = *config;
        let KvLayout { dtype, num_heads, head_dim: dim, .. } = *layout;
        if (dtype, num_heads, dim) != (kv_dtype, num_kv_heads, head_dim) {
            let reason = format!(
                "{num_heads} heads of {dim} {dtype}, not {num_kv_heads} of {head_dim} {kv_dtype}"
            );
            return Err(Error::argument("cache", reason));
        }
        let (blocks, size) = (self.num_blocks, self.block_size);
        if layout.num_blocks < blocks || layout.block_size != size {
            let reason = format!(
                "{} blocks of {}, planned for {blocks} of {size}",
                layout.num_blocks, layout.block_size
            );
            return Err(Error::argument("cache", reason));
        }
        Ok(())
    }
}

/// What a step buffer holds, on any device.
#[derive(Debug)]
pub(crate) struct Uploaded {
    pub(crate) limits: StepLimits,
    /// Generation of the plan that each group uploaded.
    generations: Vec<u64>,
    pub(crate) num_tokens: usize,
    block_size: usize,
    /// Blocks that slots name.
    num_blocks: usize,
    is_there: bool,
    has_slots: bool,
    has_positions: bool,
}

/// Attention groups of a step at most: there are eight plans, and two per group on a GPU.
const MAX_GROUPS: usize = 4;

impl Uploaded {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `limits`, or `groups` where there are more than
    /// four, or one is made for other limits.
    pub(crate) fn new<'a>(
        limits: StepLimits,
        groups: impl ExactSizeIterator<Item = &'a StepLimits>,
    ) -> Result<Self> {
        limits.check()?;
        if groups.len() > MAX_GROUPS {
            return Err(Error::argument("groups", format!("there are more than {MAX_GROUPS}")));
        }
        let generations = Vec::with_capacity(groups.len());
        for group in groups {
            if *group != limits {
                return Err(Error::argument("groups", "one is made for other limits"));
            }
        }
        Ok(Self {
            limits,
            generations,
            num_tokens: 0,
            block_size: 0,
            num_blocks: 0,
            is_there: false,
            has_slots: false,
            has_positions: false,
        })
    }

    /// Checks a step before it takes the place of the one that is here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the array, `limits` where the step is larger, or `groups`
    /// where one has no plan of this batch.
    pub(crate) fn check<'a>(
        &self,
        arrays: &StepArrays<'_>,
        groups: impl Iterator<Item = &'a Planned> + Clone,
    ) -> Result<()> {
        let StepArrays { batch, slot_mapping, positions, tokens } = *arrays;
        // A group runs with caches of at least as many blocks as it planned for.
        let planned = groups.clone().filter(|group| group.generation != 0);
        match planned.map(|group| group.num_blocks).min() {
            Some(blocks) => batch.check(blocks)?,
            None => batch.check_shape()?,
        }
        let n = batch.num_tokens();
        for (field, len) in [
            ("slot_mapping", slot_mapping.len()),
            ("positions", positions.len()),
            ("tokens", tokens.len()),
        ] {
            if len != 0 && len != n {
                return Err(Error::argument(field, format!("has {len} entries for {n} tokens")));
            }
        }
        self.limits.hold(&batch, "buffer")?;
        if groups.clone().any(|group| !group.is_of(&batch)) {
            return Err(Error::argument("groups", "one has no plan of this batch"));
        }
        Ok(())
    }

    /// The step is gone, whatever comes of the next.
    #[cfg(feature = "cuda-driver")]
    pub(crate) fn forget(&mut self) {
        self.generations.clear();
        self.is_there = false;
    }

    /// This step is here now.
    pub(crate) fn set<'a>(
        &mut self,
        arrays: &StepArrays<'_>,
        groups: impl Iterator<Item = &'a Planned>,
    ) {
        self.generations.clear();
        self.generations.extend(groups.map(|group| group.generation));
        self.num_tokens = arrays.batch.num_tokens();
        self.block_size = arrays.batch.block_size;
        let last = arrays.slot_mapping.iter().copied().max().filter(|&slot| slot >= 0);
        self.num_blocks = last.map_or(0, |slot| slot as usize / self.block_size.max(1) + 1);
        self.is_there = true;
        self.has_slots = !arrays.slot_mapping.is_empty() || self.num_tokens == 0;
        self.has_positions = !arrays.positions.is_empty() || self.num_tokens == 0;
    }

    /// Checks that new tokens of the step can be appended to a cache, rotated or not.
    pub(crate) fn check_append(&self, layout: &KvLayout, rotated: bool) -> Result<()> {
        let without = |field| Err(Error::argument(field, "were not uploaded with the step"));
        if !self.is_there {
            return Err(Error::argument("step", "holds nothing: upload one"));
        }
        if !self.has_slots {
            return without("slot_mapping");
        }
        if rotated && !self.has_positions {
            return without("positions");
        }
        let (has, of) = (layout.block_size, self.block_size);
        if self.num_tokens > 0 && has != of {
            return Err(Error::argument("cache", format!("has blocks of {has}, the step of {of}")));
        }
        let (last, has) = (self.num_blocks, layout.num_blocks);
        if last > has {
            let reason = format!("has a slot of block {}, and the cache has {has}", last - 1);
            return Err(Error::argument("slot_mapping", reason));
        }
        Ok(())
    }
}
