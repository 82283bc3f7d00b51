//! Arrivals by step: `arrival_step,prompt_len,output_len`, optionally with `priority` and `client`.

use super::csv::{Header, Table};
use super::field::Fault;
use super::{Clock, Format, Prompt, Row};

const COLUMNS: [&str; 5] = ["arrival_step", "prompt_len", "output_len", "priority", "client"];
const REQUIRED: usize = 3;

/// Reads a CSV whose requests come before a given step, so that a replay needs no clock.
pub(super) struct Steps {
    table: Table<5>,
}

impl Steps {
    pub(super) fn claims(header: &Header<'_>) -> bool {
        header.has_any(&COLUMNS[..REQUIRED])
    }

    pub(super) fn new(header: &Header<'_>) -> Result<Self, Fault> {
        Ok(Self { table: Table::new(header, COLUMNS, REQUIRED)? })
    }
}

impl Format for Steps {
    fn name(&self) -> &'static str {
        "steps"
    }

    fn clock(&self) -> Clock {
        Clock::Steps
    }

    fn has_header(&self) -> bool {
        true
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let [step, prompt, output, priority, client] = self.table.fields(line)?;
        Ok(Row {
            id,
            arrival: step.step()?,
            prompt: Prompt::Unique,
            prompt_len: prompt.length()?,
            output_len: output.length()?,
            priority: priority.priority()?,
            client: client.whole(u64::MAX)?,
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
        let trace = trace("arrival_step,prompt_len,output_len\n3,5,7\n4,1,1\n");
        assert_eq!((trace.format, trace.clock), ("steps", Clock::Steps));
        let first = &trace.rows[0];
        // A step is a name, not a distance: it does not count from the first arrival.
        assert_eq!((first.arrival, first.prompt_len, first.output_len), (3.0, 5, 7));
        assert_eq!((first.priority, first.client), (0, 0));
    }

    #[test]
    fn optional_columns_in_any_order() {
        let both = trace("arrival_step,prompt_len,output_len,client,priority\n0,5,7,9,-2\n");
        assert_eq!((both.rows[0].priority, both.rows[0].client), (-2, 9));
        let shuffled = trace("priority,output_len,prompt_len,arrival_step\n1,2,3,4");
        let row = &shuffled.rows[0];
        assert_eq!((row.arrival, row.prompt_len, row.output_len, row.priority), (4.0, 3, 2, 1));
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let wrong = |row: &str, message: &str| {
            let text = format!("arrival_step,prompt_len,output_len,priority,client\n{row}\n");
            assert_eq!(error(&text), format!("t:2: field {message}"));
        };
        wrong("x,1,1,0,0", "`arrival_step`: `x` is not a whole number");
        wrong("0.5,1,1,0,0", "`arrival_step`: `0.5` is not a whole number");
        wrong("-1,1,1,0,0", "`arrival_step`: `-1` is negative");
        wrong(
            "1000000001,1,1,0,0",
            "`arrival_step`: `1000000001` is too big: the most is 1000000000",
        );
        wrong("0,0,1,0,0", "`prompt_len`: must be at least 1");
        wrong("0,1,0,0,0", "`output_len`: must be at least 1");
        wrong(
            "0,1,1,2147483648,0",
            "`priority`: `2147483648` is not a whole number from -2147483648 to 2147483647",
        );
        wrong("0,1,1,,0", "`priority`: missing");
        wrong("0,1,1,0,x", "`client`: `x` is not a whole number");
        wrong("0,1,1,0", "`client`: missing");
        wrong("0,1,1,0,0,", "`column 6`: `` is one more than the header has");
    }

    #[test]
    fn bad_headers_name_the_column() {
        assert_eq!(
            error("arrival_step,prompt_len\n0,1\n"),
            "t:1: field `output_len`: missing from the header"
        );
        assert_eq!(
            error("arrival_step,prompt_len,output_len,tenant\n0,1,1,1\n"),
            "t:1: field `tenant`: unknown column; the format has \
             arrival_step,prompt_len,output_len,priority,client"
        );
    }
}
