//! Few query rows: K and V are read where they lie, each number once, and nothing is packed.
//!
//! A decode step is bound by memory: what counts is that the next rows are on their way while these
//! are computed, and that all query heads of a group share each load.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]
#![expect(clippy::too_many_arguments, reason = "operands, each with its stride")]

use super::gemm::{Format, LINE, Rows, round_up};
use super::simd::{KvElement, MAX_LANES, Simd};

/// Keys that one call of [`scores`] and [`values`] takes at most.
pub(super) const KEYS: usize = 32;

/// Cache lines to ask for while others are computed: K, then V of the next keys, all heads of them,
/// in the order in which they lie in memory.
///
/// A core has few misses under way (24 lines on Zen 3): asked for a row at a time they fill up, and
/// the loads of what is computed wait behind them. So a line is asked for whenever as much has been
/// computed.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// Bytes that lie together: the first, and one past the last.
    runs: &'a [[usize; 2]],
    at: usize,
    end: usize,
}

impl<'a> Ahead<'a> {
    /// All lines of these runs: first byte, and one past the last.
    pub(super) fn new(runs: &'a [[usize; 2]]) -> Self {
        Self { runs, at: 0, end: 0 }
    }

    /// The next `lines` lines, which the caller asks for. Where they do not lie together they are
    /// asked for here, and the caller gets lines that are near already.
    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, lines: usize, near: *const u8) -> *const u8 {
        let first = self.at;
        let after = first.wrapping_add(lines * LINE);
        if after <= self.end {
            self.at = after;
            return std::ptr::without_provenance(first);
        }
        self.ask(s, lines);
        near
    }

    /// Asks for `lines` lines, or as many as there are.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, lines: usize) {
        let mut i = 0;
        while i < lines {
            if self.at >= self.end {
                let Some((&[start, end], rest)) = self.runs.split_first() else { return };
                self.runs = rest;
                (self.at, self.end) = (start & !(LINE - 1), end);
            }
            s.prefetch(std::ptr::without_provenance(self.at));
            self.at += LINE;
            i += 1;
        }
    }

    /// Asks for all that is left.
    #[inline(always)]
    pub(super) fn ask_rest<S: Simd>(&mut self, s: S) {
        self.ask(s, usize::MAX);
    }
}

/// Scores from one row to the next: more than [`KEYS`], as kernels write whole groups of keys.
pub(super) const SCORES: usize = 48;

/// Dot products of `rows` query rows with each key: `out[row * SCORES + key]`.
///
/// Queries are [interleaved](interleave) by groups of rows. `rows` is 1, 2 or these after a multiple
/// of 4. Scores beyond the last key are undefined.
///
/// # Safety
/// `head_dim` elements can be read at each key, `rows` rows of `stride` words at `q`, and `rows` of
/// [`SCORES`] written at `out`.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd, E: KvElement, F: Format<S, E>>(
    s: S,
    q: *const f32,
    stride: usize,
    rows: usize,
    keys: Rows<'_>,
    head_dim: usize,
    next: &mut Ahead<'_>,
    out: *mut f32,
) {
    let whole = (head_dim / F::DEPTH).is_multiple_of(2 * S::LANES);
    let mut row = 0;
    while row < rows {
        // SAFETY: the rows from `row` on are there, as the caller guarantees.
        unsafe {
            let (q, out) = (q.add(row * stride), out.add(row * SCORES));
            let next = (row == 0).then_some(&mut *next);
            match (rows - row, whole) {
                (1, true) => block::<S, E, F, 1, 8, true>(s, q, keys, head_dim, next, out),
                (1, false) => block::<S, E, F, 1, 8, false>(s, q, keys, head_dim, next, out),
                (2, true) => block::<S, E, F, 2, 4, true>(s, q, keys, head_dim, next, out),
                (2, false) => block::<S, E, F, 2, 4, false>(s, q, keys, head_dim, next, out),
                (_, true) => block::<S, E, F, 4, 2, true>(s, q, keys, head_dim, next, out),
                (_, false) => block::<S, E, F, 4, 2, false>(s, q, keys, head_dim, next, out),
            }
        }
        row += 4;
    }
}

