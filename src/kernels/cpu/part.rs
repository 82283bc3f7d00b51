//! One part of a plan: some queries of a row over some of its keys.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]

use super::dispatch::Kernels;
use super::dot::{self, Ahead};
use super::finish::{Finished, finish};
use super::gemm::{Into, ROW_WORDS, Rows, round_up};
use super::simd::MAX_LANES;
use super::softmax::{Logits, RowView, Scores};
use crate::kernels::{BatchView, DType, KvScales, Mask};
use crate::plan::Part;
use crate::types::BlockId;

/// Keys of a packed tile.
pub(super) const TILE_KEYS: usize = 128;

/// Query rows whose scores are held at a time: a multiple of every micro-kernel's rows.
const BLOCK_ROWS: usize = 24;

/// Bytes of K of a tile of few rows.
const TILE_BYTES: usize = 64 << 10;

/// Rows up to which K and V are read in place.
pub(super) const FEW_ROWS: usize = 12;

/// One operand: address, strides in bytes, type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub(super) data: *mut u8,
    pub(super) token: usize,
    pub(super) head: usize,
    pub(super) dtype: DType,
}

impl Operand {
    pub(super) fn at(&self, token: usize, head: usize) -> *mut u8 {
        self.data.wrapping_add(token * self.token + head * self.head)
    }
}

/// K or V: address and strides in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pages {
    pub(super) data: *const u8,
    pub(super) block: usize,
    pub(super) token: usize,
    pub(super) head: usize,
}

/// A row of the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchRow<'a> {
    /// Its first query token in the batch.
    pub(super) first_token: usize,
    pub(super) q_len: u32,
    pub(super) kv_len: u32,
    table: &'a [BlockId],
    /// Its mask: first byte, and keys covered.
    mask: (usize, u32),
}

/// The rows of a step, where it was packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepRows<'a> {
    pub(super) batch: BatchView<'a>,
    pub(super) mask: Option<Mask<'a>>,
}

impl<'a> StepRows<'a> {
    pub(super) fn row(&self, row: u32) -> BatchRow<'a> {
        let BatchView { qo_indptr, kv_indptr, kv_indices, .. } = self.batch;
        let row = row as usize;
        BatchRow {
            first_token: qo_indptr[row] as usize,
            q_len: qo_indptr[row + 1] - qo_indptr[row],
            kv_len: self.batch.kv_len(row),
            table: &kv_indices[kv_indptr[row] as usize..kv_indptr[row + 1] as usize],
            mask: self.mask.map_or((0, 0), |m| (m.indptr[row] as usize, m.widths[row])),
        }
    }
}

/// What all parts of a call share.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) rows: StepRows<'a>,
    pub(super) num_q_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// Bytes per element of the cache.
    pub(super) kv_size: usize,
    pub(super) causal: bool,
    pub(super) window_left: Option<u32>,
    pub(super) soft_cap: Option<f32>,
    pub(super) scale: f32,
    pub(super) k_scale: &'a [f32],
    pub(super) v_scale: &'a [f32],
    pub(super) alibi: Option<&'a [f32]>,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) q: Operand,
    pub(super) o: Operand,
    /// `[tokens, num_q_heads]`, or null.
    pub(super) lse: *mut f32,
    pub(super) k: Pages,
    pub(super) v: Pages,
    /// States of split tiles: `head_dim` outputs per query row, and apart from them the largest score
    /// and the sum of exponentials relative to it.
    pub(super) state_o: *mut f32,
    pub(super) state_sums: *mut [f32; 2],
}

// SAFETY: parts of one plan write disjoint rows and states; what they share they only read.
unsafe impl Sync for Call<'_> {}

/// A thread's working memory: one 64-byte aligned region cut into arrays, and offsets.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    words: Vec<Line>,
    views: Vec<RowView>,
    largest: Vec<f32>,
    sum: Vec<f32>,
    k_offsets: [Vec<usize>; 2],
    v_offsets: [Vec<usize>; 2],
    runs: Vec<[usize; 2]>,
}

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
#[expect(dead_code, reason = "read through pointers")]
struct Line([f32; 16]);

