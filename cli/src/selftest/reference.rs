//! What kernels must compute, in f64, as plainly as it can be written.

/// A sequence of a batch: `q_len` queries, the last of `kv_len` tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
}

/// Numbers of tokens of heads: `[token][head][element]`.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) dim: usize,
    pub(super) numbers: Vec<f64>,
}

impl Heads {
    pub(super) fn at(&self, token: usize, head: usize) -> &[f64] {
        let start = (token * self.heads + head) * self.dim;
        &self.numbers[start..start + self.dim]
    }
}

/// A pattern of a mask, by query and key.
pub(super) type Sees = fn(usize, usize) -> bool;

/// What bends attention from the plain softmax.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    pub(super) causal: bool,
    pub(super) window_left: Option<usize>,
    pub(super) soft_cap: Option<f64>,
    pub(super) slopes: Option<Vec<f64>>,
    pub(super) sinks: Option<Vec<f64>>,
    /// Over the last keys of a row, how many, and whether a query sees the `n`th of them.
    pub(super) mask: Option<(usize, Sees)>,
}

/// Outputs and LSE of one query of one head.
pub(super) struct State {
    pub(super) o: Vec<f64>,
    pub(super) lse: f64,
}

/// Attention of query `query` of `row`, by query head `head`, over the row's keys and values.
pub(super) fn attention(
    q: &[f64],
    (k, v): (&Heads, &Heads),
    row: Row,
    (query, head, kv_head): (usize, usize, usize),
    scale: f64,
    features: &Features,
) -> State {
    let position = row.kv_len - row.q_len + query;
    let mut logits = Vec::new();
    for key in 0..row.kv_len {
        let window = features.window_left.is_some_and(|left| key + left < position);
        let masked = features.mask.is_some_and(|(width, sees)| {
            let start = row.kv_len - width.min(row.kv_len);
            key >= start && !sees(query, key - start)
        });
        if (features.causal && key > position) || window || masked {
            continue;
        }
        let dot: f64 = q.iter().zip(k.at(key, kv_head)).map(|(a, b)| a * b).sum();
        let mut logit = scale * dot;
        if let Some(cap) = features.soft_cap {
            logit = cap * (logit / cap).tanh();
        }
        if let Some(slopes) = &features.slopes {
            logit -= slopes[head] * position.abs_diff(key) as f64;
        }
        logits.push((key, logit));
    }
    let sink = features.sinks.as_ref().map(|sinks| sinks[head]);
    let all = logits.iter().map(|(_, logit)| *logit).chain(sink);
    let most = all.clone().fold(f64::NEG_INFINITY, f64::max);
    let mut o = vec![0.0; v.dim];
    if most == f64::NEG_INFINITY {
        return State { o, lse: most };
    }
    let sum: f64 = all.map(|logit| (logit - most).exp()).sum();
    for (key, logit) in logits {
        let weight = (logit - most).exp() / sum;
        o.iter_mut().zip(v.at(key, kv_head)).for_each(|(o, v)| *o += weight * v);
    }
    State { o, lse: most + sum.ln() }
}

/// Attention over the keys of all states together.
pub(super) fn merge(states: &[State]) -> State {
    let most = states.iter().map(|state| state.lse).fold(f64::NEG_INFINITY, f64::max);
    let mut o = vec![0.0; states[0].o.len()];
    if most == f64::NEG_INFINITY {
        return State { o, lse: most };
    }
    let sum: f64 = states.iter().map(|state| (state.lse - most).exp()).sum();
    for state in states {
        let weight = (state.lse - most).exp() / sum;
        o.iter_mut().zip(&state.o).for_each(|(sum, o)| *sum += weight * o);
    }
    State { o, lse: most + sum.ln() }
}

/// The angle by which pair `pair` of `rotary_dim / 2` turns at `position`.
pub(super) fn angle(position: u32, pair: usize, rotary_dim: usize) -> f64 {
    f64::from(position) * 10_000_f64.powf(-2.0 * pair as f64 / rotary_dim as f64)
}

/// Rotates the first `rotary_dim` elements of a head.
pub(super) fn rotate(head: &mut [f64], position: u32, rotary_dim: usize, interleaved: bool) {
    for pair in 0..rotary_dim / 2 {
        let (a, b) =
            if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + rotary_dim / 2) };
        let (sin, cos) = angle(position, pair, rotary_dim).sin_cos();
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let heads = |numbers: &[f64]| Heads { heads: 1, dim: 1, numbers: numbers.to_vec() };
        let (k, v) = (heads(&[0.0, 2_f64.ln(), 9.0]), heads(&[3.0, 6.0, 99.0]));
        let row = Row { q_len: 2, kv_len: 3 };
        let plain = Features { causal: true, ..Features::default() };
        let state = |query, features: &Features| {
            attention(&[1.0], (&k, &v), row, (query, 0, 0), 1.0, features)
        };
        // Weights 1/3 and 2/3.
        let first = state(0, &plain);
        assert!((first.o[0] - 5.0).abs() < 1e-12 && (first.lse - 3_f64.ln()).abs() < 1e-12);
        let sinks = Features { sinks: Some(vec![3_f64.ln()]), ..plain.clone() };
        assert!((state(0, &sinks).o[0] - 2.5).abs() < 1e-12);
        let slopes = Features { slopes: Some(vec![2_f64.ln()]), ..plain.clone() };
        assert!((state(0, &slopes).o[0] - (0.5 * 3.0 + 2.0 * 6.0) / 2.5).abs() < 1e-12);
        let window = Features { window_left: Some(0), ..plain.clone() };
        assert_eq!((state(0, &window).o[0], state(1, &window).o[0]), (6.0, 99.0));
        let none = Features { mask: Some((9, |_, _| false)), ..plain };
        assert_eq!((state(0, &none).o[0], state(0, &none).lse), (0.0, f64::NEG_INFINITY));
        let half = State { o: vec![2.0], lse: 0.0 };
        let merged = merge(&[first, half, state(0, &none)]);
        assert!((merged.o[0] - (3.0 * 5.0 + 2.0) / 4.0).abs() < 1e-12);
        let mut head = [1.0, 0.0, 7.0];
        rotate(&mut head, 1, 2, true);
        assert_eq!(head, [1_f64.cos(), 1_f64.sin(), 7.0]);
    }
}
