//! AVX2, FMA and F16C: eight lanes.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{EXP2, EXP2_MIN, Simd};

/// See the [module](self).
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Simd for Avx2 {
    type V = __m256;

    const LANES: usize = 8;
    const TILE: usize = 8;

    ops! {
        add(a, b) = _mm256_add_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        abs(a) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        where_less(a, b, x, y) = _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller guarantees it.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        // SAFETY: the caller guarantees it.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m256 {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m256 {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_fp8(self, from: *const u8) -> __m256 {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe { _mm256_cvtph_ps(fp8_as_f16(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn split_bf16(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe {
            let both = _mm256_loadu_si256(from.cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn split_fp8(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            let both = _mm_loadu_si128(from.cast());
            let even = upper_fp8_as_f16(_mm_slli_epi16::<8>(both));
            [_mm256_cvtph_ps(even), _mm256_cvtph_ps(upper_fp8_as_f16(both))]
        }
    }

    #[inline(always)]
    unsafe fn split_finite_fp8(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            let both = _mm_loadu_si128(from.cast());
            let places = _mm_set1_epi16(0xbf80_u16 as i16);
            let even = _mm_and_si128(_mm_srai_epi16::<1>(_mm_slli_epi16::<8>(both)), places);
            let odd = _mm_and_si128(_mm_srai_epi16::<1>(both), places);
            [_mm256_cvtph_ps(even), _mm256_cvtph_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn any_nan_fp8(self, from: *const u8, n: usize) -> bool {
        // SAFETY: the caller guarantees `n` bytes.
        unsafe { any_nan_fp8(from, n) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: __m256) {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8, v: __m256) {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let upper = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
            // A NaN is not rounded, which could make it infinite, but made quiet.
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let chosen = _mm256_blendv_epi8(rounded, quiet, nan);
            let low = _mm256_castsi256_si128(chosen);
            let high = _mm256_extracti128_si256::<1>(chosen);
            _mm_storeu_si128(to.cast(), _mm_packus_epi32(low, high));
        }
    }

    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe {
            let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let f = _mm256_sub_ps(x, n);
            let mut p = _mm256_set1_ps(EXP2[0]);
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[1]));
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[2]));
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[3]));
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[4]));
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[5]));
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0));
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
            // Not less-than, so that NaN stays NaN.
            let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(EXP2_MIN));
            _mm256_andnot_ps(zero, y)
        }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }

    #[inline(always)]
    fn max_lane(self, v: __m256) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }

    #[inline(always)]
    fn sum8(self, v: [__m256; 8]) -> [f32; 8] {
        // SAFETY: `self` proves the feature.
        unsafe {
            let a = _mm256_hadd_ps(v[0], v[1]);
            let b = _mm256_hadd_ps(v[2], v[3]);
            let c = _mm256_hadd_ps(v[4], v[5]);
            let d = _mm256_hadd_ps(v[6], v[7]);
            let ab = _mm256_hadd_ps(a, b);
            let cd = _mm256_hadd_ps(c, d);
            let low = _mm256_permute2f128_ps::<0x20>(ab, cd);
            let high = _mm256_permute2f128_ps::<0x31>(ab, cd);
            std::mem::transmute(_mm256_add_ps(low, high))
        }
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const u32,
        from_stride: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        // SAFETY: the caller guarantees both blocks.
        unsafe { transpose8(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
}

/// Brings a cache line near.
///
/// Not by the intrinsic: loads are not moved across that, and fill registers long before their use.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        asm!("prefetcht0 [{0}]", in(reg) at as usize, options(nomem, nostack, preserves_flags))
    }
}

/// The bits of eight e4m3 numbers in f16's places: the numbers by [`FP8_UNIT`](super::FP8_UNIT).
///
/// # Safety
/// The processor has SSE4.1.
#[inline(always)]
unsafe fn fp8_as_f16(codes: __m128i) -> __m128i {
    // SAFETY: the caller guarantees the feature.
    unsafe {
        let signed = _mm_cvtepi8_epi16(codes);
        // The sign is copied down to bit 14 on the way, and masked out there.
        let bits = _mm_and_si128(_mm_slli_epi16::<7>(signed), _mm_set1_epi16(0xbf80_u16 as i16));
        let magnitude = _mm_and_si128(signed, _mm_set1_epi16(0x7f));
        // All ones is a NaN.
        _mm_or_si128(bits, _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)))
    }
}

