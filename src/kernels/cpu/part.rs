//! One part of a plan: some queries of a row over some of its keys.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]

use std::f32::consts::{LN_2, LOG2_E};

use super::dot::{self, Next};
use super::gemm::{Format, Into, Rows, multiply, pack_k, pack_v, round_up};
use super::simd::{Bf16, F16, F32, KvElement, MAX_LANES, Simd};
use super::softmax::{Logits, RowView, Scores, softmax};
use crate::kernels::DType;
use crate::plan::{Merge, Part};
use crate::types::BlockId;

/// Keys of a packed tile.
pub(super) const TILE_KEYS: usize = 128;

/// Query rows whose scores are held at a time: a multiple of every micro-kernel's rows.
const BLOCK_ROWS: usize = 24;

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
    fn at(&self, token: usize, head: usize) -> *mut u8 {
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
pub(super) struct BatchRow {
    /// Its first query token in the batch.
    pub(super) first_token: usize,
    pub(super) q_len: u32,
    pub(super) kv_len: u32,
    /// Where its block table begins.
    pub(super) table: usize,
    /// Its mask: first byte, and keys covered.
    pub(super) mask: (usize, u32),
}

/// What all parts of a call share.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) rows: &'a [BatchRow],
    pub(super) tables: &'a [BlockId],
    pub(super) block_size: usize,
    pub(super) num_q_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) causal: bool,
    pub(super) window_left: Option<u32>,
    pub(super) soft_cap: Option<f32>,
    pub(super) scale: f32,
    pub(super) k_scale: &'a [f32],
    pub(super) v_scale: &'a [f32],
    pub(super) alibi: Option<&'a [f32]>,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) mask: &'a [u8],
    pub(super) q: Operand,
    pub(super) o: Operand,
    /// `[tokens, num_q_heads]`, or null.
    pub(super) lse: *mut f32,
    pub(super) k: Pages,
    pub(super) v: Pages,
    /// States of split tiles: `head_dim` outputs a query row, and apart from them the LSE to base 2.
    pub(super) state_o: *mut f32,
    pub(super) state_lse: *mut f32,
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
        let large = 2 * rows * d + (BLOCK_ROWS + 2 * d) * TILE_KEYS + MAX_LANES * d;
        let few = heads * dot::padded_rows(FEW_ROWS) * 2 * d + FEW_ROWS * dot::KEYS;
        self.words.resize(large.max(few).div_ceil(16) + 64, Line([0.0; 16]));
        let rows = rows.max(heads * FEW_ROWS);
        self.views.resize(rows, RowView::default());
        self.largest.resize(rows, 0.0);
        self.sum.resize(rows, 0.0);
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

/// Computes a part: its outputs, or its states.
///
/// `MR` rows and `NV` vectors are the micro-kernel's block.
///
/// # Safety
/// The call's pointers are valid for all that its shapes, strides and tables name, nobody else
/// writes the part's rows or states, and `scratch` is reserved for the part.
#[inline(always)]
pub(super) unsafe fn run<
    S: Simd,
    E: KvElement,
    F: Format<S, E>,
    const MR: usize,
    const NV: usize,
>(
    s: S,
    call: &Call<'_>,
    part: &Part,
    scratch: &mut Scratch,
) {
    // SAFETY: passed on.
    unsafe {
        if part.q_len as usize * call.group <= FEW_ROWS {
            few::<S, E, F>(s, call, part, scratch);
        } else {
            for head in part.head..part.head + part.num_heads {
                many::<S, E, F, MR, NV>(s, call, part, head as usize, scratch);
            }
        }
    }
}

/// Fills in what each query row of a part sees. Rows are token by token, heads of the group within.
fn view_rows(call: &Call<'_>, part: &Part, head: usize, views: &mut [RowView]) {
    let row = &call.rows[part.row as usize];
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
fn offsets(call: &Call<'_>, row: &BatchRow, first: u32, end: u32, out: [&mut Vec<usize>; 2]) {
    let [k, v] = out;
    k.clear();
    v.clear();
    let mut index = row.table + first as usize / call.block_size;
    let mut within = first as usize % call.block_size;
    let mut left = (end - first) as usize;
    while left > 0 {
        let block = call.tables[index].index();
        let here = left.min(call.block_size - within);
        let (k0, v0) = (block * call.k.block, block * call.v.block);
        k.extend((within..within + here).map(|token| k0 + token * call.k.token));
        v.extend((within..within + here).map(|token| v0 + token * call.v.token));
        (index, within, left) = (index + 1, 0, left - here);
    }
}

/// The rules for logits of a head.
fn logits<'a, E: KvElement>(call: &Call<'a>, row: &BatchRow, head: usize) -> Logits<'a> {
    let k_scale = crate::kernels::KvScales::of(call.k_scale, head);
    Logits {
        scale: call.scale * k_scale * E::UNIT,
        soft_cap: call.soft_cap,
        alibi: call.alibi.is_some(),
        mask: if row.mask.1 == 0 { &[] } else { call.mask },
        mask_start: row.kv_len - row.mask.1,
    }
}

