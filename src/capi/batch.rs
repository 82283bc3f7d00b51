//! The rows of a step, and masks over their keys.

use super::ffi::{Result, Versioned, array, at_most, at_most_max, call, read, versioned, write};
use super::status::{Failure, inflight_error, inflight_status};
use super::step_view::{inflight_group, inflight_step_view};
use crate::kernels::{BatchView, Mask, StepArrays, StepSource};
use crate::types::BlockId;

/// The rows of a step: how many queries each has, and where its keys are. All arrays are in this
/// process's memory, and copied by the calls that take them. `inflight_batch_from_step` makes one of
/// a scheduler's step.
///
/// A row's keys are those in its blocks: the full ones, and `kv_last_page_len` in the last. They
/// include its own new tokens, which are the last of them: query `i` of a row of `q_len` queries and
/// `kv_len` keys is at position `kv_len - q_len + i`, by which mask, window and ALiBi go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_batch {
    /// `sizeof(inflight_batch)`.
    pub struct_size: usize,
    /// Row r owns query tokens `qo_indptr[r]..qo_indptr[r + 1]`, `[num_rows + 1]`.
    pub qo_indptr: *const u32,
    /// Position of each token, for rotary embeddings alone; `[num_tokens]`, or NULL.
    pub positions: *const u32,
    /// Input tokens, for kernels of the caller's on a GPU; `[num_tokens]`, or NULL.
    pub tokens: *const u32,
    /// Block tables and slots of each group of layers, `[num_groups]`.
    pub groups: *const inflight_group,
    /// A step's `packed`, where the arrays of this batch are those of that step and lie in it, so that
    /// it may be copied as it is; NULL (the default) where they lie anywhere.
    pub packed: *const u8,
    /// Bytes of `packed`.
    pub packed_size: usize,
    /// Rows, empty ones included: at most 2^30, as the next.
    pub num_rows: u32,
    /// Query tokens: the last of `qo_indptr`.
    pub num_tokens: u32,
    /// Elements of `groups`: 1 (the default), since kernels of this version know no others.
    pub num_groups: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_batch_init(batch: inflight_batch ..= reserved) where reserved is 0 {
        num_groups: 1,
    }
}

