//! Files of prompts, one JSON object a line.
//!
//! Known are lines with `prompt` (text to continue; HumanEval), `prompt_ids` (tokens to continue),
//! `question` (GSM8K) or `turns` (MT-bench, its first turn): the last two are asked by the model's
//! chat template. Files that end in `.gz` are unpacked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use crate::chat::{Message, Template};
use crate::tokenizer::Tokenizer;

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    question: Option<String>,
    turns: Option<Vec<String>>,
}

impl Line {
    fn tokens(
        self,
        (tokenizer, template): (&Tokenizer, &Template),
        vocab: usize,
    ) -> Result<Vec<u32>> {
        let ask = |question: String| template.tokens(tokenizer, &[Message::user(question)]);
        let tokens = match self {
            Self { prompt_ids: Some(tokens), .. } => tokens,
            Self { prompt: Some(text), .. } => tokenizer.encode(&text)?,
            Self { question: Some(question), .. } => ask(question)?,
            Self { turns: Some(turns), .. } => match turns.into_iter().next() {
                Some(turn) => ask(turn)?,
                None => bail!("`turns` is empty"),
            },
            _ => bail!("has none of `prompt`, `prompt_ids`, `question` and `turns`"),
        };
        if tokens.is_empty() {
            bail!("the prompt is empty");
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            bail!("the model has no token {token}");
        }
        Ok(tokens)
    }
}

/// A prompt of a file.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its line, counted from 1.
    pub line: usize,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

/// Each line's prompt; empty lines are skipped.
pub fn read(path: &Path, with: (&Tokenizer, &Template), vocab: usize) -> Result<Vec<Prompt>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut prompts = Vec::new();
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let at = || format!("{}:{}", path.display(), number + 1);
        let line = line.with_context(at)?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).with_context(at)?;
        let tokens = line.tokens(with, vocab).with_context(at)?;
        prompts.push(Prompt { line: number + 1, tokens });
    }
    if prompts.is_empty() {
        bail!("{} has no prompts", path.display());
    }
    Ok(prompts)
}
