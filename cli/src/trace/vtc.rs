//! The LMSYS trace of the VTC paper: `arrived_at,client,num_prefill_tokens,num_decode_tokens`.

use super::csv::{Header, Table};
use super::field::Fault;
use super::{Clock, Format, Prompt, Row};

const COLUMNS: [&str; 4] = ["arrived_at", "client", "num_prefill_tokens", "num_decode_tokens"];

/// Reads VTC's CSV: arrivals in seconds, tenants as numbers.
pub(super) struct Vtc {
    table: Table<4>,
}

impl Vtc {
    pub(super) fn claims(header: &Header<'_>) -> bool {
        // Not `client`: other formats have it too.
        header.has_any(&["arrived_at", "num_prefill_tokens", "num_decode_tokens"])
    }

    pub(super) fn new(header: &Header<'_>) -> Result<Self, Fault> {
        Ok(Self { table: Table::new(header, COLUMNS, 4)? })
    }
}

impl Format for Vtc {
    fn name(&self) -> &'static str {
        "vtc"
    }

    fn clock(&self) -> Clock {
        Clock::Seconds
    }

    fn has_header(&self) -> bool {
        true
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let [arrived_at, client, prompt, output] = self.table.fields(line)?;
        Ok(Row {
            id,
            arrival: arrived_at.seconds(1.0)?,
            prompt: Prompt::Unique,
            prompt_len: prompt.length()?,
            output_len: output.length()?,
            priority: 0,
            client: client.whole(u64::MAX)?,
            cache_salt: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace};
    use super::*;

    const HEADER: &str = "arrived_at,client,num_prefill_tokens,num_decode_tokens";

    #[test]
    fn reads_rows() {
        let trace = trace(&format!("{HEADER}\n0.5,13,7,199\n0.707938,2,36,137\n"));
        assert_eq!((trace.format, trace.clock), ("vtc", Clock::Seconds));
        let second = &trace.rows[1];
        assert_eq!((second.client, second.prompt_len, second.output_len), (2, 36, 137));
        assert_eq!((trace.rows[0].arrival, second.arrival), (0.0, 0.707938 - 0.5));
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let wrong = |row: &str, message: &str| {
            assert_eq!(error(format!("{HEADER}\n{row}\n")), format!("t:2: field {message}"));
        };
        wrong("x,1,1,1", "`arrived_at`: `x` is not a number");
        wrong("-0.5,1,1,1", "`arrived_at`: `-0.5` is negative");
        wrong("NaN,1,1,1", "`arrived_at`: `NaN` is not finite");
        wrong("inf,1,1,1", "`arrived_at`: `inf` is not finite");
        wrong("-inf,1,1,1", "`arrived_at`: `-inf` is not finite");
        wrong("1e10,1,1,1", "`arrived_at`: `1e10` is too big: the most is 1000000000");
        wrong("1e999,1,1,1", "`arrived_at`: `1e999` is too big: the most is 1000000000");
        wrong(",1,1,1", "`arrived_at`: missing");
        wrong("0,alice,1,1", "`client`: `alice` is not a whole number");
        wrong("0,-1,1,1", "`client`: `-1` is negative");
        wrong(
            "0,18446744073709551616,1,1",
            "`client`: `18446744073709551616` is too big: the most is 18446744073709551615",
        );
        wrong("0,1,0,1", "`num_prefill_tokens`: must be at least 1");
        wrong("0,1,1,0", "`num_decode_tokens`: must be at least 1");
        wrong("0,1,1", "`num_decode_tokens`: missing");
        wrong("0,1,1,1,1", "`column 5`: `1` is one more than the header has");
    }
}
