//! What clients may ask for, in both kinds of requests: each field with its type and its range.

use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, as_integer, shown};
use super::unsupported;
use crate::sampling::Sampling;
use crate::worker::Generation;

/// Likeliest tokens to report at most.
pub const MAX_LOGPROBS: i64 = 20;
/// Completions of one prompt at most.
const MAX_N: i64 = 128;
/// Texts that end a completion at most, and their bytes: each completion keeps its own.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// Tokens that have a bias at most.
const MAX_BIASES: usize = 1024;
/// Characters of a name that a client gives its request.
const MAX_ID: usize = 128;
/// Beyond these, products with a logit leave the range of floats.
const REPETITION: std::ops::RangeInclusive<f32> = 0.01..=100.0;

/// What the server's model and options leave to requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of the model.
    pub vocab: usize,
    /// Whether requests are scheduled by their priorities.
    pub has_priorities: bool,
}

/// A number of output tokens that a client wants at most, and the field that says it.
pub type Wanted = Option<(&'static str, i64)>;

/// How tokens are chosen, when they end and how they are sent. Fields that OpenAI does not have are
/// vLLM's.
#[derive(Debug)]
pub struct Params {
    pub model: Option<String>,
    /// Completions of each prompt.
    pub n: usize,
    pub stops: Vec<String>,
    pub stream: bool,
    /// Sends a last chunk with the tokens that were used.
    pub include_usage: bool,
    /// The client's name for the request.
    pub request_id: Option<String>,
    /// Whether a prompt begins with the token for that, where the model has one.
    pub add_special_tokens: bool,
    /// Fields that had no effect.
    pub ignored: Vec<String>,
    sampling: Sampling,
    seed: Option<i64>,
    min_tokens: i64,
    ignore_eos: bool,
    priority: i32,
}

impl Params {
    /// Takes the fields that both kinds of requests have; what the endpoint alone has is taken before.
    pub fn read(fields: &mut Fields, limits: Limits) -> Self {
        let n = fields.integer("n", 1..=MAX_N).unwrap_or(1);
        if let Some(best_of) = fields.integer("best_of", 1..=MAX_N).filter(|&best_of| best_of != n)
        {
            let message = format!("{best_of} is not n ({n}): all completions are returned, use n");
            fields.fault("best_of", message);
        }
        let stream = fields.boolean("stream").unwrap_or(false);
        let priorities = i64::from(i32::MIN)..=i64::from(i32::MAX);
        let priority = fields.integer("priority", priorities).unwrap_or(0) as i32;
        let mut params = Self {
            model: fields.text("model"),
            n: n as usize,
            stops: stops(fields),
            stream,
            include_usage: include_usage(fields, stream),
            request_id: request_id(fields),
            add_special_tokens: fields.boolean("add_special_tokens").unwrap_or(true),
            sampling: Sampling {
                temperature: fields.number("temperature", 0.0..=2.0).unwrap_or(1.0),
                top_p: fields.number("top_p", 0.0..=1.0).unwrap_or(1.0),
                // vLLM's clients say -1 for all.
                top_k: fields.integer("top_k", -1..=i64::MAX).unwrap_or(0).max(0) as usize,
                min_p: fields.number("min_p", 0.0..=1.0).unwrap_or(0.0),
                presence_penalty: fields.number("presence_penalty", -2.0..=2.0).unwrap_or(0.0),
                frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0).unwrap_or(0.0),
                repetition_penalty: fields.number("repetition_penalty", REPETITION).unwrap_or(1.0),
                logit_bias: logit_bias(fields, limits.vocab),
                seed: 0,
            },
            seed: fields.integer("seed", i64::MIN..=i64::MAX),
            min_tokens: fields.integer("min_tokens", 0..=i64::MAX).unwrap_or(0),
            ignore_eos: fields.boolean("ignore_eos").unwrap_or(false),
            priority,
            ignored: Vec::new(),
        };
        response_format(fields);
        params
            .ignored
            .extend((priority != 0 && !limits.has_priorities).then(|| "priority".to_owned()));
        params.ignored.extend(unsupported::take(fields));
        params
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
        let min_tokens = self.min_tokens;
        if min_tokens > i64::from(max_tokens) {
            let message = format!("{min_tokens} is more than the output may have, {max_tokens}");
            return Err(ApiError::field("min_tokens", message));
        }
        let ends = if self.ignore_eos { &[][..] } else { ends };
        let seed =
            self.seed.map_or_else(|| RandomState::new().hash_one(choice), |seed| seed as u64);
        Ok(Generation {
            min_tokens: min_tokens as u32,
            sampling: Sampling { seed: seed.wrapping_add(choice as u64), ..self.sampling.clone() },
            logprobs,
            priority: self.priority,
            ..Generation::greedy(prompt, max_tokens, ends)
        })
    }
}

