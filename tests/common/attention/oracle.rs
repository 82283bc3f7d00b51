//! Attention in f64, from its definition, and how far from it a kernel in f32 may be.

use super::case::Case;
use super::numbers::unit_roundoff;

/// What a query may see.
pub(crate) type Seen<'a> = &'a dyn Fn(usize) -> bool;

/// The keys of one KV head of a row, as numbers.
pub(crate) struct Keys {
    pub(crate) head_dim: usize,
    pub(crate) k: Vec<f64>,
    pub(crate) v: Vec<f64>,
}

impl Keys {
    pub(crate) fn len(&self) -> usize {
        self.k.len() / self.head_dim
    }

    fn of(case: &Case, row: usize, head: usize) -> Self {
        let (n, head_dim) = (case.rows[row].1, case.spec.config.head_dim);
        let times = |(x, scale): (f32, f32)| f64::from(x) * f64::from(scale);
        let all = |of: &dyn Fn(usize, usize) -> (f32, f32)| -> Vec<f64> {
            (0..n * head_dim).map(|i| times(of(i / head_dim, i % head_dim))).collect()
        };
        Self {
            head_dim,
            k: all(&|j, d| case.k(row, j, head, d)),
            v: all(&|j, d| case.v(row, j, head, d)),
        }
    }

    fn key(&self, j: usize) -> &[f64] {
        &self.k[j * self.head_dim..][..self.head_dim]
    }

    fn value(&self, j: usize) -> &[f64] {
        &self.v[j * self.head_dim..][..self.head_dim]
    }
}

/// What a head adds to its logits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) scale: f64,
    pub(crate) cap: Option<f64>,
    pub(crate) slope: f64,
    pub(crate) sink: Option<f64>,
    /// Of the query; may be negative.
    pub(crate) position: i64,
}

/// The result of a query and how far off one in f32 may be.
pub(crate) struct Row {
    pub(crate) o: Vec<f64>,
    pub(crate) lse: f64,
    /// How much the logits' errors and the sums' may move any element of `o`.
    pub(crate) sums: f64,
    /// How much rounding each probability to a type of this unit roundoff may, relative to it.
    pub(crate) probabilities: f64,
    pub(crate) lse_bound: f64,
    pub(crate) num_seen: usize,
    /// Largest value seen.
    pub(crate) largest: f64,
}

