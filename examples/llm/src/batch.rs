//! `llm batch`: a file of prompts, by continuous batching.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use inflight::FinishReason;
use serde::Serialize;

use crate::options::Options;
use crate::prompts;
use crate::sampling::Sampling;
use crate::worker::{Event, Generation, Handle, Stats, start};

/// Runs a file of prompts.
#[derive(Args, Debug)]
pub struct Batch {
    /// One JSON object a line, with `prompt`, `prompt_ids`, `question` or `turns`; may be gzipped
    file: PathBuf,
    #[command(flatten)]
    options: Options,
    /// Output tokens at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// Takes the likeliest token, always (the default)
    #[arg(long, conflicts_with_all = ["temperature", "top_p"])]
    greedy: bool,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The likeliest tokens that together have this probability are drawn from
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// The same seed draws the same tokens; line N draws by seed + N
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Goes on after the end of a text, up to --max-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Prompts taken from the file at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Writes prompt_ids, output_ids, text and finish_reason of each line, in order
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Done {
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
}

impl Batch {
    /// Prints how it went, and how fast, to standard error.
    pub fn run(self) -> Result<()> {
        let loaded = self.options.load()?;
        let tokenizer = &loaded.tokenizer;
        let vocab = loaded.engine.runner().model().shape.vocab;
        let mut prompts = prompts::read(&self.file, (tokenizer, &loaded.template), vocab)?;
        prompts.truncate(self.limit.unwrap_or(usize::MAX));
        let ends = if self.ignore_eos { &[][..] } else { tokenizer.ends() };
        let (engine, thread) = start(loaded.engine)?;
        let started = Instant::now();
        let submit = |(line, prompt): (usize, &Vec<u32>)| {
            let Self { temperature, top_p, .. } = self;
            let seed = self.seed.wrapping_add(line as u64);
            let sampling = Sampling { temperature, top_p, seed, ..Sampling::greedy() };
            let greedy = Generation::greedy(prompt.clone(), self.max_tokens, ends);
            engine.submit(Generation { sampling, ..greedy })
        };
        let requests: Vec<_> = prompts.iter().enumerate().map(submit).collect();
        engine.drain();
        let mut done = Vec::with_capacity(prompts.len());
        let progress = Progress::new(prompts.len(), &engine);
        for (line, (prompt_ids, mut events)) in prompts.into_iter().zip(requests).enumerate() {
            let mut output_ids = Vec::new();
            let reason = loop {
                match events.blocking_recv() {
                    Some(Event::Accepted) => {}
                    Some(Event::Token { token, .. }) => output_ids.push(token),
                    Some(Event::Finished(reason)) => break reason,
                    Some(Event::Refused(error)) => bail!("prompt {}: {error}", line + 1),
                    Some(Event::Failed(why)) => bail!(why),
                    None => bail!("the engine stopped"),
                }
                progress.show();
            };
            let text = tokenizer.decode(&output_ids)?;
            let finish_reason = match reason {
                FinishReason::Length => "length",
                FinishReason::Repetition => "repetition",
                FinishReason::Eos | FinishReason::StopToken(_) => "stop",
            };
            done.push(Done { prompt_ids, output_ids, text, finish_reason });
        }
        thread.join().unwrap_or_else(|_| bail!("the engine panicked"))?;
        let seconds = started.elapsed().as_secs_f64();
        progress.finish();
        report(&done, &engine.stats(), seconds);
        self.json.as_ref().map_or(Ok(()), |path| {
            write(path, &done).with_context(|| format!("cannot write {}", path.display()))
        })
    }
}

fn write(path: &PathBuf, done: &[Done]) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for done in done {
        serde_json::to_writer(&mut file, done)?;
        writeln!(file)?;
    }
    Ok(file.flush()?)
}

fn report(done: &[Done], stats: &Stats, seconds: f64) {
    let prompt: usize = done.iter().map(|done| done.prompt_ids.len()).sum();
    let output: usize = done.iter().map(|done| done.output_ids.len()).sum();
    let Stats { steps, preemptions, hit_tokens, computed_tokens, .. } = *stats;
    eprintln!(
        "{} requests in {seconds:.2} s: {prompt} prompt and {output} output tokens",
        done.len()
    );
    eprintln!(
        "{:.1} output tokens/s, {:.1} tokens/s in all; {steps} steps, {computed_tokens} tokens \
         computed, {hit_tokens} found in the prefix cache, {preemptions} preemptions",
        output as f64 / seconds,
        (prompt + output) as f64 / seconds,
    );
}

/// How far a batch is.
struct Progress<'a> {
    bar: ProgressBar,
    engine: &'a Handle,
    started: Instant,
}

impl<'a> Progress<'a> {
    fn new(requests: usize, engine: &'a Handle) -> Self {
        let bar = ProgressBar::new(requests as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests, {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, engine, started: Instant::now() }
    }

    fn show(&self) {
        let stats = self.engine.stats();
        let rate = stats.output_tokens as f64 / self.started.elapsed().as_secs_f64();
        self.bar.set_position(stats.finished);
        self.bar.set_message(format!("{} running, {rate:.0} tokens/s", stats.running));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
