//! Kernels in plain Rust: loops over eight lanes, which compilers turn into SIMD.

use half::f16;

use super::input::Block;
use super::kernels::Kernels;
use super::pack::{BLOCK, LANES, Panel, Q4, Q8};

#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Kernels for Portable {
    fn round(self, x: &[f32], out: &mut [Block]) {
        round(x, out);
    }

    fn q4<const T: usize>(self, w: Q4<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
        let blocks = w.codes.len();
        for (x, out) in x.chunks_exact(blocks).zip(out) {
            *out = [0.0; LANES];
            for (block, x) in x.iter().enumerate() {
                let mut sums = [0; LANES];
                for (group, line) in
                    w.codes[block].0.as_chunks::<{ 4 * LANES }>().0.iter().enumerate()
                {
                    for (sum, codes) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
                        for (j, code) in codes.iter().enumerate() {
                            *sum += i32::from(code & 15) * i32::from(x.codes[4 * group + j])
                                + i32::from(code >> 4) * i32::from(x.codes[16 + 4 * group + j]);
                        }
                    }
                }
                let (scales, minima) = (widen(w.scales[block]), widen(w.minima[block]));
                for lane in 0..LANES {
                    out[lane] += scales[lane] * x.scale * sums[lane] as f32;
                    out[lane] += minima[lane] * x.sum;
                }
            }
        }
    }

    fn q8<const T: usize>(self, w: Q8<'_>, x: &[Block], out: &mut [[f32; LANES]; T]) {
        let blocks = w.codes.len();
        for (x, out) in x.chunks_exact(blocks).zip(out) {
            *out = [0.0; LANES];
            for (block, x) in x.iter().enumerate() {
                let mut sums = [0; LANES];
                for (group, line) in
                    w.codes[block].0.as_chunks::<{ 4 * LANES }>().0.iter().enumerate()
                {
                    for (sum, codes) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
                        for (j, &code) in codes.iter().enumerate() {
                            *sum += i32::from(code) * i32::from(x.codes[4 * group + j]);
                        }
                    }
                }
                let scales = widen(w.scales[block]);
                for lane in 0..LANES {
                    out[lane] += scales[lane] * x.scale * sums[lane] as f32;
                }
            }
        }
    }

    fn expand(self, w: Panel<'_>, out: &mut [[f32; LANES]]) {
        match w {
            Panel::Q4(w) => {
                for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    let (scales, minima) = (widen(w.scales[block]), widen(w.minima[block]));
                    for (at, &byte) in w.codes[block].0.iter().enumerate() {
                        let (col, lane) = (at / 32 * 4 + at % 4, at % 32 / 4);
                        let value = |code: u8| scales[lane] * f32::from(code) + minima[lane];
                        out[col][lane] = value(byte & 15);
                        out[col + 16][lane] = value(byte >> 4);
                    }
                }
            }
            Panel::Q8(w) => {
                for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    let scales = widen(w.scales[block]);
                    for (at, &byte) in w.codes[block].0.iter().enumerate() {
                        let (col, lane) = (at / 32 * 4 + at % 4, at % 32 / 4);
                        out[col][lane] = scales[lane] * f32::from(byte);
                    }
                }
            }
            Panel::F32(w) => out.copy_from_slice(w),
            Panel::F16(w) => {
                for (out, w) in out.iter_mut().zip(w) {
                    *out = widen(*w);
                }
            }
            Panel::BF16(w) => {
                for (out, w) in out.iter_mut().zip(w) {
                    *out = w.map(half::bf16::to_f32);
                }
            }
        }
    }

    fn f32<const T: usize, const J: usize>(
        self,
        w: &[[f32; LANES]],
        x: &[f32],
        out: &mut [[f32; LANES]; T],
    ) {
        for (x, out) in x.chunks_exact(w.len()).zip(out) {
            *out = [0.0; LANES];
            for strand in 0..4 {
                let mut sums = [0.0; LANES];
                for (w, x) in w.iter().zip(x).skip(strand).step_by(4) {
                    for lane in 0..LANES {
                        sums[lane] += w[lane] * x;
                    }
                }
                for lane in 0..LANES {
                    out[lane] += sums[lane];
                }
            }
        }
    }
}

fn widen(values: [f16; LANES]) -> [f32; LANES] {
    values.map(f16::to_f32)
}

/// A block's scale and what its values are multiplied by. Both are 0 where the block is zero, or so
/// small that the second is no number.
pub(super) fn scales(largest: f32) -> (f32, f32) {
    let inverse = 127.0 / largest;
    if inverse.is_finite() { (largest / 127.0, inverse) } else { (0.0, 0.0) }
}

/// Rounds to the nearest integer of 8 bits, ties to even.
pub(super) fn round(x: &[f32], out: &mut [Block]) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for (x, out) in x.chunks(BLOCK).zip(out) {
        let mut values = [0.0; BLOCK];
        values[..x.len()].copy_from_slice(x);
        let mut largest = [0.0f32; LANES];
        // Zero, or NaN if a value is not finite: then so is the scale, and every result.
        let mut poison = [0.0f32; LANES];
        for values in values.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                largest[lane] = largest[lane].max(values[lane].abs());
                poison[lane] += values[lane] * 0.0;
            }
        }
        let largest = largest.into_iter().fold(0.0, f32::max);
        let (scale, inverse) = scales(largest);
        let scale = scale + poison.iter().sum::<f32>();
        let mut sum = 0;
        for (code, value) in out.codes.iter_mut().zip(values) {
            let rounded = (value * inverse + ROUND).to_bits() as i8;
            sum += i32::from(rounded);
            *code = rounded;
        }
        (out.scale, out.sum) = (scale, scale * sum as f32);
    }
}
