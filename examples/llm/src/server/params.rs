//! What clients may ask for, in both kinds of requests.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use serde::Deserialize;

use super::error::ApiError;
use crate::sampling::Sampling;
use crate::worker::Generation;

/// Likeliest tokens to report at most.
const MAX_LOGPROBS: usize = 20;
/// Completions of one prompt at most.
const MAX_N: usize = 128;
/// Texts that end a completion at most, and their bytes: each completion keeps its own.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// Tokens that have a bias at most.
const MAX_BIASES: usize = 1024;

/// One, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// All of them.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// Sends a last chunk with the tokens that were used.
    pub include_usage: bool,
}

/// How tokens are chosen and when they end. Fields that OpenAI does not have are vLLM's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Params {
    pub n: Option<usize>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<HashMap<String, f32>>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany<String>>,
    pub min_tokens: Option<u32>,
    pub ignore_eos: Option<bool>,
    pub priority: Option<i32>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
}

impl Params {
    /// Completions of each prompt.
    pub fn n(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_N).contains(&n) => Ok(n),
            n => Err(ApiError::field("n", format!("{n} is not within 1 to {MAX_N}"))),
        }
    }

    /// Texts that end a completion.
    pub fn stops(&mut self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.take().map_or_else(Vec::new, OneOrMany::into_vec);
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            let message = format!("{MAX_STOPS} texts of {MAX_STOP_BYTES} bytes are the most");
            return Err(ApiError::field("stop", message));
        }
        Ok(stops)
    }

    /// Whether the answer is to come in pieces, and whether usage follows it.
    pub fn stream(&self) -> (bool, bool) {
        let usage = self.stream_options.unwrap_or_default().include_usage;
        (self.stream.unwrap_or(false), usage)
    }

    /// The generation of a prompt, for its completion number `choice`.
    pub fn generation(
        &self,
        prompt: Vec<u32>,
        max_tokens: u32,
        logprobs: Option<usize>,
        ends: &[u32],
        choice: usize,
    ) -> Result<Generation, ApiError> {
        if logprobs.is_some_and(|count| count > MAX_LOGPROBS) {
            let message = format!("more than {MAX_LOGPROBS} are not reported");
            return Err(ApiError::field("logprobs", message));
        }
        let ends = if self.ignore_eos.unwrap_or(false) { &[][..] } else { ends };
        Ok(Generation {
            min_tokens: self.min_tokens.unwrap_or(0),
            sampling: self.sampling(choice)?,
            logprobs,
            priority: self.priority.unwrap_or(0),
            ..Generation::greedy(prompt, max_tokens, ends)
        })
    }

    fn sampling(&self, choice: usize) -> Result<Sampling, ApiError> {
        let within = |field: &str, value: Option<f32>, usual: f32, least: f32, most: f32| {
            let value = value.unwrap_or(usual);
            // Also NaN is not.
            if (least..=most).contains(&value) {
                return Ok(value);
            }
            Err(ApiError::field(field, format!("{value} is not within {least} to {most}")))
        };
        let biases = self.logit_bias.as_ref().map_or(0, HashMap::len);
        if biases > MAX_BIASES {
            let message = format!("{biases} tokens, and {MAX_BIASES} are the most");
            return Err(ApiError::field("logit_bias", message));
        }
        let bias = |(token, &bias): (&String, &f32)| match token.parse() {
            Ok(token) => Ok((token, within("logit_bias", Some(bias), 0.0, -100.0, 100.0)?)),
            Err(_) => Err(ApiError::field("logit_bias", format!("`{token}` is no token"))),
        };
        let mut logit_bias = self
            .logit_bias
            .iter()
            .flatten()
            .map(bias)
            .collect::<Result<Vec<(u32, f32)>, ApiError>>()?;
        // Sums of floats depend on their order.
        logit_bias.sort_by_key(|&(token, _)| token);
        let seed =
            self.seed.map_or_else(|| RandomState::new().hash_one(choice), |seed| seed as u64);
        Ok(Sampling {
            temperature: within("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_p: within("top_p", self.top_p, 1.0, 0.0, 1.0)?,
            // vLLM's clients say -1 for all.
            top_k: self.top_k.and_then(|top_k| usize::try_from(top_k).ok()).unwrap_or(0),
            min_p: within("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias,
            seed: seed.wrapping_add(choice as u64),
        })
    }
}
