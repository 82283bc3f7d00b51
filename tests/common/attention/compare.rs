//! Whether a result is as good as can be asked for.
//!
//! Three rules, each against the f64 oracle:
//!
//! 1. **As good as a plain implementation.** Over a case, `err <= 2 * err(naive) + atol`, 3 times
//!    with a soft cap, whose tanh a plain implementation takes from the C library.
//! 2. **Every head of every token by itself**, so that a large head hides no wrong small one: each
//!    element within the sum of what a kernel's roundings can do to it (see the oracle): logits in
//!    f32, probabilities and output rounded once to the type of the queries, sums in f32.
//! 3. **Direction**: cosine distance up to 5e-6 where outputs have 16 bits.
//!
//! The LSE is f32 whatever the types: its bound is that of the logits' errors, weighted by
//! probability, plus 4 roundings of itself; for logits of ordinary size that is about 1e-6. A sum
//! of 16-bit probabilities would be off by 1e-3.

use inflight::kernels::DType;

use super::case::{Answer, Case};
use super::numbers::unit_roundoff;
use super::oracle::Reference;

/// How far off a result is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) error: f64,
    pub(crate) naive: f64,
    /// Largest share of the bound of a head.
    pub(crate) share: f64,
    pub(crate) lse_share: f64,
    pub(crate) lse_error: f64,
    pub(crate) cosine: f64,
    /// Heads of tokens that see no key.
    pub(crate) empty: usize,
}

/// Error that is nobody's fault: of f32, 32 roundings of the largest output, as sums in another
/// order differ by; of 16 bits, one, the output's own, where the naive result is exact by luck.
fn atol(dtype: DType, largest: f64) -> f64 {
    let roundings = if dtype == DType::F32 { 32.0 } else { 1.0 };
    let least = if dtype == DType::F16 { 0.5_f64.powi(25) } else { f64::from(f32::MIN_POSITIVE) };
    roundings * unit_roundoff(dtype) * largest + least
}

/// Compares all numbers; an error says which is wrong, and the case.
pub(crate) fn judge(
    case: &Case,
    reference: &Reference,
    naive: &Answer,
    found: &Answer,
) -> Result<Verdict, String> {
    let wrong = |what: String| Err(format!("{what}\n{:?}", case.spec));
    let config = case.spec.config;
    let (heads, dim) = (config.num_q_heads, config.head_dim);
    assert_eq!((found.o.len(), found.lse.len()), (reference.o.len(), reference.lse.len()));
    let (mut verdict, mut worst) = (Verdict::default(), String::new());
    for at in 0..reference.lse.len() {
        let range = at * dim..(at + 1) * dim;
        let (o, want) = (&found.o[range.clone()], &reference.o[range.clone()]);
        let (lse, want_lse) = (f64::from(found.lse[at]), reference.lse[at]);
        let what = || {
            let token = at / heads;
            let row = case.qo_indptr.partition_point(|&start| start as usize <= token) - 1;
            let i = token - case.qo_indptr[row] as usize;
            let (q_len, kv_len) = case.rows[row];
            let seen = reference.num_seen[at];
            let head = at % heads;
            format!("row {row} ({q_len}, {kv_len}), query {i}, head {head}, sees {seen} keys")
        };
        if reference.num_seen[at] == 0 {
            verdict.empty += 1;
            // -inf is exact; a sink is off by roundings at most, as any LSE.
            let bound = 4.0 * unit_roundoff(DType::F32) * want_lse.abs();
            let good = lse == want_lse || (lse - want_lse).abs() <= bound && bound.is_finite();
            if o.iter().any(|&x| x != 0.0) || !good {
                let other = o.iter().find(|&&x| x != 0.0);
                return wrong(format!("{}: {other:?}, LSE {lse}, not 0 and {want_lse}", what()));
            }
            continue;
        }
        let off = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs();
        for (d, error) in o.iter().zip(want).map(off).enumerate() {
            let bound = reference.o_bound[at];
            if error.is_nan() || error > bound {
                let (x, y) = (o[d], want[d]);
                return wrong(format!("{}, element {d}: {x}, not {y} +- {bound:e}", what()));
            }
            if error > verdict.error {
                (verdict.error, worst) = (error, what());
            }
            verdict.share = verdict.share.max(error / bound);
        }
        let plain = naive.o[range].iter().zip(want).map(off);
        verdict.naive = verdict.naive.max(plain.fold(0.0, f64::max));
        let (error, bound) = ((lse - want_lse).abs(), reference.lse_bound[at]);
        if error.is_nan() || error > bound {
            return wrong(format!("{}: LSE {lse}, not {want_lse} +- {bound:e}", what()));
        }
        verdict.lse_error = verdict.lse_error.max(error);
        verdict.lse_share = verdict.lse_share.max(error / bound);
    }
    let largest = reference.o.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let times = if config.soft_cap.is_some() { 3.0 } else { 2.0 };
    let most = times * verdict.naive + atol(config.q_dtype, largest);
    if verdict.error > most {
        let (error, naive) = (verdict.error, verdict.naive);
        return wrong(format!("{worst}: error {error:e}; naive {naive:e}, so at most {most:e}"));
    }
    verdict.cosine = cosine_distance(&found.o, &reference.o);
    // Few numbers may all be rounded the same way; tiny ones are subnormal.
    let many = found.o.len() >= 2048 && largest > 0.01;
    if config.q_dtype != DType::F32 && many && verdict.cosine > 5e-6 {
        return wrong(format!("cosine distance {:e}", verdict.cosine));
    }
    Ok(verdict)
}

fn cosine_distance(x: &[f32], y: &[f64]) -> f64 {
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().map(|&x| f64::from(x)).zip(y) {
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    if xx == 0.0 && yy == 0.0 { 0.0 } else { 1.0 - 2.0 * xy / (xx + yy) }
}
