//! What a layer computes besides its matrix products and its attention.
//!
//! Plain loops that compilers turn into vectors; on x86-64 they are compiled once more for AVX2, and
//! chosen when the program runs. A token's numbers do not depend on the other tokens.

use crate::matmul::Threads;

/// Fewer numbers are computed faster than another thread is told to help.
const WORTH_THREADS: usize = 16 << 10;

/// Root-mean-square normalisation of each token of `x`, times `weight`.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    by_tokens(threads, width, out, |first, out| {
        let x = &x[first * width..][..out.len()];
        vectors(|| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let scale = 1.0 / (sum_of_squares(x) / width as f32 + eps).sqrt();
                for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            }
        });
    });
}

/// `silu(gate) * up` of each token, whose gates stand before its ups.
pub fn silu_product(threads: &Threads, gate_up: &[f32], width: usize, out: &mut [f32]) {
    by_tokens(threads, width, out, |first, out| {
        let tokens = gate_up[2 * first * width..].chunks_exact(2 * width);
        vectors(|| {
            for (both, out) in tokens.zip(out.chunks_exact_mut(width)) {
                let (gate, up) = both.split_at(width);
                for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            }
        });
    });
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    vectors(|| x.iter_mut().zip(y).for_each(|(x, &y)| *x += y));
}

fn by_tokens(
    threads: &Threads,
    width: usize,
    out: &mut [f32],
    job: impl Fn(usize, &mut [f32]) + Sync,
) {
    match out.len() < WORTH_THREADS {
        true => job(0, out),
        false => threads.run_rows(out, width, job),
    }
}

/// In lanes, since a compiler may not reorder a sum.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|&x| x * x).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The exponential, to two units in the last place; 0 below -87.3, and above 88 as if it were 88. The
/// same on all machines, and computed for several numbers at once.
///
/// 2 to the nearest integer, times a polynomial (Cephes' coefficients) of what is left.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let near = x.clamp(-87.3, 88.0);
    let rounded = near * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first with few bits: the difference is exact.
    let r = near - n * (355.0 / 512.0) - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { (p * r * r + r + 1.0) * power }
}

/// Runs loops as the processor at hand runs them fastest.
#[inline(always)]
pub fn vectors<T>(loops: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<T>(loops: impl FnOnce() -> T) -> T {
            loops()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return unsafe { with_avx2(loops) };
        }
    }
    loops()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_close() {
        for step in -8_800..=8_800 {
            let x = step as f32 * 0.01;
            let (is, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            let bound = 3e-7 * wanted.max(1.2e-38);
            assert!((is - wanted).abs() <= bound || x < -87.3, "{x}: {is}, not {wanted}");
        }
        assert!(exp(-1e9) == 0.0 && exp(f32::NEG_INFINITY) == 0.0 && exp(1e9).is_finite());
    }

    #[test]
    fn tokens_are_computed_alike_alone_and_together() {
        let (threads, width, tokens) = (Threads::new(2), 700, 40);
        let x: Vec<f32> = (0..2 * width * tokens).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let weight: Vec<f32> = (0..width).map(|i| 0.5 + (i as f32 * 0.11).cos()).collect();
        let (mut all, mut one) = (vec![0.0; width * tokens], vec![0.0; width]);
        silu_product(&threads, &x, width, &mut all);
        for token in 0..tokens {
            let own = &x[2 * width * token..][..2 * width];
            silu_product(&threads, own, width, &mut one);
            assert_eq!(one, all[token * width..][..width]);
            for ((&is, &gate), &up) in one.iter().zip(&own[..width]).zip(&own[width..]) {
                let wanted = f64::from(gate) / (1.0 + f64::from(-gate).exp()) * f64::from(up);
                assert!((f64::from(is) - wanted).abs() <= 1e-6 * wanted.abs() + 1e-30);
            }
        }
        rms_norm(&threads, &x[..width * tokens], &weight, 1e-5, &mut all);
        for token in 0..tokens {
            let own = &x[width * token..][..width];
            rms_norm(&threads, own, &weight, 1e-5, &mut one);
            assert_eq!(one, all[token * width..][..width]);
            let squares: f64 = own.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = 1.0 / (squares / width as f64 + 1e-5).sqrt();
            for ((&is, &x), &weight) in one.iter().zip(own).zip(&weight) {
                let wanted = f64::from(x) * scale * f64::from(weight);
                assert!((f64::from(is) - wanted).abs() <= 2e-6 * wanted.abs());
            }
        }
    }
}
