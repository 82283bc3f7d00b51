//! What a layer computes beside its matrix products and its attention.

/// Root-mean-square normalisation of each token of `x`, times `weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / ((squares / width as f64) + f64::from(eps)).sqrt();
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale as f32 * weight;
        }
    }
}

/// `silu(gate) * up` of each token, whose gates stand before its ups.
pub fn silu_product(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (both, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = both.split_at(width);
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + (-gate).exp()) * up;
        }
    }
}

/// `e` to the power of `x`, which is at most 0, within 2 units in the last place; 0 below -87. Unlike
/// the standard library's it is computed for several at once, and the same on all machines.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Added to a small number, it leaves the nearest integer in the last bits.
    const ROUND: f32 = 12_582_912.0;
    // The logarithm of 2, as a sum: the first part (0.693359375) times an integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const TERMS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let near = x.max(-87.0);
    let rounded = near * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let rest = near - power * LN_2[0] - power * LN_2[1];
    let series = TERMS.iter().fold(0.0, |sum, term| sum * rest + term);
    let mantissa = series * rest * rest + rest + 1.0;
    let exponent = rounded.to_bits().wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { mantissa * f32::from_bits(exponent) }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let (got, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - wanted).abs() <= wanted * 2.4e-7, "exp({x}) is {wanted}, not {got}");
        }
        assert_eq!([exp(0.0), exp(-0.0), exp(-87.5), exp(f32::NEG_INFINITY)], [1.0, 1.0, 0.0, 0.0]);
    }
}
