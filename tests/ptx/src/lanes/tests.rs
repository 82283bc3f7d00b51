//! Opcodes by values at their edges, each from the ISA's text.

use super::{Function, function};

/// The result in lane 7, where the operands are; elsewhere they are others.
fn of(opcode: &str, x: &[u64]) -> u64 {
    let function = function(opcode).unwrap_or_else(|| panic!("no {opcode}"));
    assert_eq!(function.operands(), x.len() + 1, "{opcode}");
    let double = |i: usize| std::array::from_fn(|lane| if lane == 7 { x[i] } else { 0x5a });
    let word = |i: usize| double(i).map(|value: u64| value as u32);
    let lane = |mask: u32| u64::from(mask >> 7 & 1);
    match function {
        Function::One(f) => f(&word(0))[7].into(),
        Function::Two(f) => f(&word(0), &word(1))[7].into(),
        Function::Three(f) => f(&word(0), &word(1), &word(2))[7].into(),
        Function::OneDouble(f) => f(&double(0))[7],
        Function::TwoDouble(f) => f(&double(0), &double(1))[7],
        Function::ThreeDouble(f) => f(&double(0), &double(1), &double(2))[7],
        Function::DoubleBy(f) => f(&double(0), &word(1))[7],
        Function::Widen(f) => f(&word(0))[7],
        Function::WidenTwo(f) => f(&word(0), &word(1))[7],
        Function::WidenThree(f) => f(&word(0), &word(1), &double(2))[7],
        Function::Narrow(f) => f(&double(0))[7].into(),
        Function::Compare(f) => lane(f(&word(0), &word(1))),
        Function::CompareDouble(f) => lane(f(&double(0), &double(1))),
        _ => panic!("{opcode} is not of numbers"),
    }
}

#[track_caller]
fn all(cases: &[(&str, &[u64], u64)]) {
    for (opcode, operands, expected) in cases {
        let got = of(opcode, operands);
        assert_eq!(got, *expected, "{opcode} {operands:#x?}: {got:#x}, not {expected:#x}");
    }
}

const MIN: u64 = 0x8000_0000;
const ALL: u64 = 0xffff_ffff;
const MIN64: u64 = 1 << 63;

fn float(x: f32) -> u64 {
    x.to_bits().into()
}

#[test]
fn whole_numbers() {
    all(&[
        ("add.s32", &[ALL, 1], 0),
        ("sub.s32", &[0, 1], ALL),
        ("add.s16", &[0xffff, 1], 0),
        ("sub.u16", &[0, 1], 0xffff),
        ("mul.lo.s32", &[0x10001, 0x10001], 0x20001),
        ("mul.hi.u32", &[ALL, ALL], 0xffff_fffe),
        ("mul.hi.s32", &[ALL, ALL], 0),
        ("mul.hi.s32", &[MIN, 2], ALL),
        ("mul.hi.s32", &[MIN, MIN], 0x4000_0000),
        ("mad.lo.s32", &[ALL, 2, 3], 1),
        ("mad.lo.s16", &[0xffff, 2, 3], 1),
        ("mul.lo.s16", &[0x101, 0x101], 0x201),
        ("mul.wide.u16", &[0xffff, 0xffff], 0xfffe_0001),
        ("mul.wide.s16", &[0xffff, 2], 0xffff_fffe),
        ("mul.wide.u32", &[ALL, ALL], 0xffff_fffe_0000_0001),
        ("mul.wide.s32", &[ALL, 2], u64::MAX - 1),
        ("mad.wide.u32", &[ALL, 2, 5], 0x2_0000_0003),
        ("mad.wide.s32", &[ALL, 2, 5], 3),
        ("div.u32", &[7, 2], 3),
        ("div.s32", &[ALL - 6, 2], ALL - 2),
        ("div.s32", &[MIN, ALL], MIN),
        ("rem.s32", &[ALL - 6, 2], ALL),
        ("rem.s32", &[MIN, ALL], 0),
        ("rem.u32", &[ALL, 10], 5),
        ("min.s32", &[MIN, 0], MIN),
        ("min.u32", &[MIN, 0], 0),
        ("max.s32", &[ALL, 0], 0),
        ("max.u32", &[ALL, 0], ALL),
        ("abs.s32", &[MIN], MIN),
        ("abs.s32", &[ALL], 1),
        ("neg.s16", &[1], 0xffff),
        ("not.b16", &[0], 0xffff),
        ("not.b32", &[0], ALL),
        ("popc.b32", &[0x8000_0001], 2),
        ("clz.b32", &[0], 32),
        ("clz.b32", &[1], 31),
        ("brev.b32", &[1], MIN),
        ("mul.lo.s64", &[1 << 63, 3], 1 << 63),
        ("mad.lo.s64", &[u64::MAX, 2, 3], 1),
        ("div.s64", &[MIN64, u64::MAX], MIN64),
        ("min.s64", &[MIN64, 0], MIN64),
        ("max.u64", &[MIN64, 0], MIN64),
    ]);
}

