//! What instructions do that only compute: one table from opcodes to functions of a warp's lanes.
//!
//! From the PTX ISA's chapters on integer, logic, comparison, floating-point, half-precision and
//! data movement instructions. Registers of 8 and 16 bits are kept in words whose upper bits are 0.

use crate::numbers::{self, Half, PairOp};

/// A register of 32 bits, of all lanes; of the same memory alignment as what vectorises.
pub(crate) type Words = [u32; 32];
/// A register of 64 bits.
pub(crate) type Doubles = [u64; 32];

/// What an opcode computes, by the widths of its operands.
#[derive(Clone, Copy)]
pub(crate) enum Function {
    One(fn(&Words) -> Words),
    Two(fn(&Words, &Words) -> Words),
    Three(fn(&Words, &Words, &Words) -> Words),
    OneDouble(fn(&Doubles) -> Doubles),
    TwoDouble(fn(&Doubles, &Doubles) -> Doubles),
    ThreeDouble(fn(&Doubles, &Doubles, &Doubles) -> Doubles),
    /// 64 bits by a number of 32: shifts.
    DoubleBy(fn(&Doubles, &Words) -> Doubles),
    Widen(fn(&Words) -> Doubles),
    WidenTwo(fn(&Words, &Words) -> Doubles),
    /// 32 x 32 + 64.
    WidenThree(fn(&Words, &Words, &Doubles) -> Doubles),
    Narrow(fn(&Doubles) -> Words),
    Compare(fn(&Words, &Words) -> u32),
    CompareDouble(fn(&Doubles, &Doubles) -> u32),
    /// A number where the predicate holds, else the other.
    Select,
    SelectDouble,
    /// Of predicates.
    PredicateOne(fn(u32) -> u32),
    PredicateTwo(fn(u32, u32) -> u32),
}
use Function::*;

impl Function {
    /// How many operands there are, with the result.
    pub(crate) fn operands(self) -> usize {
        match self {
            One(_) | OneDouble(_) | Widen(_) | Narrow(_) | PredicateOne(_) => 2,
            Two(_) | TwoDouble(_) | DoubleBy(_) | WidenTwo(_) | Compare(_) | CompareDouble(_)
            | PredicateTwo(_) => 3,
            Three(_) | ThreeDouble(_) | WidenThree(_) | Select | SelectDouble => 4,
        }
    }
}