impl Scratch {
    /// Makes room for parts of `rows` query rows of one head, or of `heads` heads of few rows.
    pub(super) fn reserve(&mut self, rows: usize, heads: usize, head_dim: usize) {
        let d = round_up(head_dim, 32);
        let rows = round_up(rows, BLOCK_ROWS);
        let large =
            rows * (ROW_WORDS + d) + BLOCK_ROWS * ROW_WORDS + 2 * d * TILE_KEYS + MAX_LANES * d;
        let few = heads * dot::padded_rows(FEW_ROWS) * 2 * d + FEW_ROWS * dot::SCORES;
        let lines = large.max(few).div_ceil(16) + 64;
        if self.words.len() < lines {
            self.words.resize(lines, Line([0.0; 16]));
        }
        let rows = rows.max(heads * FEW_ROWS);
        if self.views.len() < rows {
            self.views.resize(rows, RowView::default());
            self.largest.resize(rows, 0.0);
            self.sum.resize(rows, 0.0);
        }
    }
}

/// Cuts arrays off a region.
struct Cutter {
    next: *mut f32,
    left: usize,
}

impl Cutter {
    /// `n` numbers, at a multiple of 64 bytes.
    fn cut(&mut self, n: usize) -> *mut f32 {
        let n = round_up(n, 16);
        assert!(n <= self.left, "scratch is reserved for the largest part");
        let here = self.next;
        self.next = here.wrapping_add(n);
        self.left -= n;
        here
    }
}

/// Computes a part: its outputs, or its states. `next` is what the same thread computes afterwards.
///
/// # Safety
/// The call's pointers are valid for all that its shapes, strides and tables name, no other thread
/// writes the part's rows or states, `scratch` is reserved for the part, and the processor has the
/// kernels' instructions.
pub(super) unsafe fn run(
    kernels: &Kernels,
    call: &Call<'_>,
    part: &Part,
    next: Option<&Part>,
    scratch: &mut Scratch,
) {
    let is_few = |part: &&Part| part.q_len as usize * call.group <= FEW_ROWS;
    // SAFETY: passed on.
    unsafe {
        if is_few(&part) {
            few(kernels, call, part, next.filter(is_few), scratch);
        } else {
            for head in part.head..part.head + part.num_heads {
                many(kernels, call, part, head as usize, scratch);
            }
        }
    }
}

/// Fills in what each query row of a part sees. Rows are token by token, heads of the group within.
fn view_rows(call: &Call<'_>, part: &Part, head: usize, views: &mut [RowView]) {
    let row = call.rows.row(part.row);
    let bytes = row.mask.1.div_ceil(8) as usize;
    for (m, view) in views.iter_mut().enumerate() {
        let token = part.q_start + (m / call.group) as u32;
        let position = i64::from(row.kv_len) - i64::from(row.q_len) + i64::from(token);
        let end = if call.causal { position + 1 } else { i64::from(row.kv_len) };
        let first = call.window_left.map_or(0, |window| position - i64::from(window));
        *view = RowView {
            first: first.clamp(part.kv_start.into(), part.kv_end.into()) as u32,
            end: end.clamp(part.kv_start.into(), part.kv_end.into()) as u32,
            position: position as i32,
            slope: call.alibi.map_or(0.0, |slopes| slopes[head * call.group + m % call.group]),
            mask: row.mask.0 + token as usize * bytes,
        };
    }
}

/// Bytes to each of `keys` keys of a row.
fn offsets(call: &Call<'_>, row: &BatchRow<'_>, first: u32, end: u32, out: [&mut Vec<usize>; 2]) {
    let [k, v] = out;
    k.clear();
    v.clear();
    let block_size = call.rows.batch.block_size;
    let mut index = first as usize / block_size;
    let mut within = first as usize % block_size;
    let mut left = (end - first) as usize;
    while left > 0 {
        let block = row.table[index].index();
        let here = left.min(block_size - within);
        let (k0, v0) = (block * call.k.block, block * call.v.block);
        k.extend((within..within + here).map(|token| k0 + token * call.k.token));
        v.extend((within..within + here).map(|token| v0 + token * call.v.token));
        (index, within, left) = (index + 1, 0, left - here);
    }
}

/// The rules for logits of a head.
pub(super) fn logits<'a>(
    kernels: &Kernels,
    call: &Call<'a>,
    row: &BatchRow<'_>,
    head: usize,
) -> Logits<'a> {
    let k_scale = KvScales::of(call.k_scale, head);
    Logits {
        scale: call.scale * k_scale * kernels.unit,
        soft_cap: call.soft_cap,
        alibi: call.alibi.is_some(),
        mask: call.rows.mask.filter(|_| row.mask.1 > 0).map_or(&[], |mask| mask.bits),
        mask_start: row.kv_len - row.mask.1,
    }
}

