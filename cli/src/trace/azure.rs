//! The Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`.

use super::csv::{Header, Table};
use super::field::{Fault, Field};
use super::{Clock, Format, Prompt, Row};

const COLUMNS: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// Reads Azure's CSV. Arrivals count from the first row of the file.
pub(super) struct Azure {
    table: Table<3>,
    /// The time of the first row, in nanoseconds.
    origin: Option<i128>,
}

impl Azure {
    pub(super) fn claims(header: &Header<'_>) -> bool {
        header.has_any(&COLUMNS)
    }

    pub(super) fn new(header: &Header<'_>) -> Result<Self, Fault> {
        Ok(Self { table: Table::new(header, COLUMNS, 3)?, origin: None })
    }
}

impl Format for Azure {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn clock(&self) -> Clock {
        Clock::Seconds
    }

    fn has_header(&self) -> bool {
        true
    }

    fn row(&mut self, id: u64, line: &str) -> Result<Row, Fault> {
        let [timestamp, prompt, output] = self.table.fields(line)?;
        let time = nanoseconds(timestamp)?;
        // Only the difference goes into an f64: seconds since 1970 would lose the last digits.
        let since = time - *self.origin.get_or_insert(time);
        Ok(Row {
            id,
            arrival: since as f64 / 1e9,
            prompt: Prompt::Unique,
            prompt_len: prompt.length()?,
            output_len: output.length()?,
            priority: 0,
            client: 0,
            cache_salt: None,
        })
    }
}

/// A point in time in nanoseconds, to be compared with others of the same file.
fn nanoseconds(timestamp: Field<'_>) -> Result<i128, Fault> {
    parse_timestamp(timestamp.text)
        .ok_or_else(|| timestamp.not("a time such as 2023-11-16 18:17:03.9799600"))
}

