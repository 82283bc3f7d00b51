//! Number formats against `half`, or their definitions, for all there are of 16 and 8 bits.

use half::{bf16, f16};

use crate::numbers::{
    Half, PairOp, bf16_to_f32, e4m3_to_f16, e5m2_to_f16, ex2, f16_to_f32, f32_to_bf16,
    f32_to_bf16_zero, f32_to_e4m3, f32_to_e5m2, f32_to_f16, f32_to_f16_zero, lg2, pair, rcp, rsqrt,
};

/// Numbers of all sizes, and those about a limit.
pub(super) fn some() -> impl Iterator<Item = f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let random = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from_bits((state >> 11) as u32)
    });
    let special =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-45, f32::MAX];
    special.into_iter().chain(random.take(200_000))
}

#[test]
fn halves_become_singles_and_the_other_way_round() {
    for bits in 0..=u16::MAX {
        let (x, y) = (f16::from_bits(bits), bf16::from_bits(bits));
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same(f16_to_f32(bits), x.to_f32()), "{bits:#x}");
        assert!(same(bf16_to_f32(bits), y.to_f32()), "{bits:#x}");
        if !x.is_nan() {
            assert_eq!(f32_to_f16(x.to_f32()), bits);
            // Between two numbers, at the tie and beside it.
            let next = f16::from_bits(bits.wrapping_add(1));
            if next.is_finite() && x.is_finite() && !x.is_sign_negative() {
                let middle = (x.to_f32() + next.to_f32()) / 2.0;
                for step in [-1i32, 0, 1] {
                    let near = f32::from_bits(middle.to_bits().wrapping_add_signed(step));
                    assert_eq!(f32_to_f16(near), f16::from_f32(near).to_bits(), "{near:e}");
                }
            }
        }
    }
    for x in some().filter(|x| !x.is_nan()) {
        assert_eq!(f32_to_f16(x), f16::from_f32(x).to_bits(), "{x:e}");
        assert_eq!(f32_to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
        // Towards zero: no further from it, and less than a step nearer.
        let (zero16, zero) = (f16_to_f32(f32_to_f16_zero(x)), bf16_to_f32(f32_to_bf16_zero(x)));
        assert!(zero16.abs() <= x.abs() && zero.abs() <= x.abs());
        let up = f16_to_f32(f32_to_f16_zero(x.abs()) + 1);
        assert!(up > x.abs() || x.is_infinite() || up.is_nan(), "{x:e}");
    }
    assert_eq!((f32_to_f16(f32::NAN), f32_to_bf16(-f32::NAN)), (0x7fff, 0x7fff));
}

/// A format's values in order, by its definition.
fn values(mantissa: u32, bias: i32, largest: u8) -> Vec<f64> {
    let value = |code: u8| {
        let (exponent, part) =
            (i32::from(code >> mantissa), f64::from(code & ((1 << mantissa) - 1)));
        let steps = f64::exp2(f64::from(mantissa));
        match exponent {
            0 => part / steps * f64::exp2(f64::from(1 - bias)),
            e => (1.0 + part / steps) * f64::exp2(f64::from(e - bias)),
        }
    };
    (0..=largest).map(value).collect()
}

#[test]
fn bytes_are_the_nearest_and_saturate() {
    type Format = (u32, i32, u8, fn(f32) -> u8, fn(u8) -> u16);
    let formats: [Format; 2] =
        [(3, 7, 0x7e, f32_to_e4m3, e4m3_to_f16), (2, 15, 0x7b, f32_to_e5m2, e5m2_to_f16)];
    for (mantissa, bias, largest, to, from) in formats {
        let values = values(mantissa, bias, largest);
        for (code, value) in values.iter().enumerate() {
            let code = code as u8;
            assert_eq!(f64::from(f16_to_f32(from(code))), *value);
            assert_eq!(f64::from(f16_to_f32(from(code | 0x80))), -value);
            assert_eq!((to(*value as f32), to(-*value as f32)), (code, code | 0x80));
            if let Some(next) = values.get(usize::from(code) + 1) {
                let tie = ((value + next) / 2.0) as f32;
                assert_eq!(to(tie), code + code % 2, "the even one of {value} and {next}");
                assert_eq!(to(f32::from_bits(tie.to_bits() - 1)), code);
                assert_eq!(to(f32::from_bits(tie.to_bits() + 1)), code + 1);
            }
        }
        for x in some().filter(|x| !x.is_nan()) {
            let code = usize::from(to(x) & 0x7f);
            let distance = |at: usize| {
                values.get(at).map_or(f64::INFINITY, |v| (v - f64::from(x).abs()).abs())
            };
            assert!(distance(code) <= distance(code + 1));
            assert!(code == 0 || distance(code) <= distance(code - 1));
        }
        assert!(f16_to_f32(from(to(f32::NAN))).is_nan());
        assert_eq!(to(f32::INFINITY), largest);
    }
}

