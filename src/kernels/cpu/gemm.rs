//! Tiles of many query rows: K and V are packed once, then multiplied at the rate of a GEMM.
//!
//! Operands are words of 32 bits: an f32, or two bf16 where the processor multiplies pairs. A tile
//! of K is packed as `[panel of keys][word of head_dim][key]`, a tile of V as
//! `[panel of columns][word of keys][column]`, so that the one [micro-kernel](multiply) reads both
//! in order; its other operand, queries or probabilities, are rows of words.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "kernels: one proof for a whole loop")]

use super::simd::{Bf16, Bf16Dot, Fp8, KvElement, MAX_LANES, Simd};

/// How numbers of a cache become operands.
pub(super) trait Format<S: Simd, E: KvElement>: Copy {
    /// Elements per word.
    const DEPTH: usize;

    /// `acc + a * b`, over the elements of each word.
    fn dot(s: S, acc: S::V, a: S::V, b: S::V) -> S::V;

    /// `LANES` words of consecutive elements.
    ///
    /// # Safety
    /// The elements can be read at `from`.
    unsafe fn words(s: S, from: *const u8) -> S::V;

    /// Whether [`two_words`](Self::two_words) gives words of even places, then those of odd ones.
    const SPLIT: bool;

    /// `2 * LANES` words of consecutive elements.
    ///
    /// # Safety
    /// The elements can be read at `from`.
    unsafe fn two_words(s: S, from: *const u8) -> [S::V; 2];

    /// The first `n` words of `LANES`, the others 0.
    ///
    /// # Safety
    /// The elements of `n` words can be read at `from`.
    #[inline(always)]
    unsafe fn some_words(s: S, from: *const u8, n: usize) -> S::V {
        let mut all = [0_u32; 2 * MAX_LANES];
        let bytes = n.min(S::LANES) * Self::DEPTH * E::SIZE;
        // SAFETY: the caller guarantees the source, and 128 bytes hold it.
        unsafe { std::ptr::copy_nonoverlapping(from, all.as_mut_ptr().cast(), bytes) };
        // SAFETY: as above.
        unsafe { Self::words(s, all.as_ptr().cast()) }
    }

    /// Words of `DEPTH` rows' numbers, `LANES` columns of them: `lo` above `hi`.
    fn column(s: S, lo: S::V, hi: S::V) -> S::V;

    /// Turns `n` numbers into words, in place; `n` is a multiple of `DEPTH * LANES`.
    ///
    /// # Safety
    /// They can be read at `from`, and written at `to`, which does not lie behind `from`.
    unsafe fn narrow(s: S, from: *const f32, to: *mut f32, n: usize);
}

/// Words are f32, whatever the cache has.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl<S: Simd, E: KvElement> Format<S, E> for Single {
    const DEPTH: usize = 1;

    #[inline(always)]
    fn dot(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
        s.fma(a, b, acc)
    }

    #[inline(always)]
    unsafe fn words(s: S, from: *const u8) -> S::V {
        // SAFETY: the caller guarantees it.
        unsafe { E::load(s, from) }
    }

    const SPLIT: bool = E::SPLIT;

    #[inline(always)]
    unsafe fn two_words(s: S, from: *const u8) -> [S::V; 2] {
        // SAFETY: the caller guarantees it.
        unsafe { E::load_two(s, from) }
    }

    #[inline(always)]
    fn column(_s: S, lo: S::V, _hi: S::V) -> S::V {
        lo
    }

    #[inline(always)]
    unsafe fn narrow(_s: S, _from: *const f32, _to: *mut f32, _n: usize) {}
}

/// Words are pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

macro_rules! pairs {
    ($element:ty, $words:ident) => {
        impl<S: Bf16Dot> Format<S, $element> for Pairs {
            const DEPTH: usize = 2;

            #[inline(always)]
            fn dot(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
                s.dot(acc, a, b)
            }

            #[inline(always)]
            unsafe fn words(s: S, from: *const u8) -> S::V {
                // SAFETY: the caller guarantees it.
                unsafe { s.$words(from.cast()) }
            }

            const SPLIT: bool = false;

            #[inline(always)]
            unsafe fn two_words(s: S, from: *const u8) -> [S::V; 2] {
                let bytes = 2 * S::LANES * <$element>::SIZE;
                // SAFETY: the caller guarantees both.
                unsafe { [s.$words(from.cast()), s.$words(from.add(bytes).cast())] }
            }

            #[inline(always)]
            fn column(s: S, lo: S::V, hi: S::V) -> S::V {
                s.pair(lo, hi)
            }

            #[inline(always)]
            unsafe fn narrow(s: S, from: *const f32, to: *mut f32, n: usize) {
                let mut i = 0;
                while i < n {
                    // SAFETY: the caller guarantees both; words are written no further than read.
                    unsafe { s.store_pairs(from.add(i), to.add(i / 2)) };
                    i += 2 * S::LANES;
                }
            }
        }
    };
}
pairs!(Bf16, load);
pairs!(Fp8, load_fp8_pairs);

