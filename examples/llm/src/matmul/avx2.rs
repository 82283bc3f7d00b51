//! Kernels for AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::input::Block;
use super::kernels::Kernels;
use super::pack::{BLOCK, Bytes, LANES, Nibbles, Panel, Q4, Q8};
use super::portable;

/// Proof that the processor has these instructions: only `detect` makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

impl Kernels for Avx2 {
    fn round(self, x: &[f32], out: &mut [Block]) {
        // SAFETY: `self` proves the instructions.
        unsafe { round(x, out) }
    }

    fn q4<const T: usize>(self, w: Q4<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
        // SAFETY: `self` proves the instructions.
        unsafe { q4(w, x, out) }
    }

    fn q8<const T: usize>(self, w: Q8<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
        // SAFETY: `self` proves the instructions.
        unsafe { q8(w, x, out) }
    }

    fn expand(self, w: Panel<'_>, out: &mut [[f32; LANES]]) {
        // SAFETY: `self` proves the instructions.
        unsafe { expand(w, out) }
    }

    fn few<const T: usize>(
        self,
        w: Panel<'_>,
        scratch: &mut [[f32; LANES]],
        x: &[f32],
        out: &mut [[f32; LANES]; T],
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { few(w, scratch, x, out) }
    }

    fn f32<const T: usize, const J: usize>(
        self,
        w: &[[f32; LANES]],
        x: &[f32],
        out: &mut [[f32; LANES]; T],
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { f32::<T, J>(w, x, out) }
    }
}

/// As `portable::round`, to the same bits.
#[target_feature(enable = "avx2,fma,f16c")]
fn round(x: &[f32], out: &mut [Block]) {
    let (whole, rest) = x.as_chunks::<BLOCK>();
    let (blocks, last) = out.split_at_mut(whole.len());
    portable::round(rest, last);
    let sign = _mm256_set1_ps(-0.0);
    for (x, out) in whole.iter().zip(blocks) {
        let mut values = [_mm256_setzero_ps(); 4];
        let (mut largest, mut poison) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for (value, x) in values.iter_mut().zip(x.as_chunks::<LANES>().0) {
            // SAFETY: eight floats.
            *value = unsafe { _mm256_loadu_ps(x.as_ptr()) };
            largest = _mm256_max_ps(_mm256_andnot_ps(sign, *value), largest);
            poison = _mm256_fmadd_ps(*value, _mm256_setzero_ps(), poison);
        }
        let largest = floats(largest).into_iter().fold(0.0, f32::max);
        let poison = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(poison, poison));
        let (scale, inverse) = portable::scales(largest);
        let scale = if poison == 0 { scale } else { f32::NAN };
        let inverse = _mm256_set1_ps(inverse);
        // Rounds to the nearest, ties to even.
        let [a, b, c, d] = values.map(|value| _mm256_cvtps_epi32(_mm256_mul_ps(value, inverse)));
        // Packing goes by halves of a register; the permutation puts fours in their order.
        let codes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let four =
            _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two)));
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(out.codes.as_mut_ptr().cast(), codes) };
        (out.scale, out.sum) = (scale, scale * sum as f32);
    }
}

/// Codes are 0 to 15, activations at most 127: the eight sums of two products that a 16-bit lane
/// gathers in a block stay below 8 * 2 * 15 * 127 = 30480.
#[target_feature(enable = "avx2,fma,f16c")]
fn q4<const T: usize>(w: Q4<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
    let blocks = w.codes.len();
    assert!(w.scales.len() == blocks && w.minima.len() == blocks && x.len() == T * blocks);
    let low = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); T];
    for block in 0..blocks {
        let mut products = [_mm256_setzero_si256(); T];
        for line in 0..4 {
            let codes = nibbles(&w.codes[block], line);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
            let codes = _mm256_and_si256(codes, low);
            for (t, products) in products.iter_mut().enumerate() {
                // SAFETY: `x` has `T * blocks` blocks.
                let x = unsafe { x.get_unchecked(t * blocks + block) };
                let first = _mm256_maddubs_epi16(codes, four(x, line));
                let second = _mm256_maddubs_epi16(high, four(x, line + 4));
                *products = _mm256_add_epi16(*products, _mm256_add_epi16(first, second));
            }
        }
        let (scales, minima) = (halves(&w.scales[block]), halves(&w.minima[block]));
        for t in 0..T {
            // SAFETY: `x` has `T * blocks` blocks.
            let x = unsafe { x.get_unchecked(t * blocks + block) };
            let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(products[t], ones));
            let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scale));
            sums[t] = _mm256_fmadd_ps(scale, product, sums[t]);
            sums[t] = _mm256_fmadd_ps(minima, _mm256_set1_ps(x.sum), sums[t]);
        }
    }
    for t in 0..T {
        write(&mut out[t], sums[t]);
    }
}

