//! `llm compare`: how far the faster ways of computing are from the exact one.
//!
//! The exact path (f32 throughout) continues each prompt greedily. The other paths are then given the
//! same tokens one by one, and their logits are compared: what one says of a token does not depend on
//! what it would have said before.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use clap::Args;
use inflight::{Request, RequestId, Time, Token};

use crate::engine::Engine;
use crate::gguf::Gguf;
use crate::hub;
use crate::options::{CacheType, Options, Place, positive};
use crate::print;
use crate::prompts::{self, Prompt};
use crate::runner::Products;
use crate::sampling::argmax;

/// Compares logits of all types of activations and caches.
#[derive(Args, Debug)]
pub struct Compare {
    /// One JSON object a line, with `prompt` or `prompt_ids`, which are continued, or `question` or
    /// `turns`, which are answered; may be gzipped
    file: PathBuf,
    #[command(flatten)]
    options: Options,
    /// Tokens compared of each prompt
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_tokens: u32,
    /// Prompts taken from the file at most: their logits are kept in memory
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    limit: usize,
}

/// Differences of logits.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    steps: usize,
    agree: usize,
    sum: f64,
    count: usize,
    largest: f32,
}

impl Difference {
    fn add(&mut self, exact: &[f32], other: &[f32]) {
        self.steps += 1;
        self.agree += usize::from(argmax(exact) == argmax(other));
        for (exact, other) in exact.iter().zip(other) {
            let difference = (exact - other).abs();
            self.sum += f64::from(difference);
            self.largest = self.largest.max(difference);
        }
        self.count += exact.len();
    }
}

impl Compare {
    /// Prints a table.
    pub fn run(mut self) -> Result<()> {
        self.options.model = hub::locate(&self.options.model)?;
        let exact = Options {
            device: Place::Cpu,
            dtype: Some(Products::F32),
            kv_dtype: None,
            ..self.options.clone()
        };
        let loaded = exact.load()?;
        let vocab = loaded.engine.runner().shape().vocab;
        let with = (&loaded.tokenizer, &loaded.template);
        let mut prompts = prompts::read(&self.file, with, vocab)?;
        prompts.truncate(self.limit);
        let mut engine = loaded.engine;
        let exact: Vec<Mutex<Vec<Vec<f32>>>> = prompts.iter().map(|_| Mutex::default()).collect();
        continue_all(&mut engine, &prompts, self.max_tokens, |prompt, _, logits| {
            locked(&exact[prompt]).push(logits.to_vec());
            argmax(logits)
        })?;
        let count = prompts.len();
        print::line(format!("{count} prompts, {} tokens each at most:", self.max_tokens))?;
        print::line("products  cache  mean |Δlogit|  max |Δlogit|  same likeliest token")?;
        use {CacheType as C, Products as P};
        let (products, caches) = match self.options.device.gpu() {
            None => (&[P::F32, P::Int8][..], &[C::F32, C::F16, C::Bf16, C::Fp8][..]),
            Some(_) => (&[P::F32, P::F16, P::Bf16, P::Int8][..], &[C::F16, C::Bf16, C::Fp8][..]),
        };
        // One model at a time, and one cache; on a processor the first is the exact one's.
        let mut shared =
            Some(engine.into_weights()).filter(|_| self.options.device.gpu().is_none());
        for &dtype in products {
            for &kv_dtype in caches {
                let options = Options {
                    dtype: Some(dtype),
                    kv_dtype: Some(kv_dtype),
                    ..self.options.clone()
                };
                let weights = match shared.take() {
                    Some(weights) => weights,
                    None => options.weights(&mut Gguf::open(&options.model)?)?,
                };
                let mut engine = options.engine(weights)?;
                let difference = Mutex::<Difference>::default();
                continue_all(&mut engine, &prompts, self.max_tokens, |prompt, at, logits| {
                    let exact = &locked(&exact[prompt])[at];
                    locked(&difference).add(exact, logits);
                    argmax(exact)
                })?;
                let Difference { steps, agree, sum, count, largest } = *locked(&difference);
                print::line(format!(
                    "{:8}  {:5}  {:13.2e}  {largest:12.2e}  {agree} of {steps}",
                    format!("{dtype:?}").to_lowercase(),
                    format!("{kv_dtype:?}").to_lowercase(),
                    sum / count as f64,
                ))?;
                shared = Some(engine.into_weights());
            }
            shared = None;
        }
        Ok(())
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Continues all prompts at once; `choose` gets prompt, place among its outputs, and logits.
fn continue_all(
    engine: &mut Engine,
    prompts: &[Prompt],
    max_tokens: u32,
    choose: impl Fn(usize, usize, &[f32]) -> Token + Sync,
) -> Result<()> {
    for (number, prompt) in prompts.iter().enumerate() {
        let request = Request::new(RequestId(number as u64), prompt.tokens.clone(), max_tokens);
        engine.scheduler_mut().submit(request).with_context(|| format!("line {}", prompt.line))?;
    }
    while engine.scheduler().num_unfinished() > 0 {
        engine.step(Time(0), |row, logits| {
            choose(row.id.0 as usize, row.num_output as usize, logits)
        })?;
    }
    Ok(())
}
