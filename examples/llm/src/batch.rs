//! `llm batch`: a file of prompts, by continuous batching.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use inflight::FinishReason;
use serde::Serialize;

use crate::options::{Options, positive};
use crate::prompts::{self, Prompt};
use crate::sampling::Sampling;
use crate::worker::{Event, Generation, Handle, Stats, start};

/// Runs a file of prompts.
#[derive(Args, Debug)]
pub struct Batch {
    /// One JSON object a line, with `prompt` or `prompt_ids`, which are continued, or `question` or
    /// `turns`, which are answered; may be gzipped
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
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Writes prompt_ids, output_ids, text and finish_reason of each line, in order, as they end;
    /// without it nothing but counts and speeds is told
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A line of the results.
#[derive(Serialize)]
struct Done<'a> {
    prompt_ids: &'a [u32],
    output_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    /// Why there is no output.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Counts of all lines.
#[derive(Default)]
struct Sums {
    requests: usize,
    prompt: usize,
    output: usize,
    /// Of the first prompt that was refused, and how many were.
    refused: Option<String>,
    num_refused: usize,
}

impl Batch {
    /// Prints how it went, and how fast, to standard error.
    pub fn run(self) -> Result<()> {
        let sampling = Sampling::new(self.temperature, self.top_p, self.seed)?;
        let loaded = self.options.load()?;
        let tokenizer = &loaded.tokenizer;
        let vocab = loaded.engine.runner().shape().vocab;
        let mut prompts = prompts::read(&self.file, (tokenizer, &loaded.template), vocab)?;
        prompts.truncate(self.limit.unwrap_or(usize::MAX));
        let mut json = self.json.as_ref().map(|path| Results::create(path)).transpose()?;
        let ends = if self.ignore_eos { &[][..] } else { tokenizer.ends() };
        let (engine, thread) = start(loaded.engine)?;
        let started = Instant::now();
        let submit = |(number, prompt): (usize, &Prompt)| {
            let seed = sampling.seed.wrapping_add(number as u64);
            let sampling = Sampling { seed, ..sampling.clone() };
            let greedy = Generation::greedy(prompt.tokens.clone(), self.max_tokens, ends);
            engine.submit(Generation { sampling, ..greedy })
        };
        let requests: Vec<_> = prompts.iter().enumerate().map(submit).collect();
        engine.drain();
        let mut sums = Sums::default();
        let mut progress = Progress::new(prompts.len(), &engine);
        for (prompt, mut events) in prompts.iter().zip(requests) {
            let mut output_ids = Vec::new();
            let outcome = loop {
                match events.blocking_recv() {
                    Some(Event::Accepted(_)) => {}
                    Some(Event::Token { token, finish, .. }) => {
                        output_ids.push(token);
                        if let Some(reason) = finish {
                            break Ok(reason);
                        }
                    }
                    Some(Event::Refused(error)) => break Err(error.to_string()),
                    Some(Event::Failed(why)) => bail!(why),
                    None => bail!("the engine stopped"),
                }
                progress.show();
            };
            let finish_reason = match outcome {
                Ok(FinishReason::Length) => "length",
                Ok(FinishReason::Repetition) => "repetition",
                Ok(FinishReason::Eos | FinishReason::StopToken(_)) => "stop",
                Err(_) => "error",
            };
            let text = tokenizer.decode(&output_ids)?;
            let (prompt_ids, error) = (&prompt.tokens[..], outcome.err());
            let done = Done { prompt_ids, output_ids, text, finish_reason, error };
            sums.add(prompt.line, &done);
            json.as_mut().map_or(Ok(()), |json| json.write(&done))?;
        }
        thread.join().unwrap_or_else(|_| bail!("the engine panicked"))?;
        let seconds = started.elapsed().as_secs_f64();
        progress.finish();
        sums.report(&engine.stats(), seconds);
        match sums.refused {
            Some(first) => bail!("{} prompts were refused; {first}", sums.num_refused),
            None => Ok(()),
        }
    }
}

/// The file of results: each is there as soon as it and all before it have ended.
struct Results<'a> {
    path: &'a Path,
    file: BufWriter<File>,
}

impl<'a> Results<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn write(&mut self, done: &Done<'_>) -> Result<()> {
        let Self { path, file } = self;
        let written = serde_json::to_writer(&mut *file, done).map_err(std::io::Error::from);
        let written = written.and_then(|()| writeln!(file)).and_then(|()| file.flush());
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Sums {
    fn add(&mut self, line: usize, done: &Done<'_>) {
        self.requests += 1;
        self.prompt += done.prompt_ids.len();
        self.output += done.output_ids.len();
        if let Some(error) = &done.error {
            self.num_refused += 1;
            self.refused.get_or_insert_with(|| format!("line {line}: {error}"));
        }
    }

    fn report(&self, stats: &Stats, seconds: f64) {
        let Self { requests, prompt, output, .. } = self;
        let Stats { steps, preemptions, hit_tokens, computed_tokens, .. } = *stats;
        eprintln!(
            "{requests} requests in {seconds:.2} s: {prompt} prompt and {output} output tokens"
        );
        eprintln!(
            "{:.1} output tokens/s, {:.1} tokens/s in all; {steps} steps, {computed_tokens} tokens \
             computed, {hit_tokens} found in the prefix cache, {preemptions} preemptions",
            *output as f64 / seconds,
            (prompt + output) as f64 / seconds,
        );
    }
}

/// How far a batch is.
struct Progress<'a> {
    bar: ProgressBar,
    engine: &'a Handle,
    started: Instant,
    shown: Duration,
}

/// Tokens come faster than anybody reads.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

impl<'a> Progress<'a> {
    fn new(requests: usize, engine: &'a Handle) -> Self {
        let bar = ProgressBar::new(requests as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests, {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, engine, started: Instant::now(), shown: Duration::ZERO }
    }

    fn show(&mut self) {
        let elapsed = self.started.elapsed();
        if elapsed < self.shown + SHOWN_EVERY {
            return;
        }
        self.shown = elapsed;
        let stats = self.engine.stats();
        let rate = stats.output_tokens as f64 / elapsed.as_secs_f64();
        self.bar.set_position(stats.finished);
        self.bar.set_message(format!("{} running, {rate:.0} tokens/s", stats.running));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_file_at_once_and_a_refused_prompt_is_one_of_them() {
        let path = std::env::temp_dir().join(format!("inflight-llm-{}.jsonl", std::process::id()));
        let mut results = Results::create(&path).unwrap();
        let mut sums = Sums::default();
        let done = |output_ids: &[u32], error: Option<&str>| Done {
            prompt_ids: &[1, 2],
            output_ids: output_ids.to_vec(),
            text: "é".to_owned(),
            finish_reason: if error.is_some() { "error" } else { "stop" },
            error: error.map(str::to_owned),
        };
        for (line, done) in [(3, done(&[7], None)), (5, done(&[], Some("too long")))] {
            results.write(&done).unwrap();
            sums.add(line, &done);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            text,
            "{\"prompt_ids\":[1,2],\"output_ids\":[7],\"text\":\"é\",\"finish_reason\":\"stop\"}\n\
             {\"prompt_ids\":[1,2],\"output_ids\":[],\"text\":\"é\",\"finish_reason\":\"error\",\
             \"error\":\"too long\"}\n"
        );
        assert_eq!((sums.requests, sums.prompt, sums.output, sums.num_refused), (2, 4, 1, 1));
        assert_eq!(sums.refused.as_deref(), Some("line 5: too long"));
    }
}
