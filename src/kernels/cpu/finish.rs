//! Results of parts: normalised and written, or kept as states and merged.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]

use super::dispatch::Kernels;
use super::gemm::Format;
use super::part::{Call, logits};
use super::simd::{Bf16, F16, F32, KvElement, MAX_LANES, Simd};
use crate::kernels::{DType, KvScales};
use crate::plan::{Merge, Part};

/// A part's result for one KV head, before normalisation.
pub(super) struct Finished<'a> {
    pub(super) head: usize,
    /// Its number among the part's heads.
    pub(super) nth_head: usize,
    /// Rows of `stride` numbers.
    pub(super) outputs: *const f32,
    pub(super) stride: usize,
    /// Largest score of each row; times `factor` a logit.
    pub(super) largest: &'a [f32],
    /// Sum of exponentials relative to it.
    pub(super) sum: &'a [f32],
    pub(super) factor: f32,
}

/// Writes outputs and LSE, or states.
///
/// # Safety
/// Outputs can be read; the part's rows and states are the caller's to write.
pub(super) unsafe fn finish(kernels: &Kernels, call: &Call<'_>, part: &Part, done: &Finished<'_>) {
    let unit = kernels.unit * KvScales::of(call.v_scale, done.head);
    let row = call.rows.row(part.row);
    for m in 0..done.sum.len() {
        let q_head = done.head * call.group + m % call.group;
        let from = done.outputs.wrapping_add(m * done.stride);
        let (largest, sum) = (done.largest[m], done.sum[m]);
        // SAFETY: the caller guarantees the row, and for where it goes.
        unsafe {
            if part.partial == Part::WHOLE {
                let token = row.first_token + (part.q_start as usize + m / call.group);
                write(kernels, call, token, q_head, from, unit, [largest, sum, done.factor]);
            } else {
                let nth = state_row(call, part.partial, part.num_heads, done.nth_head, m);
                let to = call.state_o.add(nth * call.head_dim).cast();
                (kernels.write_row)(from, unit, call.head_dim, DType::F32, to);
                *call.state_sums.add(nth) = [largest, sum];
            }
        }
    }
}

/// Merges the states of a split tile, in the order of their keys, and writes the outputs.
///
/// # Safety
/// The states are complete, and the tile's rows are the caller's to write.
pub(super) unsafe fn merge(kernels: &Kernels, call: &Call<'_>, merge: &Merge) {
    let per_part = merge.q_len * merge.num_heads;
    let of = call.rows.row(merge.row);
    for m in 0..merge.q_len as usize * call.group {
        let token = of.first_token + (merge.q_start as usize + m / call.group);
        for nth_head in 0..merge.num_heads as usize {
            let head = merge.head as usize + nth_head;
            let factor = logits(kernels, call, &of, head).factor();
            let q_head = head * call.group + m % call.group;
            let state = |part: u32| {
                let first = merge.partial + part * per_part;
                state_row(call, first, merge.num_heads, nth_head, m)
            };
            let mut row = [0.0_f32; 256 + MAX_LANES];
            let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0_f32);
            // SAFETY: the caller guarantees states and outputs.
            unsafe {
                for part in 0..merge.count {
                    largest = largest.max((*call.state_sums.add(state(part)))[0]);
                }
                for part in 0..merge.count {
                    let [most, each] = *call.state_sums.add(state(part));
                    // Neutral: it saw no key. Its sum is 0, or NaN, which must show.
                    let seen = most > f32::NEG_INFINITY;
                    let weight = if seen { ((most - largest) * factor).exp() } else { 1.0 };
                    sum += each * weight;
                    let from = call.state_o.add(state(part) * call.head_dim);
                    (kernels.accumulate)(from, weight, call.head_dim, row.as_mut_ptr());
                }
                write(kernels, call, token, q_head, row.as_ptr(), 1.0, [largest, sum, factor]);
            }
        }
    }
}

/// Normalises and writes one row, and its LSE.
///
/// # Safety
/// `from` can be read as [`write_row`] reads it; the row is the caller's to write.
unsafe fn write(
    kernels: &Kernels,
    call: &Call<'_>,
    token: usize,
    q_head: usize,
    from: *const f32,
    unit: f32,
    sums: [f32; 3],
) {
    let (scale, lse) = close(sums, call.sinks.map(|sinks| sinks[q_head]));
    // SAFETY: the caller guarantees both.
    unsafe {
        let to = call.o.at(token, q_head);
        (kernels.write_row)(from, scale * unit, call.head_dim, call.o.dtype, to);
        if !call.lse.is_null() {
            *call.lse.add(token * call.num_q_heads + q_head) = lse;
        }
    }
}

