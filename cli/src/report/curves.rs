//! Charts of one line per run, and the areas of the KV cache.

use super::axis::Axis;
use super::frame::{Frame, escape, percent, pixels};
use super::labels::{Label, Line, place};
use super::window::{Window, span};
use crate::metrics::{Integrals, Latencies, Run, Timeline, percentile};
use crate::numbers::fixed;

/// Points along a chart over time: one every few pixels of a wide page.
const POINTS: f64 = 240.0;
/// Points along a distribution.
const RANKS: usize = 300;
/// Pixels a plot has on a narrow page, where names must fit.
const NARROW: f64 = 330.0;
/// Pixels it has as one of three in a row.
const NARROW_THIRD: f64 = 225.0;
/// Colours a run can have, as style classes `r0`, `r1`, ….
const COLOURS: usize = 6;

type Points = Vec<(f64, f64)>;

/// A rate over time, all runs in one chart, with a band behind a stretch of time.
pub(super) fn over_time(
    title: &str,
    runs: &[Run],
    band: Option<&Window>,
    y: impl Fn(f64) -> Axis,
    value: impl Fn(&Integrals, &Run) -> f64,
) -> String {
    let Some(time) = TimeAxis::of(runs) else { return String::new() };
    let rates: Vec<(&Run, Vec<(f64, f64)>)> = (runs.iter())
        .filter_map(|run| Some((run, time.sample(run.timeline.as_ref()?))))
        .map(|(run, samples)| {
            (run, samples.iter().map(|(t, rate)| (*t, value(rate, run))).collect())
        })
        .collect();
    let highest = rates.iter().flat_map(|(_, rates)| rates).map(|rate| rate.1).fold(0.0, f64::max);
    let frame = Frame { x: time.axis, y: Some(y(highest)), height: 180.0, title: title.to_owned() };
    let lines: Vec<(&Run, Points)> = (rates.into_iter())
        .map(|(run, rates)| (run, rates.iter().map(|&(t, v)| (frame.x(t), frame.y(v))).collect()))
        .collect();
    let band = band.map_or(String::new(), |window| {
        let (from, to) = (frame.x(window.from), frame.x(window.to));
        let (x, width, height) = (percent(from), percent(to - from), frame.height);
        format!("<rect class=\"band\" x=\"{x}\" width=\"{width}\" height=\"{height}\"/>")
    });
    frame.draw(&(band + &named_lines(&frame, NARROW, runs, &lines)))
}

/// A cumulative distribution, all runs in one chart; empty without any value.
pub(super) fn distribution(title: &str, runs: &[Run], of: impl Fn(&Latencies) -> &[f64]) -> String {
    let sets = || runs.iter().map(|run| of(&run.latencies)).filter(|set| !set.is_empty());
    let Some(high) = sets().filter_map(|set| set.last().copied()).reduce(f64::max) else {
        return String::new();
    };
    let low = sets().filter_map(|set| percentile(set, 1)).fold(f64::INFINITY, f64::min);
    let unit = runs[0].config.unit;
    let wide = low > 0.0 && high / low > 30.0;
    let frame = Frame {
        x: if wide { Axis::log_time(low, high, unit) } else { Axis::time(0.0, high, unit, 5.0) },
        y: Some(Axis::percent(&[0, 50, 100])),
        height: 180.0,
        title: format!("Distribution of {title}"),
    };
    let lines: Vec<(&Run, Points)> =
        runs.iter().map(|run| (run, staircase(of(&run.latencies), &frame))).collect();
    let width = if runs.len() > 2 { NARROW } else { NARROW_THIRD };
    let scale = if wide { ", logarithmic" } else { "" };
    format!(
        "<div><h3>{}<small>{scale}</small></h3>{}</div>\n",
        escape(title),
        frame.draw(&named_lines(&frame, width, runs, &lines))
    )
}

