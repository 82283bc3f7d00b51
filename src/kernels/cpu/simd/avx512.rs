//! AVX-512: sixteen lanes, and with BF16 dot products of pairs.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::avx2::{any_nan_fp8, transpose8};
use super::{Bf16Dot, EXP2, EXP2_MIN, Simd};

/// F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// F, BW, DQ, VL and BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx512Bf16 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ, VL and BF16.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! simd {
    ($name:ident) => {
        impl Simd for $name {
            type V = __m512;

            const LANES: usize = 16;
            const TILE: usize = 8;

            ops! {
                add(a, b) = _mm512_add_ps(a, b);
                mul(a, b) = _mm512_mul_ps(a, b);
                div(a, b) = _mm512_div_ps(a, b);
                max(a, b) = _mm512_max_ps(a, b);
                min(a, b) = _mm512_min_ps(a, b);
                abs(a) = _mm512_abs_ps(a);
                fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
                where_less(a, b, x, y) =
                    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x);
                exp2(x) = exp2(x);
            }

            #[inline(always)]
            fn splat(self, x: f32) -> __m512 {
                // SAFETY: `self` proves the feature.
                unsafe { _mm512_set1_ps(x) }
            }

            #[inline(always)]
            unsafe fn load(self, from: *const f32) -> __m512 {
                // SAFETY: the caller guarantees it.
                unsafe { _mm512_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32, v: __m512) {
                // SAFETY: the caller guarantees it.
                unsafe { _mm512_storeu_ps(to, v) }
            }

            #[inline(always)]
            unsafe fn load_f16(self, from: *const u8) -> __m512 {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            }

            #[inline(always)]
            unsafe fn load_bf16(self, from: *const u8) -> __m512 {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }

            #[inline(always)]
            unsafe fn load_fp8(self, from: *const u8) -> __m512 {
                // SAFETY: the caller guarantees 16 bytes.
                unsafe { fp8(_mm_loadu_si128(from.cast())) }
            }

            #[inline(always)]
            unsafe fn split_bf16(self, from: *const u8) -> [__m512; 2] {
                // SAFETY: the caller guarantees 64 bytes.
                unsafe {
                    let both = _mm512_loadu_si512(from.cast());
                    let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
                }
            }

            #[inline(always)]
            unsafe fn split_fp8(self, from: *const u8) -> [__m512; 2] {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe {
                    let both = _mm256_loadu_si256(from.cast());
                    [upper_fp8(_mm256_slli_epi16::<8>(both)), upper_fp8(both)]
                }
            }

            #[inline(always)]
            unsafe fn split_finite_fp8(self, from: *const u8) -> [__m512; 2] {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe {
                    let both = _mm256_loadu_si256(from.cast());
                    let places = _mm256_set1_epi16(0xbf80_u16 as i16);
                    let even = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(both));
                    let odd = _mm256_srai_epi16::<1>(both);
                    [
                        _mm512_cvtph_ps(_mm256_and_si256(even, places)),
                        _mm512_cvtph_ps(_mm256_and_si256(odd, places)),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn any_nan_fp8(self, from: *const u8, n: usize) -> bool {
                // SAFETY: the caller guarantees `n` bytes.
                unsafe { any_nan_fp8(from, n) }
            }

            #[inline(always)]
            unsafe fn store_f16(self, to: *mut u8, v: __m512) {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe {
                    let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                    _mm256_storeu_si256(to.cast(), half);
                }
            }

            #[inline(always)]
            unsafe fn store_bf16(self, to: *mut u8, v: __m512) {
                // SAFETY: the caller guarantees 32 bytes.
                unsafe { _mm256_storeu_si256(to.cast(), round_bf16(v)) }
            }

            #[inline(always)]
            fn sum(self, v: __m512) -> f32 {
                // SAFETY: `self` proves the feature.
                unsafe { _mm512_reduce_add_ps(v) }
            }

            #[inline(always)]
            fn max_lane(self, v: __m512) -> f32 {
                // SAFETY: `self` proves the feature.
                unsafe { _mm512_reduce_max_ps(v) }
            }

            #[inline(always)]
            fn sum8(self, v: [__m512; 8]) -> [f32; 8] {
                // SAFETY: `self` proves the feature.
                unsafe { sum8(v) }
            }

            #[inline(always)]
            unsafe fn transpose(
                self,
                from: *const u32,
                from_stride: usize,
                to: *mut u32,
                to_stride: usize,
            ) {
                // SAFETY: the caller guarantees both blocks; AVX-512 F includes AVX.
                unsafe { transpose8(from, from_stride, to, to_stride) }
            }

            #[inline(always)]
            fn prefetch(self, at: *const u8) {
                super::avx2::prefetch(at);
            }
        }
    };
}
simd!(Avx512);
simd!(Avx512Bf16);

/// Sixteen e4m3 numbers by [`FP8_UNIT`](super::FP8_UNIT).
///
/// # Safety
/// The processor has AVX-512 F and AVX2.
#[inline(always)]
unsafe fn fp8(codes: __m128i) -> __m512 {
    // SAFETY: the caller guarantees the features.
    unsafe {
        let signed = _mm256_cvtepi8_epi16(codes);
        // The sign is copied down to bit 14 on the way, and masked out there.
        let places = _mm256_set1_epi16(0xbf80_u16 as i16);
        let bits = _mm256_and_si256(_mm256_slli_epi16::<7>(signed), places);
        let largest = _mm256_set1_epi16(0x7f);
        let magnitude = _mm256_and_si256(signed, largest);
        // All ones is a NaN.
        _mm512_cvtph_ps(_mm256_or_si256(bits, _mm256_cmpeq_epi16(magnitude, largest)))
    }
}

/// The e4m3 numbers in the upper bytes, by [`FP8_UNIT`](super::FP8_UNIT).
///
/// # Safety
/// The processor has AVX-512 F and AVX2.
#[inline(always)]
unsafe fn upper_fp8(codes: __m256i) -> __m512 {
    // SAFETY: the caller guarantees the features.
    unsafe {
        // The sign is copied to bit 14, and masked out there.
        let shifted = _mm256_srai_epi16::<1>(codes);
        let bits = _mm256_and_si256(shifted, _mm256_set1_epi16(0xbf80_u16 as i16));
        let largest = _mm256_set1_epi16(0x3f80);
        let magnitude = _mm256_and_si256(shifted, largest);
        // All ones is a NaN.
        _mm512_cvtph_ps(_mm256_or_si256(bits, _mm256_cmpeq_epi16(magnitude, largest)))
    }
}

/// Rounds to bf16 with integer arithmetic: the instruction flushes subnormal numbers to 0.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn round_bf16(v: __m512) -> __m256i {
    // SAFETY: the caller guarantees the feature.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let upper = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
        // A NaN is not rounded, which could make it infinite, but made quiet.
        let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet))
    }
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn exp2(x: __m512) -> __m512 {
    // SAFETY: the caller guarantees the feature.
    unsafe {
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let f = _mm512_sub_ps(x, n);
        let mut p = _mm512_set1_ps(EXP2[0]);
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[1]));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[2]));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[3]));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[4]));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[5]));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
        // Not less-than, so that NaN stays NaN.
        let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP2_MIN));
        _mm512_maskz_scalef_ps(kept, p, n)
    }
}