/// Softmax attention of one query over one head's keys.
pub(crate) fn softmax(q: &[f64], keys: &Keys, terms: Terms, seen: Seen<'_>) -> Row {
    let u = unit_roundoff(inflight::kernels::DType::F32);
    let q_norm = norm(q);
    // (key, logit, how far off it may be in f32)
    let mut logits: Vec<(usize, f64, f64)> = Vec::new();
    for j in (0..keys.len()).filter(|&j| seen(j)) {
        let dot = q.iter().zip(keys.key(j)).map(|(a, b)| a * b).sum::<f64>() * terms.scale;
        // The roundings of a sum of products go like a random walk: 4 of the largest that the sum
        // of magnitudes can be is more than any order of summation was seen to need.
        let mut bound = 4.0 * u * terms.scale.abs() * q_norm * norm(keys.key(j));
        let mut s = dot;
        if let Some(cap) = terms.cap {
            s = cap * (s / cap).tanh();
            // A tanh from exponentials is off by a few u of its largest, 1.
            bound += 8.0 * u * cap;
        }
        let distance = (terms.position - j as i64).unsigned_abs() as f64;
        s -= terms.slope * distance;
        // The distance's product, the subtraction, and exp's argument reduction.
        bound += 4.0 * u * (s.abs() + (terms.slope * distance).abs());
        logits.push((j, s, bound));
    }
    let sink = terms.sink.unwrap_or(f64::NEG_INFINITY);
    let largest = logits.iter().map(|l| l.1).fold(sink, f64::max);
    let zero = Row {
        o: vec![0.0; keys.head_dim],
        lse: sink,
        sums: 0.0,
        probabilities: 0.0,
        lse_bound: 0.0,
        num_seen: 0,
        largest: 0.0,
    };
    if logits.is_empty() {
        return zero;
    }
    let mut row = Row { num_seen: logits.len(), ..zero };
    let mut denominator = (sink - largest).exp();
    // Weighted by probability: magnitudes, errors of logits, both, squares of magnitudes.
    let (mut sizes, mut errors, mut both, mut squares) = (0.0, 0.0, 0.0, 0.0);
    for &(j, s, bound) in &logits {
        let p = (s - largest).exp();
        let values = keys.value(j);
        let size = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        denominator += p;
        row.o.iter_mut().zip(values).for_each(|(o, v)| *o += p * v);
        // An error e of a logit is a factor exp(e) of its probability.
        let error = (bound + 4.0 * u * largest.abs()).exp_m1();
        sizes += p * size;
        errors += p * error;
        both += p * error * size;
        squares += (p * size).powi(2);
        row.largest = row.largest.max(size);
    }
    row.o.iter_mut().for_each(|o| *o /= denominator);
    row.lse = largest + denominator.ln();
    let [sizes, errors, both] = [sizes, errors, both].map(|x| x / denominator);
    let n = row.num_seen as f64;
    // exp itself, the rescaling and the division; a sum's n roundings go like a random walk, but
    // those of equal terms all the same way, in each of many lanes.
    let sums = u * (16.0 + 2.0 * n.sqrt() + n / 32.0);
    // Instructions for bf16 take subnormal numbers for 0.
    let flushed = f64::from(f32::MIN_POSITIVE) * n * (1.0 + row.largest);
    row.sums = both + sizes * (errors + sums) + flushed;
    // Independent errors: seven standard deviations of their sum, or the sum of the largest.
    row.probabilities = sizes.min(4.0 * squares.sqrt() / denominator);
    row.lse_bound = errors + sums + 4.0 * u * row.lse.abs();
    row
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The results of a case, and how far off each may be.
pub(crate) struct Reference {
    pub(crate) o: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    /// Of each head of each token.
    pub(crate) o_bound: Vec<f64>,
    pub(crate) lse_bound: Vec<f64>,
    /// Keys seen, of each head of each token.
    pub(crate) num_seen: Vec<usize>,
}

pub(crate) fn oracle(case: &Case) -> Reference {
    let config = case.spec.config;
    let heads = config.num_q_heads;
    let n = case.num_tokens() * heads;
    let mut all = Reference {
        o: vec![0.0; n * config.head_dim],
        lse: vec![0.0; n],
        o_bound: vec![0.0; n],
        lse_bound: vec![0.0; n],
        num_seen: vec![0; n],
    };
    let u = unit_roundoff(config.q_dtype);
    // Half of the smallest number above 0, for a probability and for the output.
    let tiny = if u == 0.5_f64.powi(11) { 0.5_f64.powi(25) } else { 0.0 };
    for row in 0..case.rows.len() {
        let (q_len, kv_len) = case.rows[row];
        for kv_head in 0..config.num_kv_heads {
            let keys = Keys::of(case, row, kv_head);
            for at in 0..q_len * config.group_size() {
                let (i, head) = (at % q_len, kv_head * config.group_size() + at / q_len);
                let token = case.qo_indptr[row] as usize + i;
                let position = kv_len as i64 - q_len as i64 + i as i64;
                let terms = Terms {
                    scale: f64::from(config.scale),
                    cap: config.soft_cap.map(f64::from),
                    slope: case.alibi.as_ref().map_or(0.0, |slopes| f64::from(slopes[head])),
                    sink: case.sinks.as_ref().map(|sinks| f64::from(sinks[head])),
                    position,
                };
                let seen = |j: usize| {
                    let after = j as i64 > position;
                    let left = config.window_left.map_or(i64::MIN, |w| position - i64::from(w));
                    !(config.causal && after)
                        && j as i64 >= left
                        && case.mask.as_ref().is_none_or(|mask| mask.shows(row, i, j, kv_len))
                };
                let q: Vec<f64> = case.q.row(token, head).into_iter().map(f64::from).collect();
                let result = softmax(&q, &keys, terms, &seen);
                let at = token * heads + head;
                let largest = result.o.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                let subnormal = tiny * (1.0 + result.largest * (result.num_seen as f64).sqrt());
                // The output's own rounding; for 16 bits also that of the probabilities: each by
                // itself, and alike if they are equal.
                let roundings = match case.spec.config.q_dtype.size() {
                    4 => u * largest,
                    _ => u * (2.0 * largest + result.probabilities) + subnormal,
                };
                all.o[at * config.head_dim..][..config.head_dim].copy_from_slice(&result.o);
                all.o_bound[at] = 1.05 * (result.sums + roundings);
                all.lse[at] = result.lse;
                all.lse_bound[at] = result.lse_bound;
                all.num_seen[at] = result.num_seen;
            }
        }
    }
    all
}
