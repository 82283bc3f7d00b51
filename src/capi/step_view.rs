//! What an iteration runs, and what came of it: views of flat arrays.

use std::mem::offset_of;

use super::elements::Element;
use super::ffi::{Versioned, lent, versioned};
use super::request::inflight_request_result;
use crate::batch::{Pending, RaggedBatch};
use crate::cache::BlockOp;
use crate::request::FinishReason;
use crate::scheduler::{Outputs, Row, Step};
use crate::types::BlockId;

/// The row reaches its request's newest token and so samples: a chunk of a prompt does not.
pub const INFLIGHT_ROW_SAMPLES: u32 = 1;
/// The row computes just its request's newest token (and drafts), having output before.
pub const INFLIGHT_ROW_DECODES: u32 = 2;
/// The row's request was admitted in this step.
pub const INFLIGHT_ROW_ADMITTED: u32 = 4;

/// One request's share of a step. In arrays `row_size` bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_row {
    /// The request.
    pub request_id: u64,
    /// Tokens it computes, drafts included; at least 1.
    pub num_tokens: u32,
    /// Tokens whose KV is there before the step: the position of its first token.
    pub num_computed: u32,
    /// Draft tokens at the end of its tokens.
    pub num_draft: u32,
    /// Tokens it will have output once everything in flight has returned, this step excluded.
    pub num_output: u32,
    /// `INFLIGHT_ROW_*`, or-ed.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

impl From<&Row> for inflight_row {
    fn from(row: &Row) -> Self {
        let flags = [
            (row.samples, INFLIGHT_ROW_SAMPLES),
            (row.is_decode, INFLIGHT_ROW_DECODES),
            (row.admitted, INFLIGHT_ROW_ADMITTED),
        ];
        Self {
            request_id: row.id.0,
            num_tokens: row.num_tokens,
            num_computed: row.num_computed,
            num_draft: row.num_draft,
            num_output: row.num_output,
            flags: flags.into_iter().map(|(set, flag)| if set { flag } else { 0 }).sum(),
            reserved: 0,
        }
    }
}

/// Device to device: a sequence is about to write to a block that it shares.
pub const INFLIGHT_BLOCK_COPY: u32 = 0;
/// Device to host.
pub const INFLIGHT_BLOCK_SWAP_OUT: u32 = 1;
/// Host to device.
pub const INFLIGHT_BLOCK_SWAP_IN: u32 = 2;

/// A copy of a block, in every layer's K and V, that the device makes before the step's kernels. In
/// arrays `block_op_size` bytes from one to the next, or what the caller passes as `op_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_block_op {
    /// `INFLIGHT_BLOCK_*`.
    pub kind: u32,
    /// Block read: of the host pool for a swap in, else of the device pool.
    pub src: u32,
    /// Block written: of the host pool for a swap out, else of the device pool.
    pub dst: u32,
}

/// An input token that is not known yet, with `overlap`: the device takes it from an earlier step. In
/// arrays `pending_size` bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_pending_token {
    /// Index into `tokens`.
    pub token: u32,
    /// The step that samples it is `step_id - steps_back`; at least 1. Steps that were abandoned
    /// count, since their ids are not given again.
    pub steps_back: u32,
    /// Index among that step's logits.
    pub logits: u32,
}

/// Asserts that a struct of the header is one of `csrc/kernel_params.h`: callers see the library's
/// arrays as they are.
macro_rules! assert_same {
    ($ours:ident, $kernels:ident { $($field:ident)* }) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$kernels>());
            $(assert!(offset_of!($ours, $field) == offset_of!($kernels, $field));)*
        };
    };
}
assert_same!(inflight_block_op, BlockOp { kind src dst });
assert_same!(inflight_pending_token, Pending { token steps_back logits });

// SAFETY: integers, without padding.
unsafe impl Element for inflight_block_op {}
// SAFETY: the same three numbers.
unsafe impl Element for BlockOp {}

