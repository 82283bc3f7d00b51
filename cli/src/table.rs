//! Runs side by side: metrics as rows, one column per policy.
//!
//! [`sections`] holds the choice of rows and the formatting, which the HTML report shares.

use crate::metrics::{Distribution, Measured, Run, Summary, Unit, ratio};
use crate::numbers::{brief, decimals_for, fixed};

/// What the superscripts in labels refer to.
const NOTES: [&str; 5] = [
    "¹ rows advancing a request ÷ slots, weighted by step time",
    "² a slot is held from admission until its request is returned, ended or not",
    "³ the part of all computed tokens that only filled up a rectangular batch",
    "⁴ tokens stored ÷ capacity of the blocks held, weighted by step time",
    "⁵ TTFT: arrival to first token; TPOT: mean gap after it; p50, p99: nearest rank",
];

/// The note of figures that only a device that computes has.
const MEASURED: &str = "⁶ computed on this machine ÷ time in steps, padding included";

/// The notes of these runs.
pub(crate) fn notes(runs: &[Run]) -> impl Iterator<Item = &'static str> {
    let measured = runs.iter().any(|run| run.summary.measured.is_some());
    NOTES.into_iter().chain(measured.then_some(MEASURED))
}

/// Rows that belong together.
pub(crate) struct Section {
    /// What they are about.
    pub(crate) title: &'static str,
    /// One per metric.
    pub(crate) rows: Vec<Row>,
}

/// One metric of every run, formatted.
pub(crate) struct Row {
    /// Name and unit of the metric, with the superscript of its note.
    pub(crate) label: String,
    /// One per run.
    pub(crate) cells: Vec<String>,
    /// The last run against the first, when there are exactly two.
    pub(crate) change: Option<String>,
}

/// How the last run's value relates to the first's.
#[derive(Clone, Copy)]
enum Change {
    /// `2.9×`: more is better.
    Factor,
    /// `−52 %`: a cost, or neither good nor bad.
    Percent,
    /// `−52 pt`: a share of waste, where a factor would flatter.
    Points,
    /// Not comparable.
    None,
}

/// All metrics worth showing of these runs, in reading order.
pub(crate) fn sections(runs: &[Run]) -> Vec<Section> {
    let rows = Rows { runs };
    let per = match unit(runs) {
        Unit::Seconds => "s",
        Unit::Steps => "step",
    };
    let mut work = vec![rows.count("requests finished", |s| s.requests)];
    work.extend(rows.nonzero("requests refused", |s| s.refused.values().sum()));
    work.extend(rows.nonzero("requests unfinished", |s| s.unfinished));
    work.extend(rows.nonzero("requests truncated", |s| s.truncated));
    work.extend(rows.nonzero("preemptions", |s| s.preemptions));
    work.push(rows.count("output tokens", |s| s.output_tokens));
    work.push(rows.count("steps", |s| s.steps));
    work.push(rows.time("makespan, {}", |s| Some(s.seconds)));

    let throughput = vec![
        rows.number(&format!("output tokens/{per}"), Change::Factor, |s| s.output_tokens_per_s),
        rows.number(&format!("requests/{per}"), Change::Factor, |s| s.requests_per_s),
    ];
    let slots = vec![
        rows.share("slot utilization, % ¹", Change::Factor, |s| s.slot_utilization),
        rows.number("slots held, mean ²", Change::Percent, |s| s.slots_held),
        rows.share("held slots useful, %", Change::Factor, |s| s.slots_useful),
        rows.number("requests waiting, mean", Change::Percent, |s| s.waiting),
    ];
    let mut compute = vec![
        rows.share("padding waste, % ³", Change::Points, |s| s.padding_waste),
        rows.number("computed ÷ useful tokens", Change::Percent, |s| s.computed_per_useful),
    ];
    if runs.iter().any(|run| run.summary.recomputed_tokens > 0) {
        compute.push(rows.share("computed again, %", Change::Points, |s| {
            ratio(s.recomputed_tokens as f64, s.computed_tokens as f64)
        }));
    }
    compute.extend(rows.measured("attention, GFLOP/s ⁶", |m| m.attention_flops));
    compute.extend(rows.measured("keys and values read, GB/s ⁶", |m| m.kv_bytes_read));
    let mut cache = vec![
        rows.share("KV utilization, % ⁴", Change::Factor, |s| s.kv_utilization),
        rows.share("KV blocks held, %", Change::Percent, |s| s.kv_held),
    ];
    if runs.iter().any(|run| run.summary.prefix_hit_tokens > 0) {
        cache.push(rows.share("prompt tokens from cache, %", Change::Factor, |s| {
            ratio(s.prefix_hit_tokens as f64, s.prompt_tokens as f64)
        }));
    }
    let mut latency = Vec::new();
    latency.extend(rows.distribution("TTFT", " ⁵", |s| &s.ttft_s));
    latency.extend(rows.distribution("TPOT", " ⁵", |s| &s.tpot_s));
    latency.extend(rows.distribution("latency", "", |s| &s.latency_s));
    latency.extend(rows.distribution("queue", "", |s| &s.queue_s));

    vec![
        Section { title: "Work", rows: work },
        Section { title: "Throughput", rows: throughput },
        Section { title: "Slots", rows: slots },
        Section { title: "Compute", rows: compute },
        Section { title: "KV cache", rows: cache },
        Section { title: "Latency", rows: latency },
    ]
}

