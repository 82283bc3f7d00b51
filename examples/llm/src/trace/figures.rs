//! What is measured of a run.

use serde::Serialize;

/// A request's times, in seconds since the run began.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Life {
    /// When it came.
    pub arrived: f64,
    /// When it was given a slot for the first time.
    pub admitted: f64,
    /// Its first token.
    pub first: f64,
    /// Its last token.
    pub finished: f64,
    /// When its slot was free again: with its batch, where that ends together.
    pub released: f64,
    /// Tokens it output.
    pub output: u32,
}

/// A run of a trace under a policy.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The policy.
    pub policy: String,
    /// Slots.
    pub slots: usize,
    /// Seconds from the first arrival to the last token.
    pub seconds: f64,
    /// Seconds in steps.
    pub busy: f64,
    /// Tokens computed for requests.
    pub computed: u64,
    /// Tokens computed only to fill a rectangle.
    pub padding: u64,
    /// Each request's times.
    pub lives: Vec<Life>,
}

/// The figures of a run, named as the table names them.
pub const NAMES: [&str; 9] = [
    "output tokens/s",
    "requests/s",
    "slot utilization, %",
    "padding waste, %",
    "TTFT mean, s",
    "TTFT p99, s",
    "time per output token mean, ms",
    "latency p50, s",
    "latency p99, s",
];

impl Run {
    /// The figures, in the order of their names.
    pub fn figures(&self) -> [f64; NAMES.len()] {
        let tokens: u32 = self.lives.iter().map(|life| life.output).sum();
        let of = |f: fn(&Life) -> f64| {
            let mut values: Vec<f64> = self.lives.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let at = |values: &[f64], part: f64| {
            // The least value that so many are not above.
            let rank = (values.len() as f64 * part).ceil() as usize;
            values.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        let first = of(|life| life.first - life.arrived);
        let latency = of(|life| life.released - life.arrived);
        let token = of(|life| (life.finished - life.first) / f64::from(life.output.max(2) - 1));
        // A slot is of use from admission to its request's last token.
        let used: f64 = self.lives.iter().map(|life| life.finished - life.admitted).sum();
        let held: f64 = self.lives.iter().map(|life| life.released - life.admitted).sum();
        [
            f64::from(tokens) / self.seconds,
            self.lives.len() as f64 / self.seconds,
            100.0 * used / held,
            100.0 * self.padding as f64 / (self.padding + self.computed) as f64,
            mean(&first),
            at(&first, 0.99),
            1e3 * mean(&token),
            at(&latency, 0.5),
            at(&latency, 0.99),
        ]
    }
}

/// All runs side by side.
pub fn table(runs: &[Run]) -> String {
    let mut text = format!("{:32}", "");
    runs.iter().for_each(|run| text.push_str(&format!("{:>14}", run.policy)));
    text.push('\n');
    let figures: Vec<_> = runs.iter().map(Run::figures).collect();
    for (at, name) in NAMES.iter().enumerate() {
        text.push_str(&format!("{name:32}"));
        for figures in &figures {
            let digits = if figures[at] >= 100.0 { 0 } else { 2 };
            text.push_str(&format!("{:>14.digits$}", figures[at]));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_ends_with_the_batch_and_percentiles_are_ranks() {
        let life = |released: usize| Life {
            first: 0.5,
            finished: 1.0,
            released: released as f64,
            output: 2,
            ..Life::default()
        };
        let run = |lives: Vec<Life>| Run {
            policy: "static".to_owned(),
            slots: 4,
            seconds: 100.0,
            busy: 100.0,
            computed: 3,
            padding: 1,
            lives,
        };
        let figures = run((1..=100).map(life).collect()).figures();
        assert_eq!((figures[7], figures[8]), (50.0, 99.0));
        assert_eq!((figures[0], figures[3], figures[6]), (2.0, 25.0, 500.0));
        let alone = run(vec![life(3)]).figures();
        assert_eq!((alone[7], alone[8]), (3.0, 3.0));
    }
}
