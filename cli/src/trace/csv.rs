//! Values between commas, quoted where they hold commas themselves (RFC 4180).

use super::field::{Fault, Field, quoted};
use super::formats::{Format, Holds};
use super::times::Times;
use super::{Clock, Reader, Row};

/// The names of the columns, in the order of the file.
pub(super) struct Header<'a> {
    names: Vec<&'a str>,
}

impl<'a> Header<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        Self { names: Values(Some(line)).collect() }
    }

    /// Whether any column is called `name`, in whatever case.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Reads the rows of any format that is a table.
pub(super) struct Csv {
    format: &'static Format,
    /// What each column of the file is among the format's; `None` for one that is passed over.
    columns: Vec<Option<usize>>,
    times: Times,
}

impl Csv {
    /// Finds the format's columns in the header, in any order. Others are passed over.
    pub(super) fn new(format: &'static Format, header: &Header<'_>) -> Result<Self, Fault> {
        let same = |name: &str| format.names().position(|known| known.eq_ignore_ascii_case(name));
        let columns: Vec<_> = header.names.iter().map(|name| same(name)).collect();
        for (column, name) in format.names().enumerate() {
            match columns.iter().filter(|&&found| found == Some(column)).count() {
                0 if column < format.required => {
                    return Err(Fault::field(name, "missing from the header"));
                }
                0 | 1 => {}
                _ => return Err(Fault::field(name, "two columns have this name: remove one")),
            }
        }
        Ok(Self { format, columns, times: Times::of_any_unit() })
    }
}

impl Reader for Csv {
    fn format(&self) -> &'static Format {
        self.format
    }

    fn clock(&self) -> Clock {
        match self.format.columns[0].1 {
            Holds::Step => Clock::Steps,
            _ => Clock::Seconds,
        }
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let mut row = Row::new(id);
        let mut found = 0;
        for text in Values(Some(line)) {
            let Some(column) = self.columns.get(found) else {
                let reason = format!("{} is one more than the header has", quoted(text));
                return Err(Fault::field(format!("column {}", found + 1), reason));
            };
            found += 1;
            let Some((name, holds)) = column.map(|column| self.format.columns[column]) else {
                continue;
            };
            let field = Field { name, text };
            match holds {
                Holds::Time => row.arrival = self.times.since_first(field)?,
                Holds::Step => row.arrival = field.step()?,
                Holds::Prompt => row.prompt_len = field.tokens()?,
                Holds::Output => row.output_len = field.tokens()?,
                Holds::Priority => row.priority = field.priority()?,
                Holds::Client => row.client = field.whole(u64::MAX)?,
                Holds::Other => {}
            }
        }
        match self.columns[found.min(self.columns.len())..].iter().flatten().next() {
            Some(&column) => Err(Fault::field(self.format.columns[column].0, "missing")),
            None => Ok(row),
        }
    }
}

/// The values of a line, without the blanks and quotes around them. Quotes in a value stay doubled:
/// no column that is read has any.
struct Values<'a>(Option<&'a str>);

impl<'a> Iterator for Values<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let start = quoted_end(rest);
        let comma = rest.as_bytes()[start..].iter().position(|&byte| byte == b',');
        let end = comma.map(|comma| start + comma);
        self.0 = end.map(|comma| &rest[comma + 1..]);
        Some(bare(&rest[..end.unwrap_or(rest.len())]))
    }
}

/// Where the quotes that `text` begins with are closed; 0 where it begins with none.
fn quoted_end(text: &str) -> usize {
    let Some(inside) = text.trim_ascii_start().strip_prefix('"') else { return 0 };
    let start = text.len() - inside.len();
    let mut quotes = inside.match_indices('"').map(|(at, _)| at);
    while let Some(at) = quotes.next() {
        // Two stand for one that is part of the value.
        if !inside[at + 1..].starts_with('"') {
            return start + at + 1;
        }
        quotes.next();
    }
    text.len()
}

