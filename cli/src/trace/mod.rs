//! Request traces: who asks for how much, and when.
//!
//! A trace is a text file, compressed or not, with one request per row. The format is found from the
//! content, never from the file name; every reader is strict, and an error says which line and field
//! it is about.

mod csv;
mod field;
mod formats;
mod json;
mod jsonl;
mod lines;
mod mooncake;
mod prompt;
mod random;
mod source;
mod synthetic;
mod times;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use self::field::{Fault, Field};
pub(crate) use self::formats::help;
use self::formats::{Format, Holds};
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
    /// Row of the file, from 0; the header and blank lines are not counted, skipped rows are.
    pub(crate) id: u64,
    /// Seconds since the earliest request, or a step: the trace's [`Clock`] says which. A later turn
    /// of a session does not come before.
    pub(crate) arrival: f64,
    /// What a later turn of a session waits for.
    pub(crate) turn: Option<Turn>,
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

impl Row {
    /// A row of which nothing is known yet.
    fn new(id: u64) -> Self {
        Self {
            id,
            arrival: 0.0,
            turn: None,
            prompt: Prompt::Unique,
            prompt_len: 0,
            output_len: 0,
            priority: 0,
            client: 0,
            cache_salt: None,
        }
    }

    /// Whether it has no prompt or no output, and so cannot run: data sets write failed requests so.
    fn is_empty(&self) -> bool {
        self.prompt_len == 0 || self.output_len == 0
    }
}

/// A later turn of a session comes when the one before it has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Turn {
    /// The row of the turn before.
    pub(crate) previous: u64,
    /// Seconds from its end to this turn.
    pub(crate) delay: f64,
    /// Whether this turn's prompt goes on from the prompt and output of the one before.
    pub(crate) continues: bool,
}

/// Where the tokens of a prompt come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// The file gives a length only: tokens are a fixed hash of (seed, row, position), and no two
    /// rows begin alike.
    Unique,
    /// Ids of blocks of `size` tokens. An id stands for the same tokens wherever it occurs; the last
    /// block is cut to the length of the prompt.
    Chunks { ids: Box<[u64]>, size: u32 },
    /// The tokens themselves, each below 2^31.
    Tokens(Box<[u32]>),
}

/// A workload: requests in order of arrival.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    /// The file's name without directory and extension, or "synthetic".
    pub(crate) name: String,
    /// Which format it was read from: one of those in [`formats`], or "synthetic".
    pub(crate) format: &'static str,
    /// What the arrivals mean.
    pub(crate) clock: Clock,
    /// The requests, by arrival; those of one instant in the order of the file. Never empty.
    pub(crate) rows: Vec<Row>,
    /// Rows of the file that were skipped, as they have no prompt or no output.
    pub(crate) skipped: u64,
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

/// How a file is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Requests that are read at most: later rows are not even looked at.
    pub(crate) limit: usize,
    /// Whether a row without prompt or output is an error, and not skipped.
    pub(crate) strict: bool,
    /// Tokens of a block of Mooncake's `hash_ids`.
    pub(crate) hash_block_size: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { limit: usize::MAX, strict: false, hash_block_size: 512 }
    }
}

/// Reads the trace in `path`, or on standard input where that is `-`.
///
/// # Errors
/// The file cannot be read, is in no known format, has no requests, or has a row that does not
/// hold what its format asks for.
pub(crate) fn read(path: &Path, options: Options) -> Result<Trace, TraceError> {
    if path.as_os_str() == "-" {
        let mut trace = parse("standard input", io::stdin().lock(), options)?;
        trace.name = "stdin".to_owned();
        return Ok(trace);
    }
    let file = path.display().to_string();
    let failed = |reason: String| Fault::File(reason).at(&file, 0);
    if path.is_dir() {
        return Err(failed("is a directory".to_owned()));
    }
    let open = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut trace = parse(&file, open, options)?;
    let compressed = path.extension().is_some_and(|name| name == "gz" || name == "zst");
    let path = if compressed { path.with_extension("") } else { path.to_owned() };
    trace.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(trace)
}