/// Output tokens that are wanted at most, by the first of these fields that is there.
pub fn max_tokens(fields: &mut Fields, names: &[&'static str]) -> Wanted {
    let given = names.iter().filter_map(|name| Some((*name, fields.integer(name, 1..=i64::MAX)?)));
    let given: Vec<(&str, i64)> = given.collect();
    if let [(first, wanted), (second, other)] = given[..]
        && wanted != other
    {
        fields.fault(second, format!("{other} is not {first} ({wanted}): leave one of them out"));
    }
    given.first().copied()
}

/// Texts that end a completion.
fn stops(fields: &mut Fields) -> Vec<String> {
    let texts = |value: &Value| match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let stops = fields.read("stop", "a string or a list of strings", texts).unwrap_or_default();
    if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        let message =
            format!("at most {MAX_STOPS} texts of {MAX_STOP_BYTES} bytes end a completion");
        fields.fault("stop", message);
    }
    stops
}

fn include_usage(fields: &mut Fields, stream: bool) -> bool {
    let mut include_usage = None;
    let is_given = if let Some(mut options) = fields.object("stream_options") {
        include_usage = options.boolean("include_usage");
        let neutral: [(&str, &[&str]); 2] =
            [("include_obfuscation", &["false"]), ("continuous_usage_stats", &["false"])];
        unsupported::refuse(&mut options, &neutral);
        options.finish();
        true
    } else {
        false
    };
    if is_given && !stream {
        fields.fault("stream_options", "is for requests with \"stream\": true");
    }
    include_usage.unwrap_or(false)
}

fn request_id(fields: &mut Fields) -> Option<String> {
    let wanted = format!("a string of 1 to {MAX_ID} characters that are seen");
    let is_id =
        |id: &&str| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    fields.read("request_id", &wanted, |value| value.as_str().filter(is_id).map(str::to_owned))
}

fn logit_bias(fields: &mut Fields, vocab: usize) -> Vec<(u32, f32)> {
    let object = |value: &Value| value.as_object().cloned();
    let wanted = "an object of tokens and their biases";
    let biases = fields.read("logit_bias", wanted, object).unwrap_or_default();
    if biases.len() > MAX_BIASES {
        fields.fault("logit_bias", format!("{} tokens are more than {MAX_BIASES}", biases.len()));
        return Vec::new();
    }
    let bias = |(name, value): (&String, &Value)| {
        let token = name.parse::<u32>().ok().filter(|&token| (token as usize) < vocab);
        let token = token.ok_or_else(|| {
            let name = shown(&Value::from(name.as_str()));
            format!("{name} is not a token: the model has 0 to {}", vocab.saturating_sub(1))
        })?;
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias
            .ok_or_else(|| format!("{} of token {token} is not from -100 to 100", shown(value)))?;
        Ok((token, bias as f32))
    };
    let biases: Result<Vec<(u32, f32)>, String> = biases.iter().map(bias).collect();
    let mut biases = biases.unwrap_or_else(|message| {
        fields.fault("logit_bias", message);
        Vec::new()
    });
    // Sums of floats depend on their order.
    biases.sort_by_key(|&(token, _)| token);
    biases
}

/// Text is the one format there is.
fn response_format(fields: &mut Fields) {
    let Some(mut format) = fields.object("response_format") else { return };
    format.require("type");
    match format.text("type").as_deref() {
        Some("text") => format.finish(),
        Some(_) => {
            format.rest();
            format.fault("type", "only \"text\" is offered here");
        }
        None => {}
    }
}