/// `MR` query rows and `NR` keys at a time: 8 sums, which with the operands fill 16 registers.
///
/// # Safety
/// As [`scores`], for `MR` rows.
#[inline(always)]
unsafe fn block<
    S: Simd,
    E: KvElement,
    F: Format<S, E>,
    const MR: usize,
    const NR: usize,
    const WHOLE: bool,
>(
    s: S,
    q: *const f32,
    keys: Rows<'_>,
    head_dim: usize,
    mut next: Option<&mut Ahead<'_>>,
    out: *mut f32,
) {
    let n = keys.offsets.len();
    let words = head_dim / F::DEPTH;
    let step = 2 * S::LANES;
    let bytes = F::DEPTH * E::SIZE;
    let mut first = 0;
    while first < n {
        // Beyond the last key, the last key once more.
        let mut key = [keys.base; NR];
        let mut j = 0;
        while j < NR {
            key[j] = keys.at((first + j).min(n - 1));
            j += 1;
        }
        let near = key[0];
        let lines = NR * head_dim * E::SIZE / LINE;
        let mut ahead = next.as_mut().map_or(near, |next| next.take(s, lines, near));
        let after = ahead.wrapping_add(lines * LINE);
        let mut acc = [[s.splat(0.0); NR]; MR];
        let mut q = q;
        let mut w = 0;
        // SAFETY: the caller guarantees queries and keys up to `head_dim`.
        unsafe {
            // Long stretches without a branch, where the dimension allows.
            while w + 8 * step <= words {
                acc = stretch::<S, E, F, MR, NR, 8>(s, q, &key, w, ahead, acc);
                ahead = ahead.wrapping_add(8 * NR * step * bytes / LINE * LINE);
                q = q.add(8 * MR * step);
                w += 8 * step;
            }
            while w + 4 * step <= words {
                acc = stretch::<S, E, F, MR, NR, 4>(s, q, &key, w, ahead, acc);
                ahead = ahead.wrapping_add(4 * NR * step * bytes / LINE * LINE);
                q = q.add(4 * MR * step);
                w += 4 * step;
            }
            while ahead != after {
                s.prefetch(ahead);
                ahead = ahead.wrapping_add(LINE);
            }
            while w + step <= words {
                acc = products::<S, E, F, MR, NR>(s, q, &key, w * bytes, acc);
                q = q.add(MR * step);
                w += step;
            }
            // Apart: a branch inside the loop would have all sums in memory.
            let mut half = 0;
            while !WHOLE && w < words {
                let mut j = 0;
                while j < NR {
                    let from = key[j].add(w * F::DEPTH * E::SIZE);
                    let k = F::some_words(s, from, words - w);
                    let mut i = 0;
                    while i < MR {
                        let row = s.load(q.add((2 * i + half) * S::LANES));
                        acc[i][j] = F::dot(s, acc[i][j], row, k);
                        i += 1;
                    }
                    j += 1;
                }
                half = 1;
                w += S::LANES;
            }
        }
        let mut eight = [s.splat(0.0); 8];
        let mut t = 0;
        while t < MR * NR {
            eight[t] = acc[t / NR][t % NR];
            t += 1;
        }
        let sums = s.sum8(eight);
        let mut t = 0;
        while t < MR * NR {
            // SAFETY: the key is below SCORES, being below KEYS + NR.
            unsafe { *out.add(t / NR * SCORES + first + t % NR) = sums[t] };
            t += 1;
        }
        first += NR;
    }
}

/// Adds the products of `2 * N * LANES` words, and asks for as many bytes, a line now and then.
#[inline(always)]
unsafe fn stretch<
    S: Simd,
    E: KvElement,
    F: Format<S, E>,
    const MR: usize,
    const NR: usize,
    const N: usize,
