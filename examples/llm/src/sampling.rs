//! From logits to a token.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How a request's tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// The likeliest tokens that together have this probability are drawn from.
    pub top_p: f32,
    /// So many of the likeliest tokens are drawn from; 0 for all.
    pub top_k: usize,
    /// Tokens below this part of the likeliest token's probability are not drawn.
    pub min_p: f32,
    /// Subtracted from the logit of each token that was output.
    pub presence_penalty: f32,
    /// Subtracted once for each time that a token was output.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed draws the same tokens from the same logits.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token, always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// How likely a token was, before anything that `Sampling` does to the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The natural logarithm of the chosen token's probability.
    pub chosen: f32,
    /// The likeliest tokens and their logarithms, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Likeliest tokens to report; `None` where no logprobs are wanted.
    logprobs: Option<usize>,
    rng: ChaCha8Rng,
    /// How often each token was output, where a penalty asks.
    counts: HashMap<u32, u32>,
    /// Never chosen: what would end a text that is to go on.
    banned: Vec<u32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler before its request's first token.
    pub fn new(sampling: Sampling, logprobs: Option<usize>) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        let (counts, banned, candidates) = (HashMap::new(), Vec::new(), Vec::new());
        Self { sampling, logprobs, rng, counts, banned, candidates }
    }

    /// The same, but for tokens that it does not choose.
    pub fn without(mut self, banned: &[u32]) -> Self {
        self.banned = banned.to_vec();
        self
    }

    /// The next token. `logits` are changed.
    pub fn sample(&mut self, logits: &mut [f32]) -> (u32, Option<Logprobs>) {
        let before = self.logprobs.map(|top| (log_sum_exp(logits), likeliest(logits, top)));
        let raw = |token: u32, logits: &[f32]| logits[token as usize];
        // What is said of the chosen token is said of the logits as they came.
        let unchanged = before.as_ref().map(|_| logits.to_vec());
        self.change(logits);
        let token = match self.sampling.temperature {
            temperature if temperature > 0.0 => self.draw(logits, temperature),
            _ => argmax(logits),
        };
        if self.has_penalties() {
            *self.counts.entry(token).or_default() += 1;
        }
        let logprobs = before.zip(unchanged).map(|((total, top), logits)| Logprobs {
            chosen: raw(token, &logits) - total,
            top: top.into_iter().map(|token| (token, raw(token, &logits) - total)).collect(),
        });
        (token, logprobs)
    }

    fn has_penalties(&self) -> bool {
        self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0
    }

    fn change(&mut self, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            let Sampling { presence_penalty, frequency_penalty, .. } = self.sampling;
            logits[token as usize] -= presence_penalty + frequency_penalty * count as f32;
        }
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for &token in &self.banned {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }

    fn draw(&mut self, logits: &[f32], temperature: f32) -> u32 {
        let Sampling { top_p, top_k, min_p, .. } = self.sampling;
        let largest = maximum(logits);
        let weight = |logit: f32| ((logit - largest) / temperature).exp();
        let total: f64 = logits.iter().map(|&logit| f64::from(weight(logit))).sum();
        // All tokens below this together have less than `1 - top_p`: no nucleus needs them.
        let nucleus = f64::from(1.0 - top_p) * total / logits.len() as f64;
        let least = nucleus.max(f64::from(min_p)) as f32;
        let all = logits.iter().enumerate().map(|(token, &logit)| (weight(logit), token as u32));
        self.candidates.clear();
        self.candidates.extend(all.filter(|&(weight, _)| weight >= least && weight > 0.0));
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        let mut sum: f64 = self.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        if top_p < 1.0 {
            self.candidates.sort_unstable_by(order);
            // Of the tokens that top_k left.
            let kept = if top_k > 0 { sum } else { total };
            let (mut reached, mut count) = (0.0, 0);
            while count < self.candidates.len() && (count == 0 || reached < f64::from(top_p) * kept)
            {
                reached += f64::from(self.candidates[count].0);
                count += 1;
            }
            self.candidates.truncate(count);
            sum = reached;
        }
        let mut left = self.rng.random::<f64>() * sum;
        for &(weight, token) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a crumb; without candidates all logits are NaN.
        self.candidates.last().map_or_else(|| argmax(logits), |&(_, token)| token)
    }
}

