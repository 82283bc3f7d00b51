//! `llm generate`: one prompt, its text as it comes.

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use inflight::{FinishReason, Token};

use crate::beam;
use crate::branches::Branches;
use crate::chat::Message;
use crate::options::{Loaded, Options};
use crate::print;
use crate::sampling::Sampling;
use crate::worker::{Event, Generation, start};

/// Continues one prompt.
#[derive(Args, Debug)]
pub struct Generate {
    /// What the user says
    prompt: String,
    #[command(flatten)]
    options: Options,
    /// Continues the text instead of answering it
    #[arg(long)]
    raw: bool,
    /// Output tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The likeliest tokens that together have this probability are drawn from
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The same seed draws the same tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Searches with so many beams, and prints the best text once it is found
    #[arg(long, value_name = "N", conflicts_with_all = ["temperature", "top_p", "seed"])]
    beams: Option<NonZeroUsize>,
}

impl Generate {
    /// Prints the text to standard output, and how fast it came to standard error.
    pub fn run(self) -> Result<()> {
        let sampling = Sampling::new(self.temperature, self.top_p, self.seed)?;
        // The cache of one request, or of the beams, is enough.
        let max_num_seqs = self.beams.map_or(1, NonZeroUsize::get);
        let loaded = Options { max_num_seqs, ..self.options.clone() }.load()?;
        let prompt = match self.raw {
            true => loaded.tokenizer.encode(&self.prompt)?,
            false => {
                let messages = [Message::user(self.prompt.clone())];
                loaded.template.tokens(&loaded.tokenizer, &messages)?
            }
        };
        match self.beams {
            Some(_) => self.search(loaded, &prompt, max_num_seqs),
            None => self.stream(loaded, prompt, sampling),
        }
    }

    fn search(&self, loaded: Loaded, prompt: &[Token], beams: usize) -> Result<()> {
        let config = *loaded.engine.scheduler().config();
        let (length, most) = (prompt.len(), config.max_model_len);
        if length == 0 || length >= most {
            bail!("the prompt has {length} tokens: with its output, at most {most} fit");
        }
        let max_tokens = (most - length).min(self.max_tokens as usize);
        let mut branches = Branches::new(loaded.engine.into_runner(), config.cache)?;
        let (of, chunk) = ((beams, max_tokens), config.max_num_batched_tokens);
        let started = Instant::now();
        let ends = loaded.tokenizer.ends();
        let found = beam::search(&mut branches, prompt, of, ends, chunk).with_context(|| {
            format!("--beams {beams}, with --num-blocks {}", config.cache.num_blocks - 1)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        if let Some(best) = found.first() {
            let mut tokens = &best.tokens[..];
            if let Some((last, rest)) = tokens.split_last()
                && ends.contains(last)
            {
                tokens = rest;
            }
            print::line(loaded.tokenizer.decode(tokens)?)?;
        }
        let scores: Vec<_> = found.iter().map(|found| format!("{:.3}", found.score())).collect();
        eprintln!("{seconds:.2} s; mean logarithms of the beams' tokens: {}", scores.join(", "));
        Ok(())
    }

    fn stream(self, loaded: Loaded, prompt: Vec<Token>, sampling: Sampling) -> Result<()> {
        let tokenizer = &loaded.tokenizer;
        let num_prompt = prompt.len();
        let generation = Generation {
            sampling,
            ..Generation::greedy(prompt, self.max_tokens, tokenizer.ends())
        };
        let (engine, thread) = start(loaded.engine)?;
        let started = Instant::now();
        let mut events = engine.submit(generation);
        engine.drain();
        let mut text = tokenizer.stream();
        let (mut first, mut count, mut ended) = (None, 0, "cut short");
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Accepted(_) => {}
                Event::Token { token, finish, .. } => {
                    first.get_or_insert_with(|| started.elapsed());
                    count += 1;
                    if !tokenizer.ends().contains(&token) {
                        print::text(text.push(token)?)?;
                    }
                    ended = match finish {
                        None => continue,
                        Some(FinishReason::Length) => "as many as there may be",
                        Some(FinishReason::Repetition) => "which repeat themselves",
                        Some(FinishReason::Eos | FinishReason::StopToken(_)) => "the whole answer",
                    };
                    break;
                }
                Event::Refused(error) => bail!(error),
                Event::Failed(why) => bail!(why),
            }
        }
        print::line(text.finish()?)?;
        let (first, all) = (first.unwrap_or_default(), started.elapsed());
        let rate = |count: usize, seconds: f64| count as f64 / seconds.max(1e-9);
        eprintln!(
            "{num_prompt} tokens of prompt at {:.0} tokens/s, {count} of output, {ended}, at {:.0} \
             tokens/s",
            rate(num_prompt, first.as_secs_f64()),
            rate(count.max(1) - 1, (all - first).as_secs_f64()),
        );
        thread.join().unwrap_or_else(|_| bail!("the engine panicked"))
    }
}
