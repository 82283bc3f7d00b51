//! Vectors of f32, one type an instruction set.
//!
//! A value of a [`Simd`] type proves that the processor has the instructions: it is made in one
//! place, the [dispatch](super::dispatch), after asking. Arithmetic is therefore safe; loads and
//! stores are not. Everything is `inline(always)`, so that it is compiled with the features of the
//! function it ends up in.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one proof for a few intrinsics")]

/// Defines methods of vectors, each one instruction or a few.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! ops {
    ($($name:ident($($arg:ident),*) = $op:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: `self` proves the feature.
            unsafe { $op }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::{Portable, PortableBf16};

/// Coefficients of 2^f on [-0.5, 0.5], highest power first, after which comes 1 (Cephes, exp2f).
const EXP2: [f32; 6] =
    [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1];

/// Below this 2^x is taken to be 0: f32's normal numbers end.
const EXP2_MIN: f32 = -126.0;

/// A vector instruction set.
pub(crate) trait Simd: Copy {
    /// A vector.
    type V: Copy;

    /// Numbers per vector; at most [`MAX_LANES`].
    const LANES: usize;

    /// Rows and columns of the blocks that [`transpose`](Self::transpose) takes.
    const TILE: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;

    /// Loads a vector.
    ///
    /// # Safety
    /// `LANES` numbers can be read at `from`.
    unsafe fn load(self, from: *const f32) -> Self::V;

    /// Stores a vector.
    ///
    /// # Safety
    /// `LANES` numbers can be written at `to`.
    unsafe fn store(self, to: *mut f32, v: Self::V);

    /// Loads `LANES` numbers of f16.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_f16(self, from: *const u8) -> Self::V;

    /// Loads `LANES` numbers of bf16.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_bf16(self, from: *const u8) -> Self::V;

    /// Loads `LANES` numbers of e4m3, each divided by [`FP8_UNIT`].
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_fp8(self, from: *const u8) -> Self::V;

    /// Loads `2 * LANES` numbers of bf16: those of even places, and those of odd ones. Cheaper than
    /// two vectors in order.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn split_bf16(self, from: *const u8) -> [Self::V; 2];

    /// Like [`split_bf16`](Self::split_bf16), of e4m3, each divided by [`FP8_UNIT`].
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn split_fp8(self, from: *const u8) -> [Self::V; 2];

    /// [`split_fp8`](Self::split_fp8) of numbers among which there is no NaN.
    ///
    /// # Safety
    /// They can be read at `from`.
    #[inline(always)]
    unsafe fn split_finite_fp8(self, from: *const u8) -> [Self::V; 2] {
        // SAFETY: the caller guarantees it.
        unsafe { self.split_fp8(from) }
    }

    /// Whether there is a NaN among `n` numbers of e4m3.
    ///
    /// # Safety
    /// They can be read at `from`.
    #[inline(always)]
    unsafe fn any_nan_fp8(self, from: *const u8, n: usize) -> bool {
        let mut any = false;
        for i in 0..n {
            // SAFETY: the caller guarantees it.
            any |= unsafe { *from.add(i) } & 0x7f == 0x7f;
        }
        any
    }

    /// Rounds to f16 and stores `LANES` numbers.
    ///
    /// # Safety
    /// They can be written at `to`.
    unsafe fn store_f16(self, to: *mut u8, v: Self::V);

    /// Rounds to bf16 and stores `LANES` numbers.
    ///
    /// # Safety
    /// They can be written at `to`.
    unsafe fn store_bf16(self, to: *mut u8, v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y`.
    fn where_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;

    /// 2^x to a few units in the last place, for x up to 127; 0 below -126.
    fn exp2(self, x: Self::V) -> Self::V;

    /// The sum of all lanes.
    fn sum(self, v: Self::V) -> f32;

    /// The largest lane.
    fn max_lane(self, v: Self::V) -> f32;

    /// The sum of each one's lanes.
    fn sum8(self, v: [Self::V; 8]) -> [f32; 8];

    /// Writes the transpose of a block of `TILE` x `TILE` words; strides in words.
    ///
    /// # Safety
    /// The block can be read at `from` and written at `to`.
    unsafe fn transpose(self, from: *const u32, from_stride: usize, to: *mut u32, to_stride: usize);

    /// Brings a cache line near.
    fn prefetch(self, at: *const u8);
}

/// Dot products of pairs of bf16, summed in f32.
pub(crate) trait Bf16Dot: Simd {
    /// Adds to each lane of `acc` the products of the two bf16 in that lane of `a` and `b`.
    fn dot(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// Puts two numbers that are bf16 already into the lower and upper halves of each lane.
    fn pair(self, lo: Self::V, hi: Self::V) -> Self::V;

    /// Loads `2 * LANES` numbers of e4m3 as pairs of bf16.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_fp8_pairs(self, from: *const u8) -> Self::V;

    /// Rounds `2 * LANES` numbers to bf16 and stores them as pairs, in order; in place is fine.
    ///
    /// # Safety
    /// They can be read at `from` and written at `to`.
    unsafe fn store_pairs(self, from: *const f32, to: *mut f32);
}

/// What [`Simd::load_fp8`] leaves out: e4m3 bits in f16's places are the number by this.
pub(crate) const FP8_UNIT: f32 = 256.0;

/// The widest vector there is.
pub(crate) const MAX_LANES: usize = 16;

/// The type of a cache's elements, as kernels read it.
pub(crate) trait KvElement: Copy {
    /// Bytes.
    const SIZE: usize;

    /// Loads give the number divided by this.
    const UNIT: f32;

    /// Whether [`load_two`](Self::load_two) gives elements of even places, then those of odd ones.
    const SPLIT: bool;

    /// Loads `2 * S::LANES` elements.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load_two<S: Simd>(s: S, from: *const u8) -> [S::V; 2];

    /// Loads `S::LANES` elements.
    ///
    /// # Safety
    /// They can be read at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::V;

    /// Loads `n` elements, fewer than `S::LANES`; the other lanes are 0.
    ///
    /// # Safety
    /// `n` elements can be read at `from`.
    #[inline(always)]
    unsafe fn load_some<S: Simd>(s: S, from: *const u8, n: usize) -> S::V {
        let mut all = [0_u32; MAX_LANES];
        let bytes = n.min(S::LANES) * Self::SIZE;
        // SAFETY: the caller guarantees the source; 16 words hold 16 elements of any size.
        unsafe { std::ptr::copy_nonoverlapping(from, all.as_mut_ptr().cast(), bytes) };
        // SAFETY: as above.
        unsafe { Self::load(s, all.as_ptr().cast()) }
    }
}

macro_rules! kv_element {
    ($($(#[$doc:meta])* $name:ident: $size:expr, $unit:expr, $load:ident $(, $split:ident)?;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl KvElement for $name {
            const SIZE: usize = $size;
            const UNIT: f32 = $unit;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::V {
                // SAFETY: the caller guarantees it.
                unsafe { s.$load(from.cast()) }
            }

            kv_element!(two $load $($split)?);
        }
    )*};
    (two $load:ident) => {
        const SPLIT: bool = false;

        #[inline(always)]
        unsafe fn load_two<S: Simd>(s: S, from: *const u8) -> [S::V; 2] {
            // SAFETY: the caller guarantees both.
            unsafe { [Self::load(s, from), Self::load(s, from.add(S::LANES * Self::SIZE))] }
        }
    };
    (two $load:ident $split:ident) => {
        const SPLIT: bool = true;

        #[inline(always)]
        unsafe fn load_two<S: Simd>(s: S, from: *const u8) -> [S::V; 2] {
            // SAFETY: the caller guarantees it.
            unsafe { s.$split(from) }
        }
    };
}
kv_element! {
    /// binary32.
    F32: 4, 1.0, load;
    /// binary16.
    F16: 2, 1.0, load_f16;
    /// bfloat16.
    Bf16: 2, 1.0, load_bf16, split_bf16;
    /// e4m3.
    Fp8: 1, FP8_UNIT, load_fp8, split_fp8;
    /// e4m3 without NaN.
    FiniteFp8: 1, FP8_UNIT, load_fp8, split_finite_fp8;
}