/// Few rows, all heads of the part: keys in the order in which they lie, heads within.
///
/// # Safety
/// As [`run`].
unsafe fn few(
    kernels: &Kernels,
    call: &Call<'_>,
    part: &Part,
    next: Option<&Part>,
    scratch: &mut Scratch,
) {
    let row = &call.rows.row(part.row);
    let rows = part.q_len as usize * call.group;
    let padded = dot::padded_rows(rows);
    let heads = part.num_heads as usize;
    let d = round_up(call.head_dim, kernels.lanes);
    let words = round_up(call.head_dim / kernels.depth, 2 * kernels.lanes);
    let Scratch { words: region, views, largest, sum, k_offsets, v_offsets, runs } = scratch;
    let mut cutter = Cutter { next: region.as_mut_ptr().cast(), left: region.len() * 16 };
    let queries = cutter.cut(heads * padded * words);
    let outputs = cutter.cut(heads * padded * d);
    let scores = cutter.cut(padded * dot::SCORES);
    let factors = cutter.cut(round_up(padded, MAX_LANES));
    let views = &mut views[..heads * padded];
    let largest = &mut largest[..heads * padded];
    let sum = &mut sum[..heads * padded];
    largest.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    // SAFETY: arrays are cut for `heads * padded` rows; query rows are the part's.
    unsafe {
        for head in 0..heads {
            let h = part.head as usize + head;
            let first = head * padded;
            view_rows(call, part, h, &mut views[first..first + rows]);
            // Rows of padding see nothing.
            views[first + rows..first + padded].fill(RowView::default());
            let to = std::slice::from_raw_parts_mut(queries.add(first * words), padded * words);
            to.fill(0.0);
            for m in 0..rows {
                let token = row.first_token + part.q_start as usize + m / call.group;
                let from = call.q.at(token, h * call.group + m % call.group);
                let mut line = [0.0; 256 + 2 * MAX_LANES];
                let line = &mut line[..words];
                (kernels.load_query)(call.q.dtype, from, call.head_dim, line.as_mut_ptr(), words);
                if kernels.split_keys {
                    dot::split(line, call.head_dim, kernels.lanes);
                }
                dot::interleave(line, kernels.lanes, m, padded, to);
            }
        }
        std::slice::from_raw_parts_mut(outputs, heads * padded * d).fill(0.0);
    }
    let [k_now, k_next] = k_offsets;
    let [v_now, v_next] = v_offsets;
    let (mut k_now, mut k_next, mut v_now, mut v_next) = (k_now, k_next, v_now, v_next);
    let step = tile_keys(call, part.num_heads as usize) as u32;
    let mut key = part.kv_start;
    if key < part.kv_end {
        offsets(call, row, key, part.kv_end.min(key + step), [k_now, v_now]);
    }
    while key < part.kv_end {
        let after = key.saturating_add(step).min(part.kv_end);
        // After the last tile of this part, the first one of the next.
        let (from, first) = match next {
            Some(next) if after == part.kv_end => (next, next.kv_start),
            _ => (part, after),
        };
        let end = from.kv_end.min(first.saturating_add(step));
        offsets(call, &call.rows.row(from.row), first, end, [k_next, v_next]);
        let mut ahead = ahead(call, from, [k_next, v_next], runs);
        for head in 0..heads {
            let h = part.head as usize + head;
            let first = head * padded;
            let k = Rows { base: call.k.data.wrapping_add(h * call.k.head), offsets: k_now };
            let v = Rows { base: call.v.data.wrapping_add(h * call.v.head), offsets: v_now };
            // SAFETY: arrays are cut for these rows, offsets are of the row's keys.
            unsafe {
                let (scores_of, values_of) = match &kernels.finite {
                    Some(finite) => (
                        if (finite.any_nan)(k, call.head_dim) {
                            kernels.scores
                        } else {
                            finite.scores
                        },
                        if (finite.any_nan)(v, call.head_dim) {
                            kernels.values
                        } else {
                            finite.values
                        },
                    ),
                    None => (kernels.scores, kernels.values),
                };
                scores_of(
                    queries.add(first * words),
                    words,
                    padded,
                    k,
                    call.head_dim,
                    &mut ahead,
                    scores,
                );
                let end = round_up((after - key) as usize, kernels.lanes);
                (kernels.softmax)(
                    &logits(kernels, call, row, h),
                    &views[first..first + padded],
                    Scores {
                        data: scores,
                        stride: dot::SCORES,
                        start: 0,
                        end,
                        first_key: key,
                        keys: after - key,
                    },
                    &mut largest[first..first + padded],
                    &mut sum[first..first + padded],
                    factors,
                );
                let out = outputs.add(first * d);
                values_of(scores, factors, padded, v, call.head_dim, &mut ahead, out, d);
            }
        }
        // SAFETY: prefetches are harmless.
        unsafe { (kernels.ask_rest)(&mut ahead) };
        std::mem::swap(&mut k_now, &mut k_next);
        std::mem::swap(&mut v_now, &mut v_next);
        key = after;
    }
    for head in 0..heads {
        let first = head * padded;
        if kernels.split_values {
            for m in first..first + rows {
                // SAFETY: the row is one of the outputs.
                let row = unsafe { std::slice::from_raw_parts_mut(outputs.add(m * d), d) };
                dot::unsplit(row, call.head_dim, kernels.lanes);
            }
        }
        let state = Finished {
            head: part.head as usize + head,
            nth_head: head,
            outputs: outputs.wrapping_add(first * d),
            stride: d,
            largest: &largest[first..first + rows],
            sum: &sum[first..first + rows],
            factor: logits(kernels, call, row, part.head as usize + head).factor(),
        };
        // SAFETY: the outputs are there, and the part's rows are this call's to write.
        unsafe { finish(kernels, call, part, &state) };
    }
}