>(
    s: S,
    q: *const f32,
    key: &[*const u8; NR],
    w: usize,
    ahead: *const u8,
    mut acc: [[S::V; NR]; MR],
) -> [[S::V; NR]; MR] {
    let step = 2 * S::LANES;
    let bytes = F::DEPTH * E::SIZE;
    let (mut i, mut asked) = (0, 0);
    while i < N {
        while (i + 1) * NR * step * bytes >= LINE * (asked + 1) {
            s.prefetch(ahead.wrapping_add(asked * LINE));
            asked += 1;
        }
        // SAFETY: the caller guarantees queries and keys.
        acc = unsafe {
            let at = (w + i * step) * bytes;
            products::<S, E, F, MR, NR>(s, q.add(i * MR * step), key, at, acc)
        };
        i += 1;
    }
    acc
}

/// Adds the products of `2 * LANES` words.
#[inline(always)]
unsafe fn products<S: Simd, E: KvElement, F: Format<S, E>, const MR: usize, const NR: usize>(
    s: S,
    q: *const f32,
    key: &[*const u8; NR],
    at: usize,
    mut acc: [[S::V; NR]; MR],
) -> [[S::V; NR]; MR] {
    // SAFETY: the caller guarantees queries and keys.
    unsafe {
        let mut k = [[s.splat(0.0); 2]; NR];
        let mut j = 0;
        while j < NR {
            k[j] = F::two_words(s, key[j].add(at));
            j += 1;
        }
        let mut i = 0;
        while i < 2 * MR {
            let row = s.load(q.add(i * S::LANES));
            let mut j = 0;
            while j < NR {
                acc[i / 2][j] = F::dot(s, acc[i / 2][j], row, k[j][i % 2]);
                j += 1;
            }
            i += 1;
        }
    }
    acc
}

/// Copies query row `row` of `rows` to its place: rows of a group of 4, or of the 1 or 2 that are
/// left, take turns every `2 * lanes` words, so that a kernel reads them one after another.
///
/// `from` and rows of `to` are a multiple of `2 * lanes` words long.
pub(super) fn interleave(from: &[f32], lanes: usize, row: usize, rows: usize, to: &mut [f32]) {
    let first = row / 4 * 4;
    let group = (rows - first).min(4);
    for (turn, words) in from.chunks_exact(2 * lanes).enumerate() {
        let start = first * from.len() + (turn * group + row - first) * 2 * lanes;
        to[start..start + 2 * lanes].copy_from_slice(words);
    }
}

/// Whether there is a NaN among the e4m3 numbers of these rows.
///
/// # Safety
/// `head_dim` numbers can be read at each row.
#[inline(always)]
pub(super) unsafe fn any_nan<S: Simd>(s: S, rows: Rows<'_>, head_dim: usize) -> bool {
    let mut any = false;
    for i in 0..rows.offsets.len() {
        // SAFETY: the caller guarantees the row.
        any |= unsafe { s.any_nan_fp8(rows.at(i), head_dim) };
    }
    any
}

/// Multiplies each of `rows` outputs with its factor and adds the values of `keys`, weighted by
/// `p[row * SCORES + key]`. Outputs are rows of `stride` numbers.
///
/// # Safety
/// `head_dim` elements can be read at each key, `rows` rows at `p` and `factors`; as many outputs of
/// `round_up(head_dim, LANES)` numbers can be written.
#[inline(always)]
pub(super) unsafe fn values<S: Simd, E: KvElement>(
    s: S,
    p: *const f32,
    factors: *const f32,
    rows: usize,
    keys: Rows<'_>,
    head_dim: usize,
    next: &mut Ahead<'_>,
    out: *mut f32,
    stride: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: the rows from `row` on are there, as the caller guarantees.
        unsafe {
            let (p, factors) = (p.add(row * SCORES), factors.add(row));
            let out = out.add(row * stride);
            let next = (row == 0).then_some(&mut *next);
            match rows - row {
                1 => weigh::<S, E, 1, 4>(s, p, factors, keys, head_dim, next, out, stride),
                2 => weigh::<S, E, 2, 2>(s, p, factors, keys, head_dim, next, out, stride),
                _ => weigh::<S, E, 4, 1>(s, p, factors, keys, head_dim, next, out, stride),
            }
        }
        row += 4;
    }
}

