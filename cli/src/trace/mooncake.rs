//! The Mooncake traces, and what AIPerf's `mooncake_trace` adds to them: rows without times or block
//! ids, and sessions of several turns.

use std::collections::HashMap;

use super::field::{Fault, Field};
use super::formats::Format;
use super::json::Object;
use super::times::Times;
use super::{Clock, Prompt, Reader, Row, Turn};

/// The longest a user may wait between two turns, in milliseconds.
const LONGEST_DELAY: f64 = 1e12;

/// Reads Mooncake's JSON lines: times in milliseconds, prompts as ids of blocks.
pub(super) struct Mooncake {
    format: &'static Format,
    /// Tokens of a block.
    block: u32,
    times: Times,
    /// Whether rows have a timestamp, as the first one says. Later turns need none.
    timed: Option<bool>,
    /// Whether any turn waits for a time.
    delayed: bool,
    /// The last turn of each session that is not skipped: its row, `None` before the first such, and
    /// when the session came.
    sessions: HashMap<String, (Option<u64>, f64)>,
}

impl Mooncake {
    pub(super) fn new(format: &'static Format, block: u32) -> Self {
        let times = Times::of_milliseconds();
        Self { format, block, times, timed: None, delayed: false, sessions: HashMap::new() }
    }

    /// What the prompt is made of: blocks, or, without ids, nothing that another row has.
    fn prompt(&self, hash_ids: Option<Field<'_>>, prompt_len: u32) -> Result<Prompt, Fault> {
        let Some(hash_ids) = hash_ids else { return Ok(Prompt::Unique) };
        let expected = prompt_len.div_ceil(self.block);
        let ids = whole_numbers(hash_ids.text, expected as usize);
        let ids = ids.ok_or_else(|| hash_ids.not("a list of whole numbers"))?;
        let found = ids.len();
        if found == expected as usize {
            return Ok(Prompt::Chunks { ids, size: self.block });
        }
        Err(hash_ids.fault(format!(
            "{found} ids, but `input_length` {prompt_len} is {expected} blocks of {}: give the \
             trace's block size with --hash-block-size",
            self.block
        )))
    }

    /// The turn that this row is, where it is not the first of its session, and its arrival.
    fn turn(&mut self, object: &Object<'_>, row: &Row) -> Result<(Option<Turn>, f64), Fault> {
        let (delay, timestamp) = (object.get("delay"), object.get("timestamp"));
        let delay = delay.map_or(Ok(0.0), |delay| delay.number(LONGEST_DELAY))? / 1e3;
        let continues = match object.get("context_mode").map(|mode| (mode, mode.text)) {
            None | Some((_, "\"deltas_without_responses\"")) => true,
            Some((_, "\"message_array_with_responses\"")) => false,
            Some((mode, _)) => {
                return Err(mode.not(
                    "\"deltas_without_responses\" (a turn adds to what the session has) or \
                     \"message_array_with_responses\" (it is the whole prompt)",
                ));
            }
        };
        let session: Option<String> =
            object.get("session_id").map(|id| id.json("a string")).transpose()?;
        let before = session.as_ref().and_then(|session| self.sessions.get(session)).copied();
        let arrival = match (timestamp, *self.timed.get_or_insert(timestamp.is_some()), before) {
            (Some(given), true, _) => self.times.since_first(given)?,
            (Some(given), false, _) => return Err(given.fault("earlier rows have none: remove it")),
            (None, true, None) => {
                return Err(Fault::field("timestamp", "missing; earlier rows have it"));
            }
            // The one before is skipped: this is the first to be sent.
            (None, _, Some((None, arrival))) => {
                self.delayed |= delay > 0.0;
                arrival + delay
            }
            (None, _, before) => before.map_or(0.0, |(_, arrival)| arrival),
        };
        // A row that will be skipped has no end to wait for.
        if let Some(session) = session {
            match row.is_empty() {
                true => {
                    self.sessions.entry(session).or_insert((None, arrival));
                }
                false => {
                    self.sessions.insert(session, (Some(row.id), arrival));
                }
            }
        }
        let turn = before.and_then(|(previous, _)| previous).map(|previous| {
            // A timestamp says when, and a delay besides says nothing.
            let delay = if timestamp.is_some() { 0.0 } else { delay };
            self.delayed |= delay > 0.0;
            Turn { previous, delay, continues }
        });
        Ok((turn, arrival))
    }
}

/// The numbers of `text`, which is JSON, if it is a list of them. Most of a file is these lists: they
/// are not parsed as JSON a second time, nor moved when they are complete.
fn whole_numbers(text: &str, expected: usize) -> Option<Box<[u64]>> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    let mut numbers = Vec::with_capacity(expected.min(text.len()));
    if !inside.trim_ascii().is_empty() {
        for number in inside.as_bytes().split(|&byte| byte == b',') {
            numbers.push(number.trim_ascii().iter().try_fold(0_u64, |number, byte| {
                let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
                number.checked_mul(10)?.checked_add(digit)
            })?);
        }
    }
    Some(numbers.into())
}

