//! What the kernels that move rows share: conversions that every instruction set vectorises, the
//! choice of instruction set, and the split of work among threads.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::cpu::{Cpu, Isa};
use crate::error::{Error, Result};
use crate::kernels::DType;
use crate::kernels::tensor::{Element, Fp8E4m3};

/// Copying fewer bytes than this, read and written, takes less than it takes to wake a thread:
/// 15 microseconds and more.
const INLINE_BYTES: usize = 1 << 20;

/// Bytes that are copied while one is converted.
pub(super) const CONVERTED: usize = 4;

/// Parts a thread: some are slower than others.
const PARTS: usize = 4;

/// Calls `part` on ranges that make up `0..items`, on the pool's threads; on the caller's when
/// `bytes`, what is read and written in all, are few. Converted bytes count [`CONVERTED`] times.
///
/// # Errors
/// [`Error::Forked`], and nothing was called.
pub(super) fn split(
    cpu: &Cpu,
    items: usize,
    bytes: usize,
    part: impl Fn(Range<usize>) + Sync,
) -> Result<()> {
    let pool = cpu.pool()?;
    if bytes < INLINE_BYTES || items <= 1 {
        part(0..items);
        return Ok(());
    }
    let parts = cpu.threads().saturating_mul(PARTS).min(items);
    let bound = |i: usize| items / parts * i + (items % parts).min(i);
    pool.install(|| {
        (0..parts).into_par_iter().with_max_len(1).for_each(|i| part(bound(i)..bound(i + 1)));
    });
    Ok(())
}

/// Refuses elements at odd addresses, as memory of another language may be.
pub(super) fn check_aligned(field: &'static str, data: *const u8, dtype: DType) -> Result<()> {
    if data.addr().is_multiple_of(dtype.size()) {
        return Ok(());
    }
    Err(Error::argument(field, format!("is not aligned to an element of {dtype}")))
}

/// A piece of work that is compiled once for every instruction set.
///
/// `run`, and all that it calls in a hot loop, is `#[inline(always)]` and free of closures: what is
/// not inlined is compiled without the instructions. Rust never fuses a product and a sum by
/// itself, so all instruction sets give the same bits.
pub(super) trait Task {
    fn run(self);
}

/// Runs `task` with the instructions of `isa`, which this processor has.
pub(super) fn run_on<T: Task>(isa: Isa, task: T) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` has no instruction set that the processor lacks.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { run_avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { run_avx2(task) },
        // NEON is in every aarch64 that Rust compiles for.
        _ => task.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<T: Task>(task: T) {
    task.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<T: Task>(task: T) {
    task.run();
}

/// An element that kernels compute with in f32.
///
/// No branches: loops over these vectorise. The instructions for f16 and bf16 are not used: those
/// of bf16 flush subnormals.
pub(super) trait Number: Element {
    /// Exact; a signalling NaN may become quiet.
    fn widen(self) -> f32;

    /// Rounds to nearest, ties to even. A NaN becomes the positive quiet one, since which one
    /// arithmetic gives is the compiler's choice; in fp8 it keeps its sign.
    fn narrow(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { value }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        Self::from_bits(((if value.is_nan() { 0x7fc0_0000 } else { rounded }) >> 16) as u16)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = i32::from(self.to_bits());
        let magnitude = bits & 0x7fff;
        // The exponent's bias is 15 here and 127 there, its largest 31 here and 255 there.
        let normal = (magnitude << 13) + (112 << 23);
        let special = if magnitude >= 0x7c00 { 112 << 23 } else { 0 };
        // Subnormals: one more exponent up a leading 1 is there, and is taken away again.
        let small = f32::from_bits((normal + (1 << 23)) as u32) - f32::from_bits(113 << 23);
        let number = if magnitude < 0x0400 { small.to_bits() as i32 } else { normal + special };
        f32::from_bits((number | (bits & 0x8000) << 16) as u32)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let sign = value.to_bits() >> 16 & 0x8000;
        let bits = (value.to_bits() & 0x7fff_ffff) as i32;
        // From 65520 on the nearest is infinity, which 65536 is in these bits.
        let bounded = bits.min(65536_f32.to_bits() as i32);
        let normal = (bounded + 0x0fff + (bounded >> 13 & 1) - (112 << 23)) >> 13;
        // Below 2^-14 steps are 2^-24: adding 1/2 leaves just those, rounded.
        let sum = f32::from_bits(bounded as u32) + 0.5;
        let small = sum.to_bits() as i32 - 0.5_f32.to_bits() as i32;
        let number = if bounded < (127 - 14) << 23 { small } else { normal };
        let number = (number | sign as i32) as u16;
        Self::from_bits(if value.is_nan() { 0x7e00 } else { number })
    }
}

impl Number for Fp8E4m3 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Widens a row; both are as long.
#[inline(always)]
pub(super) fn widen<S: Number>(src: &[S], out: &mut [f32]) {
    for (out, &number) in out.iter_mut().zip(src) {
        *out = number.widen();
    }
}
