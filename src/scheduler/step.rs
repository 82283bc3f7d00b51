//! What one iteration runs, and what came of it.

use super::Ended;
use crate::cache::BlockOp;
use crate::request::FinishReason;
use crate::types::{RequestId, StepId, Time, Token};

/// One request's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The request.
    pub id: RequestId,
    /// The scheduler's handle of it, for [`Scheduler::sequence`](super::Scheduler::sequence).
    pub slot: u32,
    pub(super) generation: u32,
    /// Tokens it computes, drafts included; at least 1.
    pub num_tokens: u32,
    /// Tokens whose KV is there before the step: the position of its first token.
    pub num_computed: u32,
    /// Draft tokens at the end of its tokens.
    pub num_draft: u32,
    /// Tokens it will have output once everything in flight has returned, this step excluded.
    pub num_output: u32,
    /// Whether it reaches its newest token and so samples: a chunk of a prompt does not.
    pub samples: bool,
    /// Whether it computes just its newest token (and drafts), having output before.
    pub is_decode: bool,
    /// Whether it was admitted in this step.
    pub admitted: bool,
}

impl Row {
    /// Tells this row's request from all others, earlier holders of its slot included.
    pub(crate) fn key(&self) -> (u32, u32) {
        (self.slot, self.generation)
    }
}

/// Where a row's first token comes from, when an earlier step in flight samples it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The row.
    pub row: u32,
    /// The step that samples its token.
    pub step: StepId,
    /// The token's place among that step's logits.
    pub logits: u32,
}

/// The rectangle a static batch computes: every slot as long as the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Slots held, those whose request has ended included.
    pub rows: u32,
    /// Tokens computed a slot.
    pub num_tokens: u32,
    /// KV length of a slot after the step.
    pub kv_len: u32,
}

/// One iteration: which requests compute how many tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub(super) id: StepId,
    pub(super) now: Time,
    pub(super) rows: Vec<Row>,
    pub(super) preempted: Vec<RequestId>,
    pub(super) block_ops: Vec<BlockOp>,
    pub(super) sources: Vec<Source>,
    pub(super) padding: Option<Padding>,
    pub(super) num_tokens: usize,
    pub(super) num_sampling: usize,
    pub(super) num_outputs: usize,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) free_blocks: usize,
}

impl Step {
    /// Names the step to `commit` and `abandon`.
    #[must_use]
    pub fn id(&self) -> StepId {
        self.id
    }

    /// The time it was scheduled at.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// The rows in order: requests that were running, then those admitted.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Requests that had to give way and wait again.
    #[must_use]
    pub fn preempted(&self) -> &[RequestId] {
        &self.preempted
    }

    /// Copies the device makes first, in this order.
    #[must_use]
    pub fn block_ops(&self) -> &[BlockOp] {
        &self.block_ops
    }

    /// With overlap, the rows whose first token is not known yet.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Under static batching, the rectangle computed; the rows are its useful part.
    #[must_use]
    pub fn padding(&self) -> Option<Padding> {
        self.padding
    }

    /// Tokens computed for requests, padding not counted.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Tokens computed, padding included.
    #[must_use]
    pub fn num_padded_tokens(&self) -> usize {
        self.padding.map_or(self.num_tokens, |p| p.rows as usize * p.num_tokens as usize)
    }

    /// Rows that sample.
    #[must_use]
    pub fn num_sampling(&self) -> usize {
        self.num_sampling
    }

    /// Positions whose logits are needed: one for a row that samples, and one for each draft.
    #[must_use]
    pub fn num_logits(&self) -> usize {
        self.num_outputs
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Requests that hold a slot, after scheduling.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Requests that wait, after scheduling.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Blocks free, after scheduling.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free_blocks
    }

    /// Empties the step for another use, keeping its buffers.
    pub(super) fn reset(&mut self, id: StepId, now: Time) {
        let Self { rows, preempted, block_ops, sources, .. } = std::mem::take(self);
        *self = Self { id, now, rows, preempted, block_ops, sources, ..Self::default() };
        self.rows.clear();
        self.sources.clear();
        self.preempted.clear();
        self.block_ops.clear();
    }
}

/// The tokens a step sampled, as `commit` takes them.
#[derive(Clone, Copy, Debug)]
pub enum Sampled<'a> {
    /// One token for each row that samples, in the order of the rows.
    One(&'a [Token]),
    /// Accepted drafts and the token after them: row `i` of those that sample has
    /// `tokens[indptr[i]..indptr[i + 1]]`, between one and `num_draft + 1` tokens.
    Ragged {
        /// All rows' tokens.
        tokens: &'a [Token],
        /// Offsets into `tokens`, one more than rows that sample.
        indptr: &'a [u32],
    },
}

/// What a commit delivers of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The request.
    pub id: RequestId,
    /// The client that it belongs to.
    pub client: u64,
    pub(super) start: u32,
    pub(super) len: u32,
    /// Set with its last token.
    pub finish: Option<FinishReason>,
}

impl Output {
    /// Where its tokens are among [`Outputs::all_tokens`].
    #[must_use]
    pub fn range(&self) -> std::ops::Range<u32> {
        self.start..self.start + self.len
    }
}

/// What a commit delivers.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    pub(super) outputs: &'a [Output],
    pub(super) tokens: &'a [Token],
    pub(super) released: &'a [RequestId],
    pub(super) ended: &'a [Ended],
    pub(super) step: &'a Step,
    pub(super) free_blocks: usize,
}

impl<'a> Outputs<'a> {
    /// The requests that got tokens, in the order of the step's rows.
    #[must_use]
    pub fn as_slice(&self) -> &'a [Output] {
        self.outputs
    }

    /// The tokens of one of them, in order; not of another commit's.
    #[must_use]
    pub fn tokens(&self, output: &Output) -> &'a [Token] {
        let range = output.start as usize..(output.start + output.len) as usize;
        self.tokens.get(range).unwrap_or_default()
    }

    /// The tokens of all of them, one request's after the other's.
    #[must_use]
    pub fn all_tokens(&self) -> &'a [Token] {
        self.tokens
    }

    /// The requests that finished, as they were at their end: those of [`as_slice`](Self::as_slice)
    /// with a `finish`, in the same order.
    #[must_use]
    pub fn ended(&self) -> &'a [Ended] {
        self.ended
    }

    /// The step that was committed.
    #[must_use]
    pub fn step(&self) -> &'a Step {
        self.step
    }

    /// Blocks free after the commit.
    #[must_use]
    pub fn free_blocks(&self) -> usize {
        self.free_blocks
    }

    /// Tokens delivered.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Requests that gave back their slot and blocks: those that finished, or under static
    /// batching the whole batch with its last.
    #[must_use]
    pub fn released(&self) -> &'a [RequestId] {
        self.released
    }
}
