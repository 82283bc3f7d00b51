//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Server;
use super::answer::{Format, Usage};
use super::choice::{Piece, TokenInfo};
use super::error::ApiError;
use super::params::Params;
use crate::chat::Message;
use crate::tokenizer::Tokenizer;

/// Text, or parts of it.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "content: it is a text, or a list of parts with `type` and `text`")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Said {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
pub struct Request {
    model: Option<String>,
    messages: Vec<Said>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    params: Params,
}

/// Answers a conversation.
pub async fn chat(
    State(server): State<&'static Server>,
    body: Result<Json<Request>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let Request { messages, mut params, .. } = request;
    server.check(request.model.as_deref())?;
    params.check_others()?;
    if request.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(ApiError::field("tools", "are not offered"));
    }
    if let Some(format) = request.response_format.filter(|format| format.kind != "text") {
        let message = format!("`{}` is not offered, only `text`", format.kind);
        return Err(ApiError::field("response_format", message));
    }
    let logprobs = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some() && !logprobs {
        return Err(ApiError::field("top_logprobs", "is for requests with `logprobs`"));
    }
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "is empty"));
    }
    let refused = |error: anyhow::Error| ApiError::field("messages", format!("{error:#}"));
    let text = server.template.render(&messages).map_err(refused)?;
    let prompt = server.encode("messages", &text)?;
    let wanted = request.max_completion_tokens.or(request.max_tokens);
    let max_tokens = server.max_tokens(&prompt, wanted)?;
    let logprobs = logprobs.then(|| request.top_logprobs.unwrap_or(0));
    let ends = server.tokenizer.ends();
    let generation = |choice| params.generation(prompt.clone(), max_tokens, logprobs, ends, choice);
    let generations = (0..params.n()?).map(generation).collect::<Result<Vec<_>, _>>()?;
    let format = Chat {
        tokenizer: &server.tokenizer,
        id: server.id("chatcmpl"),
        created: server.now(),
        model: server.model.clone(),
    };
    let stops = params.stops()?;
    let answer = server.submit(generations, stops, prompt.len()).await?;
    match params.stream() {
        (true, usage) => Ok(answer.stream(format, usage)),
        (false, _) => answer.whole(format).await,
    }
}

fn message(said: Said) -> Result<Message, ApiError> {
    let content = match said.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let text = |part: Part| match part.text.filter(|_| part.kind == "text") {
                Some(text) => Ok(text),
                None => Err(ApiError::field("messages", format!("no `{}`, only text", part.kind))),
            };
            parts.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n")
        }
    };
    Ok(Message { role: said.role, content })
}

struct Chat {
    tokenizer: &'static Tokenizer,
    id: String,
    created: u64,
    model: String,
}

impl Chat {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
        });
        self.object("chat.completion.chunk", vec![choice])
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        let entry = |token: u32, logprob: f32| {
            let piece = self.tokenizer.piece(token);
            json!({ "token": piece, "logprob": logprob, "bytes": self.tokenizer.bytes(token) })
        };
        let content = |token: &TokenInfo| {
            let mut content = entry(token.token, token.logprobs.chosen);
            let top = token.logprobs.top.iter().map(|&(token, logprob)| entry(token, logprob));
            content["top_logprobs"] = top.collect();
            content
        };
        match tokens {
            [] => Value::Null,
            tokens => json!({ "content": tokens.iter().map(content).collect::<Vec<_>>() }),
        }
    }
}

impl Format for Chat {
    fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        Some(self.chunk(index, delta, Value::Null, None))
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Value {
        let delta = match piece.text.is_empty() {
            true => json!({}),
            false => json!({ "content": piece.text }),
        };
        self.chunk(index, delta, self.logprobs(&piece.tokens), piece.finish)
    }

    fn usage(&self, usage: Usage) -> Value {
        let mut object = self.object("chat.completion.chunk", Vec::new());
        object["usage"] = usage.json();
        object
    }

    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> Value {
        let whole = |(index, piece): (usize, Piece)| {
            json!({
                "index": index,
                "message": { "role": "assistant", "content": piece.text, "refusal": null },
                "logprobs": self.logprobs(&piece.tokens),
                "finish_reason": piece.finish,
            })
        };
        let choices = choices.into_iter().enumerate().map(whole).collect();
        let mut object = self.object("chat.completion", choices);
        object["usage"] = usage.json();
        object
    }
}