/// What a group of layers has of the cache in a step: layers that keep the same keys share it. A model
/// whose layers all do has one group.
///
/// Of groups in an array each has the same `struct_size`, and the next begins as many bytes further.
/// Those of a caller are initialised with `inflight_group_init`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_group {
    /// `sizeof(inflight_group)` as its maker sees it.
    pub struct_size: usize,
    /// Row r reads blocks `kv_indices[kv_indptr[r]..kv_indptr[r + 1]]`, one more than rows, empty ones
    /// included.
    pub kv_indptr: *const u32,
    /// Block tables of the rows, one after the other, `[num_kv_blocks]`. Attention only reads them:
    /// rows may share a block, and a row may name one several times.
    pub kv_indices: *const u32,
    /// Tokens in the last block of each row, this step's included; 0 for a row without blocks.
    pub kv_last_page_len: *const u32,
    /// Where each token's KV is written, `block * block_size + offset`; a negative one is skipped.
    /// `[num_tokens]`, or NULL where nothing is appended.
    pub slot_mapping: *const i64,
    /// Elements of `kv_indices`; at most 2^30.
    pub num_kv_blocks: u32,
    /// Tokens per block; 1 to `INFLIGHT_MAX_COUNT`.
    pub block_size: u32,
}

versioned! {
    inflight_group_init(group: inflight_group ..= block_size) {}
}

// SAFETY: the pointers are into a batch of the scheduler's, which goes with them.
unsafe impl Send for inflight_group {}

impl From<&RaggedBatch> for inflight_group {
    fn from(batch: &RaggedBatch) -> Self {
        Self {
            kv_indptr: lent(batch.kv_indptr()),
            kv_indices: lent(batch.kv_indices()).cast(),
            kv_last_page_len: lent(batch.kv_last_page_len()),
            slot_mapping: lent(batch.slot_mapping()),
            num_kv_blocks: batch.header().num_kv_blocks,
            block_size: batch.header().block_size,
            ..Self::initial()
        }
    }
}

/// One iteration: which requests compute how many tokens, as a ragged batch. All arrays are the
/// library's, valid until the step's commit or abandon, and NULL where they are empty.
///
/// Rows are requests, in order: those that were running, then those admitted. With row padding the
/// arrays by row have `num_padded_rows` entries, the last of them empty rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_step_view {
    /// `sizeof(inflight_step_view)`.
    pub struct_size: usize,
    /// Names the step to `inflight_scheduler_commit` and `inflight_scheduler_abandon`.
    pub step_id: u64,
    /// Rows, `[num_rows]`.
    pub rows: *const inflight_row,
    /// Input tokens, row by row, `[num_tokens]`.
    pub tokens: *const u32,
    /// Position of each token in its sequence, `[num_tokens]`.
    pub positions: *const u32,
    /// Row r owns tokens `qo_indptr[r]..qo_indptr[r + 1]`, `[num_padded_rows + 1]`.
    pub qo_indptr: *const u32,
    /// Block tables and slots of each group of layers, `[num_groups]`: one, as the scheduler of this
    /// version knows no others.
    pub groups: *const inflight_group,
    /// Tokens whose logits are needed: one for each row that samples, and one for each of its
    /// drafts before it, `[num_logits]`.
    pub logits_indices: *const u32,
    /// Input tokens that a step in flight samples, `[num_pending]`; `tokens` has
    /// `INFLIGHT_NO_TOKEN` there.
    pub pending: *const inflight_pending_token,
    /// Copies to make first, in order, `[num_block_ops]`.
    pub block_ops: *const inflight_block_op,
    /// Requests that had to give way and wait again, `[num_preempted]`.
    pub preempted: *const u64,
    /// One buffer with all arrays but `rows`, `groups` and `preempted`, and those of the groups, for one copy to a device: an array is
    /// as far from its start there as here. 16-byte aligned, as is each array. What else is in it is
    /// the library's own, and may change.
    pub packed: *const u8,
    /// Bytes of `packed`.
    pub packed_size: usize,
    /// Rows.
    pub num_rows: u32,
    /// Rows, empty ones included.
    pub num_padded_rows: u32,
    /// Tokens.
    pub num_tokens: u32,
    /// Rows that sample.
    pub num_sampling: u32,
    /// Positions whose logits are needed.
    pub num_logits: u32,
    /// Elements of `groups`.
    pub num_groups: u32,
    /// Elements of `pending`.
    pub num_pending: u32,
    /// Elements of `block_ops`.
    pub num_block_ops: u32,
    /// Elements of `preempted`.
    pub num_preempted: u32,
    /// Bytes from one of `rows` to the next.
    pub row_size: u32,
    /// Bytes from one of `pending` to the next.
    pub pending_size: u32,
    /// Bytes from one of `block_ops` to the next.
    pub block_op_size: u32,
    /// Most tokens of a row.
    pub max_q_len: u32,
    /// Most keys of a row, this step's included.
    pub max_kv_len: u32,
    /// Requests that hold a slot, after scheduling.
    pub num_running: u32,
    /// Requests that wait, after scheduling.
    pub num_waiting: u32,
    /// Blocks free, after scheduling.
    pub num_free_blocks: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_step_view_init(view: inflight_step_view ..= reserved) where reserved is 0 {}
}

