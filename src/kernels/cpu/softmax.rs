//! From scores to probabilities, a block of query rows at a time, carried on from tile to tile.
//!
//! Exponentials are to base 2 (2^(x log2 e) = e^x), which saves a multiplication each. A row keeps
//! its largest score so far and the sum of its exponentials relative to that (Milakov and
//! Gimelshein, "Online normalizer calculation for softmax", 2018).

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]

use std::f32::consts::LOG2_E;

use super::simd::Simd;

/// What one query row sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowView {
    /// Its first key.
    pub(super) first: u32,
    /// One past its last key.
    pub(super) end: u32,
    /// Its position; negative where keys are fewer than queries.
    pub(super) position: i32,
    /// ALiBi slope of its head.
    pub(super) slope: f32,
    /// Where its mask begins in [`Logits::mask`]; unused without one.
    pub(super) mask: usize,
}

/// How dot products become logits.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    /// Factor of dot products, what loads left out included.
    pub(super) scale: f32,
    pub(super) soft_cap: Option<f32>,
    pub(super) alibi: bool,
    /// Bits of the mask; empty without one.
    pub(super) mask: &'a [u8],
    /// First key that the row's mask covers; all earlier ones are seen.
    pub(super) mask_start: u32,
}

impl Logits<'_> {
    /// What scores are multiplied with to be logits, when exponentials are taken: dot products that
    /// need nothing else stay what they are until then.
    pub(super) fn factor(&self) -> f32 {
        if self.is_plain() { self.scale } else { 1.0 }
    }

    /// Whether a logit is a positive multiple of its dot product, and no key is masked by a bit.
    fn is_plain(&self) -> bool {
        self.soft_cap.is_none() && !self.alibi && self.mask.is_empty() && self.scale > 0.0
    }
}

/// Scores of a block of rows for some of a tile's keys; probabilities in their place afterwards.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// Row `r`'s score for key `first_key + i` is at `data + r * stride + i`, `i` from `start`.
    pub(super) data: *mut f32,
    pub(super) stride: usize,
    /// First and one past the last score wanted: multiples of LANES.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Key of score 0.
    pub(super) first_key: u32,
    /// Keys of the tile: scores from there to `end` are of none.
    pub(super) keys: u32,
}

/// Rows that [`softmax`] takes at most.
pub(super) const ROWS: usize = 32;

/// Carries a block of rows on: `largest` and `sum` are updated, `factors` get what earlier outputs
/// are to be multiplied with, scores become probabilities, 0 where a key is not seen.
///
/// # Safety
/// Scores from `start` to `end` of `rows.len()` rows can be read and written, and as many factors,
/// rounded up to a multiple of LANES.
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd>(
    s: S,
    logits: &Logits<'_>,
    rows: &[RowView],
    scores: Scores,
    largest: &mut [f32],
    sum: &mut [f32],
    factors: *mut f32,
) {
    let plain = logits.is_plain();
    let scale = logits.factor() * LOG2_E;
    let mut old = [0.0_f32; ROWS];
    let Scores { data, stride, start, end, first_key, keys } = scores;
    let mut r = 0;
    while r < rows.len() {
        // SAFETY: the caller guarantees the row.
        unsafe {
            let row = data.add(r * stride);
            if !plain {
                transform(s, logits, &rows[r], row, start, end, first_key);
            }
            hide(row, start, end, first_key, rows[r].first, rows[r].end.min(first_key + keys));
            let mut most = s.load(row.add(start));
            let mut i = start + S::LANES;
            while i < end {
                most = s.max(s.load(row.add(i)), most);
                i += S::LANES;
            }
            old[r] = largest[r];
            largest[r] = largest[r].max(s.max_lane(most));
        }
        r += 1;
    }
    // SAFETY: the caller guarantees the factors; `old` has ROWS numbers, a multiple of LANES.
    unsafe {
        let mut r = 0;
        while r < rows.len() {
            // Nothing seen so far, or still: then there is nothing to multiply either.
            let seen = old[r] > f32::NEG_INFINITY;
            old[r] = if seen { (old[r] - largest[r]) * scale } else { 0.0 };
            r += 1;
        }
        let mut r = 0;
        while r < rows.len() {
            s.store(factors.add(r), s.exp2(s.load(old.as_ptr().add(r))));
            r += S::LANES;
        }
    }
    let mut r = 0;
    while r < rows.len() {
        // Relative to 0 where nothing is seen: every term is then 2^-inf.
        let most = if largest[r] == f32::NEG_INFINITY { 0.0 } else { largest[r] };
        let (factor, offset) = (s.splat(scale), s.splat(-most));
        let mut total = s.splat(0.0);
        let mut i = start;
        // SAFETY: the caller guarantees the row and its factor.
        unsafe {
            let row = data.add(r * stride);
            while i < end {
                // The difference first: it is exact where it matters, however large the scores.
                let p = s.exp2(s.mul(s.add(s.load(row.add(i)), offset), factor));
                s.store(row.add(i), p);
                total = s.add(total, p);
                i += S::LANES;
            }
            sum[r] = sum[r] * *factors.add(r) + s.sum(total);
        }
        r += 1;
    }
}