/// The comparison as plain text, a newline after every line.
pub(crate) fn render(runs: &[Run]) -> String {
    let sections = sections(runs);
    let all = || sections.iter().flat_map(|section| &section.rows);
    let names: Vec<&str> = runs.iter().map(|run| run.config.policy.as_str()).collect();
    let label_width = all().map(|row| width(&row.label)).max().unwrap_or(0);
    let column = |i: usize, name: &str| {
        let cells = all().map(|row| width(&row.cells[i])).max().unwrap_or(0);
        cells.max(width(name)).max(9) + 3
    };
    let columns: Vec<usize> = names.iter().enumerate().map(|(i, name)| column(i, name)).collect();
    let comparing = all().any(|row| row.change.is_some());
    let line = |label: &str, cells: &[&str], change: &str| {
        let mut line = pad_right(label, label_width);
        for (cell, &column) in cells.iter().zip(&columns) {
            line += &pad_left(cell, column);
        }
        if comparing {
            line += &pad_left(change, 11);
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };

    let mut text = line("", &names, "change");
    let rule = text.trim_end().chars().count();
    text += &("─".repeat(rule) + "\n");
    for (i, section) in sections.iter().enumerate() {
        if i > 0 {
            text += "\n";
        }
        for row in &section.rows {
            let cells: Vec<&str> = row.cells.iter().map(String::as_str).collect();
            text += &line(&row.label, &cells, row.change.as_deref().unwrap_or(""));
        }
    }
    text += &("─".repeat(rule) + "\n");
    for note in notes(runs) {
        text += &format!("{note}\n");
    }
    text
}

/// Formats rows of the same runs.
struct Rows<'a> {
    runs: &'a [Run],
}