/// `YYYY-MM-DD HH:MM:SS` with up to nine digits of a second after a point, and a UTC offset
/// (`Z` or `+HH:MM`), which later traces of the same publisher have.
fn parse_timestamp(text: &str) -> Option<i128> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;

    let zone = time.find(['Z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;

    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range || fraction.len() > 9 {
        return None;
    }
    let nanos = if fraction.is_empty() {
        0
    } else {
        number(fraction, fraction.len())? * 10_i64.pow(9 - fraction.len() as u32)
    };
    let minutes = (days(year, month, day) * 24 + hour) * 60 + minute - offset_minutes(zone)?;
    Some(i128::from(minutes * 60 + second) * 1_000_000_000 + i128::from(nanos))
}

/// Minutes east of UTC.
fn offset_minutes(zone: &str) -> Option<i64> {
    let (sign, offset) = match zone.split_at_checked(1) {
        None | Some(("Z", "")) => return Some(0),
        Some(("+", offset)) => (1, offset),
        Some(("-", offset)) => (-1, offset),
        Some(_) => return None,
    };
    let [hours, minutes] = numbers(offset, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

/// Exactly N numbers of the given widths between separators.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut values = [0; N];
    for (value, width) in values.iter_mut().zip(widths) {
        *value = number(parts.next()?, width)?;
    }
    parts.next().is_none().then_some(values)
}

/// A number of exactly `width` digits.
fn number(text: &str, width: usize) -> Option<i64> {
    let digits = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1 March of the year 0. Counted from March, a leap day is the last day of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, trace};
    use super::*;

    const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
    const A_TIME: &str = "2023-11-16 18:17:03.9799600";

    fn seconds_between(earlier: &str, later: &str) -> f64 {
        let time = |text| parse_timestamp(text).unwrap_or_else(|| panic!("{text}"));
        (time(later) - time(earlier)) as f64 / 1e9
    }

    #[test]
    fn reads_rows() {
        let text = format!(
            "{HEADER}\r\n{A_TIME},4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\r\n\
             2023-11-17 00:00:00,1,1"
        );
        let trace = trace(&text);
        assert_eq!((trace.format, trace.clock), ("azure", Clock::Seconds));
        let rows: Vec<_> =
            trace.rows.iter().map(|r| (r.id, r.arrival, r.prompt_len, r.output_len)).collect();
        assert_eq!(rows, [(0, 0.0, 4808, 10), (1, 0.052, 3180, 8), (2, 20576.02004, 1, 1)]);
        assert!(trace.rows.iter().all(|row| row.prompt == Prompt::Unique));
        assert!(trace.notices.is_empty());
    }

    #[test]
    fn columns_are_found_by_name() {
        let text = format!(" GeneratedTokens ,\"TIMESTAMP\",ContextTokens\n7,\"{A_TIME}\", 5 \n");
        let trace = trace(&text);
        assert_eq!((trace.rows[0].prompt_len, trace.rows[0].output_len), (5, 7));
    }

    #[test]
    fn time_crosses_days_months_and_years() {
        assert_eq!(seconds_between("2023-11-16 23:59:59.5", "2023-11-17 00:00:00.25"), 0.75);
        assert_eq!(seconds_between("2023-12-31 23:59:59", "2024-01-01 00:00:00"), 1.0);
        assert_eq!(seconds_between("2024-02-28 00:00:00", "2024-03-01 00:00:00"), 2.0 * 86400.0);
        assert_eq!(seconds_between("2023-02-28 00:00:00", "2023-03-01 00:00:00"), 86400.0);
        assert_eq!(seconds_between("1900-02-28 00:00:00", "1900-03-01 00:00:00"), 86400.0);
        assert_eq!(seconds_between("2000-01-01 00:00:00", "2001-01-01 00:00:00"), 366.0 * 86400.0);
    }

    #[test]
    fn fractions_have_up_to_nine_digits() {
        let second = "2023-11-16 18:17:03";
        for (fraction, expected) in
            [("", 0.0), (".", 0.0), (".5", 0.5), (".979", 0.979), (".000000001", 1e-9)]
        {
            assert_eq!(seconds_between(second, &format!("{second}{fraction}")), expected);
        }
        assert_eq!(parse_timestamp("2023-11-16 18:17:03.0000000001"), None);
    }

    #[test]
    fn offsets_from_utc() {
        let utc = "2024-05-10 00:00:00";
        assert_eq!(seconds_between(utc, "2024-05-10T00:00:00.5Z"), 0.5);
        assert_eq!(seconds_between(utc, "2024-05-10 00:00:00.009930+00:00"), 0.00993);
        assert_eq!(seconds_between(utc, "2024-05-10 02:00:00+02:00"), 0.0);
        assert_eq!(seconds_between(utc, "2024-05-09 19:30:00-04:30"), 0.0);
    }

    #[test]
    fn what_is_not_a_time() {
        for text in [
            "",
            "2023-11-16",
            "18:17:03",
            "2023-13-16 18:17:03",
            "2023-00-16 18:17:03",
            "2023-11-31 18:17:03",
            "2023-02-29 18:17:03",
            "2023-11-16 24:17:03",
            "2023-11-16 18:60:03",
            "2023-11-16 18:17:60",
            "2023-11-16 18:17",
            "2023-11-16 18:17:03:04",
            "2023-11-16 18:17:03.x",
            "2023-11-16 18:17:03+2",
            "2023-11-16 18:17:03Zz",
            "23-11-16 18:17:03",
            "+023-11-16 18:17:03",
            "1700158623.97",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn bad_rows_name_line_and_field() {
        let bad = |row: &str| error(format!("{HEADER}\n{A_TIME},1,1\n\n{row}\n"));
        let wrong = |row: &str, message: &str| {
            assert_eq!(bad(&format!("{A_TIME},{row}")), format!("t:4: field {message}"));
        };
        wrong("x,1", "`ContextTokens`: `x` is not a whole number");
        wrong("1.5,1", "`ContextTokens`: `1.5` is not a whole number");
        wrong("NaN,1", "`ContextTokens`: `NaN` is not a whole number");
        wrong("-3,1", "`ContextTokens`: `-3` is negative");
        wrong("0,1", "`ContextTokens`: must be at least 1");
        wrong("1,0", "`GeneratedTokens`: must be at least 1");
        wrong("1,16777217", "`GeneratedTokens`: `16777217` is too big: the most is 16777216");
        wrong(
            "1,99999999999999999999999999",
            "`GeneratedTokens`: `99999999999999999999999999` is too big: the most is 16777216",
        );
        wrong("1,", "`GeneratedTokens`: missing");
        wrong("1", "`GeneratedTokens`: missing");
        wrong("1,2,3", "`column 4`: `3` is one more than the header has");
        assert_eq!(
            bad("yesterday,1,1"),
            "t:4: field `TIMESTAMP`: `yesterday` is not a time such as 2023-11-16 18:17:03.9799600"
        );
    }

    #[test]
    fn bad_headers_name_the_column() {
        assert_eq!(
            error("TIMESTAMP,ContextTokens\n"),
            "t:1: field `GeneratedTokens`: missing from the header"
        );
        assert_eq!(
            error("TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n"),
            "t:1: field `ContextTokens`: two columns have this name"
        );
        assert_eq!(
            error(format!("{HEADER},Model\n")),
            "t:1: field `Model`: unknown column; the format has \
             TIMESTAMP,ContextTokens,GeneratedTokens"
        );
    }
}