/// # Safety
/// The processor has AVX-512 F and DQ.
#[inline(always)]
unsafe fn sum8(v: [__m512; 8]) -> [f32; 8] {
    // SAFETY: the caller guarantees the features.
    unsafe {
        macro_rules! half {
            ($i:expr) => {
                _mm256_add_ps(_mm512_castps512_ps256(v[$i]), _mm512_extractf32x8_ps::<1>(v[$i]))
            };
        }
        let a = _mm256_hadd_ps(half!(0), half!(1));
        let b = _mm256_hadd_ps(half!(2), half!(3));
        let c = _mm256_hadd_ps(half!(4), half!(5));
        let d = _mm256_hadd_ps(half!(6), half!(7));
        let ab = _mm256_hadd_ps(a, b);
        let cd = _mm256_hadd_ps(c, d);
        let low = _mm256_permute2f128_ps::<0x20>(ab, cd);
        let high = _mm256_permute2f128_ps::<0x31>(ab, cd);
        transmute(_mm256_add_ps(low, high))
    }
}

impl Bf16Dot for Avx512Bf16 {
    #[inline(always)]
    fn dot(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the feature; the types are of one size and any bits will do.
        unsafe {
            _mm512_dpbf16_ps(
                acc,
                transmute::<__m512, __m512bh>(a),
                transmute::<__m512, __m512bh>(b),
            )
        }
    }

    #[inline(always)]
    fn pair(self, lo: __m512, hi: __m512) -> __m512 {
        // SAFETY: `self` proves the feature.
        unsafe {
            let lo = _mm512_srli_epi32::<16>(_mm512_castps_si512(lo));
            _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_castps_si512(hi)))
        }
    }

    #[inline(always)]
    unsafe fn load_fp8_pairs(self, from: *const u8) -> __m512 {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe {
            let first = fp8(_mm_loadu_si128(from.cast()));
            let second = fp8(_mm_loadu_si128(from.add(16).cast()));
            transmute(_mm512_cvtne2ps_pbh(second, first))
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, from: *const f32, to: *mut f32) {
        // SAFETY: the caller guarantees 32 numbers and 16 words.
        unsafe {
            let (first, second) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            let pairs = _mm512_cvtne2ps_pbh(second, first);
            _mm512_storeu_ps(to, transmute::<__m512bh, __m512>(pairs));
        }
    }
}