/// The rows of a scheduler's step. Nothing is copied: the arrays are the step's, and valid as long.
///
/// Outputs: `*batch`, prepared with `inflight_batch_init`.
/// Fails: INVALID_ARGUMENT, STRUCT_SIZE.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_batch_from_step(
    view: *const inflight_step_view,
    batch: *mut inflight_batch,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a view.
        let step = unsafe { read("view", view) }?;
        let made = inflight_batch {
            struct_size: 0,
            qo_indptr: step.qo_indptr,
            positions: step.positions,
            tokens: step.tokens,
            groups: step.groups,
            packed: step.packed,
            packed_size: step.packed_size,
            num_rows: step.num_padded_rows,
            num_tokens: step.num_tokens,
            num_groups: step.num_groups,
            reserved: 0,
        };
        // SAFETY: NULL or the caller's to be written.
        unsafe { write("batch", batch, made) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Rows, tokens, blocks and bytes of mask that a step has at most.
const MOST: u64 = 1 << 30;

const _: () = assert!(size_of::<BlockId>() == size_of::<u32>());

/// The arrays of the caller's batch; what they hold is not checked but for the number of tokens.
///
/// # Safety
/// `batch` is NULL or a batch, whose arrays are NULL or as long as it says, and not written
/// during 'a.
pub(super) unsafe fn arrays_of<'a>(batch: *const inflight_batch) -> Result<StepArrays<'a>> {
    // SAFETY: as the caller promises.
    let given = unsafe { read("batch", batch) }?;
    let rows = at_most("num_rows", given.num_rows.into(), MOST)?;
    let tokens = at_most("num_tokens", given.num_tokens.into(), MOST)?;
    if given.num_groups != 1 {
        let reason = format!("is {}: attention is over one group of layers", given.num_groups);
        return Err(Failure::argument("num_groups", reason));
    }
    // SAFETY: as the caller promises.
    let group = unsafe { read("groups", given.groups) }?;
    let blocks = at_most("num_kv_blocks", group.num_kv_blocks.into(), MOST)?;
    let block_size = at_most_max("block_size", group.block_size.into())?;
    // SAFETY: as the caller promises.
    let qo_indptr = unsafe { array("qo_indptr", given.qo_indptr, rows + 1) }?;
    // SAFETY: as the caller promises.
    let kv_indptr = unsafe { array("kv_indptr", group.kv_indptr, rows + 1) }?;
    let kv_indices = group.kv_indices.cast::<BlockId>();
    // SAFETY: as the caller promises; a block id is a number.
    let kv_indices = unsafe { array("kv_indices", kv_indices, blocks) }?;
    // SAFETY: as the caller promises.
    let last = unsafe { array("kv_last_page_len", group.kv_last_page_len, rows) }?;
    let of = |null: bool| if null { 0 } else { tokens };
    let slots = of(group.slot_mapping.is_null());
    // SAFETY: as the caller promises.
    let slot_mapping = unsafe { array("slot_mapping", group.slot_mapping, slots) }?;
    let placed = of(given.positions.is_null());
    // SAFETY: as the caller promises.
    let positions = unsafe { array("positions", given.positions, placed) }?;
    let named = of(given.tokens.is_null());
    // SAFETY: as the caller promises.
    let names = unsafe { array("tokens", given.tokens, named) }?;
    if qo_indptr[rows] as usize != tokens {
        let reason = format!("is {tokens}, and qo_indptr ends at {}", qo_indptr[rows]);
        return Err(Failure::argument("num_tokens", reason));
    }
    let batch = BatchView { qo_indptr, kv_indptr, kv_indices, kv_last_page_len: last, block_size };
    Ok(StepArrays { batch, slot_mapping, positions, tokens: names })
}

/// The same, and the bytes that they lie in where the batch names them.
///
/// # Safety
/// As for [`arrays_of`]; `packed` is NULL or of as many bytes.
pub(super) unsafe fn source_of<'a>(batch: *const inflight_batch) -> Result<StepSource<'a>> {
    // SAFETY: as the caller promises.
    let arrays = unsafe { arrays_of(batch) }?;
    // SAFETY: as the caller promises.
    let given = unsafe { read("batch", batch) }?;
    let len = if given.packed.is_null() { 0 } else { given.packed_size };
    // SAFETY: as the caller promises.
    let bytes = unsafe { array("packed", given.packed, len) }?;
    Ok(StepSource::packed(bytes, arrays))
}

/// Which of the last keys each query sees: a tree of drafts, or any pattern at all.
///
/// Row r's mask is over its last `widths[r]` keys; earlier keys are seen, and with width 0 all are.
/// Query i has `ceil(widths[r] / 8)` bytes from byte `indptr[r] + i * ceil(widths[r] / 8)` of `bits`;
/// bit b % 8 (the least significant is 0) of byte b / 8 says whether it sees key
/// `kv_len - widths[r] + b`. Causality and window hold as well: a pattern that looks ahead needs
/// `causal` 0. All arrays are in this process's memory, and copied.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_mask {
    /// `sizeof(inflight_mask)`.
    pub struct_size: usize,
    /// The bits.
    pub bits: *const u8,
    /// Bytes of `bits`, at most 2^30.
    pub num_bytes: usize,
    /// Where each row's bytes begin, and where the last's end, `[num_rows + 1]`.
    pub indptr: *const u32,
    /// Keys that a row's mask covers, at most those it has, `[num_rows]`.
    pub widths: *const u32,
}

versioned! {
    inflight_mask_init(mask: inflight_mask ..= widths) {}
}

/// The mask of the caller's for so many rows; none for NULL.
///
/// # Safety
/// `mask` is NULL or a mask, whose arrays are NULL or as long as it says, and not written during
/// 'a.
pub(super) unsafe fn mask_of<'a>(
    mask: *const inflight_mask,
    rows: usize,
) -> Result<Option<Mask<'a>>> {
    if mask.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let given = unsafe { read("mask", mask) }?;
    at_most("mask.num_bytes", given.num_bytes as u64, MOST)?;
    // SAFETY: as the caller promises.
    let bits = unsafe { array("mask.bits", given.bits, given.num_bytes) }?;
    // SAFETY: as the caller promises.
    let indptr = unsafe { array("mask.indptr", given.indptr, rows + 1) }?;
    // SAFETY: as the caller promises.
    let widths = unsafe { array("mask.widths", given.widths, rows) }?;
    Ok(Some(Mask { bits, indptr, widths }))
}