/// Reads a query row into words: `stride` of them, zeros beyond `head_dim`.
///
/// # Safety
/// The row can be read, `round_up(stride, LANES)` words can be written.
#[inline(always)]
unsafe fn load_query<S: Simd, E: KvElement, F: Format<S, E>>(
    s: S,
    dtype: DType,
    from: *const u8,
    head_dim: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller vouches for both.
    unsafe {
        if F::DEPTH == 2 {
            // Pairs are taken only for queries of bf16, whose bits are the words.
            let mut w = 0;
            while w < stride {
                *to.add(w) = 0.0;
                w += 1;
            }
            std::ptr::copy_nonoverlapping(from, to.cast(), 2 * head_dim);
            return;
        }
        match dtype {
            DType::F16 => widen::<S, F16>(s, from, head_dim, to, stride),
            DType::Bf16 => widen::<S, Bf16>(s, from, head_dim, to, stride),
            DType::F32 | DType::Fp8E4m3 => widen::<S, F32>(s, from, head_dim, to, stride),
        }
    }
}

/// # Safety
/// As [`load_query`].
#[inline(always)]
unsafe fn widen<S: Simd, Q: KvElement>(
    s: S,
    from: *const u8,
    head_dim: usize,
    to: *mut f32,
    stride: usize,
) {
    let mut i = 0;
    while i < stride {
        // SAFETY: the caller vouches for both.
        unsafe {
            let here = head_dim.saturating_sub(i);
            let v = if here >= S::LANES {
                Q::load(s, from.add(i * Q::SIZE))
            } else if here > 0 {
                Q::load_some(s, from.add(i * Q::SIZE), here)
            } else {
                s.splat(0.0)
            };
            s.store(to.add(i), v);
        }
        i += S::LANES;
    }
}

