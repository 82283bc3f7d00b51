//! Number formats and approximations, from the PTX ISA's chapters on data types, `cvt` and
//! half-precision instructions.
//!
//! Rounding is done on the bits: what is cut off decides, ties go to even.

/// A pair's kind of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
}

const NAN_16: u16 = 0x7fff;

/// Rounded to nearest even; what is no number is the one NaN.
#[inline]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { NAN_16 } else { rounded as u16 }
}

/// Rounded towards zero: what does not fit is cut off.
pub(crate) fn f32_to_bf16_zero(x: f32) -> u16 {
    if x.is_nan() { NAN_16 } else { (x.to_bits() >> 16) as u16 }
}

#[inline]
pub(crate) fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Rounded to nearest even.
#[inline]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, size) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    // 65520, from where on numbers round to infinity.
    let finite = if size >= 0x477f_f000 {
        if size > 0x7f80_0000 { 0x7fff } else { 0x7c00 }
    } else if size < 0x3880_0000 {
        // Below 2^-14 the steps are 2^-24: that of f32 sums from 0.5 on.
        (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16
    } else {
        // The exponent's offset goes from 127 to 15.
        (size.wrapping_add(0xfff + (size >> 13 & 1)).wrapping_sub(112 << 23) >> 13) as u16
    };
    if size > 0x7f80_0000 { NAN_16 } else { sign | finite }
}

/// Rounded towards zero: what is too large is the largest.
pub(crate) fn f32_to_f16_zero(x: f32) -> u16 {
    let near = f32_to_f16(x);
    let is_beyond = f16_to_f32(near).abs() > x.abs();
    if is_beyond { near - 1 } else { near }
}

#[inline]
pub(crate) fn f16_to_f32(x: u16) -> f32 {
    let (sign, size) = (u32::from(x & 0x8000) << 16, u32::from(x & 0x7fff));
    // Exact, for subnormal numbers too: as if they were of f32, times 2^112.
    let scaled = f32::from_bits(size << 13) * f32::from_bits((127 + 112) << 23);
    let all = if size >= 0x7c00 { size << 13 | 0x7f80_0000 } else { scaled.to_bits() };
    f32::from_bits(sign | all)
}

/// A format of 8 bits by its exponent's and mantissa's bits.
struct Small {
    mantissa: i32,
    bias: i32,
    /// The largest finite one, and what is no number.
    largest: u8,
    nan: u8,
}
const E4M3: Small = Small { mantissa: 3, bias: 7, largest: 0x7e, nan: 0x7f };
const E5M2: Small = Small { mantissa: 2, bias: 15, largest: 0x7b, nan: 0x7f };

/// `.rn.satfinite`: to nearest even, what is too large is the largest.
fn to_small(x: f32, format: &Small) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    if x.is_nan() {
        return format.nan;
    }
    let size = x.abs();
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(1 - format.bias);
    // In steps of the last place, exact but for what is far below it.
    let steps =
        (f64::from(size) * f64::exp2(f64::from(format.mantissa - exponent))).round_ties_even();
    if steps >= 1e6 {
        return sign | format.largest;
    }
    let field = (exponent + format.bias - 1) << format.mantissa;
    let code = field + steps as i32;
    sign | code.min(i32::from(format.largest)) as u8
}

pub(crate) fn f32_to_e4m3(x: f32) -> u8 {
    to_small(x, &E4M3)
}

pub(crate) fn f32_to_e5m2(x: f32) -> u8 {
    to_small(x, &E5M2)
}

/// Exact. NaN is the one NaN of f16.
pub(crate) fn e4m3_to_f16(x: u8) -> u16 {
    let (sign, exponent, mantissa) =
        (u16::from(x & 0x80) << 8, u16::from(x >> 3 & 15), u16::from(x & 7));
    if x & 0x7f == 0x7f {
        return NAN_16;
    }
    if exponent > 0 {
        return sign | (exponent + 8) << 10 | mantissa << 7;
    }
    if mantissa == 0 {
        return sign;
    }
    // Subnormal: the leading one becomes the hidden one.
    let shift = mantissa.leading_zeros() as u16 - 12;
    sign | (9 - shift) << 10 | (mantissa << (7 + shift)) & 0x3ff
}

/// The upper byte of f16.
pub(crate) fn e5m2_to_f16(x: u8) -> u16 {
    let is_nan = x & 0x7f > 0x7c;
    if is_nan { NAN_16 } else { u16::from(x) << 8 }
}