/// The state of query row `m` of a part's `nth_head`-th head, of `num_heads`.
fn state_row(call: &Call<'_>, first: u32, num_heads: u32, nth_head: usize, m: usize) -> usize {
    let (token, within) = (m / call.group, m % call.group);
    (first as usize + token * num_heads as usize + nth_head) * call.group + within
}

/// What normalises outputs, and the LSE, from the largest score, the sum relative to it, and what
/// makes scores logits.
fn close([largest, sum, factor]: [f32; 3], sink: Option<f32>) -> (f32, f32) {
    // In f64: a difference of two large logits must not lose what is between them.
    let (level, sum) = (f64::from(largest) * f64::from(factor), f64::from(sum));
    let Some(sink) = sink.map(f64::from).filter(|&sink| sink > f64::NEG_INFINITY) else {
        return if largest == f32::NEG_INFINITY && !sum.is_nan() {
            (0.0, f32::NEG_INFINITY)
        } else {
            ((1.0 / sum) as f32, (level + sum.ln()) as f32)
        };
    };
    let above = sink - level;
    if above < 0.0 {
        let total = sum + above.exp();
        return ((1.0 / total) as f32, (level + total.ln()) as f32);
    }
    // The sink is the largest, or the only one.
    let share = (-above).exp();
    let total = sum * share + 1.0;
    ((share / total) as f32, (sink + total.ln()) as f32)
}

/// Reads a query row into words: `stride` of them, zeros beyond `head_dim`.
///
/// # Safety
/// The row can be read, `stride` words, a multiple of LANES, can be written.
#[inline(always)]
pub(super) unsafe fn load_query<S: Simd, E: KvElement, F: Format<S, E>>(
    s: S,
    dtype: DType,
    from: *const u8,
    head_dim: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller guarantees both.
    unsafe {
        if F::DEPTH == 2 {
            // Pairs are taken only for queries of bf16, whose bits are the words.
            std::slice::from_raw_parts_mut(to, stride).fill(0.0);
            std::ptr::copy_nonoverlapping(from, to.cast(), 2 * head_dim);
            return;
        }
        match dtype {
            DType::F16 => widen::<S, F16>(s, from, head_dim, to, stride),
            DType::Bf16 => widen::<S, Bf16>(s, from, head_dim, to, stride),
            // Of f32: types of caches alone are refused for queries and outputs.
            _ => widen::<S, F32>(s, from, head_dim, to, stride),
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
        let here = head_dim.saturating_sub(i);
        // SAFETY: the caller guarantees both.
        unsafe {
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

/// Adds `weight` times a row to another.
///
/// # Safety
/// `head_dim` numbers can be read; at `to`, as many rounded up to a multiple of LANES be written.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Simd>(
    s: S,
    from: *const f32,
    weight: f32,
    head_dim: usize,
    to: *mut f32,
) {
    let mut i = 0;
    while i < head_dim {
        // SAFETY: the caller guarantees both.
        unsafe {
            let v = if head_dim - i >= S::LANES {
                s.load(from.add(i))
            } else {
                F32::load_some(s, from.add(i).cast(), head_dim - i)
            };
            s.store(to.add(i), s.fma(v, s.splat(weight), s.load(to.add(i))));
        }
        i += S::LANES;
    }
}

/// Writes a row times `scale`, rounded to `dtype`.
///
/// # Safety
/// `head_dim` numbers, rounded up to a multiple of LANES, can be read, `head_dim` elements written.
#[inline(always)]
pub(super) unsafe fn write_row<S: Simd>(
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
        // SAFETY: the caller guarantees the row; a vector of any type fits `rest`.
        unsafe {
            let v = s.mul(s.load(from.add(i)), factor);
            let out = to.add(i * dtype.size());
            let place = if here == S::LANES { out } else { rest.as_mut_ptr().cast() };
            match dtype {
                DType::F16 => s.store_f16(place, v),
                DType::Bf16 => s.store_bf16(place, v),
                _ => s.store(place.cast(), v),
            }
            if here < S::LANES {
                std::ptr::copy_nonoverlapping(place, out, here * dtype.size());
            }
        }
        i += S::LANES;
    }
}