/// Share of the KV blocks held, and of their capacity used, one panel per run.
pub(super) fn kv(runs: &[Run]) -> String {
    let Some(time) = TimeAxis::of(runs) else { return String::new() };
    let panel = |run: &Run| {
        let samples = time.sample(run.timeline.as_ref()?);
        let frame = Frame {
            x: time.axis.clone(),
            y: Some(Axis::percent(&[0, 50, 100])),
            height: 96.0,
            title: format!("KV cache over time, {}", run.config.policy),
        };
        let blocks = run.config.usable_blocks.max(1) as f64;
        let tokens = blocks * run.config.block_size.max(1) as f64;
        let line = |share: &dyn Fn(&Integrals) -> f64| -> Points {
            samples.iter().map(|(t, rate)| (frame.x(*t), frame.y(share(rate)))).collect()
        };
        let held = line(&|rate| rate.blocks / blocks);
        let used = line(&|rate| rate.kv_tokens / tokens);
        let mean = |share: Option<f64>| match share {
            Some(share) => fixed(share * 100.0, 0) + " %",
            None => "–".to_owned(),
        };
        Some(format!(
            "<h3>{}</h3><p class=\"key\"><span><i class=\"kv-held\"></i>{} of the blocks held</span> \
             <span><i class=\"kv-used\"></i>{} of their capacity used</span></p>{}",
            escape(&run.config.policy),
            mean(run.summary.kv_held),
            mean(run.summary.kv_utilization),
            frame.draw(&(frame.area(&held, "kv-held") + &frame.area(&used, "kv-used")))
        ))
    };
    runs.iter().filter_map(panel).collect()
}

/// The time all runs share.
struct TimeAxis {
    axis: Axis,
    width: f64,
}

impl TimeAxis {
    fn of(runs: &[Run]) -> Option<Self> {
        let timelines: Vec<&Timeline> =
            runs.iter().filter_map(|run| run.timeline.as_ref()).collect();
        let unit = runs.first()?.config.unit;
        let (from, to) = span(&timelines);
        Some(Self { axis: Axis::time(from, to, unit, 8.0), width: (to - from) / POINTS })
    }

    /// Rates in the middle of consecutive stretches, and nothing once the run is over.
    fn sample(&self, timeline: &Timeline) -> Vec<(f64, Integrals)> {
        let (from, to) = span(&[timeline]);
        let width = self.width.max(timeline.series.resolution());
        let count = ((to - from) / width).ceil().max(1.0) as usize;
        let mut samples: Vec<(f64, Integrals)> = (0..count)
            .map(|i| {
                let start = from + width * i as f64;
                let end = (start + width).min(to);
                let sum = timeline.series.between(start, end);
                (f64::midpoint(start, end), sum * (1.0 / (end - start).max(f64::MIN_POSITIVE)))
            })
            .collect();
        samples.push((to, Integrals::default()));
        samples
    }
}

/// The steps of the share of values at or below x, thinned to about [`RANKS`].
fn staircase(sorted: &[f64], frame: &Frame) -> Points {
    let count = sorted.len();
    let mut points = Points::new();
    let mut below = 0.0;
    for i in 1..=RANKS.min(count) {
        let rank = (i * count).div_ceil(RANKS.min(count));
        let x = frame.x(sorted[rank - 1]);
        let share = rank as f64 / count as f64;
        points.extend([(x, frame.y(below)), (x, frame.y(share))]);
        below = share;
    }
    points
}

fn named_lines(frame: &Frame, width: f64, runs: &[Run], lines: &[(&Run, Points)]) -> String {
    let class = |run: &Run| {
        let i = runs.iter().position(|other| std::ptr::eq(other, run)).unwrap_or(0);
        format!("r{}", i % COLOURS)
    };
    let classes: Vec<String> = lines.iter().map(|(run, _)| class(run)).collect();
    let paths: String = (lines.iter().zip(&classes))
        .map(|((_, points), class)| frame.line(points, class))
        .collect();
    let named: Vec<Line<'_>> =
        lines.iter().map(|(run, points)| Line { name: &run.config.policy, points }).collect();
    let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
    paths + &names((width, frame.height), &named, &classes)
}

fn names(size: (f64, f64), lines: &[Line<'_>], classes: &[&str]) -> String {
    let labels = place(lines, size);
    (lines.iter().zip(classes).zip(labels))
        .filter_map(|((line, class), label)| {
            let Label { x, y, anchor, leader } = label?;
            let (x, name) = (percent(x), escape(line.name));
            let leader = leader.map_or(String::new(), |[from, to]| {
                let [x1, x2] = [percent(from.0), percent(to.0)];
                let [y1, y2] = [pixels(from.1), pixels(to.1)];
                format!(
                    "<line class=\"leader {class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
                )
            });
            Some(format!(
                "{leader}<text class=\"name {class}\" x=\"{x}\" y=\"{}\" dy=\".35em\" \
                 text-anchor=\"{anchor}\">{name}</text>",
                pixels(y),
            ))
        })
        .collect()
}
