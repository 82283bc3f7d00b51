//! Plain Rust: what every target has, and what AVX-512's algorithm is tested by.

use half::{bf16, f16};

use super::{Bf16Dot, EXP2, EXP2_MIN, FP8_UNIT, Simd};
use crate::kernels::Fp8E4m3;

/// `N` lanes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lanes<const N: usize>;

/// What processors without a vector unit of ours run.
pub(crate) type Portable = Lanes<4>;

/// Sixteen lanes and dot products of bf16, as AVX-512 has them.
pub(crate) type PortableBf16 = Lanes<16>;

/// Reads the `i`-th element.
///
/// # Safety
/// It can be read.
#[inline(always)]
unsafe fn at<T: Copy>(from: *const u8, i: usize) -> T {
    // SAFETY: the caller guarantees it; no alignment is asked for.
    unsafe { from.cast::<T>().add(i).read_unaligned() }
}

macro_rules! ops {
    ($($name:ident($($arg:ident),*) = $op:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            let mut out = [0.0; N];
            for (i, out) in out.iter_mut().enumerate() {
                $(let $arg = $arg[i];)*
                *out = $op;
            }
            out
        }
    )*};
}

macro_rules! loads {
    ($($name:ident($type:ty) = $convert:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, from: *const u8) -> [f32; N] {
            let mut out = [0.0; N];
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the caller guarantees N elements.
                *out = $convert(unsafe { at::<$type>(from, i) });
            }
            out
        }
    )*};
}

impl<const N: usize> Simd for Lanes<N> {
    type V = [f32; N];

    const LANES: usize = N;
    const TILE: usize = if N == 16 { 8 } else { 4 };

    ops! {
        add(a, b) = a + b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        max(a, b) = if a > b { a } else { b };
        min(a, b) = if a < b { a } else { b };
        abs(a) = a.abs();
        // Not `mul_add`: without the instruction that is a call.
        fma(a, b, c) = a * b + c;
        where_less(a, b, x, y) = if a < b { x } else { y };
        exp2(x) = exp2(x);
    }

    loads! {
        load_f16(f16) = f16::to_f32;
        load_bf16(bf16) = bf16::to_f32;
        load_fp8(Fp8E4m3) = |code: Fp8E4m3| code.to_f32() / FP8_UNIT;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; N] {
        // SAFETY: the caller guarantees it.
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: [f32; N]) {
        // SAFETY: the caller guarantees it.
        unsafe { to.cast::<[f32; N]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn split_bf16(self, from: *const u8) -> [[f32; N]; 2] {
        let (mut evens, mut odds) = ([0.0; N], [0.0; N]);
        for (i, (e, o)) in evens.iter_mut().zip(&mut odds).enumerate() {
            // SAFETY: the caller guarantees 2 * N elements.
            let [even, odd] = unsafe { at::<[bf16; 2]>(from, i) };
            (*e, *o) = (even.to_f32(), odd.to_f32());
        }
        [evens, odds]
    }

    #[inline(always)]
    unsafe fn split_fp8(self, from: *const u8) -> [[f32; N]; 2] {
        let (mut evens, mut odds) = ([0.0; N], [0.0; N]);
        for (i, (e, o)) in evens.iter_mut().zip(&mut odds).enumerate() {
            // SAFETY: the caller guarantees 2 * N elements.
            let [even, odd] = unsafe { at::<[Fp8E4m3; 2]>(from, i) };
            (*e, *o) = (even.to_f32() / FP8_UNIT, odd.to_f32() / FP8_UNIT);
        }
        [evens, odds]
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: [f32; N]) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller guarantees N elements.
            unsafe { to.cast::<f16>().add(i).write_unaligned(f16::from_f32(x)) };
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8, v: [f32; N]) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller guarantees N elements.
            unsafe { to.cast::<bf16>().add(i).write_unaligned(bf16::from_f32(x)) };
        }
    }

    #[inline(always)]
    fn sum(self, v: [f32; N]) -> f32 {
        // By halves, as vector units do.
        let mut v = v;
        let mut n = N / 2;
        while n > 0 {
            for i in 0..n {
                v[i] += v[i + n];
            }
            n /= 2;
        }
        v[0]
    }

    #[inline(always)]
    fn max_lane(self, v: [f32; N]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn sum8(self, v: [[f32; N]; 8]) -> [f32; 8] {
        v.map(|v| self.sum(v))
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const u32,
        from_stride: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        for row in 0..Self::TILE {
            for column in 0..Self::TILE {
                // SAFETY: the caller guarantees the block.
                let word = unsafe { from.add(row * from_stride + column).read() };
                // SAFETY: as above.
                unsafe { to.add(column * to_stride + row).write(word) };
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
}

#[inline(always)]
fn exp2(x: f32) -> f32 {
    if x < EXP2_MIN {
        return 0.0;
    }
    let n = x.round_ties_even();
    let f = x - n;
    let p = EXP2.into_iter().fold(0.0, |p, coefficient| p * f + coefficient);
    let p = p * f + 1.0;
    // NaN makes n 0, and p is NaN.
    f32::from_bits(p.to_bits().wrapping_add((n as i32 as u32) << 23))
}

impl<const N: usize> Bf16Dot for Lanes<N> {
    #[inline(always)]
    fn dot(self, acc: [f32; N], a: [f32; N], b: [f32; N]) -> [f32; N] {
        let mut out = acc;
        for (i, out) in out.iter_mut().enumerate() {
            let (a, b) = (a[i].to_bits(), b[i].to_bits());
            let high = f32::from_bits(a & 0xffff_0000) * f32::from_bits(b & 0xffff_0000);
            let low = f32::from_bits(a << 16) * f32::from_bits(b << 16);
            *out += high + low;
        }
        out
    }

    #[inline(always)]
    fn pair(self, lo: [f32; N], hi: [f32; N]) -> [f32; N] {
        let mut out = [0.0; N];
        for (i, out) in out.iter_mut().enumerate() {
            *out = f32::from_bits(lo[i].to_bits() >> 16 | hi[i].to_bits());
        }
        out
    }

    #[inline(always)]
    unsafe fn load_fp8_pairs(self, from: *const u8) -> [f32; N] {
        let mut out = [0.0; N];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller guarantees 2 * N elements.
            let [lo, hi] = unsafe { at::<[Fp8E4m3; 2]>(from, i) };
            *out = pair(lo.to_f32() / FP8_UNIT, hi.to_f32() / FP8_UNIT);
        }
        out
    }

    #[inline(always)]
    unsafe fn store_pairs(self, from: *const f32, to: *mut f32) {
        for i in 0..N {
            // SAFETY: the caller guarantees 2 * N numbers; those still to be read lie beyond i.
            let [lo, hi] = unsafe { at::<[f32; 2]>(from.cast(), i) };
            // SAFETY: the caller guarantees N words.
            unsafe { to.add(i).write(pair(lo, hi)) };
        }
    }
}

/// Two numbers rounded to bf16, in one word.
#[inline(always)]
fn pair(lo: f32, hi: f32) -> f32 {
    let half = |x| u32::from(bf16::from_f32(x).to_bits());
    f32::from_bits(half(lo) | half(hi) << 16)
}
