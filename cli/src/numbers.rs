//! Numbers as people read them: thousands separators, three significant digits, a true minus.

use crate::metrics::Unit;

/// `1234567` as `1,234,567`.
pub(crate) fn group(n: u64) -> String {
    group_digits(&n.to_string())
}

/// `x` with thousands separators and a fixed number of decimals.
pub(crate) fn fixed(x: f64, decimals: usize) -> String {
    let digits = format!("{:.decimals$}", x.abs());
    let grouped = match digits.split_once('.') {
        Some((whole, fraction)) => format!("{}.{fraction}", group_digits(whole)),
        None => group_digits(&digits),
    };
    // What rounds to zero has no sign.
    let negative = x < 0.0 && digits.contains(|c: char| ('1'..='9').contains(&c));
    if negative { format!("−{grouped}") } else { grouped }
}

/// `x` to about three significant digits: `0.0123`, `1.23`, `123`, `12,345`.
pub(crate) fn brief(x: f64) -> String {
    fixed(x, decimals_for(x))
}

/// A duration with the unit that suits it: `840 µs`, `12.3 ms`, `4.56 s`, `31 steps`.
pub(crate) fn duration(x: f64, unit: Unit) -> String {
    match unit {
        Unit::Steps => format!("{} steps", fixed(x, usize::from(x.fract() != 0.0))),
        Unit::Seconds if x.abs() >= 1.0 || x == 0.0 => format!("{} s", brief(x)),
        Unit::Seconds if x.abs() >= 1e-3 => format!("{} ms", brief(x * 1e3)),
        Unit::Seconds => format!("{} µs", brief(x * 1e6)),
    }
}

/// The decimals that show `x` to three significant digits, four decimals at most.
pub(crate) fn decimals_for(x: f64) -> usize {
    match x.abs() {
        0.0 => 0,
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        x if x >= 0.09995 => 3,
        _ => 4,
    }
}

fn group_digits(digits: &str) -> String {
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_thousands() {
        assert_eq!(group(0), "0");
        assert_eq!(group(999), "999");
        assert_eq!(group(1_000), "1,000");
        assert_eq!(group(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(fixed(-1_234.56, 1), "−1,234.6");
        assert_eq!(fixed(-0.01, 1), "0.0");
    }

    #[test]
    fn keeps_three_significant_digits() {
        assert_eq!(brief(12_345.6), "12,346");
        assert_eq!(brief(99.96), "100");
        assert_eq!(brief(12.345), "12.3");
        assert_eq!(brief(1.0), "1.00");
        assert_eq!(brief(0.0123), "0.0123");
        assert_eq!(brief(0.0), "0");
    }

    #[test]
    fn picks_a_unit() {
        assert_eq!(duration(0.0123, Unit::Seconds), "12.3 ms");
        assert_eq!(duration(83.25, Unit::Seconds), "83.2 s");
        assert_eq!(duration(84e-5, Unit::Seconds), "840 µs");
        assert_eq!(duration(31.0, Unit::Steps), "31 steps");
    }
}
