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

/// Seconds, tokens of the prompt, tokens of the output.
fn fields(line: &str) -> Result<(f64, f64, f64)> {
    let mut fields = line.trim().split(',');
    let mut next = || fields.next().context("has fewer than three columns");
    let time = next()?;
    let time = seconds(time).with_context(|| format!("`{time}` is no time"))?;
    Ok((time, next()?.parse()?, next()?.parse()?))
}

/// Seconds since a fixed day of `2024-05-10 00:00:00.009930+00:00`, whose offset may be missing, or
/// the date with it.
fn seconds(stamp: &str) -> Option<f64> {
    let (date, time) = stamp.trim().rsplit_once([' ', 'T']).unwrap_or(("1970-01-01", stamp.trim()));
    let (time, offset) = match time.find(['+', '-', 'Z']) {
        Some(at) => (&time[..at], &time[at..]),
        None => (time, ""),
    };
    let sexagesimal = |text: &str| {
        text.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
    };
    let offset = match offset.strip_prefix(['+', '-']) {
        Some(size) if offset.starts_with('-') => -60.0 * sexagesimal(size)?,
        Some(size) => 60.0 * sexagesimal(size)?,
        None => 0.0,
    };
    let mut parts = date.trim().split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    // Years that begin in March: their leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = 365 * year + leap_days + (153 * month + 2) / 5 + day;
    Some(days as f64 * 86_400.0 + sexagesimal(time)? - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_both_years_are_read_also_across_midnight() {
        let (time, prompt, output) = fields("2023-11-16 18:17:03.9799600,4808,10").unwrap();
        assert_eq!((prompt, output), (4808.0, 10.0));
        let later = |stamp: &str| seconds(stamp).unwrap() - time;
        assert!((later("2023-11-16 18:17:04.0799600") - 0.1).abs() < 1e-4);
        assert!((later("2023-11-17 00:00:00") - 20_576.02).abs() < 0.01);
        let offset =
            |stamp| seconds(stamp).unwrap() - seconds("2024-02-28 23:59:59+00:00").unwrap();
        assert_eq!(offset("2024-02-29 00:00:01+00:00"), 2.0);
        assert_eq!(offset("2024-03-01T00:00:01Z"), 86_402.0);
        assert_eq!(offset("2024-02-29 02:00:01+02:00"), 2.0);
        assert_eq!(offset("2024-02-28 18:30:01-05:30"), 2.0);
        assert_eq!(seconds("10:00:01").unwrap() - seconds("09:59:59").unwrap(), 2.0);
        for bad in ["", "now", "2024-05 10:00:00", "2024-05-10 1x:00:00,1,1", "2024-05-10 10:00+x"]
        {
            assert!(seconds(bad).is_none(), "{bad}");
        }
        assert!(fields("2023-11-16 18:17:03,4808").is_err());
    }
}
