//! Numbers as PTX has them: the 16-bit and 8-bit formats, conversions between them and f32, the
//! arithmetic of two halves at once, and the approximations (`ex2.approx` and its like).
//!
//! What runs often has no branch, so that a loop over the lanes of a warp becomes vector
//! instructions.
//!
//! Where the ISA leaves a NaN's payload open, the canonical NaN of the type comes out.

#[cfg(test)]
mod tests;

mod pairs;
pub(crate) use pairs::{Half, PairOp, pair};

/// The canonical NaN of f16 and of bf16.
pub(crate) const NAN_16: u16 = 0x7fff;
/// The NaN of e4m3, and the canonical one of e5m2.
pub(crate) const NAN_8: u8 = 0x7f;

/// The canonical NaN of f32.
const NAN_BITS: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

/// How a result that the format cannot hold is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// `.rn`: to the nearest value, ties to the even one.
    Nearest,
    /// `.rz`
    Zero,
    /// `.rp`
    Up,
    /// `.rm`
    Down,
}

/// `magnitude` (an f32 without its sign) rounded to nearest in a format of `MANTISSA` bits and
/// `BIAS`. Beyond the format's range the exponent goes on growing: the caller cuts it off.
#[inline(always)]
fn nearest<const MANTISSA: u32, const BIAS: u32>(magnitude: u32) -> u32 {
    let shift = 23 - MANTISSA;
    let half = (1 << (shift - 1)) - 1 + (magnitude >> shift & 1);
    let normal = (magnitude + half).wrapping_sub((127 - BIAS) << 23) >> shift;
    // The addition rounds: the last bit of an f32 of this size is worth one subnormal step.
    let size = f32::from_bits((127 + 24 - BIAS - MANTISSA) << 23);
    let subnormal = (f32::from_bits(magnitude) + size).to_bits().wrapping_sub(size.to_bits());
    if magnitude < (128 - BIAS) << 23 { subnormal } else { normal }
}

/// `magnitude` in f16, cut off, and whether something was.
fn truncated_to_f16(magnitude: u32) -> (u32, bool) {
    if magnitude >= INFINITY {
        return (0x7c00, false);
    }
    if magnitude >= 0x4780_0000 {
        return (0x7bff, true); // 2^16 and more: the largest finite value
    }
    let exponent = magnitude >> 23;
    let (significand, drop) = match exponent {
        113.. => (magnitude - (112 << 23), 13),
        1.. => (magnitude & 0x7f_ffff | 0x80_0000, (126 - exponent).min(31)),
        0 => (magnitude, 31),
    };
    (significand >> drop, significand & ((1 << drop) - 1) != 0)
}

/// `cvt.bf16.f32`
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32, round: Round) -> u16 {
    let bits = x.to_bits();
    let away = match round {
        Round::Nearest => 0x7fff + (bits >> 16 & 1),
        Round::Zero => 0,
        Round::Up => (1 - (bits >> 31)) * 0xffff,
        Round::Down => (bits >> 31) * 0xffff,
    };
    if bits & 0x7fff_ffff > INFINITY { NAN_16 } else { (bits.wrapping_add(away) >> 16) as u16 }
}

/// `cvt.f32.bf16`
#[inline(always)]
pub(crate) fn bf16_to_f32(x: u16) -> f32 {
    // Selected as an integer, as everywhere here: the compiler may give a float NaN any payload.
    f32::from_bits(if x & 0x7fff > 0x7f80 { NAN_BITS } else { u32::from(x) << 16 })
}

/// `cvt.f16.f32`
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32, round: Round) -> u16 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let sign = x.to_bits() >> 31;
    let rounded = match round {
        Round::Nearest => {
            let near = nearest::<10, 15>(magnitude);
            if magnitude >= 0x4780_0000 { 0x7c00 } else { near }
        }
        Round::Zero | Round::Up | Round::Down => {
            let (kept, inexact) = truncated_to_f16(magnitude);
            let away = round == Round::Up && sign == 0 || round == Round::Down && sign == 1;
            kept + u32::from(inexact && away)
        }
    };
    if magnitude > INFINITY { NAN_16 } else { (sign << 15 | rounded) as u16 }
}

/// `cvt.f32.f16`
#[inline(always)]
pub(crate) fn f16_to_f32(x: u16) -> f32 {
    let sign = (u32::from(x) & 0x8000) << 16;
    let magnitude = u32::from(x) & 0x7fff;
    let normal = (magnitude << 13) + (112 << 23);
    // A subnormal's digits below those of 2^-14, which is then taken away.
    let least = 113 << 23;
    let subnormal = (f32::from_bits(least | magnitude << 13) - f32::from_bits(least)).to_bits();
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    let value = if magnitude < 0x7c00 { finite } else { INFINITY };
    f32::from_bits(if magnitude > 0x7c00 { NAN_BITS } else { sign | value })
}

/// `cvt.rn.satfinite.e4m3x2.f32`, one half. The ISA leaves the sign of a NaN open.
#[inline(always)]
pub(crate) fn f32_to_e4m3(x: f32) -> u8 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let rounded = nearest::<3, 7>(magnitude).min(0x7e);
    if magnitude > INFINITY { NAN_8 } else { (x.to_bits() >> 24 & 0x80 | rounded) as u8 }
}