macro_rules! one {
    ($x:ident => $result:expr) => {{
        fn lanes(x: &Words) -> Words {
            std::array::from_fn(|i| {
                let $x = x[i];
                $result
            })
        }
        One(lanes)
    }};
}
macro_rules! two {
    ($x:ident, $y:ident => $result:expr) => {{
        fn lanes(x: &Words, y: &Words) -> Words {
            std::array::from_fn(|i| {
                let ($x, $y) = (x[i], y[i]);
                $result
            })
        }
        Two(lanes)
    }};
}
macro_rules! three {
    ($x:ident, $y:ident, $z:ident => $result:expr) => {{
        fn lanes(x: &Words, y: &Words, z: &Words) -> Words {
            std::array::from_fn(|i| {
                let ($x, $y, $z) = (x[i], y[i], z[i]);
                $result
            })
        }
        Three(lanes)
    }};
}
macro_rules! one64 {
    ($x:ident => $result:expr) => {{
        fn lanes(x: &Doubles) -> Doubles {
            std::array::from_fn(|i| {
                let $x = x[i];
                $result
            })
        }
        OneDouble(lanes)
    }};
}
macro_rules! two64 {
    ($x:ident, $y:ident => $result:expr) => {{
        fn lanes(x: &Doubles, y: &Doubles) -> Doubles {
            std::array::from_fn(|i| {
                let ($x, $y) = (x[i], y[i]);
                $result
            })
        }
        TwoDouble(lanes)
    }};
}
macro_rules! widen {
    ($x:ident => $result:expr) => {{
        fn lanes(x: &Words) -> Doubles {
            std::array::from_fn(|i| {
                let $x = x[i];
                $result
            })
        }
        Widen(lanes)
    }};
    ($x:ident, $y:ident => $result:expr) => {{
        fn lanes(x: &Words, y: &Words) -> Doubles {
            std::array::from_fn(|i| {
                let ($x, $y) = (x[i], y[i]);
                $result
            })
        }
        WidenTwo(lanes)
    }};
    ($x:ident, $y:ident, $z:ident => $result:expr) => {{
        fn lanes(x: &Words, y: &Words, z: &Doubles) -> Doubles {
            std::array::from_fn(|i| {
                let ($x, $y, $z) = (x[i], y[i], z[i]);
                $result
            })
        }
        WidenThree(lanes)
    }};
}
macro_rules! narrow {
    ($x:ident => $result:expr) => {{
        fn lanes(x: &Doubles) -> Words {
            std::array::from_fn(|i| {
                let $x = x[i];
                $result
            })
        }
        Narrow(lanes)
    }};
}
macro_rules! compare {
    ($x:ident, $y:ident => $result:expr) => {{
        fn lanes(x: &Words, y: &Words) -> u32 {
            (0..32).fold(0, |all, i| {
                let ($x, $y) = (x[i], y[i]);
                all | u32::from($result) << i
            })
        }
        Compare(lanes)
    }};
}
macro_rules! compare64 {
    ($x:ident, $y:ident => $result:expr) => {{
        fn lanes(x: &Doubles, y: &Doubles) -> u32 {
            (0..32).fold(0, |all, i| {
                let ($x, $y) = (x[i], y[i]);
                all | u32::from($result) << i
            })
        }
        CompareDouble(lanes)
    }};
}

mod conversions;
#[cfg(test)]
mod tests;

const fn f(x: u32) -> f32 {
    f32::from_bits(x)
}
/// A result: what is no number is the one NaN that arithmetic gives.
fn bits(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}
const fn s(x: u32) -> i32 {
    x as i32
}
const fn s64(x: u64) -> i64 {
    x as i64
}
/// The sign of 16 bits continued.
const fn s16(x: u32) -> i32 {
    x as i16 as i32
}

/// -0 is less than +0, and a number wins over NaN.
fn max(x: u32, y: u32) -> u32 {
    let (a, b) = (f(x), f(y));
    let greater = if a > b || (a == b && s(x) > s(y)) { x } else { y };
    if a.is_nan() {
        bits(b)
    } else if b.is_nan() {
        x
    } else {
        greater
    }
}
fn min(x: u32, y: u32) -> u32 {
    let (a, b) = (f(x), f(y));
    let less = if a < b || (a == b && s(x) < s(y)) { x } else { y };
    if a.is_nan() {
        bits(b)
    } else if b.is_nan() {
        x
    } else {
        less
    }
}

const fn unordered(x: u32, y: u32) -> bool {
    f(x).is_nan() || f(y).is_nan()
}

/// Shifts by more than the width are by the width.
const fn shl(x: u32, by: u32) -> u32 {
    if by > 31 { 0 } else { x << by }
}
const fn shr(x: u32, by: u32) -> u32 {
    if by > 31 { 0 } else { x >> by }
}
const fn shr_signed(x: u32, by: u32) -> u32 {
    (s(x) >> if by > 31 { 31 } else { by }) as u32
}

/// Each digit of `which` chooses one of eight bytes, or its sign, eight times.
const fn permute(a: u32, b: u32, which: u32) -> u32 {
    let bytes = (b as u64) << 32 | a as u64;
    let mut result = 0;
    let mut i = 0;
    while i < 4 {
        let digit = which >> (4 * i) & 15;
        let byte = (bytes >> (8 * (digit & 7)) & 0xff) as u32;
        let byte = if digit & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xff
        };
        result |= byte << (8 * i);
        i += 1;
    }
    result
}

