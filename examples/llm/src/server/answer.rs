//! An answer: the completions of one HTTP request, whole or as a stream of server-sent events.
//!
//! It owns the engine's ends of all its requests. A client that hangs up drops it, and with it the
//! requests.

use std::convert::Infallible;

use axum::Json;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{StreamExt, StreamMap};

use super::choice::{Choice, Piece};
use super::error::ApiError;
use super::metrics::{Metrics, Watch};
use crate::tokenizer::Tokenizer;
use crate::worker::{Event, Generation, Handle};

/// Tokens of a request.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    prompt: usize,
    output: usize,
}

impl Usage {
    /// As OpenAI writes it.
    pub fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.prompt + self.output,
        })
    }
}

/// How a kind of answer is written.
pub trait Format: Send + 'static {
    /// A piece of a stream. A completion's first has what comes before its text too: nothing is sent
    /// before there is a token, by which clients measure the time to the first one.
    fn piece(&mut self, index: usize, piece: Piece) -> Value;
    /// The last chunk of a stream, where usage is wanted.
    fn usage(&self, usage: Usage) -> Value;
    /// The whole answer.
    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> Value;
}

/// The completions of one HTTP request.
pub struct Answer {
    engine: Handle,
    events: StreamMap<usize, UnboundedReceiverStream<Event>>,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    watch: Watch,
}

impl Answer {
    /// Submits all generations, or none: those before one that is refused are cancelled.
    pub async fn submit(
        engine: &Handle,
        tokenizer: &'static Tokenizer,
        generations: Vec<Generation>,
        (stops, prompt_tokens): (Vec<String>, usize),
        metrics: &Metrics,
    ) -> Result<Self, ApiError> {
        let watch = metrics.watch();
        let (mut events, mut choices) = (StreamMap::new(), Vec::with_capacity(generations.len()));
        let submitted: Vec<_> =
            generations.into_iter().map(|generation| engine.submit(generation)).collect();
        for (index, mut receiver) in submitted.into_iter().enumerate() {
            let mut choice = Choice::new(tokenizer, stops.clone());
            let first = receiver.recv().await;
            choice.take(first.unwrap_or_else(stopped))?;
            choices.push(choice);
            events.insert(index, UnboundedReceiverStream::new(receiver));
        }
        Ok(Self { engine: engine.clone(), events, choices, prompt_tokens, watch })
    }

    /// The next piece of any completion; `None` after the last piece of the last one.
    async fn next(&mut self) -> Option<Result<(usize, Piece), ApiError>> {
        loop {
            let Some((index, event)) = self.events.next().await else {
                // An engine that panicked says nothing.
                let ended = self.choices.iter().all(Choice::has_ended);
                return (!ended).then(|| Err(ApiError::no_engine()));
            };
            if matches!(event, Event::Token { .. }) {
                self.watch.token();
            }
            match self.choices[index].take(event) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    if piece.finish.is_some() {
                        // Where a stop text was found, the engine does not know it yet.
                        let choice = &self.choices[index];
                        if let Some(id) = choice.id() {
                            self.engine.finish(id, choice.num_output() as u32);
                        }
                        self.events.remove(&index);
                    }
                    return Some(Ok((index, piece)));
                }
                Err(error) => {
                    self.events.clear();
                    return Some(Err(error));
                }
            }
        }
    }

    fn usage(&self) -> Usage {
        let output = self.choices.iter().map(Choice::num_output).sum();
        Usage { prompt: self.prompt_tokens, output }
    }

    /// Waits for all of it.
    pub async fn whole(mut self, mut format: impl Format) -> Result<Response, ApiError> {
        let mut wholes = vec![Piece::default(); self.choices.len()];
        while let Some(next) = self.next().await {
            let (index, piece) = next?;
            wholes[index].extend(piece);
        }
        self.watch.finish();
        let usage = self.usage();
        Ok(Json(format.whole(wholes, usage)).into_response())
    }

    /// Sends it as it comes.
    pub fn stream(self, format: impl Format, with_usage: bool) -> Response {
        let state = Streamed { answer: self, format, with_usage, progress: Progress::Pieces };
        let events = stream::unfold(state, |mut state| async move {
            let event = state.next().await?;
            Some((Ok::<_, Infallible>(event), state))
        });
        Sse::new(events).keep_alive(KeepAlive::default()).into_response()
    }
}

/// What an engine says that is not there any more.
fn stopped() -> Event {
    Event::Failed("the engine has stopped".to_owned())
}

struct Streamed<F> {
    answer: Answer,
    format: F,
    with_usage: bool,
    progress: Progress,
}

/// What a stream sends next.
enum Progress {
    Pieces,
    Done,
    Nothing,
}

impl<F: Format> Streamed<F> {
    async fn next(&mut self) -> Option<SseEvent> {
        let next = match self.progress {
            Progress::Pieces => self.answer.next().await,
            Progress::Done => None,
            Progress::Nothing => return None,
        };
        let data = match next {
            Some(Ok((index, piece))) => {
                let mut chunk = self.format.piece(index, piece);
                if self.with_usage {
                    // OpenAI's clients find the field in every chunk, where they asked for it.
                    chunk["usage"] = Value::Null;
                }
                chunk.to_string()
            }
            Some(Err(error)) => {
                self.progress = Progress::Nothing;
                error.body_json().to_string()
            }
            None if self.with_usage => {
                (self.with_usage, self.progress) = (false, Progress::Done);
                self.format.usage(self.answer.usage()).to_string()
            }
            None => {
                self.progress = Progress::Nothing;
                self.answer.watch.finish();
                "[DONE]".to_owned()
            }
        };
        Some(SseEvent::default().data(data))
    }
}