// ---- pairs: each half is rounded once

#[inline]
fn to_f32(kind: Half, x: u16) -> f32 {
    match kind {
        Half::F16 => f16_to_f32(x),
        Half::Bf16 => bf16_to_f32(x),
    }
}
#[inline]
fn from_f32(kind: Half, x: f32) -> u16 {
    match kind {
        Half::F16 => f32_to_f16(x),
        Half::Bf16 => f32_to_bf16(x),
    }
}

/// a * b + c to f32, to odd: what does not fit sets the last bit, so that rounding again is as once.
fn fma_to_odd(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    // The product is exact. Of the sum, what is lost is known exactly (Knuth's two-sum).
    let sum = product + c;
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let near = sum as f32;
    if near.is_nan() || near.is_infinite() && sum.is_infinite() {
        return near;
    }
    let beyond = f64::from(near) - sum;
    // What the f32 lacks: beyond what f64 rounded too.
    let error = beyond - lost;
    if error == 0.0 || !near.is_finite() {
        return near;
    }
    let is_larger = (error > 0.0) == (near > 0.0 || near == 0.0 && !near.is_sign_negative());
    let truncated = if near == 0.0 { 0 } else { near.to_bits() - u32::from(is_larger) };
    let sign = if near == 0.0 && (error > 0.0) { 0x8000_0000 } else { 0 };
    f32::from_bits(truncated | 1 | sign)
}

fn half(op: PairOp, kind: Half, a: u16, b: u16, c: u16) -> u16 {
    let (x, y) = (to_f32(kind, a), to_f32(kind, b));
    match op {
        // Sums of f16 are exact in f32; those of bf16 may differ by more bits than it has.
        PairOp::Add => from_f32(kind, fma_to_odd(x, 1.0, y)),
        PairOp::Sub => from_f32(kind, fma_to_odd(y, -1.0, x)),
        // Products of 11 or 8 bits fit into 24, but where they are subnormal numbers of f32.
        PairOp::Mul => match kind {
            Half::F16 => from_f32(kind, x * y),
            Half::Bf16 => {
                let exact = fma_to_odd(x, y, 0.0);
                let is_zero = exact == 0.0;
                from_f32(kind, if is_zero { x * y } else { exact })
            }
        },
        PairOp::Fma => from_f32(kind, fma_to_odd(x, y, to_f32(kind, c))),
        PairOp::Min | PairOp::Max => match (x.is_nan(), y.is_nan()) {
            (true, true) => NAN_16,
            (true, false) => b,
            (false, true) => a,
            // -0 is less than +0.
            _ => {
                let is_less = x < y || x == y && x.is_sign_negative();
                if is_less == (op == PairOp::Min) { a } else { b }
            }
        },
    }
}

/// Of both halves.
pub(crate) fn pair(op: PairOp, kind: Half, a: u32, b: u32, c: u32) -> u32 {
    let low = half(op, kind, a as u16, b as u16, c as u16);
    let high = half(op, kind, (a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(low) | u32::from(high) << 16
}

// ---- approximations: the nearest number there is, which is within what the ISA allows

/// `.ftz`: subnormal numbers are zeros, with their sign.
fn flush(x: f32, ftz: bool) -> f32 {
    if ftz && x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

fn approximate(x: f32, ftz: bool, f: fn(f64) -> f64) -> f32 {
    canonical(flush(f(f64::from(flush(x, ftz))) as f32, ftz))
}

pub(crate) fn ex2(x: f32, ftz: bool) -> f32 {
    approximate(x, ftz, f64::exp2)
}
pub(crate) fn lg2(x: f32, ftz: bool) -> f32 {
    approximate(x, ftz, f64::log2)
}
pub(crate) fn rcp(x: f32, ftz: bool) -> f32 {
    approximate(x, ftz, f64::recip)
}
pub(crate) fn rsqrt(x: f32, ftz: bool) -> f32 {
    approximate(x, ftz, |x| if x == 0.0 { x.recip() } else { x.sqrt().recip() })
}
pub(crate) fn sqrt(x: f32, ftz: bool) -> f32 {
    approximate(x, ftz, f64::sqrt)
}
pub(crate) fn tanh(x: f32) -> f32 {
    approximate(x, false, f64::tanh)
}
