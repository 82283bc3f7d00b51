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

/// Rows of the next keys, all heads of them, in the order in which they lie in memory.
///
/// A core reads at full speed only what is in order: it has few misses under way, and gets ahead of
/// itself where it sees a stream. So while one head of these keys is computed, its share of the
/// next keys is asked for, whatever heads that may be.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// The first head's rows.
    pub(super) rows: Rows<'a>,
    pub(super) heads: usize,
    /// Bytes from a head to the next.
    pub(super) head_stride: usize,
    /// Whether a token's heads lie together, rather than a head's tokens.
    pub(super) by_token: bool,
    /// The first row of this share.
    pub(super) start: usize,
}

impl Ahead<'_> {
    /// Asks for rows of the share, a few at a time: between two bursts the memory would be idle.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, from: usize, to: usize, bytes: usize) {
        let tokens = self.rows.offsets.len();
        let end = (self.start + to).min(tokens * self.heads);
        for i in self.start + from..end {
            let (token, head) = if self.by_token {
                (i / self.heads, i % self.heads)
            } else {
                (i % tokens, i / tokens)
            };
            let row = self.rows.at(token).wrapping_add(head * self.head_stride);
            let mut at = 0;
            while at < bytes {
                s.prefetch(row.wrapping_add(at));
                at += LINE;
            }
        }
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
    next: Ahead<'_>,
    out: *mut f32,
) {
    let mut row = 0;
    let mut next = next;
    while row < rows {
        // SAFETY: the rows from `row` on are there, as the caller vouches.
        unsafe {
            let (q, out) = (q.add(row * stride), out.add(row * SCORES));
            match rows - row {
                1 => block::<S, E, F, 1, 8>(s, q, keys, head_dim, next, out),
                2 => block::<S, E, F, 2, 4>(s, q, keys, head_dim, next, out),
                _ => block::<S, E, F, 4, 2>(s, q, keys, head_dim, next, out),
            }
        }
        next.heads = 0;
        row += 4;
    }
}

/// `MR` query rows and `NR` keys at a time: 8 sums, which with the operands fill 16 registers.
///
/// # Safety
/// As [`scores`], for `MR` rows.
#[inline(always)]
unsafe fn block<S: Simd, E: KvElement, F: Format<S, E>, const MR: usize, const NR: usize>(
    s: S,
    q: *const f32,
    keys: Rows<'_>,
    head_dim: usize,
    next: Ahead<'_>,
    out: *mut f32,
) {
    let n = keys.offsets.len();
    let words = head_dim / F::DEPTH;
    let mut first = 0;
    while first < n {
        next.prefetch(s, first, first + NR, head_dim * E::SIZE);
        // Beyond the last key, the last key once more.
        let mut key = [keys.base; NR];
        let mut j = 0;
        while j < NR {
            key[j] = keys.at((first + j).min(n - 1));
            j += 1;
        }
        let mut acc = [[s.splat(0.0); NR]; MR];
        let mut q = q;
        let mut w = 0;
        // SAFETY: the caller vouches for queries and keys up to `head_dim`.
        unsafe {
            while w + 2 * S::LANES <= words {
                let mut k = [[s.splat(0.0); 2]; NR];
                let mut j = 0;
                while j < NR {
                    k[j] = F::two_words(s, key[j].add(w * F::DEPTH * E::SIZE));
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
                q = q.add(2 * MR * S::LANES);
                w += 2 * S::LANES;
            }
            // Apart: a branch inside the loop would have all sums in memory.
            let mut half = 0;
            while w < words {
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
        // SAFETY: the caller vouches for the row.
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
    next: Ahead<'_>,
    out: *mut f32,
    stride: usize,
) {
    let mut row = 0;
    let mut next = next;
    while row < rows {
        // SAFETY: the rows from `row` on are there, as the caller vouches.
        unsafe {
            let (p, factors) = (p.add(row * SCORES), factors.add(row));
            let out = out.add(row * stride);
            match rows - row {
                1 => weigh::<S, E, 1, 4>(s, p, factors, keys, head_dim, next, out, stride),
                2 => weigh::<S, E, 2, 2>(s, p, factors, keys, head_dim, next, out, stride),
                _ => weigh::<S, E, 4, 1>(s, p, factors, keys, head_dim, next, out, stride),
            }
        }
        next.heads = 0;
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
    next: Ahead<'_>,
    out: *mut f32,
    stride: usize,
) {
    let mut column = 0;
    // Evenly over the columns.
    let share = keys.offsets.len().div_ceil((head_dim / (2 * NC * S::LANES)).max(1));
    let mut asked = 0;
    // SAFETY: the caller vouches for all columns below `head_dim`.
    unsafe {
        while column + 2 * NC * S::LANES <= head_dim {
            next.prefetch(s, asked, asked + share, head_dim * E::SIZE);
            asked += share;
            weigh_columns::<S, E, MR, NC>(s, p, factors, keys, column, out, stride);
            column += 2 * NC * S::LANES;
        }
        next.prefetch(s, asked, keys.offsets.len(), head_dim * E::SIZE);
        while NC > 1 && column + 2 * S::LANES <= head_dim {
            weigh_columns::<S, E, MR, 1>(s, p, factors, keys, column, out, stride);
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
    out: *mut f32,
    stride: usize,
) {
    let n = keys.offsets.len();
    let mut acc = [[[s.splat(0.0); 2]; NC]; MR];
    // SAFETY: the caller vouches for rows, columns and keys.
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
        let mut key = 0;
        while key < n {
            let from = keys.at(key).add(column * E::SIZE);
            let mut weight = [s.splat(0.0); MR];
            let mut i = 0;
            while i < MR {
                weight[i] = s.splat(*p.add(i * SCORES + key));
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
            key += 1;
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
    // SAFETY: the caller vouches for rows, columns and keys.
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