/// `MR` rows, `2 * NC` vectors of columns at a time.
#[inline(always)]
unsafe fn weigh<S: Simd, E: KvElement, const MR: usize, const NC: usize>(
    s: S,
    p: *const f32,
    factors: *const f32,
    keys: Rows<'_>,
    head_dim: usize,
    mut next: Option<&mut Ahead<'_>>,
    out: *mut f32,
    stride: usize,
) {
    let mut column = 0;
    // SAFETY: the caller guarantees all columns below `head_dim`.
    unsafe {
        while column + 2 * NC * S::LANES <= head_dim {
            let next = next.as_deref_mut();
            weigh_columns::<S, E, MR, NC>(s, p, factors, keys, column, next, out, stride);
            column += 2 * NC * S::LANES;
        }
        while NC > 1 && column + 2 * S::LANES <= head_dim {
            let next = next.as_deref_mut();
            weigh_columns::<S, E, MR, 1>(s, p, factors, keys, column, next, out, stride);
            column += 2 * S::LANES;
        }
        while column < head_dim {
            let lanes = S::LANES.min(head_dim - column);
            weigh_rest::<S, E, MR>(s, p, factors, keys, column, lanes, out, stride);
            column += S::LANES;
        }
    }
}

/// `2 * NC` vectors of columns.
#[inline(always)]
unsafe fn weigh_columns<S: Simd, E: KvElement, const MR: usize, const NC: usize>(
    s: S,
    p: *const f32,
    factors: *const f32,
    keys: Rows<'_>,
    column: usize,
    mut next: Option<&mut Ahead<'_>>,
    out: *mut f32,
    stride: usize,
) {
    let mut acc = [[[s.splat(0.0); 2]; NC]; MR];
    // SAFETY: the caller guarantees rows, columns and keys.
    unsafe {
        let mut i = 0;
        while i < MR {
            let factor = s.splat(*factors.add(i));
            let mut j = 0;
            while j < NC {
                let here = out.add(i * stride + column + 2 * j * S::LANES);
                acc[i][j][0] = s.mul(s.load(here), factor);
                acc[i][j][1] = s.mul(s.load(here.add(S::LANES)), factor);
                j += 1;
            }
            i += 1;
        }
        let bytes = 2 * NC * S::LANES * E::SIZE;
        let base = keys.base.wrapping_add(column * E::SIZE);
        let (chunks, rest) = keys.offsets.as_chunks::<CHUNK>();
        let mut p = p;
        for chunk in chunks {
            let near = base.wrapping_add(chunk[0]);
            let lines = CHUNK * bytes / LINE;
            let mut ahead = next.as_mut().map_or(near, |next| next.take(s, lines, near));
            let (mut k, mut asked) = (0, 0);
            while k < CHUNK {
                while (k + 1) * bytes >= LINE * (asked + 1) {
                    s.prefetch(ahead);
                    ahead = ahead.wrapping_add(LINE);
                    asked += 1;
                }
                acc = weigh_key::<S, E, MR, NC>(s, p.add(k), base.wrapping_add(chunk[k]), acc);
                k += 1;
            }
            p = p.add(CHUNK);
        }
        for &offset in rest {
            acc = weigh_key::<S, E, MR, NC>(s, p, base.wrapping_add(offset), acc);
            p = p.add(1);
        }
        let mut i = 0;
        while i < MR {
            let mut j = 0;
            while j < NC {
                let to = out.add(i * stride + column + 2 * j * S::LANES);
                s.store(to, acc[i][j][0]);
                s.store(to.add(S::LANES), acc[i][j][1]);
                j += 1;
            }
            i += 1;
        }
    }
}

