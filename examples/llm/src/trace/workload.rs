//! Who comes when, with how long a prompt, and wants how many tokens.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use inflight::Token;

/// A request of a trace.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Seconds after the first.
    pub at: f64,
    /// Its prompt.
    pub prompt: Vec<Token>,
    /// Tokens it outputs.
    pub output: u32,
}

/// How a trace is made to fit this machine.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Requests taken at most.
    pub limit: usize,
    /// Lengths are divided by this.
    pub shorten: f64,
    /// Requests a second, on average; the trace's own where it is not given.
    pub rate: Option<f64>,
    /// Tokens of prompt and output together at most.
    pub max_model_len: usize,
}

/// Reads a trace as Azure publishes them (TIMESTAMP, ContextTokens, GeneratedTokens). Prompts are
/// pieces of `text`, each from where the last one ended, so that no two begin alike.
pub fn read(path: &Path, text: &[Token], scale: Scale) -> Result<Vec<Arrival>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut lines = BufReader::new(file).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    if !head.starts_with("TIMESTAMP,ContextTokens,GeneratedTokens") {
        bail!("{}: its first line is not that of an Azure trace", path.display());
    }
    let mut arrivals: Vec<Arrival> = Vec::new();
    let (mut from, mut start) = (0, None);
    for (number, line) in lines.take(scale.limit).enumerate() {
        let at = || format!("{}:{}", path.display(), number + 2);
        let line = line.with_context(at)?;
        let (time, prompt, output) = fields(&line).with_context(at)?;
        let shorter = |tokens: f64| (tokens / scale.shorten).round().max(1.0) as usize;
        let output = shorter(output).min(scale.max_model_len / 2);
        let prompt = shorter(prompt).min(scale.max_model_len - output);
        let tokens = text.iter().cycle().skip(from).take(prompt);
        from = (from + prompt) % text.len();
        let start = *start.get_or_insert(time);
        arrivals.push(Arrival {
            at: time - start,
            prompt: tokens.copied().collect(),
            output: output as u32,
        });
    }
    let Some(last) = arrivals.last().map(|arrival| arrival.at) else {
        bail!("{} has no requests", path.display());
    };
    if let Some(rate) = scale.rate.filter(|_| last > 0.0) {
        let by = arrivals.len() as f64 / rate / last;
        arrivals.iter_mut().for_each(|arrival| arrival.at *= by);
    }
    Ok(arrivals)
}

/// Seconds of the day, tokens of the prompt, tokens of the output.
fn fields(line: &str) -> Result<(f64, f64, f64)> {
    let mut fields = line.trim().split(',');
    let mut next = || fields.next().context("has fewer than three columns");
    let time = next()?.rsplit(' ').next().unwrap_or_default();
    let mut seconds = 0.0;
    for part in time.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().context("its time is none")?;
    }
    Ok((seconds, next()?.parse()?, next()?.parse()?))
}