/// `vpmaddubsw` wants one side unsigned: the weight's sign goes to the activation. Two products of
/// 128 and 127 fit 16 bits, four do not, so each line is widened.
#[target_feature(enable = "avx2,fma,f16c")]
fn q8<const T: usize>(w: Q8<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
    let blocks = w.codes.len();
    assert!(w.scales.len() == blocks && x.len() == T * blocks);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); T];
    for block in 0..blocks {
        let mut products = [_mm256_setzero_si256(); T];
        for line in 0..8 {
            let codes = bytes(&w.codes[block], line);
            let size = _mm256_abs_epi8(codes);
            for (t, products) in products.iter_mut().enumerate() {
                // SAFETY: `x` has `T * blocks` blocks.
                let x = unsafe { x.get_unchecked(t * blocks + block) };
                let signed = _mm256_sign_epi8(four(x, line), codes);
                let pairs = _mm256_maddubs_epi16(size, signed);
                *products = _mm256_add_epi32(*products, _mm256_madd_epi16(pairs, ones));
            }
        }
        let scales = halves(&w.scales[block]);
        for t in 0..T {
            // SAFETY: `x` has `T * blocks` blocks.
            let x = unsafe { x.get_unchecked(t * blocks + block) };
            let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scale));
            sums[t] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(products[t]), sums[t]);
        }
    }
    for t in 0..T {
        write(&mut out[t], sums[t]);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn expand(w: Panel<'_>, out: &mut [[f32; LANES]]) {
    match w {
        Panel::Q4(w) => {
            for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let (scales, minima) = (halves(&w.scales[block]), halves(&w.minima[block]));
                for group in 0..8 {
                    let weights = q4_weights(&w.codes[block], group, scales, minima);
                    for (j, weights) in weights.into_iter().enumerate() {
                        write(&mut out[4 * group + j], weights);
                    }
                }
            }
        }
        Panel::Q8(w) => {
            for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let scales = halves(&w.scales[block]);
                for group in 0..8 {
                    let weights = q8_weights(&w.codes[block], group, scales);
                    for (j, weights) in weights.into_iter().enumerate() {
                        write(&mut out[4 * group + j], weights);
                    }
                }
            }
        }
        Panel::F32(w) => out.copy_from_slice(w),
        Panel::F16(w) => {
            for (out, w) in out.iter_mut().zip(w) {
                write(out, halves(w));
            }
        }
        Panel::BF16(w) => {
            for (out, w) in out.iter_mut().zip(w) {
                *out = w.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16));
            }
        }
    }
}

/// `expand` and `f32` in one, to the same bits: weights stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn few<const T: usize>(
    w: Panel<'_>,
    scratch: &mut [[f32; LANES]],
    x: &[f32],
    out: &mut [[f32; LANES]; T],
) {
    let mut strands = [[_mm256_setzero_ps(); T]; 4];
    match w {
        Panel::Q4(w) => {
            let cols = w.codes.len() * BLOCK;
            assert!(w.scales.len() == w.codes.len() && w.minima.len() == w.codes.len());
            for (block, codes) in w.codes.iter().enumerate() {
                let (scales, minima) = (halves(&w.scales[block]), halves(&w.minima[block]));
                for group in 0..8 {
                    let weights = q4_weights(codes, group, scales, minima);
                    gather(&mut strands, weights, x, cols, BLOCK * block + 4 * group);
                }
            }
        }
        Panel::Q8(w) => {
            let cols = w.codes.len() * BLOCK;
            assert!(w.scales.len() == w.codes.len());
            for (block, codes) in w.codes.iter().enumerate() {
                let scales = halves(&w.scales[block]);
                for group in 0..8 {
                    let weights = q8_weights(codes, group, scales);
                    gather(&mut strands, weights, x, cols, BLOCK * block + 4 * group);
                }
            }
        }
        Panel::F32(w) => return f32::<T, 4>(w, x, out),
        Panel::F16(_) | Panel::BF16(_) => {
            expand(w, scratch);
            return f32::<T, 4>(scratch, x, out);
        }
    }
    join(strands, out);
}

