//! Request traces: who asks for how much, and when.
//!
//! A trace is a text file with one request a line. The format is found from the content, never
//! from the file name; every reader is strict, and an error says which line and field it is about.

mod azure;
mod csv;
mod field;
mod json;
mod jsonl;
mod lines;
mod mooncake;
mod prompt;
mod random;
mod steps;
mod synthetic;
mod vtc;

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use self::field::Fault;
use self::lines::Lines;
pub(crate) use self::prompt::output_token;
pub(crate) use self::random::SplitMix64;
pub(crate) use self::synthetic::{Synthetic, burst, poisson};

/// The most tokens a prompt or an output of a trace may have. Far above any model's context, and
/// low enough that a damaged number is an error here and not a failed allocation later.
pub(crate) const MAX_LEN: u32 = 1 << 24;

/// What the arrivals of a trace mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Seconds since the earliest request.
    Seconds,
    /// The number of the step before which the request is submitted.
    Steps,
    /// The file has no arrivals: every request is there from the start, at 0.
    None,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Row of the file, from 0; the header and blank lines are not counted.
    pub(crate) id: u64,
    /// Seconds since the earliest request, or a step: the trace's [`Clock`] says which.
    pub(crate) arrival: f64,
    /// Where the tokens of the prompt come from.
    pub(crate) prompt: Prompt,
    /// Tokens in the prompt, 1 to [`MAX_LEN`].
    pub(crate) prompt_len: u32,
    /// Tokens the request generates before it ends, 1 to [`MAX_LEN`].
    pub(crate) output_len: u32,
    /// Priority as the file gives it, 0 where it does not.
    pub(crate) priority: i32,
    /// The tenant who sent it, 0 where the file does not say.
    pub(crate) client: u64,
    /// Requests share cached prefixes only with requests of the same salt.
    pub(crate) cache_salt: Option<String>,
}

/// Where the tokens of a prompt come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// The file gives a length only: tokens are a fixed hash of (seed, row, position), and no two
    /// rows begin alike.
    Unique,
    /// Ids of blocks of 512 tokens. An id stands for the same tokens wherever it
    /// occurs; the last block is cut to the length of the prompt.
    Chunks(Box<[u64]>),
    /// The tokens themselves, each below 2^31.
    Tokens(Box<[u32]>),
}

/// A workload: requests in order of arrival.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    /// The file's name without directory and extension, or "synthetic".
    pub(crate) name: String,
    /// Which format it was read from: "azure", "mooncake", "vtc", "steps", "jsonl", "synthetic".
    pub(crate) format: &'static str,
    /// What the arrivals mean.
    pub(crate) clock: Clock,
    /// The requests, by arrival; those of one instant in the order of the file. Never empty.
    pub(crate) rows: Vec<Row>,
    /// What a user should know about how the file was read.
    pub(crate) notices: Vec<String>,
}

/// Why a file is not a usable trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceError {
    /// The file, as the caller named it.
    pub(crate) file: String,
    /// The line at fault, from 1; 0 when it is the file as a whole.
    pub(crate) line: usize,
    /// The field or column at fault; empty when it is the line as a whole.
    pub(crate) field: String,
    /// What is wrong.
    pub(crate) reason: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": field `{}`", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for TraceError {}

/// Reads the trace in `path`, or its first `limit` rows: later rows are then not even looked at.
///
/// # Errors
/// The file cannot be read, is in no known format, has no requests, or has a row that does not
/// hold what its format asks for.
pub(crate) fn read(path: &Path, limit: Option<usize>) -> Result<Trace, TraceError> {
    let file = path.display().to_string();
    let failed =
        |reason: String| TraceError { file: file.clone(), line: 0, field: String::new(), reason };
    if path.is_dir() {
        return Err(failed("is a directory".to_owned()));
    }
    let open = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut trace = parse(&file, BufReader::with_capacity(1 << 16, open), limit)?;
    trace.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(trace)
}

/// Reads a trace, or its first `limit` rows, from `reader`; `name` is the trace's name and stands
/// for the file in errors.
///
/// # Errors
/// As for [`read`].
pub(crate) fn parse(
    name: &str,
    reader: impl BufRead,
    limit: Option<usize>,
) -> Result<Trace, TraceError> {
    let mut lines = Lines::new(reader);
    let (format, mut rows) =
        read_rows(&mut lines, limit).map_err(|fault| fault.at(name, lines.number()))?;

    let clock = format.clock();
    if clock == Clock::Seconds {
        let first = rows.iter().map(|row| row.arrival).fold(f64::INFINITY, f64::min);
        rows.iter_mut().for_each(|row| row.arrival -= first);
    }
    let notices = sort_by_arrival(&mut rows).into_iter().collect();
    Ok(Trace { name: name.to_owned(), format: format.name(), clock, rows, notices })
}

/// One format: what it is called, and how a line of it becomes a request.
trait Format {
    /// The name of the format, as in [`Trace::format`].
    fn name(&self) -> &'static str;

    /// What the arrivals of the rows read so far mean.
    fn clock(&self) -> Clock;

    /// Whether the first line is a header and not a request.
    fn has_header(&self) -> bool;

    /// The request on `line`. Its arrival may count from any origin.
    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault>;
}

fn read_rows(
    lines: &mut Lines<impl BufRead>,
    limit: Option<usize>,
) -> Result<(Box<dyn Format>, Vec<Row>), Fault> {
    let limit = limit.unwrap_or(usize::MAX);
    let no_requests = || Fault::File("no requests".to_owned());
    let first = lines.next()?.filter(|_| limit > 0).ok_or_else(no_requests)?;
    let mut format = detect(first)?;
    let mut rows = Vec::new();
    if !format.has_header() {
        rows.push(format.row(0, first)?);
    }
    while rows.len() < limit
        && let Some(line) = lines.next()?
    {
        rows.push(format.row(rows.len() as u64, line)?);
    }
    if rows.is_empty() { Err(no_requests()) } else { Ok((format, rows)) }
}

/// The format of a file that begins with `first`.
fn detect(first: &str) -> Result<Box<dyn Format>, Fault> {
    if first.starts_with('{') {
        let object = json::Object::parse(first)?;
        return if mooncake::Mooncake::claims(&object) {
            Ok(Box::new(mooncake::Mooncake))
        } else if jsonl::Jsonl::claims(&object) {
            Ok(Box::<jsonl::Jsonl>::default())
        } else {
            Err(Fault::not_a_trace())
        };
    }
    let header = csv::Header::parse(first);
    if azure::Azure::claims(&header) {
        Ok(Box::new(azure::Azure::new(&header)?))
    } else if vtc::Vtc::claims(&header) {
        Ok(Box::new(vtc::Vtc::new(&header)?))
    } else if steps::Steps::claims(&header) {
        Ok(Box::new(steps::Steps::new(&header)?))
    } else {
        Err(Fault::not_a_trace())
    }
}

/// Sorts, keeping the order of requests of one instant; says so when there was anything to do.
fn sort_by_arrival(rows: &mut [Row]) -> Option<String> {
    let late = rows.windows(2).filter(|pair| pair[1].arrival < pair[0].arrival).count();
    if late == 0 {
        return None;
    }
    rows.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    let (rows, were, have) =
        if late == 1 { ("row", "was", "has") } else { ("rows", "were", "have") };
    Some(format!("{late} {rows} {were} out of order and {have} been sorted by arrival"))
}

#[cfg(test)]
mod tests;
