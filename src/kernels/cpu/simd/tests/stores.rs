//! What is written.

use half::{bf16, f16};

use super::super::{MAX_LANES, Simd};
use super::{Edge, Random, SPECIAL, decode_bf16, decode_f16, vector};

/// Numbers that show rounding to a type of 16 bits: each of its own, what lies halfway to the next,
/// and a step to either side; then any.
fn numbers(decode: fn(u32) -> f32) -> Vec<f32> {
    let mut all = SPECIAL.to_vec();
    // Signalling, and with bits only where they are cut off.
    all.extend([0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0x7f80_8000].map(f32::from_bits));
    for code in 0..=0xffff_u32 {
        let x = decode(code);
        all.push(x);
        // Beyond the largest the next would be as far again.
        let next = match decode(code.wrapping_add(1) & 0xffff) {
            next if next.is_infinite() => 2.0 * f64::from(x) - f64::from(decode(code - 1)),
            next => f64::from(next),
        };
        let middle = ((f64::from(x) + next) / 2.0) as f32;
        if middle.is_finite() {
            let bits = middle.to_bits();
            all.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(f32::from_bits));
        }
    }
    let mut random = Random(3);
    all.extend((0..1 << 17).map(|_| f32::from_bits(random.bits())));
    all
}

/// Compares what is stored, at the very end of what may be written.
macro_rules! rounds {
    ($s:ident, $S:ident, $store:ident, $numbers:expr, $round:expr) => {{
        let (mut edge, mut count, numbers) = (Edge::new(), 0, $numbers);
        let mut at = 0;
        while at + MAX_LANES <= numbers.len() {
            let some = &numbers[at..];
            let to = edge.last(2 * $S::LANES);
            // SAFETY: `LANES` numbers of 16 bits are there.
            unsafe { $s.$store(to.as_mut_ptr(), vector($s, some)) };
            for (i, found) in to.chunks_exact(2).enumerate() {
                let found = u16::from_le_bytes([found[0], found[1]]);
                let wanted: u16 = $round(some[i]);
                assert!(
                    found == wanted,
                    "{} ({:#x}): {found:#06x}, not {wanted:#06x}",
                    some[i],
                    some[i].to_bits()
                );
                count += 1;
            }
            // Not a multiple of the lanes: numbers come to lie in several.
            at += $S::LANES - 1;
        }
        // Nothing before is written either.
        let to = edge.last(2 * $S::LANES + 8);
        to.fill(0xa5);
        // SAFETY: as above, four numbers after the start.
        unsafe { $s.$store(to[8..].as_mut_ptr(), vector($s, &numbers)) };
        assert_eq!(to[..8], [0xa5; 8]);
        count
    }};
}

#[inline(always)]
pub(super) fn half<S: Simd>(s: S) -> usize {
    rounds!(s, S, store_f16, numbers(decode_f16), |x| f16::from_f32(x).to_bits())
}

#[inline(always)]
pub(super) fn brain<S: Simd>(s: S) -> usize {
    rounds!(s, S, store_bf16, numbers(decode_bf16), |x| bf16::from_f32(x).to_bits())
}

/// For all small strides: what lies between rows stays.
#[inline(always)]
pub(super) fn transpose<S: Simd>(s: S) -> usize {
    const LEFT: u32 = 0xa5a5_a5a5;
    let (tile, mut random, mut count) = (S::TILE, Random(4), 0);
    for from_stride in tile..tile + 10 {
        for to_stride in tile..tile + 10 {
            let words = |stride: usize| (tile - 1) * stride + tile;
            // Any bits, signalling NaN among them, and read no further than said.
            let mut from = vec![0_u32; words(from_stride)];
            from.fill_with(|| random.bits() ^ ((random.bits() & 1) * 0x7f80_0000));
            let mut to = vec![LEFT; words(to_stride) + 16];
            // SAFETY: both have the words of a block with these strides.
            unsafe { s.transpose(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride) };
            for (at, &found) in to.iter().enumerate() {
                let (row, column) = (at / to_stride, at % to_stride);
                let inside = row < tile && column < tile;
                let wanted = if inside { from[column * from_stride + row] } else { LEFT };
                assert_eq!(found, wanted, "strides {from_stride}, {to_stride}: {row}, {column}");
                count += usize::from(inside);
            }
        }
    }
    count
}
