//! What is read.

use super::super::{Bf16, F16, F32, FP8_UNIT, Fp8, KvElement, MAX_LANES, Simd};
use super::{Edge, Random, decode_bf16, decode_f16, decode_fp8, lanes, same, vector};

/// Loads and stores keep all bits, aligned or not, and touch nothing else.
#[inline(always)]
pub(super) fn single<S: Simd>(s: S) -> usize {
    let (mut from, mut to, mut random) = (Edge::new(), Edge::new(), Random(1));
    let size = 4 * S::LANES;
    for spare in 0..64 {
        let from = from.last(size + spare);
        from.fill_with(|| random.bits() as u8);
        let to = to.last(size + spare);
        to.fill(0xa5);
        // SAFETY: `size` bytes are there; no alignment is asked for.
        let v = unsafe { s.load(from.as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { s.store(to.as_mut_ptr().cast(), v) };
        assert_eq!(from[..size], to[..size]);
        assert!(to[size..].iter().all(|&byte| byte == 0xa5));
        let bits = random.bits();
        let all = lanes(s, s.splat(f32::from_bits(bits)));
        assert!(all[..S::LANES].iter().all(|x| x.to_bits() == bits));
    }
    s.prefetch(from.last(1).as_ptr());
    s.prefetch(std::ptr::null());
    64 * S::LANES
}

/// Compares loads of all codes of 16 bits, at the very end of what may be read.
macro_rules! codes16 {
    ($s:ident, $S:ident, $load:ident, $decode:ident) => {{
        let mut edge = Edge::new();
        // Each code comes to lie in every lane.
        for start in 0..=0xffff_u32 {
            let codes = edge.last(2 * $S::LANES);
            for (i, code) in codes.chunks_exact_mut(2).enumerate() {
                code.copy_from_slice(&(start.wrapping_add(i as u32) as u16).to_le_bytes());
            }
            // SAFETY: `LANES` codes are there.
            let found = lanes($s, unsafe { $s.$load(codes.as_ptr()) });
            for (i, &x) in found[..$S::LANES].iter().enumerate() {
                let code = start.wrapping_add(i as u32) & 0xffff;
                let wanted = $decode(code);
                assert!(same(x, wanted), "{code:#06x} in lane {i}: {x}, not {wanted}");
            }
        }
        0x10000 * $S::LANES
    }};
}

#[inline(always)]
pub(super) fn half<S: Simd>(s: S) -> usize {
    codes16!(s, S, load_f16, decode_f16)
}

/// In order, and split.
#[inline(always)]
pub(super) fn brain<S: Simd>(s: S) -> usize {
    let count = codes16!(s, S, load_bf16, decode_bf16);
    let mut edge = Edge::new();
    for start in 0..=0xffff_u32 {
        let codes = edge.last(4 * S::LANES);
        for (i, code) in codes.chunks_exact_mut(2).enumerate() {
            code.copy_from_slice(&(start.wrapping_add(i as u32) as u16).to_le_bytes());
        }
        // SAFETY: `2 * LANES` codes are there.
        let [even, odd] = unsafe { s.split_bf16(codes.as_ptr()) };
        let (even, odd) = (lanes(s, even), lanes(s, odd));
        for i in 0..2 * S::LANES {
            let found = if i % 2 == 0 { even[i / 2] } else { odd[i / 2] };
            let code = start.wrapping_add(i as u32) & 0xffff;
            assert!(same(found, decode_bf16(code)), "{code:#06x} at {i}: {found}");
        }
    }
    count + 0x10000 * 2 * S::LANES
}

/// What a load is to give for an e4m3 code.
fn unit(code: u8) -> f32 {
    decode_fp8(code) / FP8_UNIT
}

#[inline(always)]
pub(super) fn eight<S: Simd>(s: S) -> usize {
    let mut edge = Edge::new();
    for start in 0..=255_u8 {
        for step in [1_u8, 85, 128] {
            let codes = edge.last(S::LANES);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = start.wrapping_add(step.wrapping_mul(i as u8));
            }
            // SAFETY: `LANES` codes are there.
            let found = lanes(s, unsafe { s.load_fp8(codes.as_ptr()) });
            for (i, &code) in codes.iter().enumerate() {
                assert!(same(found[i], unit(code)), "{code:#04x} in lane {i}: {}", found[i]);
            }
        }
    }
    3 * 256 * S::LANES
}

/// With NaN, and of numbers without.
#[inline(always)]
pub(super) fn split_eight<S: Simd>(s: S) -> usize {
    let (mut edge, mut count) = (Edge::new(), 0);
    for start in 0..=255_u8 {
        for step in [1_u8, 85, 128] {
            for finite in [false, true] {
                let codes = edge.last(2 * S::LANES);
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = start.wrapping_add(step.wrapping_mul(i as u8));
                    if finite && *code & 0x7f == 0x7f {
                        *code ^= 1;
                    }
                }
                let [even, odd] = if finite {
                    // SAFETY: `2 * LANES` codes are there, none of them NaN.
                    unsafe { s.split_finite_fp8(codes.as_ptr()) }
                } else {
                    // SAFETY: `2 * LANES` codes are there.
                    unsafe { s.split_fp8(codes.as_ptr()) }
                };
                let (even, odd) = (lanes(s, even), lanes(s, odd));
                for (i, &code) in codes.iter().enumerate() {
                    let found = if i % 2 == 0 { even[i / 2] } else { odd[i / 2] };
                    assert!(same(found, unit(code)), "{code:#04x} at {i}: {found}");
                    count += 1;
                }
            }
        }
    }
    count
}

