//! Arithmetic of two halves in a register: `add.f16x2`, `fma.rn.bf16x2` and their like.

use super::{Round, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// The type of the two halves of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// `.f16x2`
    F16,
    /// `.bf16x2`
    Bf16,
}

/// What is done with both halves; all round to nearest even, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairOp {
    /// `add`
    Add,
    /// `sub`
    Sub,
    /// `mul`
    Mul,
    /// `fma`
    Fma,
    /// `min`: the other operand where one is NaN; -0 is below +0.
    Min,
    /// `max`
    Max,
}

/// What differs between the two types.
trait Format {
    fn value(bits: u16) -> f32;
    fn round(x: f32) -> u16;
}

struct F16;
struct Bf16;

impl Format for F16 {
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        f16_to_f32(bits)
    }
    #[inline(always)]
    fn round(x: f32) -> u16 {
        f32_to_f16(x, Round::Nearest)
    }
}

impl Format for Bf16 {
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        bf16_to_f32(bits)
    }
    #[inline(always)]
    fn round(x: f32) -> u16 {
        f32_to_bf16(x, Round::Nearest)
    }
}

/// `x` in f32, rounded to odd: cut off, with the last bit set where something was cut off. Rounding
/// that to a format of 22 bits or fewer gives what rounding `x` itself does.
#[inline(always)]
fn odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    let cut = near.to_bits().wrapping_sub(u32::from(back.abs() > x.abs()));
    f32::from_bits(cut | u32::from(back != x))
}

/// The exact product plus `c`, rounded to odd in f64.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f64 {
    // Exact: 22 bits at most, and the exponents of f64 reach far beyond.
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // What the addition left out, exactly (Knuth's sum of two).
    let of_c = sum - product;
    let rest = (product - (sum - of_c)) + (c - of_c);
    let bits = sum.to_bits();
    let even = bits & 1 == 0;
    // The odd neighbour is the next one towards the rest. (A NaN or an infinity has a NaN rest.)
    let away = (rest > 0.0) == (sum > 0.0);
    let neighbour = if away { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    f64::from_bits(if even && rest.abs() > 0.0 { neighbour } else { bits })
}

#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    let first = if a == b { a.is_sign_negative() } else { a < b };
    if b.is_nan() || first { a } else { b }
}

#[inline(always)]
fn one<F: Format>(op: PairOp, a: u16, b: u16, c: u16) -> u16 {
    let (x, y) = (F::value(a), F::value(b));
    match op {
        // In f32 these round innocently: it has more than twice the digits, and its sums of
        // subnormal halves are exact.
        PairOp::Add => F::round(x + y),
        PairOp::Sub => F::round(x - y),
        // Exact in f32; but for products of bf16 below 2^-134, which become 0.
        PairOp::Mul => F::round(x * y),
        PairOp::Fma => F::round(odd(fused(x, y, F::value(c)))),
        PairOp::Min => F::round(least(x, y)),
        PairOp::Max => F::round(-least(-x, -y)),
    }
}

#[inline(always)]
fn both<F: Format>(op: PairOp, a: u32, b: u32, c: u32) -> u32 {
    let high = one::<F>(op, (a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(high) << 16 | u32::from(one::<F>(op, a as u16, b as u16, c as u16))
}

/// `op` of the two halves; operands that it does not have are not looked at. A caller's `op` and `kind`
/// are constants: no branch is left.
#[inline(always)]
pub(crate) fn pair(op: PairOp, kind: Half, a: u32, b: u32, c: u32) -> u32 {
    match kind {
        Half::F16 => both::<F16>(op, a, b, c),
        Half::Bf16 => both::<Bf16>(op, a, b, c),
    }
}