/// Few rows, all heads of the part: keys in the order in which they lie, heads within.
#[inline(always)]
unsafe fn few<S: Simd, E: KvElement, F: Format<S, E>>(
    s: S,
    call: &Call<'_>,
    part: &Part,
    scratch: &mut Scratch,
) {
    let row = &call.rows[part.row as usize];
    let rows = part.q_len as usize * call.group;
    let padded = dot::padded_rows(rows);
    let heads = part.num_heads as usize;
    let d = round_up(call.head_dim, S::LANES);
    let words = round_up(call.head_dim / F::DEPTH, S::LANES);
    let Scratch { words: region, views, largest, sum, k_offsets, v_offsets } = scratch;
    let mut cutter = Cutter { next: region.as_mut_ptr().cast(), left: region.len() * 16 };
    let queries = cutter.cut(heads * padded * words);
    let outputs = cutter.cut(heads * padded * d);
    let scores = cutter.cut(padded * dot::KEYS);
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
            for m in 0..padded {
                let to = queries.add((first + m) * words);
                if m < rows {
                    let token = row.first_token + part.q_start as usize + m / call.group;
                    let from = call.q.at(token, h * call.group + m % call.group);
                    load_query::<S, E, F>(s, call.q.dtype, from, call.head_dim, to, words);
                } else {
                    std::slice::from_raw_parts_mut(to, words).fill(0.0);
                }
            }
        }
        std::slice::from_raw_parts_mut(outputs, heads * padded * d).fill(0.0);
    }
    let [k_now, k_next] = k_offsets;
    let [v_now, v_next] = v_offsets;
    let (mut k_now, mut k_next, mut v_now, mut v_next) = (k_now, k_next, v_now, v_next);
    let step = dot::KEYS as u32;
    let mut key = part.kv_start;
    if key < part.kv_end {
        offsets(call, row, key, part.kv_end.min(key + step), [k_now, v_now]);
    }
    while key < part.kv_end {
        let after = key.saturating_add(step).min(part.kv_end);
        offsets(call, row, after, part.kv_end.min(after.saturating_add(step)), [k_next, v_next]);
        for head in 0..heads {
            let h = part.head as usize + head;
            let first = head * padded;
            let k = Rows { base: call.k.data.wrapping_add(h * call.k.head), offsets: k_now };
            let v = Rows { base: call.v.data.wrapping_add(h * call.v.head), offsets: v_now };
            let next = if head + 1 < heads {
                let k = Rows { base: k.base.wrapping_add(call.k.head), ..k };
                Next { k, v: Rows { base: v.base.wrapping_add(call.v.head), ..v } }
            } else {
                let h = part.head as usize;
                let k = Rows { base: call.k.data.wrapping_add(h * call.k.head), offsets: k_next };
                Next {
                    k,
                    v: Rows { base: call.v.data.wrapping_add(h * call.v.head), offsets: v_next },
                }
            };
            // SAFETY: arrays are cut for these rows, offsets are of the row's keys.
            unsafe {
                dot::scores::<S, E, F>(
                    s,
                    queries.add(first * words),
                    words,
                    padded,
                    k,
                    call.head_dim,
                    Some(next),
                    scores,
                );
                let end = round_up((after - key) as usize, S::LANES);
                softmax(
                    s,
                    &logits::<E>(call, row, h),
                    &views[first..first + padded],
                    Scores { data: scores, stride: dot::KEYS, start: 0, end, first_key: key },
                    &mut largest[first..first + padded],
                    &mut sum[first..first + padded],
                    factors,
                );
                let out = outputs.add(first * d);
                dot::values::<S, E>(s, scores, factors, padded, v, call.head_dim, out, d);
            }
        }
        std::mem::swap(&mut k_now, &mut k_next);
        std::mem::swap(&mut v_now, &mut v_next);
        key = after;
    }
    for head in 0..heads {
        let first = head * padded;
        let state = Finished {
            head: part.head as usize + head,
            nth_head: head,
            outputs: outputs.wrapping_add(first * d),
            stride: d,
            largest: &largest[first..first + rows],
            sum: &sum[first..first + rows],
        };
        // SAFETY: the outputs are there, and the part's rows are this call's to write.
        unsafe { finish::<S, E>(s, call, part, &state) };
    }
}