/// The view of a step, its batch and its rows.
pub(super) fn view_of(
    step: &Step,
    batch: &RaggedBatch,
    rows: &[inflight_row],
    groups: &[inflight_group],
) -> inflight_step_view {
    let h = batch.header();
    inflight_step_view {
        struct_size: 0,
        step_id: step.id().0,
        rows: lent(rows),
        tokens: lent(batch.tokens()),
        positions: lent(batch.positions()),
        qo_indptr: lent(batch.qo_indptr()),
        groups: lent(groups),
        logits_indices: lent(batch.logits_indices()),
        pending: lent(batch.pending()).cast(),
        block_ops: lent(batch.ops()).cast(),
        preempted: lent(step.preempted()).cast(),
        packed: lent(batch.bytes()),
        packed_size: batch.bytes().len(),
        num_rows: rows.len() as u32,
        num_padded_rows: h.padded_rows,
        num_tokens: h.num_tokens,
        num_sampling: step.num_sampling() as u32,
        num_logits: h.num_logits,
        num_groups: groups.len() as u32,
        num_pending: h.num_pending,
        num_block_ops: h.num_ops,
        num_preempted: step.preempted().len() as u32,
        row_size: size_of::<inflight_row>() as u32,
        pending_size: size_of::<inflight_pending_token>() as u32,
        block_op_size: size_of::<inflight_block_op>() as u32,
        max_q_len: h.max_q_len,
        max_kv_len: h.max_kv_len,
        num_running: step.running() as u32,
        num_waiting: step.waiting() as u32,
        num_free_blocks: step.free_blocks() as u32,
        reserved: 0,
    }
}

const _: () = assert!(size_of::<BlockId>() == 4);

/// The tokens that a step sampled.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_samples {
    /// `sizeof(inflight_samples)`.
    pub struct_size: usize,
    /// Token ids of the rows that sample, in the order of the rows.
    pub tokens: *const u32,
    /// Elements of `tokens`.
    pub num_tokens: usize,
    /// NULL for one token per row. With drafts: the i-th row that samples has
    /// `tokens[indptr[i]..indptr[i + 1]]`, the accepted drafts and the token after them, between
    /// one and `num_draft + 1`.
    pub indptr: *const u32,
    /// Elements of `indptr`: one more than rows that sample.
    pub indptr_len: usize,
}

versioned! {
    inflight_samples_init(samples: inflight_samples ..= indptr_len) {}
}

/// The request goes on.
pub const INFLIGHT_FINISH_NONE: u32 = 0;
/// It sampled its end-of-sequence token.
pub const INFLIGHT_FINISH_EOS: u32 = 1;
/// It sampled one of its stop tokens.
pub const INFLIGHT_FINISH_STOP_TOKEN: u32 = 2;
/// It reached `max_tokens` or `max_model_len`.
pub const INFLIGHT_FINISH_LENGTH: u32 = 3;
/// Its output repeats itself.
pub const INFLIGHT_FINISH_REPETITION: u32 = 4;
/// The caller ended it: `inflight_submitter_finish`.
pub const INFLIGHT_FINISH_STOPPED: u32 = 5;