/// Keys of a tile of few rows: this one and the next, K and V of all heads, are in the L2 cache at
/// once, with room to spare.
fn tile_keys(call: &Call<'_>, heads: usize) -> usize {
    let keys = TILE_BYTES / (heads * call.head_dim * call.kv_size);
    keys.clamp(8, dot::KEYS) / 8 * 8
}

/// What to ask for while a tile is computed: the next one, of all heads.
fn ahead<'a>(
    call: &Call<'_>,
    part: &Part,
    offsets: [&[usize]; 2],
    runs: &'a mut Vec<[usize; 2]>,
) -> Ahead<'a> {
    let heads = part.num_heads as usize;
    let row = call.head_dim * call.kv_size;
    runs.clear();
    let mut add = |first: usize, bytes: usize| match runs.last_mut() {
        Some([_, end]) if *end == first => *end += bytes,
        _ => runs.push([first, first + bytes]),
    };
    for (pages, offsets) in [&call.k, &call.v].into_iter().zip(offsets) {
        let base = pages.data as usize + part.head as usize * pages.head;
        if pages.head == row {
            offsets.iter().for_each(|offset| add(base + offset, heads * row));
        } else if pages.head <= pages.token {
            for offset in offsets {
                (0..heads).for_each(|head| add(base + offset + head * pages.head, row));
            }
        } else {
            for head in 0..heads {
                offsets.iter().for_each(|offset| add(base + offset + head * pages.head, row));
            }
        }
    }
    Ahead::new(runs)
}

