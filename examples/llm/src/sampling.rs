//! From logits to a token.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ops::{exp, vectors};

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
    /// Logits of tokens of the prompt and the output are divided by it, or multiplied where they are
    /// negative; 1 changes nothing.
    pub repetition_penalty: f32,
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
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// By a temperature and a nucleus, as options name them.
    ///
    /// # Errors
    /// Names the option that is out of its range.
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self> {
        // Also NaN is not.
        for (option, value, most) in [("--temperature", temperature, 2.0), ("--top-p", top_p, 1.0)]
        {
            if !(0.0..=most).contains(&value) {
                bail!("{option}: {value} is not within 0 to {most}");
            }
        }
        Ok(Self { temperature, top_p, seed, ..Self::greedy() })
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
    /// The prompt's tokens, where the repetition penalty needs them.
    prompt: HashSet<u32>,
    /// How often each token was output, where a penalty needs it.
    counts: HashMap<u32, u32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler before the first token of a request with this prompt.
    pub fn new(sampling: Sampling, logprobs: Option<usize>, prompt: &[u32]) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        let penalized = if sampling.repetition_penalty == 1.0 { &[] } else { prompt };
        let prompt = penalized.iter().copied().collect();
        Self { sampling, logprobs, rng, prompt, counts: HashMap::new(), candidates: Vec::new() }
    }

    /// Whether the likeliest token is chosen, and nothing is to be said of others.
    pub fn is_likeliest(&self) -> bool {
        let greedy = self.sampling.temperature <= 0.0 && self.sampling.logit_bias.is_empty();
        greedy && self.logprobs.is_none() && !self.has_penalties()
    }

    /// The next token. `logits` are changed.
    pub fn sample(&mut self, logits: &mut [f32]) -> (u32, Option<Logprobs>) {
        self.sample_without(&[], logits)
    }

    /// The next token, which is none of `masked`. `logits` are changed.
    pub fn sample_without(
        &mut self,
        masked: &[u32],
        logits: &mut [f32],
    ) -> (u32, Option<Logprobs>) {
        let before = self.logprobs.map(|top| (log_sum_exp(logits), likeliest(logits, top)));
        let raw = |token: u32, logits: &[f32]| logits[token as usize];
        // What is said of the chosen token is said of the logits as they came.
        let unchanged = before.as_ref().map(|_| logits.to_vec());
        self.change(masked, logits);
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
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } =
            self.sampling;
        presence_penalty != 0.0 || frequency_penalty != 0.0 || repetition_penalty != 1.0
    }

    /// Masks, biases and penalties, in vLLM's order: the repetition penalty multiplies, so it is of
    /// the biased logits, and before the penalties that are subtracted.
    fn change(&self, masked: &[u32], logits: &mut [f32]) {
        // Files may name a token that the model does not have.
        let mut change = |token: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = change(*logit);
            }
        };
        masked.iter().for_each(|&token| change(token, &|_| f32::NEG_INFINITY));
        for &(token, bias) in &self.sampling.logit_bias {
            change(token, &|logit| logit + bias);
        }
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } =
            self.sampling;
        if repetition_penalty != 1.0 {
            let output = self.counts.keys().filter(|&token| !self.prompt.contains(token));
            for &token in self.prompt.iter().chain(output) {
                change(token, &|logit| match logit > 0.0 {
                    true => logit / repetition_penalty,
                    false => logit * repetition_penalty,
                });
            }
        }
        for (&token, &count) in &self.counts {
            change(token, &|logit| logit - presence_penalty - frequency_penalty * count as f32);
        }
    }

    /// Turns logits to weights, and draws.
    fn draw(&mut self, logits: &mut [f32], temperature: f32) -> u32 {
        let Sampling { top_p, top_k, min_p, .. } = self.sampling;
        let total = to_weights(logits, temperature);
        let all = logits.iter().copied().zip(0..);
        let part = self.rng.random::<f64>();
        if top_p >= 1.0 && top_k == 0 && min_p == 0.0 {
            return pick(all, part * total);
        }
        // All tokens below this together have less than `1 - top_p`: no nucleus needs them. One of
        // what top_k leaves may.
        let nucleus = match top_k {
            0 => f64::from(1.0 - top_p) * total / logits.len() as f64,
            _ => 0.0,
        };
        // No weight is below this that is not 0.
        let least = (nucleus as f32).max(min_p).max(f32::MIN_POSITIVE);
        self.candidates.clear();
        self.candidates.extend(all.filter(|&(weight, _)| weight >= least));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, likelier);
            self.candidates.truncate(top_k);
        }
        let mut sum = sum(&self.candidates);
        if top_p < 1.0 {
            let kept = if top_k > 0 { sum } else { total };
            sum = keep_nucleus(&mut self.candidates, f64::from(top_p) * kept);
        }
        pick(self.candidates.iter().copied(), part * sum)
    }
}