/// The number of a reason, and the stop token where it is one.
pub(super) fn finish_of(reason: Option<FinishReason>) -> (u32, u32) {
    let none = super::request::INFLIGHT_NO_TOKEN;
    match reason {
        None => (INFLIGHT_FINISH_NONE, none),
        Some(FinishReason::Eos) => (INFLIGHT_FINISH_EOS, none),
        Some(FinishReason::StopToken(token)) => (INFLIGHT_FINISH_STOP_TOKEN, token),
        Some(FinishReason::Length) => (INFLIGHT_FINISH_LENGTH, none),
        Some(FinishReason::Repetition) => (INFLIGHT_FINISH_REPETITION, none),
    }
}

/// What a commit delivers of one request. In arrays `output_size` bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_output {
    /// The request.
    pub request_id: u64,
    /// Its tokens are `tokens[first_token..first_token + num_tokens]` of the view.
    pub first_token: u32,
    /// Its tokens in this commit.
    pub num_tokens: u32,
    /// `INFLIGHT_FINISH_*`: set with its last token.
    pub finish: u32,
    /// The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
    pub stop_token: u32,
    /// Where `finish` is not `INFLIGHT_FINISH_NONE`: its counts and times are `results[result]` of the
    /// view.
    pub result: u32,
    /// 0.
    pub reserved: u32,
}

/// What a commit delivers. All arrays are the library's, valid until the scheduler's next schedule,
/// commit or abandon, and NULL where they are empty.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_outputs_view {
    /// `sizeof(inflight_outputs_view)`.
    pub struct_size: usize,
    /// The step that was committed.
    pub step_id: u64,
    /// The requests that got tokens, in the order of the step's rows, `[num_outputs]`.
    pub outputs: *const inflight_output,
    /// Their tokens, `[num_tokens]`.
    pub tokens: *const u32,
    /// Requests that gave back their slot and blocks: those that finished, or under static batching
    /// the whole batch with its last, `[num_released]`.
    pub released: *const u64,
    /// Counts and times of the requests that finished, `[num_results]`: see `inflight_output`.
    pub results: *const inflight_request_result,
    /// Elements of `outputs`.
    pub num_outputs: u32,
    /// Elements of `tokens`.
    pub num_tokens: u32,
    /// Elements of `released`.
    pub num_released: u32,
    /// Elements of `results`.
    pub num_results: u32,
    /// Blocks free after the commit.
    pub num_free_blocks: u32,
    /// Bytes from one of `outputs` to the next.
    pub output_size: u32,
    /// Bytes from one of `results` to the next.
    pub result_size: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_outputs_view_init(view: inflight_outputs_view ..= reserved) where reserved is 0 {}
}

/// What the view of a commit points to.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    outputs: Vec<inflight_output>,
    results: Vec<inflight_request_result>,
}

impl Delivered {
    /// The view of what a commit delivered.
    pub(super) fn view(&mut self, outputs: &Outputs<'_>) -> inflight_outputs_view {
        self.results.clear();
        let results = outputs.ended().iter();
        self.results.extend(results.map(|ended| inflight_request_result::from(&ended.last)));
        self.outputs.clear();
        let mut results = 0..;
        self.outputs.extend(outputs.as_slice().iter().map(|output| {
            let range = output.range();
            let (finish, stop_token) = finish_of(output.finish);
            inflight_output {
                request_id: output.id.0,
                first_token: range.start,
                num_tokens: range.end - range.start,
                finish,
                stop_token,
                result: output.finish.and_then(|_| results.next()).unwrap_or(0),
                reserved: 0,
            }
        }));
        let tokens = outputs.all_tokens();
        inflight_outputs_view {
            struct_size: 0,
            step_id: outputs.step().id().0,
            outputs: lent(&self.outputs),
            tokens: lent(tokens),
            released: lent(outputs.released()).cast(),
            results: lent(&self.results),
            num_outputs: self.outputs.len() as u32,
            num_tokens: tokens.len() as u32,
            num_released: outputs.released().len() as u32,
            num_results: self.results.len() as u32,
            num_free_blocks: outputs.free_blocks() as u32,
            output_size: size_of::<inflight_output>() as u32,
            result_size: size_of::<inflight_request_result>() as u32,
            reserved: 0,
        }
    }
}
