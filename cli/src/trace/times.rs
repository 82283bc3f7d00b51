//! Points in time, as traces write them: dates with or without a zone, or numbers.

use super::field::{Fault, Field};

/// The longest a trace may last, in seconds: about 31 years.
const LONGEST: u64 = 1_000_000_000;
/// Seconds since 1970, or any start, are fewer: these would be the year 5138. 1000 times as many are
/// not milliseconds, and so on.
const MOST_SECONDS: f64 = 1e11;
/// Powers of ten that units of time are of a second, and their names.
const UNITS: [(u32, &str); 4] =
    [(0, "seconds"), (3, "milliseconds"), (6, "microseconds"), (9, "nanoseconds")];

/// Reads the times of one file, in which all are written in one way: that of the first.
pub(super) struct Times {
    written: Option<Written>,
    /// The first time, in nanoseconds.
    origin: Option<i128>,
}

#[derive(Clone, Copy)]
enum Written {
    /// As dates. Those without a zone are UTC's.
    Date,
    /// As numbers of one of [`UNITS`].
    Number(usize),
}

impl Times {
    /// Dates or numbers, in the unit that the size of the first shows.
    pub(super) fn of_any_unit() -> Self {
        Self { written: None, origin: None }
    }

    /// Numbers of seconds.
    pub(super) fn of_seconds() -> Self {
        Self { written: Some(Written::Number(0)), origin: None }
    }

    /// Numbers of milliseconds.
    pub(super) fn of_milliseconds() -> Self {
        Self { written: Some(Written::Number(1)), origin: None }
    }

    /// Seconds from the first time that was read to this one.
    pub(super) fn since_first(&mut self, field: Field<'_>) -> Result<f64, Fault> {
        let written = match self.written {
            Some(written) => written,
            None => *self.written.insert(how_written(field)?),
        };
        let (time, unit) = match written {
            Written::Date => (date(field)?, "a date"),
            Written::Number(unit) => {
                let (power, name) = UNITS[unit];
                let value = field.number(most(UNITS[UNITS.len() - 1].0))?;
                (nanoseconds(field.text, power, value), name)
            }
        };
        // Only the difference goes into an f64: seconds since 1970 would lose the last digits.
        let since = time - *self.origin.get_or_insert(time);
        if since.unsigned_abs() > u128::from(LONGEST) * 1_000_000_000 {
            return Err(field.not(&format!(
                "within {LONGEST} seconds of the first row's, read as {unit}: write all rows alike"
            )));
        }
        Ok(since as f64 / 1e9)
    }
}

/// More than there are since any start, of a unit of which 10 to the `power` make a second.
fn most(power: u32) -> f64 {
    MOST_SECONDS * 10_f64.powi(power as i32)
}

/// How the first time of a file is written.
fn how_written(field: Field<'_>) -> Result<Written, Fault> {
    if field.text.parse::<f64>().is_err() {
        return date(field).map(|_| Written::Date);
    }
    let value = field.number(most(UNITS[UNITS.len() - 1].0))?;
    let unit = UNITS.iter().position(|&(power, _)| value < most(power));
    Ok(Written::Number(unit.unwrap_or(UNITS.len() - 1)))
}

/// `text`, a number of which 10 to the `power` make a second, in nanoseconds; `value` is what it is
/// near.
fn nanoseconds(text: &str, power: u32, value: f64) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let places = 9 - power;
    let exact = |digits: &str| match digits {
        "" => Some(0),
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<i128>().ok(),
        _ => None,
    };
    let kept = &fraction[..fraction.len().min(places as usize)];
    match (exact(whole), exact(fraction).and(exact(kept))) {
        (Some(units), Some(rest)) => {
            units * 10_i128.pow(places) + rest * 10_i128.pow(places - kept.len() as u32)
        }
        // With a sign or an exponent.
        _ => (value * 10_f64.powi(places as i32)).round() as i128,
    }
}