#[test]
fn shifts_by_more_than_the_width_are_by_the_width() {
    all(&[
        ("shl.b32", &[3, 31], MIN),
        ("shl.b32", &[3, 32], 0),
        ("shl.b32", &[3, ALL], 0),
        ("shl.b16", &[3, 15], 0x8000),
        ("shl.b16", &[3, 16], 0),
        ("shr.u32", &[MIN, 31], 1),
        ("shr.u32", &[MIN, 32], 0),
        ("shr.u32", &[MIN, 256], 0),
        ("shr.s32", &[MIN, 31], ALL),
        ("shr.s32", &[MIN, 32], ALL),
        ("shr.s32", &[0x7fff_ffff, ALL], 0),
        ("shr.u16", &[0x8000, 15], 1),
        ("shr.u16", &[0x8000, 16], 0),
        ("shr.s16", &[0x8000, 15], 0xffff),
        ("shr.s16", &[0x8000, 99], 0xffff),
        ("shl.b64", &[3, 63], MIN64),
        ("shl.b64", &[3, 64], 0),
        ("shr.u64", &[MIN64, 63], 1),
        ("shr.u64", &[MIN64, 64], 0),
        ("shr.s64", &[MIN64, 64], u64::MAX),
        // a below, b above; the shift is taken by 32.
        ("shf.l.wrap.b32", &[0x8000_0001, 2, 0], 2),
        ("shf.l.wrap.b32", &[0x8000_0001, 2, 1], 5),
        ("shf.l.wrap.b32", &[0x8000_0001, 2, 33], 5),
        ("shf.r.wrap.b32", &[0x8000_0001, 3, 0], 0x8000_0001),
        ("shf.r.wrap.b32", &[0x8000_0001, 3, 1], 0xc000_0000),
        ("shf.r.wrap.b32", &[0x8000_0001, 3, 32], 0x8000_0001),
    ]);
}

#[test]
fn bytes_are_chosen_and_their_signs() {
    let (a, b) = (0x8372_61f0, 0x1234_96a8);
    all(&[
        ("prmt.b32", &[a, b, 0x3210], a),
        ("prmt.b32", &[a, b, 0x7654], b),
        ("prmt.b32", &[a, b, 0x0123], 0xf061_7283),
        // With its highest bit, a digit is the byte's sign eight times.
        ("prmt.b32", &[a, b, 0x8bc5], 0xffff_ff96),
        ("prmt.b32", &[a, b, 0x99fe], 0),
        // Above the four digits nothing is looked at.
        ("prmt.b32", &[a, b, 0xffff_3210], a),
    ]);
}

#[test]
fn bits_are_put_in() {
    use crate::execute::insert;
    let cases = [
        ((0xff, 0, 4, 8, 32), 0xff0),
        ((0, ALL, 4, 8, 32), 0xffff_f00f),
        ((0xff, 0, 28, 8, 32), 0xf000_0000),
        ((0xff, 0x55, 32, 8, 32), 0x55),
        ((0xff, 0x55, 0, 0, 32), 0x55),
        ((ALL, 0, 0, 32, 32), ALL),
        // Of place and count the lowest 8 bits are taken.
        ((0xff, 0, 0x104, 0x108, 32), 0xff0),
        ((u64::MAX, 0, 60, 255, 64), 0xf << 60),
    ];
    for ((a, b, at, count, bits), expected) in cases {
        assert_eq!(insert(a, b, at, count, bits), expected, "{a:#x} {b:#x} {at} {count}");
    }
}

