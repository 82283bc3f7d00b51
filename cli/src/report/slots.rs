//! Slot timelines: x is time, y is slot, a bar is a request's stay.

use super::axis::Axis;
use super::frame::{Frame, escape, percent, pixels};
use super::window::{Window, span};
use crate::metrics::{Interval, Outcome, Run, Timeline, Unit, ratio};
use crate::numbers::{duration, fixed, group};

/// Colours a request can have, as style classes `b0`, `b1`, ….
const COLOURS: u64 = 8;
/// Height a panel aims for, in pixels.
const PANEL: f64 = 300.0;
/// Slots from this one on are not drawn: a screen has no pixels for them.
const MOST_ROWS: usize = 1000;

/// One panel per run, all over the same stretch of time and with rows of the same height.
pub(super) fn panels(runs: &[Run], window: &Window) -> String {
    let kept = || runs.iter().filter_map(|run| Some((run, run.timeline.as_ref()?)));
    let most = kept().map(|(_, timeline)| rows_used(timeline, window)).max().unwrap_or(0).max(1);
    let pitch = (PANEL / most as f64).clamp(0.6, 16.0);
    kept()
        .map(|(run, timeline)| {
            let rows = most.min(run.config.slots.max(1));
            Panel { run, timeline, window, rows, pitch }.draw()
        })
        .collect()
}

/// The most bars to draw per run: enough for a few generations, few enough for a small file.
pub(super) fn bars(runs: &[Run]) -> usize {
    let slots = runs.iter().map(|run| run.config.slots).max().unwrap_or(0);
    (slots * 3).clamp(300, 1200).min(8000 / runs.len().max(1))
}

struct Panel<'a> {
    run: &'a Run,
    timeline: &'a Timeline,
    window: &'a Window,
    rows: usize,
    /// Height of a row in pixels.
    pitch: f64,
}

/// What became of the slots within the window, as shares of slots × time.
struct Shares {
    useful: f64,
    padding: f64,
    empty: f64,
}