/// Turns logits to weights relative to the likeliest token's; their sum.
fn to_weights(logits: &mut [f32], temperature: f32) -> f64 {
    let largest = maximum(logits);
    vectors(|| logits.iter_mut().for_each(|x| *x = exp((*x - largest) / temperature)));
    // In lanes; f32 within a piece, f64 over all.
    let piece = |piece: &[f32]| {
        let mut lanes = [0.0_f32; 16];
        let chunks = piece.chunks_exact(16);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, weight)| *lane += weight);
        }
        f64::from(lanes.iter().sum::<f32>() + rest)
    };
    logits.chunks(1024).map(piece).sum()
}

fn sum(candidates: &[(f32, u32)]) -> f64 {
    candidates.iter().map(|&(weight, _)| f64::from(weight)).sum()
}

/// Likeliest first; of equals, the one with the lower number.
fn likelier(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the likeliest that together have `wanted`, sorted; at least one. Their sum.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, wanted: f64) -> f64 {
    let (mut reached, mut kept, mut sorted) = (0.0, 0, 0);
    while kept < candidates.len() && (kept == 0 || reached < wanted) {
        if kept == sorted {
            // Few of thousands are in most nuclei: no more are sorted than have to be.
            let next = candidates.len().min(64.max(4 * sorted));
            if next < candidates.len() {
                candidates[sorted..].select_nth_unstable_by(next - sorted, likelier);
            }
            candidates[sorted..next].sort_unstable_by(likelier);
            sorted = next;
        }
        reached += f64::from(candidates[kept].0);
        kept += 1;
    }
    candidates.truncate(kept);
    reached
}

/// The candidate at which `left` of the sum is used up; the last, where rounding leaves a crumb.
fn pick(candidates: impl Iterator<Item = (f32, u32)>, mut left: f64) -> u32 {
    let mut token = 0;
    for candidate in candidates.filter(|candidate| candidate.0 > 0.0) {
        left -= f64::from(candidate.0);
        token = candidate.1;
        if left < 0.0 {
            break;
        }
    }
    token
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

/// The logarithm of the sum of weights.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let sum = to_weights(&mut logits.to_vec(), 1.0);
    (f64::from(maximum(logits)) + sum.ln()) as f32
}

