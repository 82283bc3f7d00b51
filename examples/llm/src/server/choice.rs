//! A completion as its tokens come: text, logprobs, end.

use inflight::FinishReason;

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
}

/// What an event adds to a completion.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Text.
    pub text: String,
    /// Tokens, where logprobs were asked for.
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
    text: TextStream<'static>,
    stops: StopTexts,
    ends: &'static [u32],
    num_output: usize,
    ended: bool,
}

impl Choice {
    /// A completion before its first token.
    pub fn new(tokenizer: &'static Tokenizer, stops: Vec<String>) -> Self {
        Self {
            text: tokenizer.stream(),
            stops: StopTexts::new(stops),
            ends: tokenizer.ends(),
            num_output: 0,
            ended: false,
        }
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
            Event::Accepted => {}
            Event::Token { token, logprobs } => {
                self.num_output += 1;
                piece.tokens.extend(logprobs.map(|logprobs| TokenInfo { token, logprobs }));
                if !self.ends.contains(&token) {
                    let (text, stopped) =
                        self.stops.push(&self.text.push(token).map_err(internal)?);
                    piece.text = text;
                    piece.finish = stopped.then_some("stop");
                }
            }
            Event::Finished(reason) => {
                let (mut text, stopped) = self.stops.push(&self.text.finish().map_err(internal)?);
                text.push_str(&self.stops.finish());
                piece.text = text;
                piece.finish = Some(match reason {
                    FinishReason::Length if !stopped => "length",
                    _ => "stop",
                });
            }
            Event::Refused(error) => return Err(error.into()),
            Event::Failed(why) => return Err(ApiError::engine(why)),
        }
        self.ended = piece.finish.is_some();
        Ok((!piece.is_empty()).then_some(piece))
    }
}