/// Reads a trace from `reader`; `name` is the trace's name and stands for the file in errors.
///
/// # Errors
/// As for [`read`].
pub(crate) fn parse(name: &str, reader: impl Read, options: Options) -> Result<Trace, TraceError> {
    let mut lines = Lines::new(source::text(reader).map_err(|fault| fault.at(name, 0))?);
    let Rows { reader, kept: mut rows, skipped, first_skipped } =
        read_rows(&mut lines, &options).map_err(|fault| fault.at(name, lines.number()))?;

    let clock = reader.clock();
    if clock == Clock::Seconds {
        let first = rows.iter().map(|row| row.arrival).fold(f64::INFINITY, f64::min);
        rows.iter_mut().for_each(|row| row.arrival -= first);
    }
    let mut notices = Vec::new();
    notices.extend(notice_of_skipped(skipped, first_skipped));
    notices.extend(sort_by_arrival(&mut rows));
    let format = reader.format().name;
    Ok(Trace { name: name.to_owned(), format, clock, rows, skipped, notices })
}

/// How a line of one format becomes a request.
trait Reader {
    /// The format, one of the table.
    fn format(&self) -> &'static Format;

    /// What the arrivals of the rows read so far mean.
    fn clock(&self) -> Clock;

    /// The request on `line`. Its arrival may count from any origin, its lengths may be 0.
    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault>;
}

/// The rows of a file.
struct Rows {
    reader: Box<dyn Reader>,
    kept: Vec<Row>,
    skipped: u64,
    /// The line of the first that was skipped.
    first_skipped: usize,
}

impl Rows {
    /// Reads the row on `line`; whether it is kept.
    fn add(&mut self, line: &str, strict: bool) -> Result<bool, Fault> {
        let row = self.reader.row(self.kept.len() as u64 + self.skipped, line)?;
        if !row.is_empty() {
            self.kept.push(row);
            return Ok(true);
        }
        if strict {
            let empty = if row.prompt_len == 0 { Holds::Prompt } else { Holds::Output };
            let field = Field { name: self.reader.format().column(empty), text: "0" };
            return Err(
                field.not("at least 1: remove the row, or have it skipped without --strict")
            );
        }
        self.skipped += 1;
        Ok(false)
    }
}

fn read_rows(lines: &mut Lines<impl BufRead>, options: &Options) -> Result<Rows, Fault> {
    let Options { limit, strict, .. } = *options;
    let no_requests = |why: &str| Fault::File(format!("no requests{why}"));
    let first = lines.next()?.filter(|_| limit > 0).ok_or_else(|| no_requests(""))?;
    let reader = formats::detect(first, options)?;
    let mut rows = Rows { reader, kept: Vec::new(), skipped: 0, first_skipped: 0 };
    let has_header = rows.reader.format().has_header();
    let mut kept = has_header || rows.add(first, strict)?;
    if has_header {
        lines.join_quoted();
    }
    loop {
        if !kept && rows.skipped == 1 {
            rows.first_skipped = lines.number();
        }
        if rows.kept.len() >= limit {
            break;
        }
        let Some(line) = lines.next()? else { break };
        kept = rows.add(line, strict)?;
    }
    match (rows.kept.is_empty(), rows.skipped) {
        (false, _) => Ok(rows),
        (true, 0) => Err(no_requests("")),
        (true, _) => Err(no_requests(": all rows have 0 tokens of prompt or output")),
    }
}

/// Says that rows were skipped.
fn notice_of_skipped(skipped: u64, first: usize) -> Option<String> {
    let (rows, were, them) = match skipped {
        0 => return None,
        1 => ("row", "was", "it"),
        _ => ("rows", "were", "them"),
    };
    Some(format!(
        "{skipped} {rows} of 0 tokens of prompt or output {were} skipped (the first on line {first}); --strict \
         refuses {them}"
    ))
}

/// Sorts, keeping the order of requests of one instant; says so when there was anything to do. Turns
/// of one session may follow one another in a file.
fn sort_by_arrival(rows: &mut [Row]) -> Option<String> {
    let firsts = || rows.iter().filter(|row| row.turn.is_none()).map(|row| row.arrival);
    let late = firsts().zip(firsts().skip(1)).filter(|(before, after)| after < before).count();
    rows.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    let (rows, were, have) = match late {
        0 => return None,
        1 => ("row", "was", "has"),
        _ => ("rows", "were", "have"),
    };
    Some(format!("{late} {rows} {were} out of order and {have} been sorted by arrival"))
}

#[cfg(test)]
mod tests;
