//! The step buffer: what kernels read of a step, uploaded by one copy.

use std::sync::Arc;

use super::attention::Attention;
use crate::device::cuda::{Cuda, CudaBuffer, CudaEvent, CudaStream, PinnedBuffer};
use crate::error::{Error, Result};
use crate::kernels::pack::pack;
use crate::kernels::planned::Uploaded;
use crate::kernels::{StepLimits, StepSource};

/// Page-locked copies of a step: so many may be on their way before [`StepBuffer::upload`] waits.
const RING: usize = 4;

/// A step's arrays and plans in device memory, at an address that stays.
///
/// Steps are packed into a ring of page-locked buffers, so the host packs one while the device still
/// reads the last. Work that reads a step is ordered behind its upload and before the next: on one
/// stream it is so by itself, across streams by events. That is the caller's, since an upload cannot
/// know what still reads.
#[derive(Debug)]
pub struct StepBuffer {
    device: CudaBuffer,
    ring: Vec<(PinnedBuffer, CudaEvent)>,
    next: usize,
    uploaded: Uploaded,
}

impl StepBuffer {
    /// Room for steps within `limits` and the plans of `groups`, at most four, each of which was
    /// made for these very limits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field of `limits`, or `groups`;
    /// [`Error::OutOfDeviceMemory`]; what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, limits: StepLimits, groups: &[&Attention]) -> Result<Self> {
        let uploaded = Uploaded::new(limits, groups.iter().map(|group| group.limits()))?;
        if groups.iter().any(|group| group.cuda().context() != cuda.context()) {
            return Err(Error::argument("groups", "one is of another device"));
        }
        let plans: usize = groups.iter().map(|group| group.plan_bytes()).sum();
        let bytes = limits.bytes().map(|bytes| bytes + plans);
        let Some(bytes) = bytes.filter(|&bytes| u32::try_from(bytes).is_ok()) else {
            return Err(Error::argument("limits", "a step of theirs would exceed 4 GiB"));
        };
        let ring = (0..RING)
            .map(|_| Ok((PinnedBuffer::new(cuda, bytes)?, CudaEvent::new(cuda)?)))
            .collect::<Result<_>>()?;
        Ok(Self { device: CudaBuffer::new(cuda, bytes)?, ring, next: 0, uploaded })
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
    pub fn upload<'a>(
        &mut self,
        stream: &CudaStream,
        step: impl Into<StepSource<'a>>,
        groups: &[&Attention],
    ) -> Result<()> {
        self.upload_of(stream, &step.into(), groups.iter().copied())
    }

    pub(crate) fn upload_of<'g>(
        &mut self,
        stream: &CudaStream,
        step: &StepSource<'_>,
        groups: impl Iterator<Item = &'g Attention> + Clone,
    ) -> Result<()> {
        let cuda = self.device.cuda();
        if stream.cuda().context() != cuda.context() {
            return Err(Error::argument("stream", "is one of another device than the buffer"));
        }
        let (arrays, planned) = (step.arrays(), groups.clone().map(Attention::planned));
        self.uploaded.check(&arrays, planned.clone())?;
        if groups.clone().any(|group| group.cuda().context() != cuda.context()) {
            return Err(Error::argument("groups", "one is of another device than the buffer"));
        }
        if stream.is_capturing()? {
            return Err(Error::argument(
                "stream",
                "is in capture: upload before launching a graph",
            ));
        }
        let (pinned, sent) = &mut self.ring[self.next];
        sent.synchronize()?;
        let to: &mut [u8] = pinned;
        let memory = move |needed: usize| match to.len() {
            room if needed > room => {
                let reason = format!("the step is larger than the {room} bytes made for it");
                Err(Error::argument("limits", reason))
            }
            _ => Ok(to),
        };
        let used = pack(step, groups.flat_map(Attention::plans), memory)?;
        // From here on the old step is gone, whatever fails.
        self.next = (self.next + 1) % RING;
        self.uploaded.forget();
        // SAFETY: the buffer is written again only after its event, and freed only after it too:
        // dropping it waits for the device.
        unsafe { stream.upload(&self.device, 0, &pinned[..used]) }?;
        if let Err(error) = sent.record(stream) {
            // Without its event nothing else says when the buffer may be written again.
            stream.synchronize()?;
            return Err(error);
        }
        self.uploaded.set(&arrays, planned);
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
        self.uploaded.num_tokens
    }

    /// The device it is on.
    pub(crate) fn cuda(&self) -> &Arc<Cuda> {
        self.device.cuda()
    }

    pub(super) fn limits(&self) -> &StepLimits {
        &self.uploaded.limits
    }

    pub(super) fn uploaded(&self) -> &Uploaded {
        &self.uploaded
    }
}