/// A date's point in time in nanoseconds, to be compared with others of the same file.
fn date(field: Field<'_>) -> Result<i128, Fault> {
    parse_date(field.text).ok_or_else(|| {
        field.not(
            "a time such as 2023-11-16 18:17:03.97 with a zone (Z, UTC, +01:00, +0100, +01) or \
             without, or, where the first row's is one, a number",
        )
    })
}

/// `YYYY-MM-DD HH:MM:SS` with up to nine digits of a second after a point, and a zone.
fn parse_date(text: &str) -> Option<i128> {
    let (date, time) =
        text.split_at_checked(text.bytes().position(|byte| b" Tt".contains(&byte))?)?;
    let [year, month, day] = numbers(date, b'-', [4, 2, 2])?;

    let (time, rest) = time[1..].split_at_checked("HH:MM:SS".len())?;
    let [hour, minute, second] = numbers(time, b':', [2, 2, 2])?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };

    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range || fraction.len() > 9 {
        return None;
    }
    let nanos = number(fraction, fraction.len())? * 10_i64.pow(9 - fraction.len() as u32);
    let minutes = (days(year, month, day) * 24 + hour) * 60 + minute - offset_minutes(zone.trim())?;
    Some(i128::from(minutes * 60 + second) * 1_000_000_000 + i128::from(nanos))
}