/// Many rows of one head: tiles of keys are packed and multiplied.
#[inline(always)]
unsafe fn many<S: Simd, E: KvElement, F: Format<S, E>, const MR: usize, const NV: usize>(
    s: S,
    call: &Call<'_>,
    part: &Part,
    head: usize,
    scratch: &mut Scratch,
) {
    let row = &call.rows[part.row as usize];
    let rows = part.q_len as usize * call.group;
    let padded = round_up(rows, MR);
    let panel = NV * S::LANES;
    let d = round_up(call.head_dim, panel);
    let words = call.head_dim / F::DEPTH;
    let depth = round_up(words, S::TILE);
    let stride = round_up(words, S::LANES);
    let capacity = TILE_KEYS / F::DEPTH;
    let Scratch { words: region, views, largest, sum, k_offsets: [k_at, _], v_offsets: [v_at, _] } =
        scratch;
    let mut cutter = Cutter { next: region.as_mut_ptr().cast(), left: region.len() * 16 };
    let queries = cutter.cut(padded * stride);
    let outputs = cutter.cut(padded * d);
    let scores = cutter.cut(BLOCK_ROWS * TILE_KEYS);
    let k_panels = cutter.cut(TILE_KEYS * depth);
    let v_panels = cutter.cut(capacity * d);
    let factors = cutter.cut(round_up(BLOCK_ROWS, MAX_LANES));
    let staging_len = S::TILE * round_up(depth, MAX_LANES);
    let staging = cutter.cut(staging_len);
    let (views, largest, sum) = (&mut views[..padded], &mut largest[..padded], &mut sum[..padded]);
    view_rows(call, part, head, &mut views[..rows]);
    views[rows..].fill(RowView::default());
    largest.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    // SAFETY: arrays are cut for `padded` rows; query rows are the part's.
    let staging = unsafe {
        for m in 0..padded {
            let to = queries.add(m * stride);
            if m < rows {
                let token = row.first_token + part.q_start as usize + m / call.group;
                let from = call.q.at(token, head * call.group + m % call.group);
                load_query::<S, E, F>(s, call.q.dtype, from, call.head_dim, to, stride);
            } else {
                std::slice::from_raw_parts_mut(to, stride).fill(0.0);
            }
        }
        std::slice::from_raw_parts_mut(outputs, padded * d).fill(0.0);
        std::slice::from_raw_parts_mut(staging, staging_len)
    };
    let rules = logits::<E>(call, row, head);
    let mut key = part.kv_start;
    while key < part.kv_end {
        let after = key.saturating_add(TILE_KEYS as u32).min(part.kv_end);
        offsets(call, row, key, after, [k_at, v_at]);
        let k = Rows { base: call.k.data.wrapping_add(head * call.k.head), offsets: k_at };
        let v = Rows { base: call.v.data.wrapping_add(head * call.v.head), offsets: v_at };
        // SAFETY: panels are cut for a tile, offsets are of the row's keys.
        unsafe {
            pack_k::<S, E, F, NV>(s, k, call.head_dim, staging, k_panels);
            pack_v::<S, E, F, NV>(s, v, call.head_dim, capacity, v_panels);
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
                    let mut column = start;
                    while column < end {
                        let b = k_panels.add(column * depth);
                        let mut r = 0;
                        while r < block {
                            let a = queries.add((first + r) * stride);
                            let c = scores.add(r * TILE_KEYS + column);
                            multiply::<S, E, F, MR, NV>(
                                s,
                                words,
                                a,
                                stride,
                                b,
                                c,
                                TILE_KEYS,
                                Into::Store,
                            );
                            r += MR;
                        }
                        column += panel;
                    }
                    softmax(
                        s,
                        &rules,
                        views,
                        Scores { data: scores, stride: TILE_KEYS, start, end, first_key: key },
                        &mut largest[first..first + block],
                        &mut sum[first..first + block],
                        factors,
                    );
                    let mut r = 0;
                    while r < block {
                        let p = scores.add(r * TILE_KEYS);
                        F::narrow(s, p.add(start), p.add(start / F::DEPTH), end - start);
                        r += 1;
                    }
                    let (skip, depth) = (start / F::DEPTH, (end - start) / F::DEPTH);
                    let mut column = 0;
                    while column < d {
                        let b = v_panels.add((column / panel * capacity + skip) * panel);
                        let mut r = 0;
                        while r < block {
                            let a = scores.add(r * TILE_KEYS + skip);
                            let c = outputs.add((first + r) * d + column);
                            let into = Into::Scale(factors.add(r));
                            multiply::<S, E, F, MR, NV>(s, depth, a, TILE_KEYS, b, c, d, into);
                            r += MR;
                        }
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
    };
    // SAFETY: the outputs are there, and the part's rows are this call's to write.
    unsafe { finish::<S, E>(s, call, part, &state) };
}

/// A part's result for one KV head, before normalisation.
struct Finished<'a> {
    head: usize,
    /// Its number among the part's heads.
    nth_head: usize,
    outputs: *const f32,
    stride: usize,
    largest: &'a [f32],
    sum: &'a [f32],
}

/// Writes outputs and LSE, or states.
///
/// # Safety
/// Outputs can be read; the part's rows and states are the caller's to write.
#[inline(always)]
unsafe fn finish<S: Simd, E: KvElement>(s: S, call: &Call<'_>, part: &Part, done: &Finished<'_>) {
    let unit = E::UNIT * crate::kernels::KvScales::of(call.v_scale, done.head);
    for m in 0..done.sum.len() {
        let q_head = done.head * call.group + m % call.group;
        let from = done.outputs.wrapping_add(m * done.stride);
        let (largest, sum) = (done.largest[m], done.sum[m]);
        // SAFETY: the caller vouches for the row, and for where it goes.
        unsafe {
            if part.partial == Part::WHOLE {
                let token = call.rows[part.row as usize].first_token
                    + (part.q_start as usize + m / call.group);
                let (scale, lse) = close(largest, sum, call.sinks.map(|sinks| sinks[q_head]));
                let to = call.o.at(token, q_head);
                write_row(s, from, scale * unit, call.head_dim, call.o.dtype, to);
                if !call.lse.is_null() {
                    *call.lse.add(token * call.num_q_heads + q_head) = lse * LN_2;
                }
            } else {
                let nth = state_row(call, part.partial, part.num_heads, done.nth_head, m);
                let (scale, lse) = close(largest, sum, None);
                let to = call.state_o.add(nth * call.head_dim).cast();
                write_row(s, from, scale * unit, call.head_dim, DType::F32, to);
                *call.state_lse.add(nth) = lse;
            }
        }
    }
}

/// Merges the states of a split tile, in the order of their keys, and writes the outputs.
///
/// # Safety
/// The states are complete, and the tile's rows are the caller's to write.
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(s: S, call: &Call<'_>, merge: &Merge) {
    let per_part = merge.q_len * merge.num_heads;
    for m in 0..merge.q_len as usize * call.group {
        let token =
            call.rows[merge.row as usize].first_token + (merge.q_start as usize + m / call.group);
        for nth_head in 0..merge.num_heads as usize {
            let q_head = (merge.head as usize + nth_head) * call.group + m % call.group;
            let mut row = [0.0_f32; 256 + MAX_LANES];
            let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0_f32);
            // SAFETY: the caller vouches for states and outputs.
            unsafe {
                for part in 0..merge.count {
                    let first = merge.partial + part * per_part;
                    let nth = state_row(call, first, merge.num_heads, nth_head, m);
                    largest = largest.max(*call.state_lse.add(nth));
                }
                for part in 0..merge.count {
                    let first = merge.partial + part * per_part;
                    let nth = state_row(call, first, merge.num_heads, nth_head, m);
                    let lse = *call.state_lse.add(nth);
                    // Neutral: it saw no key.
                    if lse == f32::NEG_INFINITY {
                        continue;
                    }
                    let weight = (lse - largest).exp2();
                    sum += weight;
                    let state = call.state_o.add(nth * call.head_dim);
                    let mut i = 0;
                    while i < call.head_dim {
                        let to = row.as_mut_ptr().add(i);
                        let v = if call.head_dim - i >= S::LANES {
                            s.load(state.add(i))
                        } else {
                            F32::load_some(s, state.add(i).cast(), call.head_dim - i)
                        };
                        s.store(to, s.fma(v, s.splat(weight), s.load(to)));
                        i += S::LANES;
                    }
                }
                let (scale, lse) = close(largest, sum, call.sinks.map(|sinks| sinks[q_head]));
                let to = call.o.at(token, q_head);
                write_row(s, row.as_ptr(), scale, call.head_dim, call.o.dtype, to);
                if !call.lse.is_null() {
                    *call.lse.add(token * call.num_q_heads + q_head) = lse * LN_2;
                }
            }
        }
    }
}