#[test]
fn comparisons() {
    let (nan, zero, minus_zero) = (float(f32::NAN), float(0.0), float(-0.0));
    all(&[
        ("setp.lt.s32", &[MIN, 0], 1),
        ("setp.lt.u32", &[MIN, 0], 0),
        ("setp.hi.u32", &[MIN, 0], 1),
        ("setp.le.s16", &[0x8000, 0], 1),
        ("setp.ls.u16", &[0x8000, 0], 0),
        ("setp.ge.s64", &[MIN64, 0], 0),
        ("setp.hs.u64", &[MIN64, 0], 1),
        ("setp.eq.b64", &[1 << 32, 0], 0),
        ("setp.eq.f32", &[zero, minus_zero], 1),
        ("setp.lt.f32", &[minus_zero, zero], 0),
        ("setp.ne.f32", &[nan, zero], 0),
        ("setp.neu.f32", &[nan, zero], 1),
        ("setp.eq.f32", &[nan, nan], 0),
        ("setp.equ.f32", &[nan, zero], 1),
        ("setp.gt.f32", &[nan, zero], 0),
        ("setp.gtu.f32", &[zero, nan], 1),
        ("setp.leu.f32", &[float(2.0), float(1.0)], 0),
        ("setp.num.f32", &[zero, nan], 0),
        ("setp.nan.f32", &[zero, nan], 1),
    ]);
}

#[test]
fn floats() {
    let nan = float(f32::NAN);
    all(&[
        ("min.f32", &[float(0.0), float(-0.0)], float(-0.0)),
        ("max.f32", &[float(-0.0), float(0.0)], float(0.0)),
        ("max.f32", &[nan, float(-1.0)], float(-1.0)),
        ("min.f32", &[float(-1.0), nan], float(-1.0)),
        ("max.f32", &[nan, nan], 0x7fff_ffff),
        ("add.f32", &[float(f32::INFINITY), float(f32::NEG_INFINITY)], 0x7fff_ffff),
        // Rounded once: 1 + 2^-23 squared, less its two upper parts.
        (
            "fma.rn.f32",
            &[0x3f80_0001, 0x3f80_0001, float(-1.0 - f32::EPSILON * 2.0)],
            float(f32::EPSILON * f32::EPSILON),
        ),
        ("neg.f32", &[float(0.0)], float(-0.0)),
        ("abs.f32", &[float(-0.0)], 0),
    ]);
}

#[test]
fn conversions_saturate_and_round() {
    let (nan, big) = (float(f32::NAN), float(3e9));
    all(&[
        ("cvt.rzi.s32.f32", &[big], 0x7fff_ffff),
        ("cvt.rzi.s32.f32", &[float(-3e9)], MIN),
        ("cvt.rzi.s32.f32", &[nan], 0),
        ("cvt.rzi.s32.f32", &[float(-1.9)], ALL),
        ("cvt.rzi.u32.f32", &[float(-1.0)], 0),
        ("cvt.rzi.u32.f32", &[big], 3_000_000_000),
        ("cvt.rzi.u32.f32", &[float(5e9)], ALL),
        ("cvt.rni.s32.f32", &[float(2.5)], 2),
        ("cvt.rni.s32.f32", &[float(3.5)], 4),
        ("cvt.rmi.s32.f32", &[float(-0.5)], ALL),
        ("cvt.rpi.s32.f32", &[float(0.5)], 1),
        ("cvt.rn.f32.s32", &[ALL], float(-1.0)),
        ("cvt.rn.f32.u32", &[ALL], float(4_294_967_296.0)),
        ("cvt.s32.s8", &[0x80], 0xffff_ff80),
        ("cvt.u16.s8", &[0x80], 0xff80),
        ("cvt.u32.u8", &[0x180], 0x80),
        ("cvt.s64.s32", &[MIN], 0xffff_ffff_8000_0000),
        ("cvt.u64.u32", &[MIN], MIN),
        ("cvt.u32.u64", &[MIN64 | 5], 5),
        ("cvt.rn.f16x2.f32", &[float(1.0), float(2.0)], 0x3c00_4000),
        ("cvt.rn.bf16x2.f32", &[float(1.0), float(2.0)], 0x3f80_4000),
        ("cvt.rn.f16.f32", &[float(65520.0)], 0x7c00),
        ("cvt.rn.bf16.f32", &[0x3f80_8000], 0x3f80),
        ("cvt.rn.bf16.f32", &[0x3f81_8000], 0x3f82),
        ("cvt.rz.bf16x2.f32", &[0x3f80_ffff, 0x3f81_8000], 0x3f80_3f81),
        ("cvt.rn.satfinite.e4m3x2.f32", &[float(1e6), float(-1e6)], 0x7efe),
        ("cvt.rn.satfinite.e4m3x2.f32", &[float(1.0), nan], 0x387f),
        ("cvt.rn.f16x2.e4m3x2", &[0x7e38], 0x5f00_3c00),
    ]);
}