/// A token of a prompt.
pub fn as_token(value: &Value) -> Option<u32> {
    as_integer(value).and_then(|token| u32::try_from(token).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fields::Faults;
    use super::*;

    const LIMITS: Limits = Limits { vocab: 100, has_priorities: false };

    fn read(request: Value) -> Result<Params, Value> {
        let mut faults = Faults::default();
        let map = request.as_object().cloned().expect("an object");
        let mut fields = Fields::new(map, &mut faults);
        let params = Params::read(&mut fields, LIMITS);
        fields.finish();
        faults.into_result().map_err(|error| error.body_json()["error"].clone())?;
        Ok(params)
    }

    #[test]
    fn every_field_has_a_type_and_a_range() {
        let (word, flag, list, half) = (json!("x"), json!(true), json!([1]), json!(0.5));
        let numbers = [word.clone(), flag.clone(), list.clone(), json!({})];
        let with = |more: &[Value]| [&numbers[..], more].concat();
        let table = [
            ("n", with(&[half.clone(), json!(0), json!(129), json!(-1)])),
            ("best_of", with(&[half.clone(), json!(0), json!(2)])),
            ("seed", with(&[half.clone(), json!(u64::MAX), json!(1e30)])),
            ("min_tokens", with(&[half.clone(), json!(-1)])),
            ("priority", with(&[half.clone(), json!(1_i64 << 31)])),
            ("top_k", with(&[half, json!(-2)])),
            ("temperature", with(&[json!(-0.1), json!(2.1)])),
            ("top_p", with(&[json!(-0.1), json!(1.1)])),
            ("min_p", with(&[json!(-0.1), json!(1.1)])),
            ("presence_penalty", with(&[json!(-2.1), json!(2.1)])),
            ("frequency_penalty", with(&[json!(-2.1), json!(2.1)])),
            ("repetition_penalty", with(&[json!(0), json!(-1), json!(1e30)])),
            ("stream", vec![word.clone(), json!(1), list.clone()]),
            ("ignore_eos", vec![word.clone(), json!(1), list.clone()]),
            ("add_special_tokens", vec![word.clone(), json!(1), list.clone()]),
            ("model", vec![json!(1), flag.clone(), list.clone()]),
            (
                "request_id",
                vec![json!(1), list.clone(), json!(""), json!("a b"), json!("x".repeat(129))],
            ),
            (
                "stop",
                vec![
                    json!(1),
                    flag.clone(),
                    list.clone(),
                    json!(vec!["a"; 17]),
                    json!("a".repeat(1025)),
                ],
            ),
            (
                "logit_bias",
                vec![
                    word.clone(),
                    list.clone(),
                    json!({ "x": 1 }),
                    json!({ "100": 1 }),
                    json!({ "-1": 1 }),
                    json!({ "1": 101 }),
                    json!({ "1": "x" }),
                ],
            ),
            (
                "stream_options",
                vec![word.clone(), list.clone(), json!({}), json!({ "include_usage": true })],
            ),
            ("response_format", vec![word, list, flag]),
        ];
        for (name, values) in table {
            for value in values {
                let error = read(json!({ name: value })).expect_err(name);
                assert_eq!(error["param"], name, "{error}");
                assert!(read(json!({ name: null })).is_ok());
            }
        }
    }

    #[test]
    fn fields_within_fields_are_named_by_their_paths() {
        for (request, param) in [
            (
                json!({ "stream": true, "stream_options": { "include_usge": true } }),
                "stream_options.include_usge",
            ),
            (
                json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
                "stream_options.include_usage",
            ),
            (
                json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
                "stream_options.include_obfuscation",
            ),
            (json!({ "response_format": { "type": "json_object" } }), "response_format.type"),
            (
                json!({ "response_format": { "type": "text", "schema": {} } }),
                "response_format.schema",
            ),
            (json!({ "response_format": {} }), "response_format.type"),
        ] {
            assert_eq!(read(request).expect_err(param)["param"], param);
        }
    }

    #[test]
    fn values_are_taken_as_they_are() {
        let params = read(json!({
            "n": 2, "best_of": 2, "top_k": -1, "seed": -5, "temperature": 0.5, "stop": "x",
            "repetition_penalty": 1.5, "logit_bias": { "7": 1, "3": -2.5 }, "priority": 3, "stream": true,
            "stream_options": { "include_usage": true, "include_obfuscation": false },
            "response_format": { "type": "text" }, "request_id": "mine", "min_tokens": 2.0,
        }))
        .unwrap();
        assert_eq!((params.n, params.stops, params.include_usage), (2, vec!["x".to_owned()], true));
        assert_eq!(params.ignored, ["priority"]);
        assert_eq!(params.request_id.as_deref(), Some("mine"));
        let params = read(json!({ "seed": -5, "min_tokens": 2.0, "repetition_penalty": 1.5,
            "logit_bias": { "7": 1, "3": -2.5 }, "ignore_eos": true }))
        .unwrap();
        let generation = params.generation(vec![1], 4, None, &[9], 3).unwrap();
        assert_eq!((generation.min_tokens, generation.ends.len()), (2, 0));
        let sampling = generation.sampling;
        assert_eq!(sampling.seed, (-5_i64 as u64).wrapping_add(3));
        assert_eq!((sampling.top_k, sampling.repetition_penalty), (0, 1.5));
        assert_eq!(sampling.logit_bias, [(3, -2.5), (7, 1.0)]);
        let refused = params.generation(vec![1], 1, None, &[], 0).unwrap_err();
        assert_eq!(refused.body_json()["error"]["param"], "min_tokens");
    }

    #[test]
    fn output_has_one_limit() {
        let read = |request: Value| {
            let mut faults = Faults::default();
            let map = request.as_object().cloned().expect("an object");
            let wanted = max_tokens(&mut Fields::new(map, &mut faults), &["a", "b"]);
            faults
                .into_result()
                .map(|()| wanted)
                .map_err(|error| error.body_json()["error"]["param"].clone())
        };
        assert_eq!(read(json!({ "b": 5 })).unwrap(), Some(("b", 5)));
        assert_eq!(read(json!({ "a": 5, "b": 5 })).unwrap(), Some(("a", 5)));
        assert_eq!(read(json!({})).unwrap(), None);
        assert_eq!(read(json!({ "a": 5, "b": 6 })).unwrap_err(), "b");
        assert_eq!(read(json!({ "a": 0 })).unwrap_err(), "a");
    }
}
