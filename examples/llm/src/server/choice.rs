//! A completion as its tokens come: text, logprobs, end.

use std::collections::VecDeque;

use inflight::{FinishReason, RequestId};

use super::error::ApiError;
use super::stop::StopTexts;
use crate::sampling::Logprobs;
use crate::tokenizer::{TextStream, Tokenizer};
use crate::worker::Event;

/// A token that was output, where logprobs were asked for.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// The token.
    pub token: u32,
    /// How likely it was.
    pub logprobs: Logprobs,
    /// Characters of the text before the one that it begins with, or within.
    pub offset: usize,
}

/// What an event adds to a completion.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Text.
    pub text: String,
    /// Tokens, where logprobs were asked for: those whose places in the text are certain.
    pub tokens: Vec<TokenInfo>,
    /// "stop" or "length" with the last piece.
    pub finish: Option<&'static str>,
}

impl Piece {
    /// Adds what follows.
    pub fn extend(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.finish = next.finish;
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty() && self.finish.is_none()
    }
}

/// A completion.
pub struct Choice {
    id: Option<RequestId>,
    text: TextStream<'static>,
    stops: StopTexts,
    ends: &'static [u32],
    /// Characters of all tokens' text, and of what was certain of it.
    decoded: usize,
    certain: usize,
    /// Tokens that begin in text that is held back: a stop text may end the text before them.
    held: VecDeque<TokenInfo>,
    num_output: usize,
    ended: bool,
}

impl Choice {
    /// A completion before its first token.
    pub fn new(tokenizer: &'static Tokenizer, stops: Vec<String>) -> Self {
        Self {
            id: None,
            text: tokenizer.stream(),
            stops: StopTexts::new(stops),
            ends: tokenizer.ends(),
            decoded: 0,
            certain: 0,
            held: VecDeque::new(),
            num_output: 0,
            ended: false,
        }
    }

    /// The engine's name for it, once it was accepted.
    pub fn id(&self) -> Option<RequestId> {
        self.id
    }

    /// Whether its last piece was given.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Tokens output, the one that ended it included.
    pub fn num_output(&self) -> usize {
        self.num_output
    }

    /// Takes an event; `None` where nothing is to be told yet.
    pub fn take(&mut self, event: Event) -> Result<Option<Piece>, ApiError> {
        let internal = |error: anyhow::Error| ApiError::engine(error.to_string());
        let mut piece = Piece::default();
        match event {
            Event::Accepted(id) => self.id = Some(id),
            Event::Token { token, logprobs, finish } => {
                self.num_output += 1;
                let offset = self.decoded + usize::from(self.text.is_broken_by(token));
                self.held.extend(logprobs.map(|logprobs| TokenInfo { token, logprobs, offset }));
                let mut text = String::new();
                if !self.ends.contains(&token) {
                    text = self.text.push(token).map_err(internal)?;
                }
                if finish.is_some() {
                    text.push_str(&self.text.finish().map_err(internal)?);
                }
                piece = self.add(&text, finish);
            }
            Event::Refused(error) => return Err(error.into()),
            Event::Failed(why) => return Err(ApiError::engine(why)),
        }
        self.ended = piece.finish.is_some();
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Adds the text of a token, which may be the last one: what is certain then.
    fn add(&mut self, text: &str, finish: Option<FinishReason>) -> Piece {
        self.decoded += text.chars().count();
        let (mut certain, stopped) = self.stops.push(text);
        let finish = match finish {
            _ if stopped => Some("stop"),
            Some(FinishReason::Length) => Some("length"),
            Some(_) => Some("stop"),
            None => None,
        };
        if finish.is_some() && !stopped {
            certain.push_str(&self.stops.finish());
        }
        self.certain += certain.chars().count();
        let is_certain = |token: &TokenInfo| finish.is_some() || token.offset <= self.certain;
        let count = self.held.iter().take_while(|token| is_certain(token)).count();
        let cut = |token: TokenInfo| TokenInfo { offset: token.offset.min(self.certain), ..token };
        let tokens = self.held.drain(..count).map(cut).collect();
        Piece { text: certain, tokens, finish }
    }
}