/// The likeliest tokens, likeliest first; of equals, the one with the lower number.
pub fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let mut tokens: Vec<u32> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (&logit, token) in logits.iter().zip(0..) {
        if logit > least || tokens.len() < count {
            let place = tokens.partition_point(|&other| logits[other as usize] >= logit);
            tokens.insert(place, token);
            tokens.truncate(count);
            least = match tokens.last() {
                Some(&last) if tokens.len() == count => logits[last as usize],
                _ => f32::NEG_INFINITY,
            };
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling.clone(), None, &[]);
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

    /// Logits of a vocabulary, none like another but for some.
    fn many() -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        (0..5_000).map(|_| (rng.random::<f32>() * 900.0).round() / 100.0).collect()
    }

    #[test]
    fn nuclei_of_many_are_those_of_a_full_sort() {
        for (temperature, top_p, top_k) in [(1.0, 0.95, 0), (0.7, 0.5, 0), (1.5, 0.99, 900)] {
            let mut sorted: Vec<(f32, u32)> = many()
                .iter()
                .zip(0..)
                .map(|(&l, t)| (((l - 9.0) / temperature).exp(), t))
                .collect();
            sorted.sort_unstable_by(likelier);
            sorted.truncate(if top_k > 0 { top_k } else { sorted.len() });
            let (mut sum, all) = (0.0, sum(&sorted));
            let nucleus = sorted.iter().take_while(|candidate| {
                let more = sum < f64::from(top_p) * all;
                sum += f64::from(candidate.0);
                more
            });
            let wanted = nucleus.count();
            let sampling = Sampling { temperature, top_p, top_k, ..Sampling::greedy() };
            let mut sampler = Sampler::new(sampling, None, &[]);
            sampler.sample(&mut many());
            let got: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.1).collect();
            assert!(got.len().abs_diff(wanted) <= 1, "{} tokens, not {wanted}", got.len());
            assert!(got.iter().zip(&sorted).all(|(got, wanted)| *got == wanted.1));
        }
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        let logits = many();
        let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        sorted.sort_unstable_by(likelier);
        for count in [0, 1, 20, 5_000] {
            let wanted: Vec<u32> = sorted[..count].iter().map(|&(_, token)| token).collect();
            assert_eq!(likeliest(&logits, count), wanted);
        }
        assert_eq!(likeliest(&[f32::NEG_INFINITY, 0.0], 5), [1, 0]);
    }

    #[test]
    fn penalties_and_biases_change_the_choice() {
        let logits = [1.0, 0.9, 0.0, 0.0];
        let mut sampler =
            Sampler::new(Sampling { presence_penalty: 0.5, ..Sampling::greedy() }, None, &[]);
        let next = |sampler: &mut Sampler| sampler.sample(&mut logits.to_vec()).0;
        assert_eq!([next(&mut sampler), next(&mut sampler), next(&mut sampler)], [0, 1, 0]);
        let biased = Sampling { logit_bias: vec![(3, 5.0), (99, 1.0)], ..Sampling::greedy() };
        assert_eq!(draws(&biased, &logits, 1), [3]);
    }

    #[test]
    fn repetition_is_of_prompt_and_output_once_each_and_of_biased_logits() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            logit_bias: vec![(3, 3.0)],
            ..Sampling::greedy()
        };
        // 9 is in no row of the model.
        let mut sampler = Sampler::new(sampling, None, &[0, 0, 1, 3, 9]);
        sampler.counts = HashMap::from([(1, 3), (2, 1)]);
        let mut logits = [1.0, -1.0, 4.0, -1.0, 5.0];
        sampler.change(&[4], &mut logits);
        // In and out: twice as low, and less a presence and three times; a bias makes 2 of -1.
        assert_eq!(logits, [0.5, -2.0 - 0.25 - 1.5, 2.0 - 0.25 - 0.5, 1.0, f32::NEG_INFINITY]);
        // A token that was drawn counts from then on.
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(sampling, None, &[]);
        assert!(!sampler.is_likeliest());
        let drawn: Vec<u32> = (0..3).map(|_| sampler.sample(&mut [1.0, 0.9, 0.4]).0).collect();
        assert_eq!(drawn, [0, 1, 0]);
    }

    #[test]
    fn logprobs_are_of_the_logits_as_they_came() {
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].into_iter().map(|p| p.ln() + 3.0).collect();
        let biased = Sampling { logit_bias: vec![(2, 9.0)], ..Sampling::greedy() };
        let mut sampler = Sampler::new(biased, Some(2), &[]);
        // What is masked is told of too.
        let (token, logprobs) = sampler.sample_without(&[0], &mut logits.clone());
        let logprobs = logprobs.expect("they are wanted");
        assert_eq!(token, 2);
        assert!((logprobs.chosen - 0.2_f32.ln()).abs() < 1e-5);
        assert_eq!(logprobs.top.iter().map(|top| top.0).collect::<Vec<_>>(), [0, 1]);
        assert!((logprobs.top[1].1 - 0.3_f32.ln()).abs() < 1e-5);
    }
}