impl Reader for Mooncake {
    fn format(&self) -> &'static Format {
        self.format
    }

    fn clock(&self) -> Clock {
        if self.timed == Some(true) || self.delayed { Clock::Seconds } else { Clock::None }
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let object = Object::parse(line)?;
        let mut row = Row::new(id);
        // Other forms of a prompt, which have no tokens, are missing that, and not unknown.
        row.prompt_len = object.require("input_length")?.tokens()?;
        object.only(self.format)?;
        row.prompt = self.prompt(object.get("hash_ids"), row.prompt_len)?;
        row.output_len = object.require("output_length")?.tokens()?;
        (row.turn, row.arrival) = self.turn(&object, &row)?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace, trace_with};
    use super::super::{Options, Trace};
    use super::*;

    fn chunks(ids: &[u64], size: u32) -> Prompt {
        Prompt::Chunks { ids: ids.into(), size }
    }

    #[test]
    fn reads_rows() {
        let trace = trace(
            "{\"timestamp\": 1000, \"input_length\": 513, \"output_length\": 5, \"hash_ids\": [0, 7]}\n\
             {\"hash_ids\":[18446744073709551615],\"input_length\":1,\"timestamp\":4027.5,\
             \"output_length\":1}\n{\"timestamp\": 5000, \"input_length\": 9, \"output_length\": 2}\n",
        );
        assert_eq!((trace.format, trace.clock), ("mooncake", Clock::Seconds));
        let prompts = [chunks(&[0, 7], 512), chunks(&[u64::MAX], 512), Prompt::Unique];
        assert!(trace.rows.iter().map(|row| &row.prompt).eq(&prompts));
        assert!(trace.rows.iter().map(|row| row.arrival).eq([0.0, 3.0275, 4.0]));
        assert_eq!((trace.rows[0].prompt_len, trace.rows[0].output_len), (513, 5));
    }

    #[test]
    fn blocks_of_other_sizes() {
        let row = r#"{"input_length": 33, "output_length": 1, "hash_ids": [4, 5, 6]}"#;
        let of = |hash_block_size| Options { hash_block_size, ..Options::default() };
        let read = trace_with(row, of(16)).unwrap();
        assert_eq!((&read.rows[0].prompt, read.clock), (&chunks(&[4, 5, 6], 16), Clock::None));
        assert_eq!(
            trace_with(row, of(32)).unwrap_err().to_string(),
            "t:1: field `hash_ids`: 3 ids, but `input_length` 33 is 2 blocks of 32: give the \
             trace's block size with --hash-block-size"
        );
    }

    /// A row of the session `session`, where it is one, with `more` fields.
    fn row(session: &str, more: &str) -> String {
        let session = if session.is_empty() { "null".into() } else { format!("\"{session}\"") };
        format!("{{\"session_id\": {session}, \"input_length\": 9, \"output_length\": 2{more}}}\n")
    }

    /// (row, previous row, delay) of the turns, in the order of arrival.
    fn turns(trace: &Trace) -> Vec<(u64, Option<u64>, f64)> {
        let turn = |row: &Row| row.turn.map_or((None, 0.0), |t| (Some(t.previous), t.delay));
        trace.rows.iter().map(|row| (row.id, turn(row).0, turn(row).1)).collect()
    }

    #[test]
    fn turns_follow_the_one_before() {
        let text = [row("a", ""), row("b", ""), row("a", r#", "delay": 2500"#), row("a", "")];
        let read = trace(&text.concat());
        assert_eq!(
            turns(&read),
            [(0, None, 0.0), (1, None, 0.0), (2, Some(0), 2.5), (3, Some(2), 0.0)]
        );
        assert_eq!(read.clock, Clock::Seconds, "a delay is seconds");
        assert!(read.rows.iter().all(|row| row.arrival == 0.0));
        // Neither times nor delays; a first turn waits for nothing, a row without a session neither.
        let delay = r#", "delay": 9"#;
        let read = trace(&[row("a", delay), row("a", ""), row("", delay), row("", "")].concat());
        assert_eq!(
            turns(&read),
            [(0, None, 0.0), (1, Some(0), 0.0), (2, None, 0.0), (3, None, 0.0)]
        );
        assert_eq!(read.clock, Clock::None);
    }

    #[test]
    fn a_session_goes_on_without_turns_that_are_skipped() {
        let failed =
            |more: &str| row("a", more).replace("\"output_length\": 2", "\"output_length\": 0");
        let later = row("a", r#", "delay": 500"#);
        let first = failed(r#", "timestamp": 3000"#);
        let other = row("b", r#", "timestamp": 1000"#);
        let read =
            trace(&[&other, &first, &later, &failed(""), &later].map(|row| &row[..]).concat());
        let arrivals: Vec<_> = read.rows.iter().map(|row| (row.id, row.arrival)).collect();
        assert_eq!(arrivals, [(0, 0.0), (2, 2.5), (4, 2.5)]);
        assert_eq!(turns(&read), [(0, None, 0.0), (2, None, 0.0), (4, Some(2), 0.5)]);
    }

    #[test]
    fn timestamps_of_turns() {
        let at = |ms: u32| format!(", \"timestamp\": {ms}");
        let text = [
            row("a", &at(1000)),
            row("a", r#", "delay": 500"#),
            row("a", &(at(9000) + r#", "delay": 500"#)),
            row("b", &at(2000)),
        ];
        let read = trace(&text.concat());
        let arrivals: Vec<_> = read.rows.iter().map(|row| (row.id, row.arrival)).collect();
        assert_eq!(arrivals, [(0, 0.0), (1, 0.0), (3, 1.0), (2, 8.0)]);
        assert_eq!(
            turns(&read),
            [(0, None, 0.0), (1, Some(0), 0.5), (3, None, 0.0), (2, Some(1), 0.0)]
        );
        assert!(read.notices.is_empty(), "sessions one after the other are in order");
    }

    #[test]
    fn a_turn_adds_or_is_the_whole() {
        let whole = r#", "context_mode": "message_array_with_responses""#;
        let delta = r#", "context_mode": "deltas_without_responses""#;
        let read = trace(&[row("a", ""), row("a", whole), row("a", delta)].concat());
        let continues = read.rows.iter().map(|row| row.turn.map(|turn| turn.continues));
        assert!(continues.eq([None, Some(false), Some(true)]));
    }

    /// A turn of no tokens is skipped, and the next one waits for the one before.
    #[test]
    fn skipped_turns_end_no_session() {
        let skipped = row("a", "").replace(": 2", ": 0");
        let read = trace(&[row("a", ""), skipped, row("a", "")].concat());
        assert_eq!(turns(&read), [(0, None, 0.0), (2, Some(0), 0.0)]);
        assert_eq!(read.skipped, 1);
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let row = |timestamp: &str, input: &str, output: &str, hash_ids: &str| {
            format!(
                "{{\"timestamp\": {timestamp}, \"input_length\": {input}, \
                 \"output_length\": {output}, \"hash_ids\": {hash_ids}}}"
            )
        };
        let good = row("0", "1", "1", "[0]");
        let wrong = |bad: &str, message: &str| {
            assert_eq!(error(format!("{good}\n{bad}")), format!("t:2: field {message}"));
        };
        wrong(&row("-1", "1", "1", "[0]"), "`timestamp`: `-1` is negative");
        wrong(&row("\"0\"", "1", "1", "[0]"), "`timestamp`: `\"0\"` is not a number");
        wrong(
            &row("1e13", "1", "1", "[0]"),
            "`timestamp`: `1e13` is not within 1000000000 seconds of the first row's, read as \
             milliseconds: write all rows alike",
        );
        wrong(&row("0", "1", "null", "[0]"), "`output_length`: missing");
        wrong(&row("0", "null", "1", "[0]"), "`input_length`: missing");
        wrong(&row("null", "1", "1", "[0]"), "`timestamp`: missing; earlier rows have it");
        wrong(&row("0", "1", "1", "[-1]"), "`hash_ids`: `[-1]` is not a list of whole numbers");
        wrong(&row("0", "1", "1", "[0.5]"), "`hash_ids`: `[0.5]` is not a list of whole numbers");
        for ids in
            ["[18446744073709551616]", "[1e3]", "[[1]]", "[\"1\"]", "[null]", "\"[1]\"", "{}"]
        {
            let reason = format!("`hash_ids`: `{ids}` is not a list of whole numbers");
            wrong(&row("0", "1", "1", ids), &reason);
        }
        wrong(&row("0", "1", "1", "0"), "`hash_ids`: `0` is not a list of whole numbers");
        for (input, ids, found) in [("513", "[0]", "1 ids"), ("1", "[]", "0 ids")] {
            let blocks = if input == "1" { 1 } else { 2 };
            let reason = format!(
                "`hash_ids`: {found}, but `input_length` {input} is {blocks} blocks of 512: give \
                 the trace's block size with --hash-block-size"
            );
            wrong(&row("0", input, "1", ids), &reason);
        }
        let more = |field: &str, message: &str| {
            wrong(&good.replace('}', &format!(", {field}}}")), message);
        };
        more("\"session_id\": 7", "`session_id`: `7` is not a string");
        more("\"delay\": -1", "`delay`: `-1` is negative");
        more("\"delay\": 1e13", "`delay`: `1e13` is too big: the most is 1000000000000");
        more(
            "\"context_mode\": \"x\"",
            "`context_mode`: `\"x\"` is not \"deltas_without_responses\" (a turn adds to what the \
             session has) or \"message_array_with_responses\" (it is the whole prompt)",
        );
        more(
            "\"model\": 1",
            "`model`: unknown: remove it if it does not matter; the format has input_length, \
             output_length, timestamp, \
             hash_ids, session_id, delay, context_mode",
        );
        wrong("{\"text_input\": \"a\", \"output_length\": 1}", "`input_length`: missing");
        let untimed = "{\"input_length\": 1, \"output_length\": 1}";
        assert_eq!(
            error(format!("{untimed}\n{good}")),
            "t:2: field `timestamp`: earlier rows have none: remove it"
        );
    }
}
