//! Percentiles and ratios that never let a non-finite number out.

use serde::Serialize;

/// Mean, median and tail of a set; all `None` (JSON `null`) when the set is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Distribution {
    /// Arithmetic mean.
    pub(crate) mean: Option<f64>,
    /// Median, by nearest rank.
    pub(crate) p50: Option<f64>,
    /// 99th percentile, by nearest rank.
    pub(crate) p99: Option<f64>,
}

impl Distribution {
    /// Summarizes a set sorted in ascending order.
    pub(crate) fn of(sorted: &[f64]) -> Self {
        Self {
            mean: ratio(sorted.iter().sum(), sorted.len() as f64),
            p50: percentile(sorted, 50),
            p99: percentile(sorted, 99),
        }
    }
}

/// The nearest-rank percentile: the ⌈p·n/100⌉-th smallest of `n` values.
///
/// It is the smallest value with at least `p` % of the set at or below it, so always a value that
/// was measured, never an interpolation. `None` for the empty set.
pub(crate) fn percentile(sorted: &[f64], p: usize) -> Option<f64> {
    // In integers: 0.07 × 100 in floats is a hair above 7 and would round up to rank 8.
    let rank = (sorted.len() * p).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// `part / whole`, or `None` where that is no finite number.
pub(crate) fn ratio(part: f64, whole: f64) -> Option<f64> {
    Some(part / whole).filter(|quotient| quotient.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(percentile(&ten, 0), Some(1.0));
        assert_eq!(percentile(&ten, 10), Some(1.0));
        assert_eq!(percentile(&ten, 11), Some(2.0));
        assert_eq!(percentile(&ten, 50), Some(5.0));
        assert_eq!(percentile(&ten, 99), Some(10.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 7), Some(7.0));
        assert_eq!(percentile(&hundred, 99), Some(99.0));
    }

    #[test]
    fn small_sets() {
        assert_eq!(Distribution::of(&[]), Distribution::default());
        let one = Distribution { mean: Some(3.0), p50: Some(3.0), p99: Some(3.0) };
        assert_eq!(Distribution::of(&[3.0]), one);
    }

    #[test]
    fn ratios_are_finite_or_absent() {
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
        assert_eq!(ratio(0.0, 0.0), None);
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
    }
}