/// Puts -inf where the key is not one of those from `first_seen` to `end_seen`.
///
/// # Safety
/// Scores from `start` to `end` can be written.
#[inline(always)]
unsafe fn hide(
    row: *mut f32,
    start: usize,
    end: usize,
    first_key: u32,
    first_seen: u32,
    end_seen: u32,
) {
    let seen = |key: u32| (key.saturating_sub(first_key) as usize).clamp(start, end);
    let (from, to) = (seen(first_seen), seen(end_seen));
    let mut i = start;
    while i < end {
        if i == from && to > from {
            i = to;
            continue;
        }
        // SAFETY: `i` is below `end`.
        unsafe { *row.add(i) = f32::NEG_INFINITY };
        i += 1;
    }
}

/// Turns dot products into logits.
///
/// # Safety
/// Scores from `start` to `end` can be read and written.
#[inline(always)]
unsafe fn transform<S: Simd>(
    s: S,
    logits: &Logits<'_>,
    view: &RowView,
    row: *mut f32,
    start: usize,
    end: usize,
    first_key: u32,
) {
    let scale = s.splat(logits.scale);
    let mut lane = [0.0_f32; super::simd::MAX_LANES];
    for (i, lane) in lane.iter_mut().enumerate() {
        *lane = i as f32;
    }
    let mut i = start;
    while i < end {
        // SAFETY: the caller guarantees the scores.
        unsafe {
            let mut x = s.mul(s.load(row.add(i)), scale);
            if let Some(cap) = logits.soft_cap {
                x = s.mul(tanh(s, s.mul(x, s.splat(1.0 / cap))), s.splat(cap));
            }
            if logits.alibi {
                // Exact: positions are below 2^31, distances that matter below 2^24.
                let key = i64::from(first_key) + i as i64 - i64::from(view.position);
                let distance = s.abs(s.add(s.load(lane.as_ptr()), s.splat(key as f32)));
                x = s.fma(distance, s.splat(-view.slope), x);
            }
            s.store(row.add(i), x);
        }
        i += S::LANES;
    }
    if logits.mask.is_empty() {
        return;
    }
    let from = (logits.mask_start.saturating_sub(first_key) as usize).max(start);
    let to = (view.end.saturating_sub(first_key) as usize).min(end);
    let mut i = from;
    while i < to {
        let bit = (first_key + i as u32 - logits.mask_start) as usize;
        if logits.mask[view.mask + bit / 8] >> (bit % 8) & 1 == 0 {
            // SAFETY: `i` is below `end`.
            unsafe { *row.add(i) = f32::NEG_INFINITY };
        }
        i += 1;
    }
}

/// tanh to a few units in the last place.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // Large: 1 - 2 / (e^2|x| + 1). Bounded, as exp2 is: at 20 it has long been 1.
    let size = s.abs(x);
    let bounded = s.min(size, s.splat(20.0));
    let power = s.exp2(s.mul(bounded, s.splat(2.0 * LOG2_E)));
    let one = s.splat(1.0);
    let large = s.fma(s.splat(-2.0), s.div(one, s.add(power, one)), one);
    // Small: the series, where the difference above would lose digits.
    let square = s.mul(x, x);
    let mut series = s.splat(-0.008_863_236);
    for coefficient in [0.021_869_488, -0.053_968_254, 0.133_333_33, -0.333_333_33] {
        series = s.fma(series, square, s.splat(coefficient));
    }
    let small = s.fma(s.mul(series, square), x, x);
    let signed = s.where_less(x, s.splat(0.0), s.fma(large, s.splat(-1.0), s.splat(0.0)), large);
    s.where_less(size, s.splat(0.35), small, signed)
}