/// Words from one row of an operand to the next: a constant, so that the micro-kernel's addresses
/// are, and no power of two, so that rows do not compete for the same lines of a cache.
pub(super) const ROW_WORDS: usize = 256 + 16;

/// Where the rows of a tile of keys are.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The head's first element of block 0.
    pub(super) base: *const u8,
    /// Bytes from there to each key.
    pub(super) offsets: &'a [usize],
}

impl Rows<'_> {
    /// Key `i`.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> *const u8 {
        self.base.wrapping_add(self.offsets[i])
    }

    /// Asks for the cache lines of key `i`, if there is one.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, i: usize, bytes: usize) {
        let Some(&offset) = self.offsets.get(i) else { return };
        let mut at = 0;
        while at < bytes {
            s.prefetch(self.base.wrapping_add(offset + at));
            at += LINE;
        }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Rows that packing asks for in advance.
const AHEAD: usize = 8;

/// Rounds up to a multiple.
#[inline(always)]
pub(super) const fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

/// Packs `rows` of K for [`multiply`]: panels of `NV * LANES` keys, `depth` words each, the last
/// one filled up with zeros. `staging` holds `TILE` rows of `round_up(depth, MAX_LANES)` words.
///
/// # Safety
/// `head_dim` elements can be read at each row; `out` holds all panels.
#[inline(always)]
pub(super) unsafe fn pack_k<S: Simd, E: KvElement, F: Format<S, E>, const NV: usize>(
    s: S,
    rows: Rows<'_>,
    head_dim: usize,
    staging: &mut [f32],
    out: *mut f32,
) {
    let panel = NV * S::LANES;
    let depth = round_up(head_dim / F::DEPTH, S::TILE);
    let words = head_dim / F::DEPTH;
    let stride = round_up(depth, MAX_LANES);
    assert!(staging.len() >= S::TILE * stride);
    let n = rows.offsets.len();
    let mut first = 0;
    while first < round_up(n, panel) {
        let mut i = 0;
        while i < S::TILE {
            rows.prefetch(s, first + AHEAD + i, head_dim * E::SIZE);
            let row = staging[i * stride..(i + 1) * stride].as_mut_ptr();
            let mut w = 0;
            while w < stride {
                let here = words.saturating_sub(w);
                // SAFETY: the row has `stride` words, and the caller guarantees the keys.
                unsafe {
                    let v = if first + i >= n || here == 0 {
                        s.splat(0.0)
                    } else if here >= S::LANES {
                        F::words(s, rows.at(first + i).add(w * F::DEPTH * E::SIZE))
                    } else {
                        F::some_words(s, rows.at(first + i).add(w * F::DEPTH * E::SIZE), here)
                    };
                    s.store(row.add(w), v);
                }
                w += S::LANES;
            }
            i += 1;
        }
        let start = first / panel * panel * depth + first % panel;
        let mut w = 0;
        while w < depth {
            // SAFETY: `TILE` divides depth and panel, so the block lies within the panel.
            unsafe {
                let to = out.add(start + w * panel).cast();
                s.transpose(staging.as_ptr().add(w).cast(), stride, to, panel);
            }
            w += S::TILE;
        }
        first += S::TILE;
    }
}

/// Packs `rows` of V for [`multiply`]: panels of `NV * LANES` columns, each of `capacity` words,
/// filled up with zeros to a multiple of `NV * LANES` keys and columns.
///
/// # Safety
/// `head_dim` elements can be read at each row; `out` holds all panels.
#[inline(always)]
pub(super) unsafe fn pack_v<S: Simd, E: KvElement, F: Format<S, E>, const NV: usize>(
    s: S,
    rows: Rows<'_>,
    head_dim: usize,
    capacity: usize,
    out: *mut f32,
) {
    let panel = NV * S::LANES;
    let n = rows.offsets.len();
    let mut key = 0;
    while key < round_up(n, panel) {
        rows.prefetch(s, key + AHEAD, head_dim * E::SIZE);
        rows.prefetch(s, key + AHEAD + F::DEPTH - 1, head_dim * E::SIZE);
        let mut column = 0;
        while column < round_up(head_dim, panel) {
            // SAFETY: the caller guarantees the rows; the word is in panel `column / panel`.
            unsafe {
                let lo = columns::<S, E>(s, rows, key, column, head_dim);
                let hi = if F::DEPTH == 2 {
                    columns::<S, E>(s, rows, key + 1, column, head_dim)
                } else {
                    lo
                };
                let word = column / panel * capacity + key / F::DEPTH;
                s.store(out.add(word * panel + column % panel), F::column(s, lo, hi));
            }
            column += S::LANES;
        }
        key += F::DEPTH;
    }
}