/// Writes a row times `scale`, rounded to `dtype`.
///
/// # Safety
/// `round_up(head_dim, LANES)` numbers can be read, `head_dim` elements written.
#[inline(always)]
unsafe fn write_row<S: Simd>(
    s: S,
    from: *const f32,
    scale: f32,
    head_dim: usize,
    dtype: DType,
    to: *mut u8,
) {
    let factor = s.splat(scale);
    let mut i = 0;
    while i < head_dim {
        let here = S::LANES.min(head_dim - i);
        let mut rest = [0_u32; MAX_LANES];
        // SAFETY: the caller vouches for the row; a vector of any type fits `rest`.
        unsafe {
            let v = s.mul(s.load(from.add(i)), factor);
            let out = to.add(i * dtype.size());
            let place = if here == S::LANES { out } else { rest.as_mut_ptr().cast() };
            match dtype {
                DType::F16 => s.store_f16(place, v),
                DType::Bf16 => s.store_bf16(place, v),
                DType::F32 | DType::Fp8E4m3 => s.store(place.cast(), v),
            }
            if here < S::LANES {
                std::ptr::copy_nonoverlapping(place, out, here * dtype.size());
            }
        }
        i += S::LANES;
    }
}

/// The state of query row `m` of a part's `nth_head`-th head, of `num_heads`.
fn state_row(call: &Call<'_>, first: u32, num_heads: u32, nth_head: usize, m: usize) -> usize {
    let (token, within) = (m / call.group, m % call.group);
    (first as usize + token * num_heads as usize + nth_head) * call.group + within
}

/// The factor that normalises outputs relative to `largest`, and the LSE to base 2.
fn close(largest: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
    let sink = sink.map_or(f32::NEG_INFINITY, |sink| sink * LOG2_E);
    let most = largest.max(sink);
    if most == f32::NEG_INFINITY && !sum.is_nan() {
        return (0.0, f32::NEG_INFINITY);
    }
    // Nothing seen: 2^(-inf) is 0, and so is the sum.
    let share = (largest - most).exp2();
    let total = sum * share + (sink - most).exp2();
    (share / total, most + total.log2())
}
