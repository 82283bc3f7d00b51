//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::Server;
use super::answer::{Format, Usage};
use super::body::Body;
use super::choice::{Piece, TokenInfo};
use super::error::ApiError;
use super::fields::{Faults, Fields};
use super::params::{MAX_LOGPROBS, Params, Wanted, max_tokens};
use super::routes::with_ignored;
use super::{messages, unsupported};
use crate::chat::{GIVEN, Message, Variables};
use crate::tokenizer::Tokenizer;

struct Request {
    messages: Vec<Message>,
    max_tokens: Wanted,
    /// Likeliest tokens to report with each; `None` for no logprobs.
    logprobs: Option<usize>,
    /// Variables of the chat template.
    variables: Variables,
    params: Params,
}

impl Request {
    fn read(body: Body, server: &Server) -> Result<Self, ApiError> {
        let mut faults = Faults::default();
        let mut fields = Fields::new(body.0, &mut faults);
        let messages = messages::read(&mut fields);
        let max_tokens = max_tokens(&mut fields, &["max_completion_tokens", "max_tokens"]);
        let logprobs = fields.boolean("logprobs").unwrap_or(false);
        let top_logprobs = fields.integer("top_logprobs", 0..=MAX_LOGPROBS).unwrap_or(0);
        if top_logprobs > 0 && !logprobs {
            fields.fault("top_logprobs", "is for requests with \"logprobs\": true");
        }
        let (variables, unread) = variables(&mut fields, server);
        let mut params = Params::read(&mut fields, server.limits);
        params.ignored.extend(unread);
        fields.finish();
        server.check(params.model.as_deref())?;
        faults.into_result()?;
        let logprobs = logprobs.then_some(top_logprobs as usize);
        Ok(Self { messages, max_tokens, logprobs, variables, params })
    }

    /// The conversation's tokens. What a user writes is text, whatever it says, unless the server's
    /// options are otherwise.
    fn prompt(&self, server: &Server) -> Result<Vec<u32>, ApiError> {
        let is_text = !server.special_tokens_in_messages;
        let markers = server.tokenizer.markers();
        let quoted =
            |said: &Message| Message { content: markers.quote(&said.content), ..said.clone() };
        let messages: Vec<Message> = match is_text {
            true => self.messages.iter().map(quoted).collect(),
            false => self.messages.clone(),
        };
        let quote = |text: &str| if is_text { markers.quote_names(text) } else { text.to_owned() };
        let variables =
            self.variables.iter().map(|(name, value)| (name.clone(), each(value, &quote)));
        let text = server
            .template
            .render(&messages, &variables.collect())
            .map_err(|error| ApiError::field("messages", format!("{error:#}")))?;
        let begin = self.params.add_special_tokens;
        server.encode("messages", &text, |tokenizer, text| match is_text {
            true => tokenizer.encode_quoted(text, begin),
            false => tokenizer.encode_with(text, begin),
        })
    }
}

/// Variables of the chat template, and fields with those that it does not read.
fn variables(fields: &mut Fields, server: &Server) -> (Variables, Vec<String>) {
    let mut variables = Variables::new();
    if let Some(mut given) = fields.object("chat_template_kwargs") {
        for (name, value) in given.rest() {
            match GIVEN.contains(&name.as_str()) {
                true => given.fault(&name, "is given to the template by the server"),
                false => variables.extend([(name, value)]),
            }
        }
    }
    let is_read = |name: &str| server.template.reads(name);
    // As vLLM does: templates of models that reason read it.
    if is_read("reasoning_effort")
        && let Some(effort) = unsupported::reasoning_effort(fields)
    {
        variables.insert("reasoning_effort".to_owned(), effort.into());
    }
    let unread = variables.keys().filter(|name| !is_read(name));
    let unread = unread.map(|name| match name.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => format!("chat_template_kwargs.{name}"),
        false => "chat_template_kwargs".to_owned(),
    });
    let unread = unread.collect();
    (variables, unread)
}

/// A value with all its texts changed.
fn each(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(items) => items.iter().map(|item| each(item, change)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (change(name), each(value, change)));
            fields.collect::<Map<String, Value>>().into()
        }
        other => other.clone(),
    }
}

/// Answers a conversation.
pub async fn chat(State(server): State<&'static Server>, body: Body) -> Result<Response, ApiError> {
    let mut request = Request::read(body, server)?;
    let prompt = request.prompt(server)?;
    let max_tokens = server.max_tokens("messages", &prompt, request.max_tokens)?;
    let (params, ends) = (&mut request.params, server.tokenizer.ends());
    let logprobs = request.logprobs;
    let generation = |choice| params.generation(prompt.clone(), max_tokens, logprobs, ends, choice);
    let generations = (0..params.n).map(generation).collect::<Result<Vec<_>, _>>()?;
    let format = Chat {
        tokenizer: &server.tokenizer,
        id: server.id("chatcmpl", params),
        created: server.now(),
        model: server.model.clone(),
        begun: vec![false; params.n],
    };
    let stops = std::mem::take(&mut params.stops);
    let answer = server.submit(generations, stops, prompt.len()).await?;
    let response = match params.stream {
        true => answer.stream(format, params.include_usage),
        false => answer.whole(format).await?,
    };
    Ok(with_ignored(response, &params.ignored))
}

struct Chat {
    tokenizer: &'static Tokenizer,
    id: String,
    created: u64,
    model: String,
    /// Whether each choice has said whose message it is.
    begun: Vec<bool>,
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
            let label = self.tokenizer.label(token);
            json!({ "token": label, "logprob": logprob, "bytes": self.tokenizer.bytes(token) })
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
    fn piece(&mut self, index: usize, piece: Piece) -> Value {
        let is_first = !std::mem::replace(&mut self.begun[index], true);
        let delta = match (is_first, piece.text.is_empty()) {
            (true, _) => json!({ "role": "assistant", "content": piece.text }),
            (false, true) => json!({}),
            (false, false) => json!({ "content": piece.text }),
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
