//! Samples of many rounds, and what is said of them.

use serde_json::{Value, json};

use crate::common::{Spread, spread};

/// What a case reached in one round, and what the GPU did right before.
pub(crate) struct Sample {
    /// Seconds of one call, launched by itself.
    pub(crate) seconds: f64,
    /// The same where calls are recorded as a graph.
    pub(crate) in_graph: Option<f64>,
    /// A rate of the GPU: what, its unit, and how much of it a second.
    pub(crate) limits: Vec<(&'static str, Unit, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Operations,
}

/// A measured case.
pub(crate) struct Row {
    pub(crate) name: String,
    /// Bytes and operations of one call.
    pub(crate) bytes: f64,
    pub(crate) operations: f64,
    /// Tokens of one call.
    pub(crate) tokens: usize,
    /// Of the comparison with the processor's kernels.
    pub(crate) error: f64,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    fn times(&self) -> Spread {
        spread(&self.samples.iter().map(|sample| sample.seconds * 1e6).collect::<Vec<_>>())
    }

    fn graph(&self) -> Option<Spread> {
        let times: Vec<_> = self.samples.iter().filter_map(|s| Some(s.in_graph? * 1e6)).collect();
        (!times.is_empty()).then(|| spread(&times))
    }

    /// Each limit's rate, and the ratio that is made round by round.
    fn limits(&self) -> Vec<(&'static str, Unit, Spread, Spread)> {
        let Some(first) = self.samples.first() else { return Vec::new() };
        let limit = |(nth, &(name, unit, _)): (usize, &(&'static str, Unit, f64))| {
            let done = if unit == Unit::Bytes { self.bytes } else { self.operations };
            let rates: Vec<_> = self.samples.iter().map(|s| s.limits[nth].2).collect();
            let ratio = |s: &Sample| done / s.seconds / s.limits[nth].2;
            let ratios: Vec<_> = self.samples.iter().map(ratio).collect();
            (name, unit, spread(&rates), spread(&ratios))
        };
        first.limits.iter().enumerate().map(limit).collect()
    }

    pub(crate) fn print(&self) {
        let Spread { median, p10, p90 } = self.times();
        let graph = self.graph().map_or("-".to_owned(), |graph| format!("{:.1}", graph.median));
        let gb = self.bytes / median * 1e-3;
        let tflop = self.operations / median * 1e-6;
        let limits: Vec<_> = self
            .limits()
            .into_iter()
            .map(|(name, unit, rate, ratio)| {
                let (scale, unit) = unit.scaled();
                format!("{:.2} of {name} {:.0} {unit}", ratio.median, rate.median * scale)
            })
            .collect();
        let range = format!("{p10:.1}..{p90:.1}");
        println!(
            "{:<52} {median:>9.1} {range:>19} {graph:>9} {gb:>7.0} {tflop:>7.1}  {}",
            self.name,
            limits.join(", ")
        );
    }

    pub(crate) fn json(&self) -> Value {
        let of = |s: Spread| json!({ "median": s.median, "p10": s.p10, "p90": s.p90 });
        let median = self.times().median;
        let limits = self.limits().into_iter().map(|(name, unit, rate, ratio)| {
            let (scale, unit) = unit.scaled();
            let rate = Spread {
                median: rate.median * scale,
                p10: rate.p10 * scale,
                p90: rate.p90 * scale,
            };
            json!({ "name": name, "unit": unit, "value": of(rate), "ratio": of(ratio) })
        });
        json!({
            "name": self.name, "us": of(self.times()), "graph_us": self.graph().map(of),
            "tokens": self.tokens, "bytes": self.bytes, "operations": self.operations,
            "gb_per_s": self.bytes / median * 1e-3, "tflop_per_s": self.operations / median * 1e-6,
            "largest_error": self.error, "rounds": self.samples.len(),
            "limits": limits.collect::<Vec<_>>(),
        })
    }
}

impl Unit {
    pub(crate) fn scaled(self) -> (f64, &'static str) {
        match self {
            Self::Bytes => (1e-9, "GB/s"),
            Self::Operations => (1e-12, "TFLOP/s"),
        }
    }
}

pub(crate) fn head() {
    println!(
        "{:<52} {:>9} {:>19} {:>9} {:>7} {:>7}  of what the GPU does",
        "case", "us", "p10..p90", "in graph", "GB/s", "TFLOP/s"
    );
}
