//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::Server;
use super::answer::{Format, Usage};
use super::body::Body;
use super::choice::{Piece, TokenInfo};
use super::error::ApiError;
use super::fields::{Faults, Fields, shown};
use super::params::{MAX_LOGPROBS, Params, Wanted, as_token, max_tokens};
use super::routes::with_ignored;
use crate::tokenizer::Tokenizer;

/// One prompt.
enum Prompt {
    /// Names of special tokens in it are these tokens.
    Text(String),
    Tokens(Vec<u32>),
}

struct Request {
    prompts: Vec<Prompt>,
    max_tokens: Wanted,
    logprobs: Option<usize>,
    echo: bool,
    params: Params,
}

/// OpenAI's, where nothing is said.
const MAX_TOKENS: u32 = 16;
/// Completions of all prompts at most.
const MAX_CHOICES: usize = 1024;

impl Request {
    fn read(body: Body, server: &Server) -> Result<Self, ApiError> {
        let mut faults = Faults::default();
        let mut fields = Fields::new(body.0, &mut faults);
        let prompts = prompts(&mut fields);
        let max_tokens = max_tokens(&mut fields, &["max_tokens"]);
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS);
        let echo = fields.boolean("echo").unwrap_or(false);
        if echo && logprobs.is_some() {
            fields.fault("echo", "is not offered with logprobs: those of prompts are not computed");
        }
        let params = Params::read(&mut fields, server.limits);
        let choices = prompts.len() * params.n;
        if choices > MAX_CHOICES {
            let message = format!("{choices} completions are more than {MAX_CHOICES}");
            fields.fault("prompt", message);
        }
        fields.finish();
        server.check(params.model.as_deref())?;
        faults.into_result()?;
        let logprobs = logprobs.map(|logprobs| logprobs as usize);
        Ok(Self { prompts, max_tokens, logprobs, echo, params })
    }
}

/// Takes `prompt` out: text or tokens, one prompt or several.
fn prompts(fields: &mut Fields) -> Vec<Prompt> {
    fields.require("prompt");
    let tokens =
        |items: &[Value]| items.iter().map(as_token).collect::<Option<_>>().map(Prompt::Tokens);
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(items) => tokens(items),
        _ => None,
    };
    let items = match fields.take("prompt") {
        None => return Vec::new(),
        Some(Value::Array(items)) if items.is_empty() => {
            fields.fault("prompt", "is an empty list");
            return Vec::new();
        }
        Some(Value::Array(items))
            if items.iter().any(|item| item.is_string() || item.is_array()) =>
        {
            items
        }
        Some(other) => vec![other],
    };
    let prompts: Result<Vec<Prompt>, &Value> =
        items.iter().map(|item| one(item).ok_or(item)).collect();
    prompts.unwrap_or_else(|wrong| {
        let message = format!("{} is not a text, tokens, or a list of either", shown(wrong));
        fields.fault("prompt", message);
        Vec::new()
    })
}

/// Continues prompts.
pub async fn completions(
    State(server): State<&'static Server>,
    body: Body,
) -> Result<Response, ApiError> {
    let Request { prompts, max_tokens, logprobs, echo, mut params } = Request::read(body, server)?;
    let begin = params.add_special_tokens;
    let encode = |prompt: Prompt| match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(text) => {
            server.encode("prompt", &text, |tokenizer, text| tokenizer.encode_with(text, begin))
        }
    };
    let prompts = prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let mut generations = Vec::with_capacity(prompts.len() * params.n);
    for prompt in &prompts {
        let room = server.max_tokens("prompt", prompt, max_tokens)?;
        let max_tokens = if max_tokens.is_some() { room } else { room.min(MAX_TOKENS) };
        for _ in 0..params.n {
            let (choice, ends) = (generations.len(), server.tokenizer.ends());
            let prompt = prompt.clone();
            generations.push(params.generation(prompt, max_tokens, logprobs, ends, choice)?);
        }
    }
    let echoed = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, params.n));
    let echoed = echoed.map(|prompt| match echo {
        true => server.tokenizer.decode(prompt).map_err(|error| ApiError::body(error.to_string())),
        false => Ok(String::new()),
    });
    let format = Completion {
        tokenizer: &server.tokenizer,
        id: server.id("cmpl", &params),
        created: server.now(),
        model: server.model.clone(),
        echoed: echoed.collect::<Result<_, _>>()?,
    };
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let stops = std::mem::take(&mut params.stops);
    let answer = server.submit(generations, stops, prompt_tokens).await?;
    let response = match params.stream {
        true => answer.stream(format, params.include_usage),
        false => answer.whole(format).await?,
    };
    Ok(with_ignored(response, &params.ignored))
}

struct Completion {
    tokenizer: &'static Tokenizer,
    id: String,
    created: u64,
    model: String,
    /// What each choice's next piece begins with.
    echoed: Vec<String>,
}

impl Completion {
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// What came of a completion; the prompt is before the first of it, where it is wanted.
    fn choice(&mut self, index: usize, piece: Piece) -> Value {
        let mut text = std::mem::take(&mut self.echoed[index]);
        text.push_str(&piece.text);
        let logprobs = (!piece.tokens.is_empty()).then(|| self.logprobs(&piece.tokens));
        json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
        })
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        let label = |token| self.tokenizer.label(token);
        let top = |token: &TokenInfo| {
            let mut top = Map::new();
            for &(token, logprob) in &token.logprobs.top {
                let mut key = label(token);
                if top.contains_key(&key) {
                    // Two tokens of one text, as vLLM can name them.
                    key = format!("token_id:{token}");
                }
                top.insert(key, json!(logprob));
            }
            top
        };
        json!({
            "tokens": tokens.iter().map(|token| label(token.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprobs.chosen).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
        })
    }
}

impl Format for Completion {
    fn piece(&mut self, index: usize, piece: Piece) -> Value {
        let choice = self.choice(index, piece);
        self.object(vec![choice])
    }

    fn usage(&self, usage: Usage) -> Value {
        let mut object = self.object(Vec::new());
        object["usage"] = usage.json();
        object
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> Value {
        let whole = |(index, piece): (usize, Piece)| self.choice(index, piece);
        let choices = choices.into_iter().enumerate().map(whole).collect();
        let mut object = self.object(choices);
        object["usage"] = usage.json();
        object
    }
}
