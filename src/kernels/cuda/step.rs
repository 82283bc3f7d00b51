//! The step buffer: what kernels read of a step, uploaded by one copy.

use std::sync::Arc;

use super::attention::Attention;
use super::pack::{StepArrays, StepLimits, pack};
use crate::device::cuda::{Cuda, CudaBuffer, CudaEvent, CudaStream, PinnedBuffer};
use crate::error::{Error, Result};

/// Page-locked copies of a step: so many may be on their way before [`StepBuffer::upload`] waits.
const RING: usize = 4;

/// A step's arrays and plans in device memory, at an address that stays.
///
/// Steps are packed into a ring of page-locked buffers, so the host packs one while the device still
/// reads the last. Work that reads a step is ordered behind its upload and before the next: on one
/// stream it is so by itself, across streams by events. Whoever runs kernels answers for it, since
/// an upload cannot know who still reads.
#[derive(Debug)]
pub struct StepBuffer {
    device: CudaBuffer,
    ring: Vec<(PinnedBuffer, CudaEvent)>,
    next: usize,
    limits: StepLimits,
    /// Generation of the plan that each group uploaded.
    generations: Vec<u64>,
    num_tokens: usize,
    num_blocks_needed: usize,
    block_size: usize,
    has_slots: bool,
    has_positions: bool,
}

impl StepBuffer {
    /// Room for steps within `limits` and the plans of `groups`, at most four, each of which was
    /// made for these very limits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `limits`, or `groups`;
    /// [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, limits: StepLimits, groups: &[&Attention]) -> Result<Self> {
        limits.check()?;
        if groups.len() > 4 {
            return Err(Error::argument("groups", "there are more than 4"));
        }
        if groups.iter().any(|group| *group.limits() != limits) {
            return Err(Error::argument("groups", "one is made for other limits"));
        }
        if groups.iter().any(|group| group.cuda().context() != cuda.context()) {
            return Err(Error::argument("groups", "one is of another device"));
        }
        let plans: usize = groups.iter().map(|group| group.plan_bytes()).sum();
        let bytes = limits.bytes() + plans;
        if bytes > u32::MAX as usize {
            return Err(Error::argument("limits", "a step of theirs would exceed 4 GiB"));
        }
        let ring = (0..RING)
            .map(|_| Ok((PinnedBuffer::new(cuda, bytes)?, CudaEvent::new(cuda)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            device: CudaBuffer::new(cuda, bytes)?,
            ring,
            next: 0,
            limits,
            generations: Vec::with_capacity(groups.len()),
            num_tokens: 0,
            num_blocks_needed: 0,
            block_size: 0,
            has_slots: false,
            has_positions: false,
        })
    }

    /// Packs a step and queues its copy. The plans of `groups` are those made last.
    ///
    /// Waits where four uploads before this one have not been done yet. Not for streams in
    /// capture: the copy belongs before a graph's launch, not into it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `limits` where the step is larger, `slot_mapping`,
    /// `positions` or `tokens` where they do not fit the batch, `groups` where one has no plan of
    /// this batch or is of another device, `stream` where it is in capture or of another device;
    /// what the driver refuses.
    pub fn upload(
        &mut self,
        stream: &CudaStream,
        arrays: &StepArrays<'_>,
        groups: &[&Attention],
    ) -> Result<()> {
        if stream.cuda().context() != self.device.cuda().context() {
            return Err(Error::argument("stream", "is one of another device than the buffer"));
        }
        self.check(arrays, groups)?;
        if stream.is_capturing()? {
            return Err(Error::argument(
                "stream",
                "is in capture: upload before launching a graph",
            ));
        }
        let (pinned, sent) = &mut self.ring[self.next];
        sent.synchronize()?;
        let plans = groups.iter().flat_map(|group| group.plans());
        let used = pack(arrays, plans, pinned)?;
        // From here on the old step is gone, whatever fails.
        self.next = (self.next + 1) % RING;
        self.generations.clear();
        (self.has_slots, self.has_positions) = (false, false);
        // SAFETY: the buffer is written again only after its event, and freed only after it too:
        // dropping it waits for the device.
        unsafe { stream.upload(&self.device, 0, &pinned[..used]) }?;
        if let Err(error) = sent.record(stream) {
            // Without its event nothing else says when the buffer may be written again.
            stream.synchronize()?;
            return Err(error);
        }
        self.generations.extend(groups.iter().map(|group| group.generation()));
        self.num_tokens = arrays.batch.num_tokens();
        self.block_size = arrays.batch.block_size;
        let last = arrays.slot_mapping.iter().copied().max().filter(|&slot| slot >= 0);
        self.num_blocks_needed = last.map_or(0, |slot| slot as usize / self.block_size.max(1) + 1);
        self.has_slots = !arrays.slot_mapping.is_empty() || self.num_tokens == 0;
        self.has_positions = !arrays.positions.is_empty() || self.num_tokens == 0;
        Ok(())
    }

    fn check(&self, arrays: &StepArrays<'_>, groups: &[&Attention]) -> Result<()> {
        let StepArrays { batch, slot_mapping, positions, tokens } = *arrays;
        // Groups vouch for as many blocks as they planned for.
        let blocks = groups.iter().filter_map(|group| group.num_blocks()).min();
        if let Some(blocks) = blocks {
            batch.check(blocks)?;
        } else {
            batch.check_shape()?;
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
        let used = batch.kv_indptr.last().map_or(0, |&end| end as usize);
        let limits = [
            ("rows", batch.num_rows(), self.limits.max_rows),
            ("tokens", n, self.limits.max_tokens),
            ("blocks", used, self.limits.max_blocks),
        ];
        if let Some((what, has, most)) = limits.into_iter().find(|&(_, has, most)| has > most) {
            let reason = format!("{has} {what}, and the buffer is made for {most}");
            return Err(Error::argument("limits", reason));
        }
        if groups.iter().any(|group| !group.is_planned_for(&batch)) {
            return Err(Error::argument("groups", "one has no plan of this batch"));
        }
        if groups.iter().any(|group| group.cuda().context() != self.cuda().context()) {
            return Err(Error::argument("groups", "one is of another device than the buffer"));
        }
        Ok(())
    }

    /// Its address on the device, which stays the same. Kernels may read it before the kernels queued
    /// before them are done ([`Launch::dependent`](crate::device::cuda::Launch::dependent)): it is
    /// written by [`upload`](Self::upload), which copies, and by no kernel.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.device.address()
    }

    /// Query tokens of the step uploaded last.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The device it is on.
    pub(super) fn cuda(&self) -> &Arc<Cuda> {
        self.device.cuda()
    }

    pub(super) fn limits(&self) -> &StepLimits {
        &self.limits
    }

    /// The generation of a group's plan.
    pub(super) fn generation(&self, group: usize) -> Option<u64> {
        self.generations.get(group).copied()
    }

    /// Tokens a block, and blocks that slots of the step name.
    pub(super) fn slots(&self) -> (usize, usize) {
        (self.block_size, self.num_blocks_needed)
    }

    pub(super) fn has_slots(&self) -> bool {
        self.has_slots
    }

    pub(super) fn has_positions(&self) -> bool {
        self.has_positions
    }
}