/// Many rows of one head: tiles of keys are packed and multiplied.
///
/// # Safety
/// As [`run`].
unsafe fn many(
    kernels: &Kernels,
    call: &Call<'_>,
    part: &Part,
    head: usize,
    scratch: &mut Scratch,
) {
    let row = &call.rows.row(part.row);
    let rows = part.q_len as usize * call.group;
    let padded = round_up(rows, kernels.block_rows);
    let panel = kernels.panel;
    let d = round_up(call.head_dim, panel);
    let words = call.head_dim / kernels.depth;
    let depth = round_up(words, kernels.tile);
    let stride = round_up(words, kernels.lanes);
    let capacity = TILE_KEYS / kernels.depth;
    let Scratch {
        words: region,
        views,
        largest,
        sum,
        k_offsets: [k_at, _],
        v_offsets: [v_at, _],
        ..
    } = scratch;
    let mut cutter = Cutter { next: region.as_mut_ptr().cast(), left: region.len() * 16 };
    let queries = cutter.cut(padded * ROW_WORDS);
    let outputs = cutter.cut(padded * d);
    let scores = cutter.cut(BLOCK_ROWS * ROW_WORDS);
    let k_panels = cutter.cut(TILE_KEYS * depth);
    let v_panels = cutter.cut(capacity * d);
    let factors = cutter.cut(round_up(BLOCK_ROWS, MAX_LANES));
    let staging_len = kernels.tile * round_up(depth, MAX_LANES);
    let staging = cutter.cut(staging_len);
    let (views, largest, sum) = (&mut views[..padded], &mut largest[..padded], &mut sum[..padded]);
    view_rows(call, part, head, &mut views[..rows]);
    views[rows..].fill(RowView::default());
    largest.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    // SAFETY: arrays are cut for `padded` rows; query rows are the part's.
    let staging = unsafe {
        for m in 0..padded {
            let to = queries.add(m * ROW_WORDS);
            if m < rows {
                let token = row.first_token + part.q_start as usize + m / call.group;
                let from = call.q.at(token, head * call.group + m % call.group);
                (kernels.load_query)(call.q.dtype, from, call.head_dim, to, stride);
            } else {
                std::slice::from_raw_parts_mut(to, stride).fill(0.0);
            }
        }
        std::slice::from_raw_parts_mut(outputs, padded * d).fill(0.0);
        std::slice::from_raw_parts_mut(staging, staging_len)
    };
    let rules = logits(kernels, call, row, head);
    let mut key = part.kv_start;
    while key < part.kv_end {
        let after = key.saturating_add(TILE_KEYS as u32).min(part.kv_end);
        offsets(call, row, key, after, [k_at, v_at]);
        let k = Rows { base: call.k.data.wrapping_add(head * call.k.head), offsets: k_at };
        let v = Rows { base: call.v.data.wrapping_add(head * call.v.head), offsets: v_at };
        // SAFETY: panels are cut for a tile, offsets are of the row's keys.
        unsafe {
            (kernels.pack_k)(k, call.head_dim, staging, k_panels);
            (kernels.pack_v)(v, call.head_dim, capacity, v_panels);
        }
        let mut first = 0;
        while first < padded {
            let block = BLOCK_ROWS.min(padded - first);
            let views = &views[first..first + block];
            // What any row of the block sees of this tile; rows of padding see nothing.
            let seen = views.iter().filter(|view| view.end > view.first);
            let (mut from, mut to) = (after, key);
            for view in seen {
                from = from.min(view.first);
                to = to.max(view.end);
            }
            let (from, to) = (from.max(key), to.min(after));
            if from < to {
                let start = (from - key) as usize / panel * panel;
                let end = round_up((to - key) as usize, panel);
                // SAFETY: arrays are cut for these rows and a tile of keys.
                unsafe {
                    let a = queries.add(first * ROW_WORDS);
                    let mut column = start;
                    while column < end {
                        let b = k_panels.add(column * depth);
                        let c = scores.add(column);
                        let into = Into::Store;
                        (kernels.multiply)(block, words, a, b, c, ROW_WORDS, into);
                        column += panel;
                    }
                    (kernels.softmax)(
                        &rules,
                        views,
                        Scores {
                            data: scores,
                            stride: ROW_WORDS,
                            start,
                            end,
                            first_key: key,
                            keys: after - key,
                        },
                        &mut largest[first..first + block],
                        &mut sum[first..first + block],
                        factors,
                    );
                    (kernels.narrow)(scores, block, ROW_WORDS, start, end);
                    let (skip, depth) = (start / kernels.depth, (end - start) / kernels.depth);
                    let a = scores.add(skip);
                    let into = Into::Scale(factors);
                    let mut column = 0;
                    while column < d {
                        let b = v_panels.add((column / panel * capacity + skip) * panel);
                        let c = outputs.add(first * d + column);
                        (kernels.multiply)(block, depth, a, b, c, d, into);
                        column += panel;
                    }
                }
            }
            first += BLOCK_ROWS;
        }
        key = after;
    }
    let state = Finished {
        head,
        nth_head: head - part.head as usize,
        outputs,
        stride: d,
        largest: &largest[..rows],
        sum: &sum[..rows],
        factor: rules.factor(),
    };
    // SAFETY: the outputs are there, and the part's rows are this call's to write.
    unsafe { finish(kernels, call, part, &state) };
}
