//! What clients may ask for, in both kinds of requests.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use serde::Deserialize;
use serde_json::{Map, Value, json};

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
#[serde(untagged, expecting = "it is a text, or a list of texts")]
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
    /// Fields that are none of these.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Fields that change nothing in an answer of this server.
const HARMLESS: [&str; 8] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

impl Params {
    /// Completions of each prompt.
    pub fn n(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_N).contains(&n) => Ok(n),
            n => Err(ApiError::field("n", format!("{n} is not within 1 to {MAX_N}"))),
        }
    }

    /// Refuses what is not known here, misspelt fields among it: it would be taken for obeyed.
    pub fn check_others(&self) -> Result<(), ApiError> {
        let is_usual = |field: &str, value: &Value| match field {
            "tool_choice" | "function_call" => value == "none" || value == "auto",
            "modalities" => *value == json!(["text"]),
            "repetition_penalty" | "length_penalty" => value.as_f64() == Some(1.0),
            "use_beam_search" => *value == json!(false),
            "skip_special_tokens" | "add_generation_prompt" => *value == json!(true),
            _ => false,
        };
        let is_nothing = |value: &Value| match value {
            Value::Null => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            _ => false,
        };
        let mut others = self.others.iter().filter(|&(field, value)| {
            !(HARMLESS.contains(&field.as_str()) || is_nothing(value) || is_usual(field, value))
        });
        match others.next() {
            Some((field, _)) => Err(ApiError::field(field, "is not offered here")),
            None => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_and_what_changes_nothing_is_not() {
        let check = |field: &str, value: Value| {
            let params = json!({ "temperature": 0.5, field: value });
            let params: Params = serde_json::from_value(params).unwrap();
            assert_eq!(params.temperature, Some(0.5));
            params.check_others().is_ok()
        };
        assert!(check("seed", json!(1)));
        assert!(check("user", json!("somebody")));
        assert!(check("tool_choice", json!("none")));
        assert!(check("functions", json!([])));
        assert!(check("guided_json", json!(null)));
        assert!(!check("max_tokns", json!(5)));
        assert!(!check("tool_choice", json!("required")));
        assert!(!check("repetition_penalty", json!(1.1)));
        assert!(!check("stop_token_ids", json!([5])));
    }
}
