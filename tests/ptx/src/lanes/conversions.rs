//! `cvt`: from one type to another.

use super::Function::{self, Narrow, One, OneDouble, Two, Widen};
use super::{Doubles, Words, bits, f, s, s16, s64};
use crate::numbers::{self, Round};

fn float_to(x: u32, rounded: fn(f32) -> f32, low: f32, high: f32) -> f32 {
    let x = rounded(f(x));
    if x.is_nan() { 0.0 } else { x.clamp(low, high) }
}

fn half_to(x: u32) -> u32 {
    bits(numbers::f16_to_f32(x as u16))
}
fn to_f16(x: u32) -> u32 {
    u32::from(numbers::f32_to_f16(f(x), Round::Nearest))
}
fn to_bf16(x: u32) -> u32 {
    u32::from(numbers::f32_to_bf16(f(x), Round::Nearest))
}

/// What a `cvt` computes.
pub(super) fn function(opcode: &str) -> Option<Function> {
    Some(match opcode.strip_prefix("cvt.")? {
        "u32.u16" | "s32.u16" | "u16.u16" | "u32.u32" | "s32.s32" | "u32.s32" | "s32.u32" => {
            one!(x => x)
        }
        "u16.u32" | "s16.s32" | "u16.s32" | "s16.u32" => one!(x => x & 0xffff),
        "u32.s16" | "s32.s16" => one!(x => s16(x) as u32),
        "u32.u8" | "s32.u8" | "u16.u8" => one!(x => x & 0xff),
        "s32.s8" | "u32.s8" => one!(x => x as i8 as i32 as u32),
        "s16.s8" | "u16.s8" => one!(x => x as i8 as i32 as u32 & 0xffff),
        "u8.u16" | "u8.u32" => one!(x => x & 0xff),
        "u64.u32" | "s64.u32" | "u64.u16" | "s64.u16" => widen!(x => u64::from(x)),
        "s64.s32" | "u64.s32" => widen!(x => i64::from(s(x)) as u64),
        "s64.s16" | "u64.s16" => widen!(x => i64::from(s16(x)) as u64),
        "u64.u8" | "s64.u8" => widen!(x => u64::from(x & 0xff)),
        "u32.u64" | "s32.s64" | "u32.s64" | "s32.u64" => narrow!(x => x as u32),
        "u16.u64" | "u16.s64" | "s16.s64" => narrow!(x => x as u32 & 0xffff),
        "u64.u64" | "s64.s64" | "u64.s64" | "s64.u64" => one64!(x => x),
        "rn.f32.s32" => one!(x => (s(x) as f32).to_bits()),
        "rn.f32.u32" => one!(x => (x as f32).to_bits()),
        "rn.f32.s16" => one!(x => (s16(x) as f32).to_bits()),
        "rn.f32.u16" => one!(x => (x as f32).to_bits()),
        "rn.f32.u64" => narrow!(x => (x as f32).to_bits()),
        "rn.f32.s64" => narrow!(x => (s64(x) as f32).to_bits()),
        // What does not fit is the nearest that does; NaN is 0.
        "rzi.s32.f32" => {
            one!(x => float_to(x, f32::trunc, -2_147_483_648.0, 2_147_483_648.0) as i32 as u32)
        }
        "rzi.u32.f32" => one!(x => float_to(x, f32::trunc, 0.0, 4_294_967_296.0) as u32),
        "rni.s32.f32" => {
            one!(x => float_to(x, f32::round_ties_even, -2_147_483_648.0, 2_147_483_648.0) as i32 as u32)
        }
        "rmi.s32.f32" => {
            one!(x => float_to(x, f32::floor, -2_147_483_648.0, 2_147_483_648.0) as i32 as u32)
        }
        "rpi.s32.f32" => {
            one!(x => float_to(x, f32::ceil, -2_147_483_648.0, 2_147_483_648.0) as i32 as u32)
        }
        "f32.f16" => one!(x => half_to(x)),
        "f32.bf16" => one!(x => bits(numbers::bf16_to_f32(x as u16))),
        "rn.f16.f32" => one!(x => to_f16(x)),
        "rn.bf16.f32" => one!(x => to_bf16(x)),
        // The first operand is the upper half.
        "rn.f16x2.f32" => two!(x, y => to_f16(x) << 16 | to_f16(y)),
        "rn.bf16x2.f32" => two!(x, y => to_bf16(x) << 16 | to_bf16(y)),
        "rz.f16x2.f32" => two!(x, y => {
            u32::from(numbers::f32_to_f16(f(x), Round::Zero)) << 16 | u32::from(numbers::f32_to_f16(f(y), Round::Zero))
        }),
        "rz.bf16x2.f32" => two!(x, y => {
            u32::from(numbers::f32_to_bf16(f(x), Round::Zero)) << 16 | u32::from(numbers::f32_to_bf16(f(y), Round::Zero))
        }),
        "rn.satfinite.e4m3x2.f32" => two!(x, y => {
            u32::from(numbers::f32_to_e4m3(f(x))) << 8 | u32::from(numbers::f32_to_e4m3(f(y)))
        }),
        "rn.satfinite.e5m2x2.f32" => two!(x, y => {
            u32::from(numbers::f32_to_e5m2(f(x))) << 8 | u32::from(numbers::f32_to_e5m2(f(y)))
        }),
        "rn.f16x2.e4m3x2" => one!(x => {
            u32::from(numbers::e4m3_to_f16((x >> 8) as u8)) << 16
                | u32::from(numbers::e4m3_to_f16(x as u8))
        }),
        "rn.f16x2.e5m2x2" => one!(x => {
            u32::from(numbers::e5m2_to_f16((x >> 8) as u8)) << 16
                | u32::from(numbers::e5m2_to_f16(x as u8))
        }),
        _ => return None,
    })
}
