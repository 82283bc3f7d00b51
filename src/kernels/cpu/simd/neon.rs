//! NEON: four lanes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{EXP2, EXP2_MIN, Simd};

/// See the [module](self).
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Simd for Neon {
    type V = float32x4_t;

    const LANES: usize = 4;
    const TILE: usize = 4;

    ops! {
        add(a, b) = vaddq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        // Selected by a comparison, to treat NaN as the other instruction sets do.
        max(a, b) = vbslq_f32(vcgtq_f32(a, b), a, b);
        min(a, b) = vbslq_f32(vcltq_f32(a, b), a, b);
        abs(a) = vabsq_f32(a);
        fma(a, b, c) = vfmaq_f32(c, a, b);
        where_less(a, b, x, y) = vbslq_f32(vcltq_f32(a, b), x, y);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` proves the feature.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        // By bytes: the source need not be aligned.
        // SAFETY: the caller guarantees 16 bytes.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: float32x4_t) {
        // SAFETY: the caller guarantees it.
        unsafe { vst1q_u8(to.cast(), vreinterpretq_u8_f32(v)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> float32x4_t {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe { widen(vreinterpret_u16_u8(vld1_u8(from))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> float32x4_t {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe {
            let wide = vmovl_u16(vreinterpret_u16_u8(vld1_u8(from)));
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_fp8(self, from: *const u8) -> float32x4_t {
        // SAFETY: the caller guarantees 4 bytes.
        unsafe {
            let four = u64::from(from.cast::<u32>().read_unaligned());
            let signed = vget_low_s16(vmovl_s8(vcreate_s8(four)));
            // The sign is copied down to bit 14 on the way, and masked out there.
            let shifted = vreinterpret_u16_s16(vshl_n_s16::<7>(signed));
            let bits = vand_u16(shifted, vdup_n_u16(0xbf80));
            let magnitude = vand_u16(vreinterpret_u16_s16(signed), vdup_n_u16(0x7f));
            // All ones is a NaN.
            widen(vorr_u16(bits, vceq_u16(magnitude, vdup_n_u16(0x7f))))
        }
    }

    #[inline(always)]
    unsafe fn split_bf16(self, from: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller guarantees 16 bytes.
        unsafe {
            let both = vreinterpretq_u32_u8(vld1q_u8(from));
            let odd = vandq_u32(both, vdupq_n_u32(0xffff_0000));
            [vreinterpretq_f32_u32(vshlq_n_u32::<16>(both)), vreinterpretq_f32_u32(odd)]
        }
    }

    #[inline(always)]
    unsafe fn split_fp8(self, from: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe {
            let both = vreinterpret_s16_u8(vld1_u8(from));
            [widen(upper_fp8(vshl_n_s16::<8>(both))), widen(upper_fp8(both))]
        }
    }

    #[inline(always)]
    unsafe fn split_finite_fp8(self, from: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe {
            let both = vreinterpret_s16_u8(vld1_u8(from));
            let places = vdup_n_u16(0xbf80);
            let even = vreinterpret_u16_s16(vshr_n_s16::<1>(vshl_n_s16::<8>(both)));
            let odd = vreinterpret_u16_s16(vshr_n_s16::<1>(both));
            [widen(vand_u16(even, places)), widen(vand_u16(odd, places))]
        }
    }

    #[inline(always)]
    unsafe fn any_nan_fp8(self, from: *const u8, n: usize) -> bool {
        // SAFETY: the caller guarantees `n` bytes.
        unsafe {
            let largest = vdupq_n_u8(0x7f);
            let mut most = vdupq_n_u8(0);
            let mut i = 0;
            while i + 16 <= n {
                most = vmaxq_u8(most, vandq_u8(vld1q_u8(from.add(i)), largest));
                i += 16;
            }
            let mut any = vmaxvq_u8(most) == 0x7f;
            while i < n {
                any |= *from.add(i) & 0x7f == 0x7f;
                i += 1;
            }
            any
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: float32x4_t) {
        let half: uint16x4_t;
        // SAFETY: one instruction on registers; the caller guarantees 8 bytes.
        unsafe {
            asm!(
                "fcvtn {0:v}.4h, {1:v}.4s",
                out(vreg) half,
                in(vreg) v,
                options(pure, nomem, nostack)
            );
            vst1_u8(to, vreinterpret_u8_u16(half));
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8, v: float32x4_t) {
        // SAFETY: the caller guarantees 8 bytes.
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let upper = vshrq_n_u32::<16>(bits);
            let bias = vaddq_u32(vandq_u32(upper, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
            let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, bias));
            // A NaN is not rounded, which could make it infinite, but made quiet.
            let quiet = vorrq_u32(upper, vdupq_n_u32(0x40));
            let chosen = vbslq_u32(vceqq_f32(v, v), rounded, quiet);
            vst1_u8(to, vreinterpret_u8_u16(vmovn_u32(chosen)));
        }
    }

    #[inline(always)]
    fn exp2(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the feature.
        unsafe {
            let n = vrndnq_f32(x);
            let f = vsubq_f32(x, n);
            let mut p = vdupq_n_f32(EXP2[0]);
            p = vfmaq_f32(vdupq_n_f32(EXP2[1]), p, f);
            p = vfmaq_f32(vdupq_n_f32(EXP2[2]), p, f);
            p = vfmaq_f32(vdupq_n_f32(EXP2[3]), p, f);
            p = vfmaq_f32(vdupq_n_f32(EXP2[4]), p, f);
            p = vfmaq_f32(vdupq_n_f32(EXP2[5]), p, f);
            p = vfmaq_f32(vdupq_n_f32(1.0), p, f);
            let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
            let y = vaddq_s32(vreinterpretq_s32_f32(p), exponent);
            // Less-than is false for NaN, which stays NaN.
            let zero = vcltq_f32(x, vdupq_n_f32(EXP2_MIN));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(y), zero))
        }
    }

    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe { vaddvq_f32(v) }
    }

    #[inline(always)]
    fn max_lane(self, v: float32x4_t) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe { vmaxnmvq_f32(v) }
    }

    #[inline(always)]
    fn sum8(self, v: [float32x4_t; 8]) -> [f32; 8] {
        // SAFETY: `self` proves the feature; 32 bytes are 32 bytes.
        unsafe {
            let a = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
            let b = vpaddq_f32(vpaddq_f32(v[4], v[5]), vpaddq_f32(v[6], v[7]));
            std::mem::transmute([a, b])
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
        unsafe {
            let (a, b) = (vld1q_u32(from), vld1q_u32(from.add(from_stride)));
            let (c, d) =
                (vld1q_u32(from.add(2 * from_stride)), vld1q_u32(from.add(3 * from_stride)));
            let ab0 = vreinterpretq_u64_u32(vtrn1q_u32(a, b));
            let ab1 = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
            let cd0 = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
            let cd1 = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
            vst1q_u32(to, vreinterpretq_u32_u64(vtrn1q_u64(ab0, cd0)));
            vst1q_u32(to.add(to_stride), vreinterpretq_u32_u64(vtrn1q_u64(ab1, cd1)));
            vst1q_u32(to.add(2 * to_stride), vreinterpretq_u32_u64(vtrn2q_u64(ab0, cd0)));
            vst1q_u32(to.add(3 * to_stride), vreinterpretq_u32_u64(vtrn2q_u64(ab1, cd1)));
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at as usize, options(nomem, nostack)) }
    }
}

/// The bits of the e4m3 numbers in the upper bytes, in f16's places.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn upper_fp8(codes: int16x4_t) -> uint16x4_t {
    // SAFETY: the caller guarantees the feature.
    unsafe {
        // The sign is copied to bit 14, and masked out there.
        let shifted = vreinterpret_u16_s16(vshr_n_s16::<1>(codes));
        let bits = vand_u16(shifted, vdup_n_u16(0xbf80));
        let largest = vdup_n_u16(0x3f80);
        // All ones is a NaN.
        vorr_u16(bits, vceq_u16(vand_u16(shifted, largest), largest))
    }
}

/// f16 to f32. The intrinsic waits for a stable `f16`.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn widen(v: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: one instruction on registers.
    unsafe {
        asm!(
            "fcvtl {0:v}.4s, {1:v}.4h",
            out(vreg) wide,
            in(vreg) v,
            options(pure, nomem, nostack)
        );
    }
    wide
}