/// The bits of the e4m3 numbers in the upper bytes, in f16's places.
///
/// # Safety
/// The processor has SSE4.1.
#[inline(always)]
unsafe fn upper_fp8_as_f16(codes: __m128i) -> __m128i {
    // SAFETY: the caller guarantees the feature.
    unsafe {
        // The sign is copied to bit 14, and masked out there.
        let shifted = _mm_srai_epi16::<1>(codes);
        let bits = _mm_and_si128(shifted, _mm_set1_epi16(0xbf80_u16 as i16));
        let largest = _mm_set1_epi16(0x3f80);
        let magnitude = _mm_and_si128(shifted, largest);
        // All ones is a NaN.
        _mm_or_si128(bits, _mm_cmpeq_epi16(magnitude, largest))
    }
}

/// Whether there is a NaN among `n` numbers of e4m3.
///
/// # Safety
/// The processor has AVX2; they can be read at `from`.
#[inline(always)]
pub(super) unsafe fn any_nan_fp8(from: *const u8, n: usize) -> bool {
    // SAFETY: the caller guarantees the feature and the numbers.
    unsafe {
        let largest = _mm256_set1_epi8(0x7f);
        let mut most = _mm256_setzero_si256();
        let mut i = 0;
        while i + 32 <= n {
            let codes = _mm256_loadu_si256(from.add(i).cast());
            most = _mm256_max_epu8(most, _mm256_and_si256(codes, largest));
            i += 32;
        }
        let mut any = _mm256_movemask_epi8(_mm256_cmpeq_epi8(most, largest)) != 0;
        while i < n {
            any |= *from.add(i) & 0x7f == 0x7f;
            i += 1;
        }
        any
    }
}

/// Transposes 8 x 8 words.
///
/// # Safety
/// The processor has AVX; the blocks can be read and written.
#[inline(always)]
pub(super) unsafe fn transpose8(
    from: *const u32,
    from_stride: usize,
    to: *mut u32,
    to_stride: usize,
) {
    // SAFETY: the caller guarantees the feature and both blocks.
    unsafe {
        // A macro: a closure would not be compiled with the caller's features.
        macro_rules! row {
            ($i:expr) => {
                _mm256_loadu_ps(from.add($i * from_stride).cast())
            };
        }
        let (r0, r1, r2, r3) = (row!(0), row!(1), row!(2), row!(3));
        let (r4, r5, r6, r7) = (row!(4), row!(5), row!(6), row!(7));
        let (a0, a1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (a2, a3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        let (a4, a5) = (_mm256_unpacklo_ps(r4, r5), _mm256_unpackhi_ps(r4, r5));
        let (a6, a7) = (_mm256_unpacklo_ps(r6, r7), _mm256_unpackhi_ps(r6, r7));
        let b0 = _mm256_shuffle_ps::<0x44>(a0, a2);
        let b1 = _mm256_shuffle_ps::<0xee>(a0, a2);
        let b2 = _mm256_shuffle_ps::<0x44>(a1, a3);
        let b3 = _mm256_shuffle_ps::<0xee>(a1, a3);
        let b4 = _mm256_shuffle_ps::<0x44>(a4, a6);
        let b5 = _mm256_shuffle_ps::<0xee>(a4, a6);
        let b6 = _mm256_shuffle_ps::<0x44>(a5, a7);
        let b7 = _mm256_shuffle_ps::<0xee>(a5, a7);
        let out = [
            _mm256_permute2f128_ps::<0x20>(b0, b4),
            _mm256_permute2f128_ps::<0x20>(b1, b5),
            _mm256_permute2f128_ps::<0x20>(b2, b6),
            _mm256_permute2f128_ps::<0x20>(b3, b7),
            _mm256_permute2f128_ps::<0x31>(b0, b4),
            _mm256_permute2f128_ps::<0x31>(b1, b5),
            _mm256_permute2f128_ps::<0x31>(b2, b6),
            _mm256_permute2f128_ps::<0x31>(b3, b7),
        ];
        let mut i = 0;
        while i < 8 {
            _mm256_storeu_ps(to.add(i * to_stride).cast(), out[i]);
            i += 1;
        }
    }
}
