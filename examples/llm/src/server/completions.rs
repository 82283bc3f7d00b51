//! `POST /v1/completions`.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Server;
use super::answer::{Answer, Format, Usage};
use super::choice::{Piece, TokenInfo};
use super::error::ApiError;
use super::params::Params;
use crate::tokenizer::Tokenizer;

/// Text or tokens, one prompt or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "prompt: it is a text, tokens, or a list of either")]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    fn count(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::ManyTokens(many) => many.len(),
        }
    }
}

#[derive(Debug, Deserialize)]
pub struct Request {
    model: Option<String>,
    prompt: Prompts,
    max_tokens: Option<u32>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    best_of: Option<usize>,
    suffix: Option<String>,
    #[serde(flatten)]
    params: Params,
}

/// OpenAI's, where nothing is said.
const MAX_TOKENS: u32 = 16;
/// Completions of all prompts at most.
const MAX_CHOICES: usize = 1024;

/// Continues prompts.
pub async fn completions(
    State(server): State<&'static Server>,
    body: Result<Json<Request>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let Request { model, prompt, max_tokens, logprobs, echo, best_of, suffix, mut params } =
        request;
    server.check(model.as_deref())?;
    params.check_others()?;
    let (n, echo) = (params.n()?, echo.unwrap_or(false));
    if best_of.is_some_and(|best_of| best_of != n) {
        return Err(ApiError::field("best_of", "is offered as `n` only"));
    }
    if suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::field("suffix", "the model does not fill gaps"));
    }
    if echo && logprobs.is_some() {
        return Err(ApiError::field("echo", "logprobs of prompts are not computed"));
    }
    let choices = prompt.count() * n;
    if !(1..=MAX_CHOICES).contains(&choices) {
        let message = format!("{choices} completions are not within 1 to {MAX_CHOICES}");
        return Err(ApiError::field("prompt", message));
    }
    let prompts = server.prompts(prompt)?;
    let mut generations = Vec::with_capacity(choices);
    for prompt in &prompts {
        let max_tokens = server.max_tokens(prompt, Some(max_tokens.unwrap_or(MAX_TOKENS)))?;
        for _ in 0..n {
            let choice = generations.len();
            let ends = server.tokenizer.ends();
            let prompt = prompt.clone();
            generations.push(params.generation(prompt, max_tokens, logprobs, ends, choice)?);
        }
    }
    let echoed = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, n));
    let echoed = echoed.map(|prompt| match echo {
        true => server.tokenizer.decode(prompt).map_err(|error| ApiError::body(error.to_string())),
        false => Ok(String::new()),
    });
    let format = Completion {
        tokenizer: &server.tokenizer,
        id: server.id("cmpl"),
        created: server.now(),
        model: server.model.clone(),
        offsets: vec![0; generations.len()],
        echoed: echoed.collect::<Result<_, _>>()?,
    };
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let stops = params.stops()?;
    let answer = server.submit(generations, stops, prompt_tokens).await?;
    match params.stream() {
        (true, usage) => Ok(answer.stream(format, usage)),
        (false, _) => Answer::whole(answer, format).await,
    }
}

impl Server {
    fn prompts(&self, prompts: Prompts) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |text: String| self.encode("prompt", &text);
        match prompts {
            Prompts::Text(text) => Ok(vec![encode(text)?]),
            Prompts::Tokens(tokens) => Ok(vec![tokens]),
            Prompts::Texts(texts) => texts.into_iter().map(encode).collect(),
            Prompts::ManyTokens(many) => Ok(many),
        }
    }
}

struct Completion {
    tokenizer: &'static Tokenizer,
    id: String,
    created: u64,
    model: String,
    /// Where each choice's next token starts in its text.
    offsets: Vec<usize>,
    /// What each choice begins with.
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

    fn choice(&mut self, index: usize, piece: Piece) -> Value {
        let logprobs = (!piece.tokens.is_empty()).then(|| self.logprobs(index, &piece.tokens));
        json!({
            "index": index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
        })
    }

    fn logprobs(&mut self, index: usize, tokens: &[TokenInfo]) -> Value {
        let pieces: Vec<String> = tokens.iter().map(|t| self.tokenizer.piece(t.token)).collect();
        let offsets: Vec<usize> = pieces
            .iter()
            .map(|piece| {
                let at = self.offsets[index];
                self.offsets[index] += piece.chars().count();
                at
            })
            .collect();
        let top = |token: &TokenInfo| {
            let top = token.logprobs.top.iter();
            let top = top.map(|&(token, logprob)| (self.tokenizer.piece(token), json!(logprob)));
            top.collect::<Map<String, Value>>()
        };
        json!({
            "tokens": pieces,
            "token_logprobs": tokens.iter().map(|t| t.logprobs.chosen).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

impl Format for Completion {
    fn first(&self, index: usize) -> Option<Value> {
        let text = self.echoed.get(index).filter(|text| !text.is_empty())?;
        let piece = json!({
            "index": index, "text": text, "logprobs": null, "finish_reason": null,
        });
        Some(self.object(vec![piece]))
    }

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
        let whole = |(index, mut piece): (usize, Piece)| {
            piece.text.insert_str(0, &self.echoed[index]);
            self.choice(index, piece)
        };
        let choices = choices.into_iter().enumerate().map(whole).collect();
        let mut object = self.object(choices);
        object["usage"] = usage.json();
        object
    }
}