impl Rows<'_> {
    fn count(&self, label: &str, of: impl Fn(&Summary) -> u64) -> Row {
        self.row(label, Change::None, Some(0), |s| Some(of(s) as f64))
    }

    /// A count that is worth a row only if something happened.
    fn nonzero(&self, label: &str, of: impl Fn(&Summary) -> u64) -> Option<Row> {
        let happened = self.runs.iter().any(|run| of(&run.summary) > 0);
        happened.then(|| self.count(label, of))
    }

    /// A rate over the time in steps, of a device that computes.
    fn measured(&self, label: &str, of: impl Fn(&Measured) -> f64) -> Option<Row> {
        let computes = self.runs.iter().any(|run| run.summary.measured.is_some());
        let rate = |s: &Summary| ratio(of(s.measured.as_ref()?) * 1e-9, s.busy_s);
        computes.then(|| self.number(label, Change::Percent, rate))
    }

    fn number(&self, label: &str, change: Change, of: impl Fn(&Summary) -> Option<f64>) -> Row {
        self.row(label, change, None, of)
    }

    fn share(&self, label: &str, change: Change, of: impl Fn(&Summary) -> Option<f64>) -> Row {
        self.row(label, change, Some(1), |s| of(s).map(|x| x * 100.0))
    }

    fn time(&self, label: &str, of: impl Fn(&Summary) -> Option<f64>) -> Row {
        let scale = self.time_scale(&of);
        self.time_in(scale, label, of)
    }

    /// Mean and percentiles, all in the same unit.
    fn distribution(
        &self,
        name: &str,
        note: &str,
        of: impl Fn(&Summary) -> &Distribution,
    ) -> [Row; 3] {
        let scale = self.time_scale(|s| of(s).p99);
        [
            self.time_in(scale, &format!("{name} mean, {{}}{note}"), |s| of(s).mean),
            self.time_in(scale, &format!("{name} p50, {{}}"), |s| of(s).p50),
            self.time_in(scale, &format!("{name} p99, {{}}"), |s| of(s).p99),
        ]
    }

    /// The unit that suits the longest of some times, and how many there are in a second.
    fn time_scale(&self, of: impl Fn(&Summary) -> Option<f64>) -> (&'static str, f64) {
        let longest = self.runs.iter().filter_map(|run| of(&run.summary)).fold(0.0, f64::max);
        match unit(self.runs) {
            Unit::Steps => ("steps", 1.0),
            Unit::Seconds if longest >= 1.0 || longest == 0.0 => ("s", 1.0),
            Unit::Seconds if longest >= 1e-3 => ("ms", 1e3),
            Unit::Seconds => ("µs", 1e6),
        }
    }

    /// A time in the given unit, which replaces the `{}` in the label.
    fn time_in(
        &self,
        (name, scale): (&str, f64),
        label: &str,
        of: impl Fn(&Summary) -> Option<f64>,
    ) -> Row {
        let label = label.replace("{}", name);
        self.row(&label, Change::Percent, None, |s| of(s).map(|x| x * scale))
    }

    fn row(
        &self,
        label: &str,
        change: Change,
        decimals: Option<usize>,
        of: impl Fn(&Summary) -> Option<f64>,
    ) -> Row {
        let values: Vec<Option<f64>> = self.runs.iter().map(|run| of(&run.summary)).collect();
        let show = |value: &Option<f64>| match (value, decimals) {
            (None, _) => "–".to_owned(),
            (&Some(x), Some(decimals)) => fixed(x, decimals),
            (&Some(x), None) => brief(x),
        };
        let change = match values[..] {
            [Some(first), Some(last)] => describe(change, first, last),
            _ => None,
        };
        Row { label: label.to_owned(), cells: values.iter().map(show).collect(), change }
    }
}

/// What times count: the same in all runs of a replay.
fn unit(runs: &[Run]) -> Unit {
    runs.first().map_or(Unit::Seconds, |run| run.summary.unit)
}

fn describe(change: Change, first: f64, last: f64) -> Option<String> {
    let factor = ratio(last, first);
    match change {
        Change::None => None,
        Change::Points => Some(signed(last - first, 1) + " pt"),
        Change::Factor => factor.map(times),
        Change::Percent => factor.map(|factor| {
            let percent = (factor - 1.0) * 100.0;
            // Growth is a factor once it doubles; a near-total drop needs its decimal.
            match percent {
                p if p >= 100.0 => times(factor),
                p if p > -100.0 && p < -98.5 => signed(p, 1) + " %",
                p => signed(p, 0) + " %",
            }
        }),
    }
}

fn times(factor: f64) -> String {
    let decimals = decimals_for(factor);
    fixed(factor, decimals.clamp(usize::from(factor < 99.95), 2)) + "×"
}

fn signed(x: f64, decimals: usize) -> String {
    let digits = fixed(x, decimals);
    let plus = x > 0.0 && digits.contains(|c: char| ('1'..='9').contains(&c));
    if plus { format!("+{digits}") } else { digits }
}

/// Columns `text` takes: every character used here is one wide.
fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad_left(text: &str, columns: usize) -> String {
    " ".repeat(columns.saturating_sub(width(text))) + text
}