/// Division by zero has no value that one can rely on: all ones, as the hardware gives.
fn divide(x: u32, y: u32) -> u32 {
    x.checked_div(y).unwrap_or(!0)
}
const fn divide_signed(x: u32, y: u32) -> u32 {
    if y == 0 { !0 } else { s(x).wrapping_div(s(y)) as u32 }
}

/// What an opcode computes; none that it is no opcode of this table.
pub(crate) fn function(opcode: &str) -> Option<Function> {
    moves(opcode)
        .or_else(|| integers(opcode))
        .or_else(|| floats(opcode))
        .or_else(|| comparisons(opcode))
        .or_else(|| conversions::function(opcode))
        .or_else(|| halves(opcode))
}

fn moves(opcode: &str) -> Option<Function> {
    Some(match opcode {
        "mov.b16" | "mov.u16" | "mov.s16" | "mov.b32" | "mov.u32" | "mov.s32" | "mov.f32" => {
            one!(x => x)
        }
        "mov.b64" | "mov.u64" | "mov.s64" | "mov.f64" | "cvta.to.global.u64"
        | "cvta.global.u64" => {
            one64!(x => x)
        }
        "mov.pred" => PredicateOne(|x| x),
        "not.pred" => PredicateOne(|x| !x),
        "and.pred" => PredicateTwo(|x, y| x & y),
        "or.pred" => PredicateTwo(|x, y| x | y),
        "xor.pred" => PredicateTwo(|x, y| x ^ y),
        "selp.b16" | "selp.u16" | "selp.s16" | "selp.b32" | "selp.u32" | "selp.s32"
        | "selp.f32" => Select,
        "selp.b64" | "selp.u64" | "selp.s64" | "selp.f64" => SelectDouble,
        "prmt.b32" => three!(a, b, c => permute(a, b, c)),
        _ => return None,
    })
}

