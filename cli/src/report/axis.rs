//! Axes: where a value lies, and which round values deserve a tick.

use crate::metrics::Unit;
use crate::numbers::fixed;

/// Maps values to 0..=1 along one dimension of a chart.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Where the gridlines are.
    pub(super) ticks: Vec<Tick>,
}

/// A labelled gridline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// Position along the axis, 0..=1.
    pub(super) at: f64,
    /// What it says.
    pub(super) label: String,
}

impl Axis {
    /// Time from `low` to `high` in at most `pieces`; the last tick names the unit.
    pub(super) fn time(low: f64, high: f64, unit: Unit, pieces: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        let (name, scale) = match unit {
            Unit::Steps => ("steps", 1.0),
            Unit::Seconds if high - low >= 2.0 => ("s", 1.0),
            Unit::Seconds if high - low >= 2e-3 => ("ms", 1e3),
            Unit::Seconds => ("µs", 1e6),
        };
        let step = round_step((high - low) * scale / pieces);
        let step = if unit == Unit::Steps { step.max(1.0) } else { step };
        let mut axis = Self { low, high, logarithmic: false, ticks: Vec::new() };
        let values = multiples(low * scale, high * scale, step);
        let last = values.len().saturating_sub(1);
        axis.ticks = values
            .into_iter()
            .enumerate()
            .map(|(i, value)| {
                let suffix = if i == last { format!(" {name}") } else { String::new() };
                let label = fixed(value, decimals_of(step)) + &suffix;
                Tick { at: axis.at(value / scale), label }
            })
            .collect();
        axis
    }

    /// Time on a logarithmic axis, every power of ten labelled with its own unit.
    pub(super) fn log_time(low: f64, high: f64, unit: Unit) -> Self {
        let mut axis = Self { low, high, logarithmic: true, ticks: Vec::new() };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        // A short axis has room for the values between the powers of ten.
        let within: &[f64] = match (high / low).log10() {
            x if x < 2.0 => &[1.0, 2.0, 5.0],
            x if x < 3.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        axis.ticks = decades
            .flat_map(|decade| within.iter().map(move |m| m * 10f64.powi(decade)))
            .filter(|value| (low..=high).contains(value))
            .map(|value| Tick { at: axis.at(value), label: round_duration(value, unit) })
            .collect();
        axis
    }

    /// From zero to a round number at or above `high`.
    pub(super) fn amount(high: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let step = round_step(high / 4.0);
        let top = (high / step - 1e-9).ceil() * step;
        let mut axis = Self { low: 0.0, high: top, logarithmic: false, ticks: Vec::new() };
        axis.ticks = multiples(0.0, top, step)
            .into_iter()
            .map(|value| Tick { at: axis.at(value), label: fixed(value, decimals_of(step)) })
            .collect();
        axis
    }

    /// 0 to 100 %, with ticks at the given percentages.
    pub(super) fn percent(ticks: &[u32]) -> Self {
        let tick = |&p: &u32| Tick { at: f64::from(p) / 100.0, label: format!("{p} %") };
        Self { low: 0.0, high: 1.0, logarithmic: false, ticks: ticks.iter().map(tick).collect() }
    }

    /// Where `value` lies, clamped to 0..=1.
    pub(super) fn at(&self, value: f64) -> f64 {
        let position = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        // NaN, as of the logarithm of a negative, lies at the origin.
        if position.is_nan() { 0.0 } else { position.clamp(0.0, 1.0) }
    }
}

/// The smallest of 1, 2, 5 × 10ⁿ that is at least `x`.
fn round_step(x: f64) -> f64 {
    let magnitude = 10f64.powf(x.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude);
    steps.into_iter().find(|&step| step >= x * (1.0 - 1e-9)).unwrap_or(steps[3])
}

fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step - 1e-6).ceil();
    let count = ((high / step + 1e-6).floor() - first).max(0.0) as usize;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

fn decimals_of(step: f64) -> usize {
    (-step.log10().floor()).max(0.0) as usize
}

fn round_duration(value: f64, unit: Unit) -> String {
    let (name, scaled) = match unit {
        Unit::Steps => ("", value),
        Unit::Seconds if value >= 0.999 => (" s", value),
        Unit::Seconds if value >= 0.999e-3 => (" ms", value * 1e3),
        Unit::Seconds => (" µs", value * 1e6),
    };
    fixed(scaled, decimals_of(scaled * (1.0 + 1e-9))) + name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn time_ticks_are_round_and_name_the_unit_once() {
        let axis = Axis::time(3.0, 62.0, Unit::Seconds, 8.0);
        assert_eq!(labels(&axis), ["10", "20", "30", "40", "50", "60 s"]);
        assert!((axis.ticks[0].at - 7.0 / 59.0).abs() < 1e-9);
        let axis = Axis::time(0.0, 0.05, Unit::Seconds, 6.0);
        assert_eq!(labels(&axis), ["0", "10", "20", "30", "40", "50 ms"]);
        assert_eq!(labels(&Axis::time(0.0, 1.0, Unit::Steps, 8.0)).last(), Some(&"1 steps"));
    }

    #[test]
    fn amounts_start_at_zero_and_end_round() {
        assert_eq!(labels(&Axis::amount(3_514.0)), ["0", "1,000", "2,000", "3,000", "4,000"]);
        assert_eq!(labels(&Axis::amount(0.0)).first(), Some(&"0.0"));
        assert!((Axis::amount(3_514.0).at(2_000.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn log_ticks_are_powers_of_ten() {
        let axis = Axis::log_time(0.002, 40.0, Unit::Seconds);
        assert_eq!(labels(&axis), ["10 ms", "100 ms", "1 s", "10 s"]);
        assert!((axis.at(0.002 * 20_000f64.sqrt()) - 0.5).abs() < 1e-9);
        assert_eq!(axis.at(-1.0), 0.0);
        assert_eq!(
            labels(&Axis::log_time(1.0, 60.0, Unit::Steps)),
            ["1", "2", "5", "10", "20", "50"]
        );
    }
}
