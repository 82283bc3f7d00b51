//! Samples of many rounds, and the table of their medians.

use serde_json::{Value, json};

/// Something a value is compared with, in the value's unit.
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) target: Option<f64>,
}

/// One round's figure of one row.
pub(crate) struct Sample {
    name: String,
    unit: &'static str,
    value: f64,
    also: Option<(f64, &'static str)>,
    note: String,
    limits: Vec<Limit>,
}

impl Sample {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let name = name.into();
        Self { name, unit, value, also: None, note: String::new(), limits: Vec::new() }
    }

    /// The same in another unit.
    pub(crate) fn also(mut self, value: f64, unit: &'static str) -> Self {
        self.also = Some((value, unit));
        self
    }

    /// What to know about it.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Compares it with a limit measured just before it.
    pub(crate) fn of(mut self, name: &'static str, value: f64) -> Self {
        self.limits.push(Limit { name, value, target: None });
        self
    }

    /// The same, with the least ratio wanted.
    pub(crate) fn want(mut self, name: &'static str, value: f64, target: f64) -> Self {
        self.limits.push(Limit { name, value, target: Some(target) });
        self
    }
}

struct Against {
    name: &'static str,
    target: Option<f64>,
    values: Vec<f64>,
    ratios: Vec<f64>,
}

struct Row {
    name: String,
    unit: &'static str,
    note: String,
    values: Vec<f64>,
    also: Option<(Vec<f64>, &'static str)>,
    against: Vec<Against>,
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// Median, least, most.
fn spread(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]]
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    spread(samples)[0]
}

impl Table {
    pub(crate) fn push(&mut self, sample: Sample) {
        let at = self.rows.iter().position(|row| row.name == sample.name);
        let row = match at {
            Some(at) => &mut self.rows[at],
            None => {
                let against = sample.limits.iter().map(|limit| Against {
                    name: limit.name,
                    target: limit.target,
                    values: Vec::new(),
                    ratios: Vec::new(),
                });
                self.rows.push(Row {
                    against: against.collect(),
                    name: sample.name,
                    unit: sample.unit,
                    note: sample.note,
                    values: Vec::new(),
                    also: sample.also.map(|(_, unit)| (Vec::new(), unit)),
                });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.values.push(sample.value);
        if let (Some((values, _)), Some((value, _))) = (&mut row.also, sample.also) {
            values.push(value);
        }
        for (against, limit) in row.against.iter_mut().zip(sample.limits) {
            against.values.push(limit.value);
            against.ratios.push(sample.value / limit.value);
        }
    }

    pub(crate) fn print(&self) {
        println!(
            "{:<46} {:>9} {:>19} {:<8} {:<18} {:>9} {:>6} {:>13} {:>6}  also, notes",
            "row", "median", "least .. most", "unit", "limit", "its value", "ratio", "", "target"
        );
        for row in &self.rows {
            let [middle, least, most] = spread(&row.values);
            let range = format!("{} .. {}", number(least), number(most));
            let mut rest = row.note.clone();
            if let Some((values, unit)) = &row.also {
                rest = format!("{} {unit}; {rest}", number(median(values)));
            }
            let mut head =
                format!("{:<46} {:>9} {range:>19} {:<8}", row.name, number(middle), row.unit);
            if row.against.is_empty() {
                println!("{head} {:<18} {:>9} {:>6} {:>13} {:>6}  {rest}", "-", "", "", "", "");
            }
            for against in &row.against {
                let [ratio, least, most] = spread(&against.ratios);
                let range = format!("{least:.2} .. {most:.2}");
                let target = match against.target {
                    Some(target) if ratio >= target => format!("{target}"),
                    Some(target) => format!("{target} !"),
                    None => String::new(),
                };
                println!(
                    "{head} {:<18} {:>9} {ratio:>6.3} {range:>13} {target:>6}  {rest}",
                    against.name,
                    number(median(&against.values)),
                );
                head = format!("{:<46} {:>9} {:>19} {:<8}", "", "", "", "");
                rest.clear();
            }
        }
    }

    pub(crate) fn json(&self) -> Value {
        let of = |values: &[f64]| {
            let [median, least, most] = spread(values);
            json!({ "median": median, "least": least, "most": most })
        };
        let rows = self.rows.iter().map(|row| {
            let limits = row.against.iter().map(|against| {
                json!({
                    "name": against.name, "target": against.target,
                    "value": of(&against.values), "ratio": of(&against.ratios),
                })
            });
            json!({
                "name": row.name, "unit": row.unit, "rounds": row.values.len(),
                "value": of(&row.values), "note": row.note,
                "also": row.also.as_ref().map(|(v, unit)| json!({ "unit": unit, "value": of(v) })),
                "limits": limits.collect::<Vec<_>>(),
            })
        });
        rows.collect()
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