impl Panel<'_> {
    fn draw(&self) -> String {
        let unit = self.run.config.unit;
        let frame = Frame {
            x: Axis::time(self.window.from, self.window.to, unit, 8.0),
            y: None,
            height: self.pitch * self.rows as f64,
            title: format!("Slots over time, {}", self.run.config.policy),
        };
        let bars: String = (self.timeline.intervals.iter())
            .filter(|stay| (stay.slot as usize) < self.rows && self.window.shows(stay))
            .map(|stay| self.bar(stay, &frame))
            .collect();
        let Shares { useful, padding, empty } = self.shares();
        let share = |share: f64| fixed(share * 100.0, 0) + " %";
        format!(
            "<h3>{}</h3><p class=\"key\"><span><i class=\"useful\"></i>{} useful</span> \
             <span><i class=\"held\"></i>{} held after the last token</span> \
             <span><i class=\"empty\"></i>{} empty</span></p>\n{}",
            escape(&self.run.config.policy),
            share(useful),
            share(padding),
            share(empty),
            frame.draw(&(self.row_labels() + &bars + &self.end(&frame))),
        )
    }

    fn bar(&self, stay: &Interval, frame: &Frame) -> String {
        let pitch = self.pitch;
        let (start, useful, held) =
            (frame.x(stay.start), frame.x(stay.end_useful), frame.x(stay.end_held));
        let gap = if pitch >= 4.0 { 1.0 } else { pitch * 0.2 };
        let top = f64::from(stay.slot) * pitch;
        let (y, height) = (pixels(top + gap / 2.0), pixels(pitch - gap));
        let rect = |class: &str, from: f64, to: f64| {
            if to <= from {
                return String::new();
            }
            let (x, width) = (percent(from), percent(to - from));
            format!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>"
            )
        };
        let mut marks = rect(&format!("b{}", colour(stay.id)), start, useful);
        marks += &rect("held", useful, held);
        if stay.outcome == Outcome::Preempted && stay.end_held <= self.window.to {
            let (x, bottom) = (percent(held), pixels(top + pitch - gap / 2.0));
            marks +=
                &format!("<line class=\"cut\" x1=\"{x}\" x2=\"{x}\" y1=\"{y}\" y2=\"{bottom}\"/>");
        }
        let name = stay.id.to_string();
        if pitch >= 11.0 && useful - start > 0.01 + 0.007 * name.len() as f64 {
            let (x, middle) = (percent(start), pixels(top + pitch / 2.0));
            marks += &format!(
                "<text class=\"id\" x=\"{x}\" y=\"{middle}\" dx=\"4\" dy=\".34em\">{name}</text>"
            );
        }
        format!("<g><title>{}</title>{marks}</g>", self.tooltip(stay))
    }

    fn tooltip(&self, stay: &Interval) -> String {
        let time = |t: f64| duration(t, self.run.config.unit);
        let cached = match stay.cached_tokens {
            0 => String::new(),
            n => format!(" ({} cached)", group(n.into())),
        };
        let end = match stay.outcome {
            Outcome::Finished if stay.end_held > stay.end_useful => {
                format!(", held until {}", time(stay.end_held))
            }
            Outcome::Finished => String::new(),
            Outcome::Preempted => ", preempted".to_owned(),
            Outcome::Running => ", still running".to_owned(),
        };
        format!(
            "request {}, slot {}\nprompt {}{cached}, output {} tokens\n{} to {}{end}",
            stay.id,
            stay.slot,
            group(stay.prompt_tokens.into()),
            group(stay.output_tokens.into()),
            time(stay.start),
            time(stay.end_useful),
        )
    }

    fn row_labels(&self) -> String {
        let label = |row: usize, text: &str| {
            let y = pixels((row as f64 + 0.5) * self.pitch);
            format!("<text x=\"-8\" y=\"{y}\" dy=\".35em\" text-anchor=\"end\">{text}</text>")
        };
        let last = self.rows - 1;
        let mut labels = label(0, "slot 0");
        if self.pitch * last as f64 >= 14.0 {
            labels += &label(last, &last.to_string());
        }
        labels
    }

    /// Says where the run was over, if others still go on.
    fn end(&self, frame: &Frame) -> String {
        let (_, end) = span(&[self.timeline]);
        let x = frame.x(end);
        if end >= self.window.to || x > 0.8 {
            return String::new();
        }
        let unit = self.run.config.unit;
        let (x, middle, label) = (percent(x), frame.height / 2.0, duration(end, unit));
        format!(
            "<line class=\"end\" x1=\"{x}\" x2=\"{x}\" y2=\"{}\"/>\
             <text class=\"note\" x=\"{x}\" dx=\"6\" y=\"{middle}\" dy=\".35em\">done at {label}</text>",
            frame.height
        )
    }

    fn shares(&self) -> Shares {
        let (from, to) = span(&[self.timeline]);
        let slot_time = self.window.overlap(from, to) * self.run.config.slots as f64;
        let total = |part: fn(&Interval) -> (f64, f64)| {
            let times = self.timeline.intervals.iter().map(part);
            let sum = times.map(|(from, to)| self.window.overlap(from, to)).sum();
            ratio(sum, slot_time).unwrap_or(0.0)
        };
        let useful = total(|stay| (stay.start, stay.end_useful));
        let padding = total(|stay| (stay.end_useful, stay.end_held));
        Shares { useful, padding, empty: (1.0 - useful - padding).max(0.0) }
    }
}

/// Scatters neighbouring ids over the palette; a request has the same colour in every run.
fn colour(id: u64) -> u64 {
    // Multiplying by 2⁶⁴/φ spreads consecutive integers evenly over the top bits.
    (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % COLOURS
}

fn rows_used(timeline: &Timeline, window: &Window) -> usize {
    let shown = timeline.intervals.iter().filter(|interval| window.shows(interval));
    shown.map(|interval| interval.slot as usize + 1).max().unwrap_or(0).min(MOST_ROWS)
}

/// The sentence under the heading of the slot timelines.
pub(super) fn caption(window: &Window, timelines: &[&Timeline], unit: Unit) -> String {
    let (from, to) = span(timelines);
    let extent = if window.partial {
        format!(
            "The busiest {} of {}, from {}.",
            duration(window.to - window.from, unit),
            duration(to - from, unit),
            duration(window.from, unit),
        )
    } else {
        "The whole trace.".to_owned()
    };
    let preempted = timelines
        .iter()
        .flat_map(|timeline| &timeline.intervals)
        .any(|stay| stay.outcome == Outcome::Preempted && window.shows(stay));
    let cut = if preempted { " A dark end marks a preemption." } else { "" };
    let hidden = if timelines.iter().any(|timeline| rows_used(timeline, window) == MOST_ROWS) {
        format!(" Slots from {MOST_ROWS} on are left out.")
    } else {
        String::new()
    };
    format!("{extent} Each bar is a request, in the same color in every run.{cut}{hidden}")
}