/// Minutes east of UTC, of `Z`, `UTC`, `+HH:MM`, `+HHMM`, `+HH` or no zone at all.
fn offset_minutes(zone: &str) -> Option<i64> {
    if zone.is_empty() || ["z", "utc", "gmt"].iter().any(|utc| zone.eq_ignore_ascii_case(utc)) {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let offset = zone.strip_prefix(['+', '-'])?;
    let [hours, minutes] = match offset.split_at_checked(2)? {
        (hours, "") => [number(hours, 2)?, 0],
        (hours, minutes) => {
            [number(hours, 2)?, number(minutes.strip_prefix(':').unwrap_or(minutes), 2)?]
        }
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

/// Exactly N numbers of the given widths between separators.
fn numbers<const N: usize>(text: &str, separator: u8, widths: [usize; N]) -> Option<[i64; N]> {
    let (mut values, mut at) = ([0; N], 0);
    for (value, width) in values.iter_mut().zip(widths) {
        if at > 0 {
            text.as_bytes().get(at).filter(|&&byte| byte == separator)?;
            at += 1;
        }
        *value = number(text.get(at..at + width)?, width)?;
        at += width;
    }
    (at == text.len()).then_some(values)
}

/// A number of exactly `width` digits, 18 at most.
fn number(text: &str, width: usize) -> Option<i64> {
    let add =
        |number: i64, byte: u8| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'));
    if text.len() == width { text.bytes().try_fold(0, add) } else { None }
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
    use super::*;

    fn seconds_between(earlier: &str, later: &str) -> f64 {
        let time = |text| parse_date(text).unwrap_or_else(|| panic!("{text}"));
        (time(later) - time(earlier)) as f64 / 1e9
    }

    /// Seconds from the first of `texts` to the last, or what is wrong with it.
    fn last(mut times: Times, texts: &[&str]) -> Result<f64, String> {
        let mut read = Ok(0.0);
        for text in texts {
            read = times.since_first(Field { name: "time", text });
        }
        read.map_err(|fault| fault.at("t", 1).reason)
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
        assert_eq!(parse_date("2023-11-16 18:17:03.0000000001"), None);
    }

    /// All of these are one point in time.
    #[test]
    fn zones_are_one_time_line() {
        let utc = "2024-05-10 00:00:00";
        for same in [
            "2024-05-10T00:00:00Z",
            "2024-05-10t00:00:00z",
            "2024-05-10 00:00:00 UTC",
            "2024-05-10 00:00:00.000 utc",
            "2024-05-10 00:00:00 GMT",
            "2024-05-10 00:00:00+00:00",
            "2024-05-10 00:00:00-00",
            "2024-05-10 01:00:00+01:00",
            "2024-05-10 01:00:00+0100",
            "2024-05-10 01:00:00+01",
            "2024-05-10 01:00:00 +0100",
            "2024-05-09 19:30:00-04:30",
            "2024-05-09 19:30:00.0-0430",
            "2024-05-09 20:00:00-04",
            "2024-05-10T05:45:00+0545",
        ] {
            assert_eq!(seconds_between(utc, same), 0.0, "{same}");
        }
        assert_eq!(seconds_between(utc, "2024-05-10 01:00:00.009930+01"), 0.00993);
        let mixed =
            ["2024-05-10 00:00:00", "2024-05-10 02:00:01+02:00", "2024-05-09T19:00:02-0500"];
        assert_eq!(last(Times::of_any_unit(), &mixed), Ok(2.0));
    }

    #[test]
    fn what_is_not_a_date() {
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
            "2023-11-16 18:17:037",
            "2023-11-16 18:17:03+2",
            "2023-11-16 18:17:03+",
            "2023-11-16 18:17:03+010",
            "2023-11-16 18:17:03+01:0",
            "2023-11-16 18:17:03+01:",
            "2023-11-16 18:17:03+24",
            "2023-11-16 18:17:03+0160",
            "2023-11-16 18:17:03+é1",
            "2023-11-16 18:17:03Zz",
            "2023-11-16 18:17:03 CET",
            "23-11-16 18:17:03",
            "+023-11-16 18:17:03",
            "1700158623.97",
        ] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    /// The first number says what all count, and no digit of a fraction is lost.
    #[test]
    fn numbers_are_of_the_unit_that_the_first_shows() {
        for (first, second, expected) in [
            ("0", "1.25", 1.25),
            ("5", "45", 40.0),
            ("19440110.0", "19440161.0", 51.0),
            ("1700158623", "1700158624", 1.0),
            ("1700158623.9799600", "1700158624.0319600", 0.052),
            ("1700158623.000000001", "1700158623.000000002", 1e-9),
            ("1.7e9", "1700000001", 1.0),
            ("0", "1e-05", 1e-5),
            ("99999999999", "99999999998", -1.0),
            ("100000000000", "100000000001", 0.001),
            ("1700158623979", "1700158624031", 0.052),
            ("1700158623979.5", "1700158623979.75", 0.00025),
            ("1700158623979960", "1700158624031960", 0.052),
            ("1700158623979960000", "1700158623979960001", 1e-9),
        ] {
            let read = last(Times::of_any_unit(), &[first, second]);
            assert_eq!(read, Ok(expected), "{first} {second}");
        }
        assert_eq!(last(Times::of_seconds(), &["2", "4.5"]), Ok(2.5));
        assert_eq!(last(Times::of_milliseconds(), &["1000", "4027.5"]), Ok(3.0275));
        assert_eq!(last(Times::of_milliseconds(), &["1700158623979", "1700158624031"]), Ok(0.052));
    }

    #[test]
    fn what_is_not_a_time() {
        let wrong = |texts: &[&str], message: &str| {
            let found = last(Times::of_any_unit(), texts).expect_err("not a time");
            assert!(found.starts_with(message), "{texts:?}: {found}");
        };
        wrong(&["x"], "`x` is not a time such as 2023-11-16 18:17:03.97 with a zone (Z, UTC,");
        wrong(&[""], "missing");
        wrong(&["-0.5"], "`-0.5` is negative");
        wrong(&["NaN"], "`NaN` is not finite");
        wrong(&["inf"], "`inf` is not finite");
        wrong(&["-inf"], "`-inf` is not finite");
        wrong(&["1e999"], "`1e999` is too big: the most is 100000000000000000000");
        wrong(&["5", "2023-11-16 18:17:03"], "`2023-11-16 18:17:03` is not a number");
        wrong(&["2023-11-16 18:17:03", "1700158623"], "`1700158623` is not a time such as");
        let far = "within 1000000000 seconds of the first row's, read as";
        for (first, second, unit) in [
            ("5", "1e12", "seconds"),
            ("1700158623", "1700158623979", "seconds"),
            ("1700158623979", "1700158623", "milliseconds"),
            ("2023-11-16 18:17:03", "1970-01-01 00:00:00", "a date"),
        ] {
            wrong(&[first, second], &format!("`{second}` is not {far} {unit}: write all rows"));
        }
    }
}