/// A name or value without the blanks and quotes around it.
fn bare(text: &str) -> &str {
    let text = text.trim_ascii();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inside) => inside.trim_ascii(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace};
    use super::super::{Prompt, Trace};
    use super::*;

    const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
    const A_TIME: &str = "2023-11-16 18:17:03.9799600";
    const VTC: &str = "arrived_at,client,num_prefill_tokens,num_decode_tokens";
    const BURST: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type";

    /// (id, arrival, prompt, output) of each row.
    fn rows(trace: &Trace) -> Vec<(u64, f64, u32, u32)> {
        trace.rows.iter().map(|r| (r.id, r.arrival, r.prompt_len, r.output_len)).collect()
    }

    #[test]
    fn azure() {
        let text = format!(
            "{AZURE}\r\n{A_TIME},4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n\
             2023-11-17 00:00:00,1,1"
        );
        let trace = trace(&text);
        assert_eq!((trace.format, trace.clock), ("azure", Clock::Seconds));
        assert_eq!(rows(&trace), [(0, 0.0, 4808, 10), (1, 0.052, 3180, 8), (2, 20576.02004, 1, 1)]);
        assert!(trace.rows.iter().all(|row| row.prompt == Prompt::Unique));
        assert!(trace.notices.is_empty());
    }

    #[test]
    fn vtc() {
        let trace = trace(&format!("{VTC}\n0.5,13,7,199\n0.707938,2,36,137\n"));
        assert_eq!((trace.format, trace.clock), ("vtc", Clock::Seconds));
        assert_eq!(rows(&trace), [(0, 0.0, 7, 199), (1, 0.207938, 36, 137)]);
        assert_eq!((trace.rows[0].client, trace.rows[1].client), (13, 2));
    }

    #[test]
    fn burstgpt() {
        let first = trace(&format!(
            "{BURST}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n\
             118.5,GPT-4,417,0,417,API log\n119,ChatGPT,0,0,0,Conversation log\n\
             120.25,ChatGPT,7,9,16,API log\n"
        ));
        assert_eq!((first.format, first.clock), ("burstgpt", Clock::Seconds));
        let expected = [(0, 0.0, 472, 18), (1, 40.0, 1087, 230), (4, 115.25, 7, 9)];
        assert_eq!((rows(&first), first.skipped), (expected.to_vec(), 2));
        // The third file of the data set has more columns, and counts from another day.
        let third = trace(
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,\
             Log Type\n19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n\
             19440161.0,,2,ChatGPT,36,29,65,API log\n",
        );
        assert_eq!(third.format, "burstgpt");
        assert_eq!(rows(&third), [(0, 0.0, 906, 446), (1, 51.0, 36, 29)]);
    }

    #[test]
    fn steps() {
        let plain = trace("arrival_step,prompt_len,output_len\n3,5,7\n4,1,1\n");
        assert_eq!((plain.format, plain.clock), ("steps", Clock::Steps));
        // A step is a name, not a distance: it does not count from the first arrival.
        assert_eq!(rows(&plain), [(0, 3.0, 5, 7), (1, 4.0, 1, 1)]);
        assert_eq!((plain.rows[0].priority, plain.rows[0].client), (0, 0));
        let both = trace("arrival_step,prompt_len,output_len,client,priority\n0,5,7,9,-2\n");
        assert_eq!((both.rows[0].priority, both.rows[0].client), (-2, 9));
    }

    /// Order, case, blanks and quotes of the header, and columns that no format has.
    #[test]
    fn columns_are_found_by_name() {
        let row = [(0, 0.0, 5, 7)];
        for text in [
            format!(" GeneratedTokens ,\"TIMESTAMP\",ContextTokens\n7,\"{A_TIME}\", 5 \n"),
            format!("generatedtokens,timestamp,CONTEXTTOKENS\n7,{A_TIME},5\n"),
            format!("TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n{A_TIME},2,5,7\n"),
            format!(",TIMESTAMP,ContextTokens,GeneratedTokens,,\n0,{A_TIME},5,7,x,y\n"),
            format!("Model,Model,{AZURE}\na,b,{A_TIME},5,7\n"),
            format!("\u{feff}\"Time, zone\",{AZURE}\r\n\"x, \"\"y\"\", z\",{A_TIME},5,7\r\n"),
            format!("{AZURE},Note\n{A_TIME},5,7,\"two,\nlines, \"\"quoted\"\"\"\n"),
            format!("{AZURE},Note\n{A_TIME}, \"5\" ,\"7\",\"\"\n"),
            // A row may end before a column that is passed over.
            format!("{AZURE},Note\n{A_TIME},5,7\n"),
        ] {
            assert_eq!(rows(&trace(&text)), row, "{text}");
        }
        let shuffled = trace("priority,output_len,prompt_len,arrival_step\n1,2,3,4");
        assert_eq!((rows(&shuffled), shuffled.rows[0].priority), (vec![(0, 4.0, 3, 2)], 1));
    }

    #[test]
    fn bad_headers_name_the_column() {
        let missing = "missing from the header";
        for (header, column, reason) in [
            ("TIMESTAMP,ContextTokens", "GeneratedTokens", missing),
            ("ContextTokens,GeneratedTokens,time", "TIMESTAMP", missing),
            ("arrival_step,prompt_len", "output_len", missing),
            ("Timestamp,Model,Request tokens", "Response tokens", missing),
            (
                "TIMESTAMP,ContextTokens,contexttokens,GeneratedTokens",
                "ContextTokens",
                "two columns have this name: remove one",
            ),
        ] {
            let expected = format!("t:1: field `{column}`: {reason}");
            assert_eq!(error(format!("{header}\n")), expected, "{header}");
        }
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let azure = |row: &str, message: &str| {
            let text = format!("{AZURE}\n{A_TIME},1,1\n\n{A_TIME},{row}\n");
            assert_eq!(error(text), format!("t:4: field {message}"));
        };
        azure("x,1", "`ContextTokens`: `x` is not a whole number");
        azure("1.5,1", "`ContextTokens`: `1.5` is not a whole number");
        azure("NaN,1", "`ContextTokens`: `NaN` is not a whole number");
        azure("-3,1", "`ContextTokens`: `-3` is negative");
        azure("1,16777217", "`GeneratedTokens`: `16777217` is too big: the most is 16777216");
        azure(
            "1,99999999999999999999999999",
            "`GeneratedTokens`: `99999999999999999999999999` is too big: the most is 16777216",
        );
        azure("1,", "`GeneratedTokens`: missing");
        azure("1", "`GeneratedTokens`: missing");
        azure("1,2,3", "`column 4`: `3` is one more than the header has");
        let vtc = |row: &str, message: &str| {
            assert_eq!(error(format!("{VTC}\n{row}\n")), format!("t:2: field {message}"));
        };
        vtc("0,alice,1,1", "`client`: `alice` is not a whole number");
        vtc("0,-1,1,1", "`client`: `-1` is negative");
        vtc(
            "0,18446744073709551616,1,1",
            "`client`: `18446744073709551616` is too big: the most is 18446744073709551615",
        );
        vtc("0,1,1", "`num_decode_tokens`: missing");
        let steps = |row: &str, message: &str| {
            let text = format!("arrival_step,prompt_len,output_len,priority,client\n{row}\n");
            assert_eq!(error(&text), format!("t:2: field {message}"));
        };
        steps("x,1,1,0,0", "`arrival_step`: `x` is not a whole number");
        steps("0.5,1,1,0,0", "`arrival_step`: `0.5` is not a whole number");
        steps("-1,1,1,0,0", "`arrival_step`: `-1` is negative");
        steps(
            "1000000001,1,1,0,0",
            "`arrival_step`: `1000000001` is too big: the most is 1000000000",
        );
        steps(
            "0,1,1,2147483648,0",
            "`priority`: `2147483648` is not a whole number from -2147483648 to 2147483647",
        );
        steps("0,1,1,,0", "`priority`: missing");
        steps("0,1,1,0,x", "`client`: `x` is not a whole number");
        steps("0,1,1,0", "`client`: missing");
        steps("0,1,1,0,0,", "`column 6`: `` is one more than the header has");
    }

    #[test]
    fn quotes_that_are_not_closed() {
        let text = format!("{AZURE},Note\n{A_TIME},1,1,\"x\n{A_TIME},1,1,y\n");
        assert_eq!(error(text), "t:2: a quote of this row is not closed: close or remove it");
        // The lines of a row count, too.
        let text = format!("{AZURE},Note\n{A_TIME},1,1,\"x\n\n\"\n{A_TIME},1,z,y\n");
        assert_eq!(error(text), "t:5: field `GeneratedTokens`: `z` is not a whole number");
    }
}