/// A number of f16 or bf16 as a whole number of units of 2^-200, and whether it is finite.
fn whole(kind: Half, bits: u16) -> Option<i128> {
    let (mantissa, bias) = if kind == Half::F16 { (10, 15) } else { (7, 127) };
    let exponent = i32::from(bits & 0x7fff) >> mantissa;
    let part = i128::from(bits) & ((1 << mantissa) - 1);
    if exponent == (1 << (15 - mantissa)) - 1 {
        return None;
    }
    // Of bf16 only those about 1 fit.
    let value = if exponent == 0 { part } else { part | 1 << mantissa };
    let shift = exponent.max(1) - bias - mantissa + 60;
    if !(0..=80).contains(&shift) {
        return None;
    }
    Some(if bits & 0x8000 == 0 { value << shift } else { -(value << shift) })
}

#[test]
fn products_and_sums_of_pairs_are_rounded_once() {
    let mut state = 88_172_645_463_325_252u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 17) as u32
    };
    let mut checked = 0;
    for kind in [Half::F16, Half::Bf16] {
        let to = |x: f32| if kind == Half::F16 { f32_to_f16(x) } else { f32_to_bf16(x) };
        let from = |x: u16| if kind == Half::F16 { f16_to_f32(x) } else { bf16_to_f32(x) };
        for _ in 0..300_000 {
            // Of sizes that meet: sums cancel, and ties are frequent.
            let mut number = || {
                to(f32::from_bits(0x3f80_0000 | random() & 0x1fff << 13)
                    * f32::exp2((random() % 24) as f32 - 12.0))
                    | (random() as u16 & 0x8000)
            };
            let (a, b, c) = (number(), number(), number());
            let (Some(x), Some(y), Some(z)) = (whole(kind, a), whole(kind, b), whole(kind, c))
            else {
                continue;
            };
            let Some(exact) = x.checked_mul(y).and_then(|p| z.checked_mul(1 << 60)?.checked_add(p))
            else {
                continue;
            };
            let got = pair(PairOp::Fma, kind, a.into(), b.into(), c.into()) as u16;
            let Some(result) = whole(kind, got).and_then(|r| r.checked_mul(1 << 60)) else {
                continue;
            };
            // No neighbour is nearer, and at a tie it is even.
            let distance = (result - exact).abs();
            for neighbour in [got.wrapping_add(1), got.wrapping_sub(1)] {
                let Some(other) = whole(kind, neighbour).and_then(|r| r.checked_mul(1 << 60))
                else {
                    continue;
                };
                let further = (other - exact).abs();
                assert!(
                    distance < further
                        || distance == further && got.is_multiple_of(2)
                        || got & 0x7fff == 0,
                    "{kind:?} {a:#x} {b:#x} {c:#x}: {got:#x}"
                );
            }
            checked += 1;
            let product = pair(PairOp::Mul, kind, a.into(), b.into(), 0) as u16;
            assert_eq!(product, to(from(a) * from(b)), "of 22 bits at most: exact in f32");
        }
    }
    assert!(checked > 300_000, "{checked}");
    // Rounded to f32 first, and to bf16 then, this is 0x3f81: a tie that is none.
    let c = 0x2f80; // 2^-32
    assert_eq!(pair(PairOp::Fma, Half::Bf16, 0x3f81, 0x3f80, c) as u16, 0x3f81);
    let (a, b) = (0x3f88, 0x3f88); // (1 + 2^-4)^2 = 1 + 2^-3 + 2^-8: halfway between two of bf16
    assert_eq!(pair(PairOp::Fma, Half::Bf16, a, b, 0) as u16, 0x3f90);
    assert_eq!(pair(PairOp::Fma, Half::Bf16, a, b, c) as u16, 0x3f91);
    assert_eq!(pair(PairOp::Fma, Half::Bf16, a, b, c | 0x8000) as u16, 0x3f90);
    assert_eq!(pair(PairOp::Max, Half::F16, 0x7e00_8000, 0x3c00_0000, 0), 0x3c00_0000);
}

#[test]
fn approximations_have_the_values_of_the_tables() {
    for (f, x, value) in [
        (ex2 as fn(f32, bool) -> f32, f32::NEG_INFINITY, 0.0),
        (ex2, f32::INFINITY, f32::INFINITY),
        (ex2, 1e-40, 1.0),
        (ex2, -140.0, 0.0),
        (lg2, 0.0, f32::NEG_INFINITY),
        (lg2, 1e-40, f32::NEG_INFINITY),
        (lg2, f32::INFINITY, f32::INFINITY),
        (rcp, f32::NEG_INFINITY, -0.0),
        (rcp, -0.0, f32::NEG_INFINITY),
        (rcp, 1e-40, f32::INFINITY),
        (rsqrt, -0.0, f32::NEG_INFINITY),
        (rsqrt, f32::INFINITY, 0.0),
    ] {
        assert_eq!(f(x, true).to_bits(), value.to_bits(), "{x}");
    }
    assert_eq!(ex2(-140.0, false), f32::exp2(-140.0));
    assert_eq!(
        (lg2(-1.0, true).to_bits(), rsqrt(-1.0, true).to_bits()),
        (0x7fff_ffff, 0x7fff_ffff)
    );
}