/// Adds four columns, from `col` on, to their strands.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn gather<const T: usize>(
    strands: &mut [[__m256; T]; 4],
    weights: [__m256; 4],
    x: &[f32],
    cols: usize,
    col: usize,
) {
    for t in 0..T {
        let x = &x[t * cols + col..][..4];
        for j in 0..4 {
            strands[j][t] = _mm256_fmadd_ps(weights[j], _mm256_set1_ps(x[j]), strands[j][t]);
        }
    }
}

/// The four columns of a group of a block, dequantised.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_weights(block: &Nibbles, group: usize, scales: __m256, minima: __m256) -> [__m256; 4] {
    let codes = nibbles(block, group % 4);
    let codes = if group < 4 { codes } else { _mm256_srli_epi16::<4>(codes) };
    let low = _mm256_set1_epi32(15);
    [
        _mm256_and_si256(codes, low),
        _mm256_and_si256(_mm256_srli_epi32::<8>(codes), low),
        _mm256_and_si256(_mm256_srli_epi32::<16>(codes), low),
        _mm256_and_si256(_mm256_srli_epi32::<24>(codes), low),
    ]
    .map(|codes| _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scales, minima))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_weights(block: &Bytes, group: usize, scales: __m256) -> [__m256; 4] {
    let codes = bytes(block, group);
    [
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(codes)),
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(codes)),
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<8>(codes)),
        _mm256_srai_epi32::<24>(codes),
    ]
    .map(|codes| _mm256_mul_ps(_mm256_cvtepi32_ps(codes), scales))
}

/// Columns that all strands pass before the next: their activations and weights stay in the
/// first-level cache. A multiple of four.
const CHUNK: usize = 256;

#[target_feature(enable = "avx2,fma,f16c")]
fn f32<const T: usize, const J: usize>(w: &[[f32; LANES]], x: &[f32], out: &mut [[f32; LANES]; T]) {
    let cols = w.len();
    assert!(4 % J == 0 && x.len() == T * cols);
    let mut strands = [[_mm256_setzero_ps(); T]; 4];
    for start in (0..cols).step_by(CHUNK) {
        let end = cols.min(start + CHUNK);
        for (pass, strands) in strands.as_chunks_mut::<J>().0.iter_mut().enumerate() {
            let first = J * pass;
            let mut sums = *strands;
            let mut step = |col: usize, strand: usize| {
                // SAFETY: `col` is below `cols` in both loops; `x` has `T` rows of `cols`.
                unsafe {
                    let weights = _mm256_loadu_ps(w.get_unchecked(col).as_ptr());
                    for (t, sum) in sums[strand].iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(x.get_unchecked(t * cols + col));
                        *sum = _mm256_fmadd_ps(weights, x, *sum);
                    }
                }
            };
            for col in (start..end / 4 * 4).step_by(4) {
                for strand in 0..J {
                    step(col + first + strand, strand);
                }
            }
            for strand in 0..J {
                let col = end / 4 * 4 + first + strand;
                if col < end {
                    step(col, strand);
                }
            }
            *strands = sums;
        }
    }
    join(strands, out);
}

/// The strands of each token, added in their order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn join<const T: usize>([a, b, c, d]: [[__m256; T]; 4], out: &mut [[f32; LANES]; T]) {
    for t in 0..T {
        let half = _mm256_add_ps(a[t], b[t]);
        write(&mut out[t], _mm256_add_ps(_mm256_add_ps(half, c[t]), d[t]));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(block: &Nibbles, line: usize) -> __m256i {
    let line = &block.0[32 * line..][..32];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes(block: &Bytes, line: usize) -> __m256i {
    let line = &block.0[32 * line..][..32];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(line.as_ptr().cast()) }
}

/// Four activations, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four(x: &Block, group: usize) -> __m256i {
    let codes = &x.codes[4 * group..][..4];
    // SAFETY: four bytes, read unaligned.
    _mm256_set1_epi32(unsafe { codes.as_ptr().cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(values: &[half::f16; LANES]) -> __m256 {
    // SAFETY: sixteen bytes; `f16` is its bits.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn floats(values: __m256) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    write(&mut out, values);
    out
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn write(out: &mut [f32; LANES], values: __m256) {
    // SAFETY: eight floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
}