fn pad_right(text: &str, columns: usize) -> String {
    text.to_owned() + &" ".repeat(columns.saturating_sub(width(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Recorder, RunConfig, StepSample};

    /// One request of two tokens in two steps of the given length.
    fn run(policy: &str, step: f64, computed_tokens: u64) -> Run {
        let mut recorder = Recorder::new(RunConfig {
            policy: policy.to_owned(),
            slots: 2,
            usable_blocks: 4,
            block_size: 16,
            unit: Unit::Seconds,
            keep_timeline: false,
        });
        recorder.arrived(0, 0.0, 1200);
        recorder.admitted(0, 0.0, 0);
        for i in 0..2 {
            recorder.step(&StepSample {
                start_s: step * f64::from(i),
                seconds: step,
                useful_rows: 1,
                held_slots: 1,
                useful_tokens: 1200,
                recomputed_tokens: 0,
                computed_tokens,
                kv_used_tokens: 16,
                held_blocks: 2,
                output_tokens: 1,
                ..StepSample::default()
            });
            recorder.token(0, step * f64::from(i + 1));
        }
        recorder.ended(0, 2.0 * step);
        recorder.finished(0, 2.0 * step);
        recorder.finish(2.0 * step)
    }

    #[test]
    fn two_runs_side_by_side() {
        let text = render(&[run("static", 0.8, 2400), run("continuous", 0.25, 1200)]);
        let golden = "
                              static   continuous     change
────────────────────────────────────────────────────────────
requests finished                  1            1
output tokens                      2            2
steps                              2            2
makespan, s                     1.60        0.500      −69 %

output tokens/s                 1.25         4.00      3.20×
requests/s                     0.625         2.00      3.20×

slot utilization, % ¹           50.0         50.0      1.00×
slots held, mean ²              1.00         1.00        0 %
held slots useful, %           100.0        100.0      1.00×
requests waiting, mean             0            0

padding waste, % ³              50.0          0.0   −50.0 pt
computed ÷ useful tokens        2.00         1.00      −50 %

KV utilization, % ⁴             50.0         50.0      1.00×
KV blocks held, %               50.0         50.0        0 %

TTFT mean, ms ⁵                  800          250      −69 %
TTFT p50, ms                     800          250      −69 %
TTFT p99, ms                     800          250      −69 %
TPOT mean, ms ⁵                  800          250      −69 %
TPOT p50, ms                     800          250      −69 %
TPOT p99, ms                     800          250      −69 %
latency mean, s                 1.60        0.500      −69 %
latency p50, s                  1.60        0.500      −69 %
latency p99, s                  1.60        0.500      −69 %
queue mean, s                      0            0
queue p50, s                       0            0
queue p99, s                       0            0
────────────────────────────────────────────────────────────
¹ rows advancing a request ÷ slots, weighted by step time
² a slot is held from admission until its request is returned, ended or not
³ the part of all computed tokens that only filled up a rectangular batch
⁴ tokens stored ÷ capacity of the blocks held, weighted by step time
⁵ TTFT: arrival to first token; TPOT: mean gap after it; p50, p99: nearest rank
";
        assert_eq!(format!("\n{text}"), golden);
    }

    #[test]
    fn one_run_has_nothing_to_compare_and_none_has_no_columns() {
        let text = render(&[run("alone", 1.0, 1200)]);
        assert!(!text.contains("change"));
        assert!(text.lines().all(|line| width(line) <= 80));
        assert!(render(&[]).contains("makespan"));
    }

    #[test]
    fn changes_say_what_happened() {
        let say = |change, first, last| describe(change, first, last).unwrap_or_default();
        assert_eq!(say(Change::Factor, 1_212.0, 3_514.0), "2.90×");
        assert_eq!(say(Change::Factor, 1.0, 1_234.0), "1,234×");
        assert_eq!(say(Change::Factor, 0.0, 1.0), "");
        assert_eq!(say(Change::Percent, 100.0, 48.0), "−52 %");
        assert_eq!(say(Change::Percent, 100.0, 109.4), "+9 %");
        assert_eq!(say(Change::Percent, 100.0, 100.1), "0 %");
        assert_eq!(say(Change::Percent, 100.0, 0.4), "−99.6 %");
        assert_eq!(say(Change::Percent, 10.0, 31.0), "3.10×");
        assert_eq!(say(Change::Points, 61.6, 0.0), "−61.6 pt");
        assert_eq!(say(Change::None, 1.0, 2.0), "");
    }
}