/// `cvt.rn.satfinite.e5m2x2.f32`, one half.
#[inline(always)]
pub(crate) fn f32_to_e5m2(x: f32) -> u8 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let rounded = nearest::<2, 15>(magnitude).min(0x7b);
    if magnitude > INFINITY { NAN_8 } else { (x.to_bits() >> 24 & 0x80 | rounded) as u8 }
}

/// The value of an e4m3, which has no infinity, and one NaN of either sign.
#[inline(always)]
pub(crate) fn e4m3_to_f32(x: u8) -> f32 {
    let sign = (u32::from(x) & 0x80) << 24;
    let magnitude = u32::from(x) & 0x7f;
    let normal = (magnitude << 20) + (120 << 23);
    let subnormal = (magnitude as f32 * (1.0 / 512.0)).to_bits();
    let finite = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(if magnitude == 0x7f { NAN_BITS } else { sign | finite })
}

/// The value of an e5m2: the upper half of an f16.
#[inline(always)]
pub(crate) fn e5m2_to_f32(x: u8) -> f32 {
    f16_to_f32(u16::from(x) << 8)
}

/// `cvt.rn.f16x2.e4m3x2`, one half.
#[inline(always)]
pub(crate) fn e4m3_to_f16(x: u8) -> u16 {
    f32_to_f16(e4m3_to_f32(x), Round::Nearest)
}

/// `cvt.rn.f16x2.e5m2x2`, one half.
#[inline(always)]
pub(crate) fn e5m2_to_f16(x: u8) -> u16 {
    if x & 0x7f > 0x7c { NAN_16 } else { u16::from(x) << 8 }
}

/// `x`, or the canonical NaN where it is any NaN.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > INFINITY { NAN_BITS } else { bits })
}

/// A subnormal number becomes the zero of its sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & INFINITY == 0 { bits & 0x8000_0000 } else { bits })
}

/// A double result in f32, rounded to nearest; a NaN is the canonical one.
#[inline(always)]
fn result(x: f64, ftz: bool) -> f32 {
    let rounded = canonical(x as f32);
    if ftz { flush(rounded) } else { rounded }
}

#[inline(always)]
fn operand(x: f32, ftz: bool) -> f64 {
    f64::from(if ftz { flush(x) } else { x })
}

/// `ex2.approx`: the nearest f32 to 2^x, but for one result in 10^6 or fewer; the ISA allows 2 ulp.
#[inline(always)]
pub(crate) fn ex2(x: f32, ftz: bool) -> f32 {
    /// ln(2)^n / n!: the series of 2^f, whose rest is below 10^-14 for |f| <= 1/2.
    const SERIES: [f64; 12] = {
        let mut series = [1.0; 12];
        let mut n = 1;
        while n < 12 {
            series[n] = series[n - 1] * std::f64::consts::LN_2 / n as f64;
            n += 1;
        }
        series
    };
    /// Adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 1.5 * (1u64 << 52) as f64;
    // Beyond these the result is 0 or infinity. A NaN is put back at the end.
    let within = f64::from(x).clamp(-200.0, 200.0);
    let shifted = within + SHIFT;
    let fraction = within - (shifted - SHIFT);
    let mut sum = SERIES[11];
    for n in (0..11).rev() {
        sum = sum * fraction + SERIES[n];
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let rounded = (sum * power) as f32;
    let kept = if ftz { flush(rounded) } else { rounded };
    let nan = x.to_bits() & 0x7fff_ffff > INFINITY;
    f32::from_bits(if nan { NAN_BITS } else { kept.to_bits() })
}

/// `lg2.approx`
pub(crate) fn lg2(x: f32, ftz: bool) -> f32 {
    result(operand(x, ftz).log2(), ftz)
}

/// `rcp.approx`
#[inline(always)]
pub(crate) fn rcp(x: f32, ftz: bool) -> f32 {
    result(1.0 / operand(x, ftz), ftz)
}

/// `rsqrt.approx`
#[inline(always)]
pub(crate) fn rsqrt(x: f32, ftz: bool) -> f32 {
    result(1.0 / operand(x, ftz).sqrt(), ftz)
}

/// `sqrt.approx`
#[inline(always)]
pub(crate) fn sqrt(x: f32, ftz: bool) -> f32 {
    result(operand(x, ftz).sqrt(), ftz)
}

/// `sin.approx`, which on a device errs by up to 2^-20.9 within a few periods.
#[allow(dead_code, reason = "an instruction that no kernel has yet")]
pub(crate) fn sin(x: f32, ftz: bool) -> f32 {
    result(operand(x, ftz).sin(), ftz)
}

/// `cos.approx`
#[allow(dead_code, reason = "an instruction that no kernel has yet")]
pub(crate) fn cos(x: f32, ftz: bool) -> f32 {
    result(operand(x, ftz).cos(), ftz)
}

/// `tanh.approx.f32`, which has no `.ftz`; on a device its relative error is up to 2^-11.
pub(crate) fn tanh(x: f32) -> f32 {
    result(f64::from(x).tanh(), false)
}
