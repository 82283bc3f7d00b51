//! Every operation of every instruction set that this processor has, against plain definitions.
//!
//! A check is generic and inlined into a function with the set's features, as kernels are; one that
//! a compiler has folded for want of them would prove little. Memory lies against a page that may
//! not be touched, so that what reads or writes too far ends the test.

mod arithmetic;
mod loads;
mod pairs;
mod stores;

use std::ptr;

#[cfg(target_arch = "aarch64")]
use super::Neon;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512, Avx512Bf16};
use super::{MAX_LANES, Simd};
use super::{Portable, PortableBf16};
use crate::device::cpu::Isa;

/// Numbers with which rules begin or end.
const SPECIAL: [f32; 16] = [
    f32::NEG_INFINITY,
    f32::MIN,
    -2.5,
    -1.0,
    -f32::MIN_POSITIVE,
    // Subnormal.
    -1e-45,
    -0.0,
    0.0,
    1e-45,
    f32::MIN_POSITIVE,
    0.1,
    1.0,
    65520.0,
    f32::MAX,
    f32::INFINITY,
    f32::NAN,
];

/// Runs a check, which counts what it has compared, with one instruction set's features.
macro_rules! one {
    ($check:path, $isa:ident, #[$features:meta], $new:expr) => {{
        /// # Safety
        /// The processor has the features.
        #[$features]
        unsafe fn run() -> usize {
            $check($new)
        }

        if Isa::$isa.is_available() {
            // SAFETY: it has.
            let count = unsafe { run() };
            println!("{}: {count}", Isa::$isa);
            assert!(count > 0);
        } else {
            println!("skipped: this processor has no {}", Isa::$isa);
        }
    }};
}

/// Tests of one check each: on all instruction sets, or those with dot products of bf16.
macro_rules! tests {
    ($($name:ident = $check:path;)*) => {$(
        #[test]
        fn $name() {
            #[cfg(target_arch = "x86_64")]
            one!(
                $check, Avx2, #[target_feature(enable = "avx2,fma,f16c")],
                // SAFETY: the function has the features.
                unsafe { Avx2::new() }
            );
            #[cfg(target_arch = "x86_64")]
            one!(
                $check, Avx512,
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")],
                // SAFETY: as above.
                unsafe { Avx512::new() }
            );
            #[cfg(target_arch = "aarch64")]
            one!(
                $check, Neon, #[target_feature(enable = "neon")],
                // SAFETY: the function has the features.
                unsafe { Neon::new() }
            );
            one!($check, Portable, #[inline(never)], Portable::default());
            tests!(pairs $check);
        }
    )*};
    (pairs: $($name:ident = $check:path;)*) => {$(
        #[test]
        fn $name() {
            tests!(pairs $check);
        }
    )*};
    (pairs $check:path) => {
        #[cfg(target_arch = "x86_64")]
        one!(
            $check, Avx512Bf16,
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")],
            // SAFETY: the function has the features.
            unsafe { Avx512Bf16::new() }
        );
        one!($check, PortableBf16, #[inline(never)], PortableBf16::default());
    };
}

tests! {
    single_numbers_move_as_they_are = loads::single;
    every_f16_is_loaded = loads::half;
    every_bf16_is_loaded = loads::brain;
    every_fp8_is_loaded = loads::eight;
    fp8_loads_split = loads::split_eight;
    nan_is_found_in_fp8 = loads::nan_in_eight;
    some_elements_are_loaded = loads::some;
    f16_is_rounded = stores::half;
    bf16_is_rounded = stores::brain;
    blocks_are_transposed = stores::transpose;
    arithmetic_is_that_of_f32 = arithmetic::basic;
    comparisons_choose_as_documented = arithmetic::choices;
    powers_of_two_are_close = arithmetic::exp2;
    lanes_are_summed = arithmetic::sums;
    the_largest_lane_is_found = arithmetic::largest;
}
tests! { pairs:
    products_of_pairs_are_added = pairs::dot;
    halves_are_paired = pairs::pair;
    fp8_is_loaded_in_pairs = pairs::load;
    pairs_are_rounded_in_place = pairs::store;
}

/// Memory whose last byte is the last that may be touched.
struct Edge {
    start: *mut u8,
    len: usize,
    page: usize,
}

impl Edge {
    fn new() -> Self {
        // SAFETY: it only asks.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (len, access) = (page, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: new memory, wherever there is room.
        let start = unsafe { libc::mmap(ptr::null_mut(), len + page, access, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast::<u8>();
        // SAFETY: the last page of what was mapped.
        let refused = unsafe { libc::mprotect(start.add(len).cast(), page, libc::PROT_NONE) };
        assert_eq!(refused, 0);
        Self { start, len, page }
    }

    /// The last `n` bytes.
    fn last(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.len);
        // SAFETY: mapped, of any contents, borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.len - n), n) }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` in one piece.
        unsafe { libc::munmap(self.start.cast(), self.len + self.page) };
    }
}

/// A vector of the first `LANES` numbers.
#[inline(always)]
fn vector<S: Simd>(s: S, from: &[f32]) -> S::V {
    assert!(from.len() >= S::LANES);
    // SAFETY: checked.
    unsafe { s.load(from.as_ptr()) }
}

/// The numbers of a vector; beyond them 0.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; MAX_LANES] {
    let mut all = [0.0; MAX_LANES];
    // SAFETY: no vector is wider.
    unsafe { s.store(all.as_mut_ptr(), v) };
    all
}

/// Whether bits are the same, or both are NaN.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// The number of a code by its definition: a sign, an exponent, and `fraction` bits.
///
/// Exponents of all ones are infinity and NaN, but for e4m3, where all ones is NaN.
fn decode(code: u32, exponent: u32, fraction: u32) -> f64 {
    let sign = if code >> (exponent + fraction) & 1 == 1 { -1.0 } else { 1.0 };
    let (e, f) = (code >> fraction & ((1 << exponent) - 1), code & ((1 << fraction) - 1));
    let (top, full) = (e == (1 << exponent) - 1, f == (1 << fraction) - 1);
    let eight = exponent == 4;
    if top && if eight { full } else { f != 0 } {
        return f64::NAN;
    }
    if top && !eight {
        return sign * f64::INFINITY;
    }
    let bias = (1 << (exponent - 1)) - 1;
    let leading = if e == 0 { 0 } else { 1 << fraction };
    let power = e.max(1) as i32 - bias - fraction as i32;
    sign * f64::from(leading + f) * 2_f64.powi(power)
}

fn decode_f16(code: u32) -> f32 {
    decode(code, 5, 10) as f32
}

fn decode_bf16(code: u32) -> f32 {
    decode(code, 8, 7) as f32
}

fn decode_fp8(code: u8) -> f32 {
    decode(code.into(), 4, 3) as f32
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x >> 32) as u32
    }

    /// A number of [-1, 1).
    fn number(&mut self) -> f32 {
        (self.bits() as i32) as f32 / 2_f32.powi(31)
    }
}