fn integers(opcode: &str) -> Option<Function> {
    Some(match opcode {
        "add.s32" | "add.u32" => two!(x, y => x.wrapping_add(y)),
        "sub.s32" | "sub.u32" => two!(x, y => x.wrapping_sub(y)),
        "mul.lo.s32" | "mul.lo.u32" => two!(x, y => x.wrapping_mul(y)),
        "mul.hi.u32" => two!(x, y => ((u64::from(x) * u64::from(y)) >> 32) as u32),
        "mul.hi.s32" => two!(x, y => ((i64::from(s(x)) * i64::from(s(y))) >> 32) as u32),
        "mad.lo.s32" | "mad.lo.u32" => three!(x, y, z => x.wrapping_mul(y).wrapping_add(z)),
        "add.s16" | "add.u16" => two!(x, y => x.wrapping_add(y) & 0xffff),
        "sub.s16" | "sub.u16" => two!(x, y => x.wrapping_sub(y) & 0xffff),
        "mul.lo.s16" | "mul.lo.u16" => two!(x, y => x.wrapping_mul(y) & 0xffff),
        "mad.lo.s16" | "mad.lo.u16" => {
            three!(x, y, z => x.wrapping_mul(y).wrapping_add(z) & 0xffff)
        }
        "mul.wide.u16" => two!(x, y => x.wrapping_mul(y)),
        "mul.wide.s16" => two!(x, y => s16(x).wrapping_mul(s16(y)) as u32),
        "div.u32" => two!(x, y => divide(x, y)),
        "div.s32" => two!(x, y => divide_signed(x, y)),
        "rem.u32" => two!(x, y => if y == 0 { x } else { x % y }),
        "rem.s32" => two!(x, y => if y == 0 { x } else { s(x).wrapping_rem(s(y)) as u32 }),
        "div.u16" => two!(x, y => divide(x, y) & 0xffff),
        "rem.u16" => two!(x, y => if y == 0 { x } else { x % y }),
        "min.u32" | "min.u16" => two!(x, y => x.min(y)),
        "max.u32" | "max.u16" => two!(x, y => x.max(y)),
        "min.s32" => two!(x, y => s(x).min(s(y)) as u32),
        "max.s32" => two!(x, y => s(x).max(s(y)) as u32),
        "abs.s32" => one!(x => s(x).wrapping_abs() as u32),
        "neg.s32" => one!(x => x.wrapping_neg()),
        "neg.s16" => one!(x => x.wrapping_neg() & 0xffff),
        "and.b32" | "and.b16" => two!(x, y => x & y),
        "or.b32" | "or.b16" => two!(x, y => x | y),
        "xor.b32" | "xor.b16" => two!(x, y => x ^ y),
        "not.b32" => one!(x => !x),
        "not.b16" => one!(x => !x & 0xffff),
        "shl.b32" => two!(x, y => shl(x, y)),
        "shl.b16" => two!(x, y => shl(x, y) & 0xffff),
        "shr.u32" | "shr.b32" | "shr.u16" | "shr.b16" => two!(x, y => shr(x, y)),
        "shr.s32" => two!(x, y => shr_signed(x, y)),
        "shr.s16" => two!(x, y => shr_signed(s16(x) as u32, y) & 0xffff),
        "shf.l.wrap.b32" => {
            three!(a, b, c => (((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32) as u32)
        }
        "shf.r.wrap.b32" => {
            three!(a, b, c => ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32)
        }
        "popc.b32" => one!(x => x.count_ones()),
        "clz.b32" => one!(x => x.leading_zeros()),
        "brev.b32" => one!(x => x.reverse_bits()),
        "add.s64" | "add.u64" => two64!(x, y => x.wrapping_add(y)),
        "sub.s64" | "sub.u64" => two64!(x, y => x.wrapping_sub(y)),
        "mul.lo.s64" | "mul.lo.u64" => two64!(x, y => x.wrapping_mul(y)),
        "div.u64" => two64!(x, y => x.checked_div(y).unwrap_or(!0)),
        "rem.u64" => two64!(x, y => x.checked_rem(y).unwrap_or(x)),
        "div.s64" => two64!(x, y => if y == 0 { !0 } else { s64(x).wrapping_div(s64(y)) as u64 }),
        "rem.s64" => two64!(x, y => if y == 0 { x } else { s64(x).wrapping_rem(s64(y)) as u64 }),
        "min.u64" => two64!(x, y => x.min(y)),
        "max.u64" => two64!(x, y => x.max(y)),
        "min.s64" => two64!(x, y => s64(x).min(s64(y)) as u64),
        "max.s64" => two64!(x, y => s64(x).max(s64(y)) as u64),
        "neg.s64" => one64!(x => x.wrapping_neg()),
        "not.b64" => one64!(x => !x),
        "and.b64" => two64!(x, y => x & y),
        "or.b64" => two64!(x, y => x | y),
        "xor.b64" => two64!(x, y => x ^ y),
        "shl.b64" => {
            DoubleBy(|x, by| std::array::from_fn(|i| if by[i] > 63 { 0 } else { x[i] << by[i] }))
        }
        "shr.u64" | "shr.b64" => {
            DoubleBy(|x, by| std::array::from_fn(|i| if by[i] > 63 { 0 } else { x[i] >> by[i] }))
        }
        "shr.s64" => DoubleBy(|x, by| std::array::from_fn(|i| (s64(x[i]) >> by[i].min(63)) as u64)),
        "mul.wide.u32" => widen!(x, y => u64::from(x) * u64::from(y)),
        "mul.wide.s32" => widen!(x, y => (i64::from(s(x)) * i64::from(s(y))) as u64),
        "mad.wide.u32" => widen!(x, y, z => (u64::from(x) * u64::from(y)).wrapping_add(z)),
        "mad.wide.s32" => {
            widen!(x, y, z => ((i64::from(s(x)) * i64::from(s(y))) as u64).wrapping_add(z))
        }
        "mad.lo.s64" | "mad.lo.u64" => ThreeDouble(|x, y, z| {
            std::array::from_fn(|i| x[i].wrapping_mul(y[i]).wrapping_add(z[i]))
        }),
        _ => return None,
    })
}

fn floats(opcode: &str) -> Option<Function> {
    Some(match opcode {
        "add.f32" | "add.rn.f32" => two!(x, y => bits(f(x) + f(y))),
        "sub.f32" | "sub.rn.f32" => two!(x, y => bits(f(x) - f(y))),
        "mul.f32" | "mul.rn.f32" => two!(x, y => bits(f(x) * f(y))),
        "fma.rn.f32" => three!(x, y, z => bits(f(x).mul_add(f(y), f(z)))),
        "div.rn.f32" => two!(x, y => bits(f(x) / f(y))),
        "sqrt.rn.f32" => one!(x => bits(f(x).sqrt())),
        "min.f32" => two!(x, y => min(x, y)),
        "max.f32" => two!(x, y => max(x, y)),
        // Signs are changed, and nothing else: of NaN nothing is said.
        "neg.f32" => one!(x => x ^ 0x8000_0000),
        "abs.f32" => one!(x => x & 0x7fff_ffff),
        "ex2.approx.ftz.f32" => one!(x => numbers::ex2(f(x), true).to_bits()),
        "ex2.approx.f32" => one!(x => numbers::ex2(f(x), false).to_bits()),
        "lg2.approx.ftz.f32" => one!(x => numbers::lg2(f(x), true).to_bits()),
        "lg2.approx.f32" => one!(x => numbers::lg2(f(x), false).to_bits()),
        "rcp.approx.ftz.f32" => one!(x => numbers::rcp(f(x), true).to_bits()),
        "rcp.approx.f32" => one!(x => numbers::rcp(f(x), false).to_bits()),
        "rcp.rn.f32" => one!(x => bits(1.0 / f(x))),
        "rsqrt.approx.ftz.f32" => one!(x => numbers::rsqrt(f(x), true).to_bits()),
        "rsqrt.approx.f32" => one!(x => numbers::rsqrt(f(x), false).to_bits()),
        "sqrt.approx.ftz.f32" => one!(x => numbers::sqrt(f(x), true).to_bits()),
        "sqrt.approx.f32" => one!(x => numbers::sqrt(f(x), false).to_bits()),
        "tanh.approx.f32" => one!(x => numbers::tanh(f(x)).to_bits()),
        _ => return None,
    })
}

fn comparisons(opcode: &str) -> Option<Function> {
    let (how, kind) = opcode.strip_prefix("setp.")?.split_once('.')?;
    Some(match (how, kind) {
        ("eq", "s32" | "u32" | "b32" | "s16" | "u16" | "b16") => compare!(x, y => x == y),
        ("ne", "s32" | "u32" | "b32" | "s16" | "u16" | "b16") => compare!(x, y => x != y),
        ("lt", "s32") => compare!(x, y => s(x) < s(y)),
        ("le", "s32") => compare!(x, y => s(x) <= s(y)),
        ("gt", "s32") => compare!(x, y => s(x) > s(y)),
        ("ge", "s32") => compare!(x, y => s(x) >= s(y)),
        ("lt", "s16") => compare!(x, y => s16(x) < s16(y)),
        ("le", "s16") => compare!(x, y => s16(x) <= s16(y)),
        ("gt", "s16") => compare!(x, y => s16(x) > s16(y)),
        ("ge", "s16") => compare!(x, y => s16(x) >= s16(y)),
        ("lt" | "lo", "u32" | "u16") => compare!(x, y => x < y),
        ("le" | "ls", "u32" | "u16") => compare!(x, y => x <= y),
        ("gt" | "hi", "u32" | "u16") => compare!(x, y => x > y),
        ("ge" | "hs", "u32" | "u16") => compare!(x, y => x >= y),
        ("eq", "s64" | "u64" | "b64") => compare64!(x, y => x == y),
        ("ne", "s64" | "u64" | "b64") => compare64!(x, y => x != y),
        ("lt", "s64") => compare64!(x, y => s64(x) < s64(y)),
        ("le", "s64") => compare64!(x, y => s64(x) <= s64(y)),
        ("gt", "s64") => compare64!(x, y => s64(x) > s64(y)),
        ("ge", "s64") => compare64!(x, y => s64(x) >= s64(y)),
        ("lt" | "lo", "u64") => compare64!(x, y => x < y),
        ("le" | "ls", "u64") => compare64!(x, y => x <= y),
        ("gt" | "hi", "u64") => compare64!(x, y => x > y),
        ("ge" | "hs", "u64") => compare64!(x, y => x >= y),
        // Ordered ones are false where there is a NaN, those with a u true.
        ("eq", "f32") => compare!(x, y => f(x) == f(y)),
        ("ne", "f32") => compare!(x, y => f(x) < f(y) || f(x) > f(y)),
        ("lt", "f32") => compare!(x, y => f(x) < f(y)),
        ("le", "f32") => compare!(x, y => f(x) <= f(y)),
        ("gt", "f32") => compare!(x, y => f(x) > f(y)),
        ("ge", "f32") => compare!(x, y => f(x) >= f(y)),
        ("equ", "f32") => compare!(x, y => f(x) == f(y) || unordered(x, y)),
        ("neu", "f32") => compare!(x, y => f(x) != f(y)),
        ("ltu", "f32") => compare!(x, y => f(x) < f(y) || unordered(x, y)),
        ("leu", "f32") => compare!(x, y => f(x) <= f(y) || unordered(x, y)),
        ("gtu", "f32") => compare!(x, y => f(x) > f(y) || unordered(x, y)),
        ("geu", "f32") => compare!(x, y => f(x) >= f(y) || unordered(x, y)),
        ("num", "f32") => compare!(x, y => !unordered(x, y)),
        ("nan", "f32") => compare!(x, y => unordered(x, y)),
        _ => return None,
    })
}

fn halves(opcode: &str) -> Option<Function> {
    use Half::{Bf16, F16};
    Some(match opcode {
        "add.f16x2" | "add.rn.f16x2" => two!(x, y => numbers::pair(PairOp::Add, F16, x, y, 0)),
        "sub.f16x2" | "sub.rn.f16x2" => two!(x, y => numbers::pair(PairOp::Sub, F16, x, y, 0)),
        "mul.f16x2" | "mul.rn.f16x2" => two!(x, y => numbers::pair(PairOp::Mul, F16, x, y, 0)),
        "fma.rn.f16x2" => three!(x, y, z => numbers::pair(PairOp::Fma, F16, x, y, z)),
        "min.f16x2" => two!(x, y => numbers::pair(PairOp::Min, F16, x, y, 0)),
        "max.f16x2" => two!(x, y => numbers::pair(PairOp::Max, F16, x, y, 0)),
        "add.bf16x2" | "add.rn.bf16x2" => two!(x, y => numbers::pair(PairOp::Add, Bf16, x, y, 0)),
        "sub.bf16x2" | "sub.rn.bf16x2" => two!(x, y => numbers::pair(PairOp::Sub, Bf16, x, y, 0)),
        "mul.bf16x2" | "mul.rn.bf16x2" => two!(x, y => numbers::pair(PairOp::Mul, Bf16, x, y, 0)),
        "fma.rn.bf16x2" => three!(x, y, z => numbers::pair(PairOp::Fma, Bf16, x, y, z)),
        "min.bf16x2" => two!(x, y => numbers::pair(PairOp::Min, Bf16, x, y, 0)),
        "max.bf16x2" => two!(x, y => numbers::pair(PairOp::Max, Bf16, x, y, 0)),
        _ => return None,
    })
}