/// At every place of every length up to 256, and just outside.
#[inline(always)]
pub(super) fn nan_in_eight<S: Simd>(s: S) -> usize {
    let (mut edge, mut count) = (Edge::new(), 0);
    for n in 0..=256 {
        for filler in [0x7e, 0xfe, 0x00, 0x80] {
            let codes = edge.last(n);
            codes.fill(filler);
            // SAFETY: `n` codes are there.
            assert!(!unsafe { s.any_nan_fp8(codes.as_ptr(), n) }, "none of {n}");
            count += 1;
        }
        for place in 0..n {
            for nan in [0x7f, 0xff] {
                let codes = edge.last(n);
                codes.fill(0x7e);
                codes[place] = nan;
                // SAFETY: as above.
                assert!(unsafe { s.any_nan_fp8(codes.as_ptr(), n) }, "{place} of {n}");
                count += 1;
            }
        }
        let codes = edge.last(n + 64);
        codes.fill(0x7f);
        codes[32..32 + n].fill(0xfe);
        // SAFETY: `n` codes are there, and 32 more on either side.
        assert!(!unsafe { s.any_nan_fp8(codes[32..].as_ptr(), n) }, "outside {n}");
        count += 1;
    }
    count
}

/// Fewer than a vector, at the end of what may be read; two vectors in the order promised.
#[inline(always)]
pub(super) fn some<S: Simd>(s: S) -> usize {
    part::<S, F32>(s, |bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        + part::<S, F16>(s, |b| decode_f16(u16::from_le_bytes([b[0], b[1]]).into()))
        + part::<S, Bf16>(s, |b| decode_bf16(u16::from_le_bytes([b[0], b[1]]).into()))
        + part::<S, Fp8>(s, |bytes| unit(bytes[0]))
}

#[inline(always)]
fn part<S: Simd, E: KvElement>(s: S, decode: impl Fn(&[u8]) -> f32) -> usize {
    let (mut edge, mut random, mut count) = (Edge::new(), Random(2), 0);
    for turn in 0..64 * S::LANES {
        let n = turn % S::LANES;
        let bytes = edge.last(n * E::SIZE);
        bytes.fill_with(|| random.bits() as u8);
        // SAFETY: `n` elements are there.
        let found = lanes(s, unsafe { E::load_some(s, bytes.as_ptr(), n) });
        for (i, &x) in found.iter().enumerate() {
            let wanted = bytes.chunks_exact(E::SIZE).nth(i).map_or(0.0, &decode);
            assert!(same(x, wanted), "{i} of {n}: {x}, not {wanted}");
        }
        let bytes = edge.last(2 * S::LANES * E::SIZE);
        bytes.fill_with(|| random.bits() as u8);
        // SAFETY: `2 * LANES` elements are there.
        let [a, b] = unsafe { E::load_two(s, bytes.as_ptr()) };
        let both = [lanes(s, a), lanes(s, b)];
        for (i, element) in bytes.chunks_exact(E::SIZE).enumerate() {
            let (v, lane) = if E::SPLIT { (i % 2, i / 2) } else { (i / S::LANES, i % S::LANES) };
            assert!(same(both[v][lane], decode(element)), "element {i} of two vectors");
        }
        count += n + 2 * S::LANES;
    }
    assert_eq!(lanes(s, vector(s, &[0.0; MAX_LANES])), [0.0; MAX_LANES]);
    count
}