/// `LANES` columns of a row; zeros beyond the rows and beyond the columns.
///
/// # Safety
/// `head_dim` elements can be read at each row.
#[inline(always)]
unsafe fn columns<S: Simd, E: KvElement>(
    s: S,
    rows: Rows<'_>,
    row: usize,
    column: usize,
    head_dim: usize,
) -> S::V {
    if row >= rows.offsets.len() || column >= head_dim {
        return s.splat(0.0);
    }
    let from = rows.at(row).wrapping_add(column * E::SIZE);
    // SAFETY: the columns read are below `head_dim`.
    unsafe {
        if head_dim - column >= S::LANES {
            E::load(s, from)
        } else {
            E::load_some(s, from, head_dim - column)
        }
    }
}

/// Where a block of the product goes.
#[derive(Clone, Copy)]
pub(super) enum Into {
    /// It is stored.
    Store,
    /// What is there is multiplied with each row's factor, and the product added.
    Scale(*const f32),
}

/// `rows` rows of words at `a`, [`ROW_WORDS`] apart, times a panel at `b`: `depth` words of `NV` vectors, `MR` rows at a
/// time.
///
/// # Safety
/// All that is read and written can be, for `rows` rows, a multiple of `MR`, and as many factors.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two operands and a result, each with its stride")]
pub(super) unsafe fn multiply<
    S: Simd,
    E: KvElement,
    F: Format<S, E>,
    const MR: usize,
    const NV: usize,
>(
    s: S,
    rows: usize,
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    c_stride: usize,
    into: Into,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller guarantees rows from `row` on.
        unsafe {
            let (a, c) = (a.add(row * ROW_WORDS), c.add(row * c_stride));
            let acc = product::<S, E, F, MR, NV>(s, depth, a, b);
            let mut i = 0;
            while i < MR {
                let mut j = 0;
                while j < NV {
                    let to = c.add(i * c_stride + j * S::LANES);
                    let v = match into {
                        Into::Store => acc[i][j],
                        Into::Scale(factors) => {
                            s.fma(s.load(to), s.splat(*factors.add(row + i)), acc[i][j])
                        }
                    };
                    s.store(to, v);
                    j += 1;
                }
                i += 1;
            }
        }
        row += MR;
    }
}

/// The micro-kernel: all sums in registers.
///
/// # Safety
/// `depth` words of `MR` rows and of the panel can be read.
#[inline(always)]
unsafe fn product<S: Simd, E: KvElement, F: Format<S, E>, const MR: usize, const NV: usize>(
    s: S,
    depth: usize,
    a: *const f32,
    b: *const f32,
) -> [[S::V; NV]; MR] {
    let mut acc = [[s.splat(0.0); NV]; MR];
    let mut k = 0;
    while k < depth {
        // SAFETY: the caller guarantees word `k`.
        unsafe {
            let mut column = [s.splat(0.0); NV];
            let mut j = 0;
            while j < NV {
                column[j] = s.load(b.add((k * NV + j) * S::LANES));
                j += 1;
            }
            let mut i = 0;
            while i < MR {
                let row = s.splat(*a.add(i * ROW_WORDS + k));
                let mut j = 0;
                while j < NV {
                    acc[i][j] = F::dot(s, acc[i][j], row, column[j]);
                    j += 1;
                }
                i += 1;
            }
        }
        k += 1;
    }
    acc
}

/// Turns `rows` rows of probabilities from `start` to `end` into words, in place: those of a row
/// begin at word `start / DEPTH`.
///
/// # Safety
/// They can be read and written; `start` and `end` are multiples of `DEPTH * LANES`.
#[inline(always)]
pub(super) unsafe fn narrow<S: Simd, E: KvElement, F: Format<S, E>>(
    s: S,
    data: *mut f32,
    rows: usize,
    stride: usize,
    start: usize,
    end: usize,
) {
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller guarantees the row; words lie no further than what they are made of.
        unsafe {
            let p = data.add(row * stride);
            F::narrow(s, p.add(start), p.add(start / F::DEPTH), end - start);
        }
        row += 1;
    }
}
