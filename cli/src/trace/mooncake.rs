//! The Mooncake traces: JSON lines of `timestamp`, `input_length`, `output_length`, `hash_ids`.

use super::field::Fault;
use super::json::Object;
use super::prompt::CHUNK_TOKENS;
use super::{Clock, Format, Prompt, Row};

const FIELDS: [&str; 4] = ["timestamp", "input_length", "output_length", "hash_ids"];
const MILLISECONDS: f64 = 1000.0;

/// Reads Mooncake's JSON lines: times in milliseconds, prompts as ids of 512-token blocks.
pub(super) struct Mooncake;

impl Mooncake {
    pub(super) fn claims(object: &Object<'_>) -> bool {
        // Not `timestamp`: it may as well be a slip in another format.
        FIELDS[1..].iter().any(|name| object.get(name).is_some())
    }
}

impl Format for Mooncake {
    fn name(&self) -> &'static str {
        "mooncake"
    }

    fn clock(&self) -> Clock {
        Clock::Seconds
    }

    fn has_header(&self) -> bool {
        false
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let object = Object::parse(line)?;
        object.only(&FIELDS)?;
        let [timestamp, input, output, hash_ids] = FIELDS;
        let prompt_len = object.require(input)?.length()?;
        let hash_ids = object.require(hash_ids)?;
        let chunks: Box<[u64]> = hash_ids.json("a list of whole numbers")?;
        let expected = prompt_len.div_ceil(CHUNK_TOKENS);
        if chunks.len() != expected as usize {
            let found = chunks.len();
            return Err(hash_ids.fault(format!(
                "{found} ids, but {prompt_len} tokens are {expected} blocks of {CHUNK_TOKENS}"
            )));
        }
        Ok(Row {
            id,
            arrival: object.require(timestamp)?.seconds(MILLISECONDS)?,
            prompt: Prompt::Chunks(chunks),
            prompt_len,
            output_len: object.require(output)?.length()?,
            priority: 0,
            client: 0,
            cache_salt: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace};
    use super::*;

    #[test]
    fn reads_rows() {
        let trace = trace(
            "{\"timestamp\": 1000, \"input_length\": 513, \"output_length\": 5, \"hash_ids\": [0, 7]}\n\
             {\"hash_ids\":[18446744073709551615],\"input_length\":1,\"timestamp\":4027.5,\
             \"output_length\":1}\n",
        );
        assert_eq!((trace.format, trace.clock), ("mooncake", Clock::Seconds));
        assert_eq!(trace.rows[0].prompt, Prompt::Chunks([0, 7].into()));
        assert_eq!(trace.rows[1].prompt, Prompt::Chunks([u64::MAX].into()));
        assert_eq!((trace.rows[0].arrival, trace.rows[1].arrival), (0.0, 3.0275));
        assert_eq!((trace.rows[0].prompt_len, trace.rows[0].output_len), (513, 5));
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
            "`timestamp`: `1e13` is too big: the most is 1000000000000",
        );
        wrong(&row("0", "0", "1", "[]"), "`input_length`: must be at least 1");
        wrong(&row("0", "1", "0", "[0]"), "`output_length`: must be at least 1");
        wrong(&row("0", "1", "null", "[0]"), "`output_length`: missing");
        wrong(&row("0", "1", "1", "[-1]"), "`hash_ids`: `[-1]` is not a list of whole numbers");
        wrong(&row("0", "1", "1", "[0.5]"), "`hash_ids`: `[0.5]` is not a list of whole numbers");
        wrong(&row("0", "1", "1", "0"), "`hash_ids`: `0` is not a list of whole numbers");
        wrong(
            &row("0", "513", "1", "[0]"),
            "`hash_ids`: 1 ids, but 513 tokens are 2 blocks of 512",
        );
        wrong(
            "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}",
            "`hash_ids`: missing",
        );
        wrong(
            &good.replace('}', ", \"model\": 1}"),
            "`model`: unknown; the format has timestamp, input_length, output_length, hash_ids",
        );
    }
}
