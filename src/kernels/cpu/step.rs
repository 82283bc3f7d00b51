//! The step buffer: what kernels read of a step, in memory of the process.

#![forbid(unsafe_code)]

use super::attention::Attention;
use crate::batch::RaggedBatch;
use crate::error::Result;
use crate::kernels::pack::pack;
use crate::kernels::planned::Uploaded;
use crate::kernels::{StepLimits, StepSource};

/// A step's arrays and plans, which [`upload`](Self::upload) copies: once per step, for all layers.
#[derive(Debug)]
pub struct StepBuffer {
    /// The step as it was packed, plans behind its arrays.
    batch: RaggedBatch,
    uploaded: Uploaded,
}

impl StepBuffer {
    /// For steps within `limits` and the plans of `groups`, at most four, each of which was made for
    /// these very limits. Memory grows with the steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming the field of `limits`, or
    /// `groups`.
    pub fn new(limits: StepLimits, groups: &[&Attention]) -> Result<Self> {
        let uploaded = Uploaded::new(limits, groups.iter().map(|group| group.limits()))?;
        Ok(Self { batch: RaggedBatch::default(), uploaded })
    }

    /// Copies a step: its arrays, and the plans of `groups` made last, with their masks. Steps of like
    /// size allocate nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming `limits` where the step is
    /// larger, the array that does not fit the batch, or `groups` where one has no plan of this batch;
    /// the step before is still there then.
    pub fn upload<'a>(
        &mut self,
        step: impl Into<StepSource<'a>>,
        groups: &[&Attention],
    ) -> Result<()> {
        self.upload_of(&step.into(), groups.iter().copied())
    }

    pub(crate) fn upload_of<'g>(
        &mut self,
        step: &StepSource<'_>,
        groups: impl Iterator<Item = &'g Attention> + Clone,
    ) -> Result<()> {
        let (arrays, planned) = (step.arrays(), groups.clone().map(Attention::planned));
        self.uploaded.check(&arrays, planned.clone())?;
        let plans = groups.map(|group| (group.parts(), group.planned().mask()));
        let batch = &mut self.batch;
        pack(step, plans, move |bytes| Ok(batch.memory(bytes)))?;
        self.batch.read_header();
        self.uploaded.set(&arrays, planned);
        Ok(())
    }

    /// Query tokens of the step uploaded last.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.uploaded.num_tokens
    }

    /// The step uploaded last.
    pub(super) fn batch(&self) -> &RaggedBatch {
        &self.batch
    }

    pub(super) fn uploaded(&self) -> &Uploaded {
        &self.uploaded
    }
}
