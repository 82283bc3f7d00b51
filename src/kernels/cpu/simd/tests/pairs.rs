//! Pairs of bf16.

use half::bf16;

use super::super::{Bf16Dot, FP8_UNIT, MAX_LANES};
use super::{Edge, Random, SPECIAL, decode_bf16, decode_fp8, lanes, same, vector};

type Halves = [u32; 2];

/// A word of two, the first in the lower half.
fn word([lo, hi]: Halves) -> f32 {
    f32::from_bits(lo | hi << 16)
}

fn halves(word: f32) -> Halves {
    [word.to_bits() & 0xffff, word.to_bits() >> 16]
}

/// Small whole numbers exactly, others to the rounding of three sums.
#[inline(always)]
pub(super) fn dot<S: Bf16Dot>(s: S) -> usize {
    let (mut random, mut count) = (Random(11), 0);
    for turn in 0..20_000 {
        let whole = turn % 2 == 0;
        let mut draw = || -> Halves {
            std::array::from_fn(|_| {
                let x = match whole {
                    true => (random.number() * 255.0).round(),
                    false => random.number() * 2_f32.powi((random.bits() % 40) as i32 - 20),
                };
                bf16::from_f32(x).to_bits().into()
            })
        };
        let a: [Halves; MAX_LANES] = std::array::from_fn(|_| draw());
        let b: [Halves; MAX_LANES] = std::array::from_fn(|_| draw());
        let acc: [f32; MAX_LANES] = std::array::from_fn(|_| match whole {
            true => (random.number() * 1e6).round(),
            false => random.number(),
        });
        let found = s.dot(vector(s, &acc), vector(s, &a.map(word)), vector(s, &b.map(word)));
        for (i, &x) in lanes(s, found)[..S::LANES].iter().enumerate() {
            let part = |k: usize| f64::from(decode_bf16(a[i][k])) * f64::from(decode_bf16(b[i][k]));
            let (first, second) = (part(0), part(1));
            let wanted = f64::from(acc[i]) + first + second;
            let size = f64::from(acc[i].abs()) + first.abs() + second.abs();
            // The smallest numbers may become 0.
            let bound = if whole { 0.0 } else { 3.0 * 2_f64.powi(-24) * size + 1e-37 };
            let error = (f64::from(x) - wanted).abs();
            assert!(error <= bound, "{} + {first} + {second}: {x}", acc[i]);
            count += 1;
        }
    }
    count
}

/// All bf16 in both halves, by bits.
#[inline(always)]
pub(super) fn pair<S: Bf16Dot>(s: S) -> usize {
    for start in 0..=0xffff_u32 {
        let code = |i: usize, step: u32| start.wrapping_mul(step).wrapping_add(i as u32) & 0xffff;
        let lo: [f32; MAX_LANES] = std::array::from_fn(|i| word([0, code(i, 1)]));
        let hi: [f32; MAX_LANES] = std::array::from_fn(|i| word([0, code(i, 40_503)]));
        let found = lanes(s, s.pair(vector(s, &lo), vector(s, &hi)));
        for (i, &x) in found[..S::LANES].iter().enumerate() {
            assert_eq!(halves(x), [code(i, 1), code(i, 40_503)], "lane {i}");
        }
    }
    0x10000 * S::LANES
}

/// All codes at all places.
#[inline(always)]
pub(super) fn load<S: Bf16Dot>(s: S) -> usize {
    let mut edge = Edge::new();
    for start in 0..=255_u8 {
        let codes = edge.last(2 * S::LANES);
        codes.iter_mut().enumerate().for_each(|(i, code)| *code = start.wrapping_add(i as u8));
        // SAFETY: `2 * LANES` codes are there.
        let found = lanes(s, unsafe { s.load_fp8_pairs(codes.as_ptr()) });
        for (i, &code) in codes.iter().enumerate() {
            let x = decode_bf16(halves(found[i / 2])[i % 2]);
            assert!(same(x, decode_fp8(code) / FP8_UNIT), "{code:#04x} at {i}: {x}");
        }
    }
    256 * 2 * S::LANES
}

/// Rounded as `half` does, but that subnormal numbers may become 0; apart, and in place, over and
/// over.
#[inline(always)]
pub(super) fn store<S: Bf16Dot>(s: S) -> usize {
    const VECTORS: usize = 4;
    let (mut edge, mut random, mut count) = (Edge::new(), Random(12), 0);
    for turn in 0..20_000 {
        let numbers: Vec<f32> = (0..2 * VECTORS * S::LANES)
            .map(|i| match turn {
                0..64 => SPECIAL[(turn + i) % SPECIAL.len()],
                // Ties, and close to them.
                64..10_000 => {
                    f32::from_bits(random.bits() & 0xffff_0000 | (0x8000 + random.bits() % 3 - 1))
                }
                _ => f32::from_bits(random.bits()),
            })
            .collect();
        let (mut place, mut apart) = (numbers.clone(), vec![0.0; VECTORS * S::LANES]);
        for v in 0..VECTORS {
            let (from, to) = (2 * v * S::LANES, v * S::LANES);
            // SAFETY: both have room for all vectors.
            unsafe { s.store_pairs(numbers.as_ptr().add(from), apart.as_mut_ptr().add(to)) };
            let at = place.as_mut_ptr();
            // SAFETY: as above; what is written was read before.
            unsafe { s.store_pairs(at.add(from), at.add(to)) };
        }
        for (i, &x) in numbers.iter().enumerate() {
            let wanted = u32::from(bf16::from_f32(x).to_bits());
            for found in [halves(apart[i / 2])[i % 2], halves(place[i / 2])[i % 2]] {
                let flushed = x.is_subnormal() && found == x.to_bits() >> 16 & 0x8000;
                assert!(found == wanted || flushed, "{x} at {i}: {found:#06x}, not {wanted:#06x}");
                count += 1;
            }
        }
        // What is beyond the pairs stays.
        assert!((apart.len()..place.len()).all(|i| place[i].to_bits() == numbers[i].to_bits()));
    }
    // At the end of what may be read.
    let bytes = edge.last(8 * S::LANES);
    bytes.fill(0x3f);
    let at = bytes.as_mut_ptr().cast::<f32>();
    // SAFETY: `2 * LANES` numbers are there.
    unsafe { s.store_pairs(at, at) };
    count
}