/// The first of the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    let largest = maximum(logits);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

/// The largest, found in lanes.
fn maximum(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = logits.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = maximum(logits);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
    (f64::from(largest) + sum.ln()) as f32
}

/// The likeliest tokens, likeliest first.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let order =
        |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let count = count.min(tokens.len());
    if count == 0 {
        return Vec::new();
    }
    tokens.select_nth_unstable_by(count - 1, order);
    tokens.truncate(count);
    tokens.sort_unstable_by(order);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling.clone(), None);
        (0..count).map(|_| sampler.sample(&mut logits.to_vec()).0).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut logits = vec![0.0; 100];
        (logits[17], logits[40]) = (2.0, 2.0);
        assert_eq!(draws(&Sampling::greedy(), &logits, 2), [17, 17]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::greedy() };
        let drawn = draws(&sampling, &logits, 20_000);
        for (token, wanted) in [0.5, 0.3, 0.2].into_iter().enumerate() {
            let count = drawn.iter().filter(|&&other| other == token as u32).count();
            let part = count as f64 / drawn.len() as f64;
            assert!((part - wanted).abs() < 0.02, "token {token}: {part}");
        }
        assert_eq!(drawn, draws(&sampling, &logits, 20_000), "the same seed");
        let other = Sampling { seed: 8, ..sampling };
        assert_ne!(drawn, draws(&other, &logits, 20_000));
    }

    #[test]
    fn nucleus_top_k_and_min_p_leave_the_likeliest() {
        let logits: Vec<f32> = [0.4_f32, 0.3, 0.2, 0.1].into_iter().map(f32::ln).collect();
        let plain = Sampling { temperature: 1.0, seed: 3, ..Sampling::greedy() };
        let kept = |sampling: Sampling| {
            let mut kept = draws(&sampling, &logits, 2_000);
            kept.sort_unstable();
            kept.dedup();
            kept
        };
        assert_eq!(kept(plain.clone()), [0, 1, 2, 3]);
        assert_eq!(kept(Sampling { top_p: 0.65, ..plain.clone() }), [0, 1]);
        assert_eq!(kept(Sampling { top_p: 0.75, ..plain.clone() }), [0, 1, 2]);
        assert_eq!(kept(Sampling { top_p: 0.0, ..plain.clone() }), [0]);
        assert_eq!(kept(Sampling { top_k: 2, ..plain.clone() }), [0, 1]);
        assert_eq!(kept(Sampling { min_p: 0.6, ..plain.clone() }), [0, 1]);
        assert_eq!(kept(Sampling { top_k: 3, top_p: 0.5, ..plain }), [0, 1]);
    }

    #[test]
    fn penalties_biases_and_bans_change_the_choice() {
        let logits = [1.0, 0.9, 0.0, 0.0];
        let mut sampler =
            Sampler::new(Sampling { presence_penalty: 0.5, ..Sampling::greedy() }, None);
        let next = |sampler: &mut Sampler| sampler.sample(&mut logits.to_vec()).0;
        assert_eq!([next(&mut sampler), next(&mut sampler), next(&mut sampler)], [0, 1, 0]);
        let biased = Sampling { logit_bias: vec![(3, 5.0), (99, 1.0)], ..Sampling::greedy() };
        assert_eq!(draws(&biased, &logits, 1), [3]);
        assert_eq!(next(&mut Sampler::new(Sampling::greedy(), None).without(&[0])), 1);
    }

    #[test]
    fn logprobs_are_of_the_logits_as_they_came() {
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].into_iter().map(|p| p.ln() + 3.0).collect();
        let biased = Sampling { logit_bias: vec![(2, 9.0)], ..Sampling::greedy() };
        let (token, logprobs) = Sampler::new(biased, Some(2)).sample(&mut logits.clone());
        let logprobs = logprobs.expect("they are wanted");
        assert_eq!(token, 2);
        assert!((logprobs.chosen - 0.2_f32.ln()).abs() < 1e-5);
        assert_eq!(logprobs.top.iter().map(|top| top.0).collect::<Vec<_>>(), [0, 1]);
        assert!((logprobs.top[1].1 - 0.3_f32.ln()).abs() < 1e-5);
    }
}