/// Keys whose addresses are in one stretch of code.
const CHUNK: usize = 8;

/// Adds a key's values.
#[inline(always)]
unsafe fn weigh_key<S: Simd, E: KvElement, const MR: usize, const NC: usize>(
    s: S,
    p: *const f32,
    from: *const u8,
    mut acc: [[[S::V; 2]; NC]; MR],
) -> [[[S::V; 2]; NC]; MR] {
    // SAFETY: the caller guarantees the key and its weights.
    unsafe {
        let mut weight = [s.splat(0.0); MR];
        let mut i = 0;
        while i < MR {
            weight[i] = s.splat(*p.add(i * SCORES));
            i += 1;
        }
        let mut j = 0;
        while j < NC {
            let v = E::load_two(s, from.add(2 * j * S::LANES * E::SIZE));
            let mut i = 0;
            while i < MR {
                acc[i][j][0] = s.fma(weight[i], v[0], acc[i][j][0]);
                acc[i][j][1] = s.fma(weight[i], v[1], acc[i][j][1]);
                i += 1;
            }
            j += 1;
        }
    }
    acc
}

/// One vector of columns, of `lanes` elements.
#[inline(always)]
unsafe fn weigh_rest<S: Simd, E: KvElement, const MR: usize>(
    s: S,
    p: *const f32,
    factors: *const f32,
    keys: Rows<'_>,
    column: usize,
    lanes: usize,
    out: *mut f32,
    stride: usize,
) {
    let mut acc = [s.splat(0.0); MR];
    // SAFETY: the caller guarantees rows, columns and keys.
    unsafe {
        let mut i = 0;
        while i < MR {
            let here = s.load(out.add(i * stride + column));
            acc[i] = s.mul(here, s.splat(*factors.add(i)));
            i += 1;
        }
        let mut key = 0;
        while key < keys.offsets.len() {
            let from = keys.at(key).add(column * E::SIZE);
            let v = if lanes == S::LANES { E::load(s, from) } else { E::load_some(s, from, lanes) };
            let mut i = 0;
            while i < MR {
                acc[i] = s.fma(s.splat(*p.add(i * SCORES + key)), v, acc[i]);
                i += 1;
            }
            key += 1;
        }
        let mut i = 0;
        while i < MR {
            s.store(out.add(i * stride + column), acc[i]);
            i += 1;
        }
    }
}

/// Reorders a row as two-vector loads give it: even places of each pair of vectors, then odd ones.
pub(super) fn split(row: &mut [f32], n: usize, lanes: usize) {
    for pair in row[..n].chunks_exact_mut(2 * lanes) {
        let mut copy = [0.0; 2 * MAX_LANES];
        copy[..2 * lanes].copy_from_slice(pair);
        for lane in 0..lanes {
            pair[lane] = copy[2 * lane];
            pair[lanes + lane] = copy[2 * lane + 1];
        }
    }
}

/// Undoes [`split`].
pub(super) fn unsplit(row: &mut [f32], n: usize, lanes: usize) {
    for pair in row[..n].chunks_exact_mut(2 * lanes) {
        let mut copy = [0.0; 2 * MAX_LANES];
        copy[..2 * lanes].copy_from_slice(pair);
        for lane in 0..lanes {
            pair[2 * lane] = copy[lane];
            pair[2 * lane + 1] = copy[lanes + lane];
        }
    }
}

/// Query rows that a block of this many is padded to.
pub(super) const fn padded_rows(rows: usize) -> usize {
    // 1 and 2 have kernels of their own, alone and after multiples of 4.
    match rows % 4 {
        3 => round_up(rows, 4),
        _ => rows,
    }
}
