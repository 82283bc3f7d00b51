//! Which stretch of time the slot timelines show.

use crate::metrics::{Interval, Timeline};

/// A stretch of time shown for all runs alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// Start.
    pub(super) from: f64,
    /// End.
    pub(super) to: f64,
    /// Whether it is only a part of the trace.
    pub(super) partial: bool,
}

impl Window {
    /// Everything, if that is at most `bars` stays per run; else a stretch of about as many, where
    /// the least busy run is busiest.
    pub(super) fn choose(timelines: &[&Timeline], bars: usize) -> Self {
        let span = span(timelines);
        let everything = Self { from: span.0, to: span.1, partial: false };
        let per_bar = timelines
            .iter()
            .filter(|timeline| timeline.intervals.len() > bars)
            .map(|timeline| {
                let (from, to) = self::span(&[timeline]);
                (to - from) / timeline.intervals.len() as f64
            })
            .fold(f64::INFINITY, f64::min);
        let mut length = per_bar * bars as f64;
        if !length.is_finite() || length <= 0.0 {
            return everything;
        }
        let least = length / 8.0;
        loop {
            let window = busiest(timelines, span, length);
            let most =
                timelines.iter().map(|t| t.intervals.iter().filter(|i| window.shows(i)).count());
            // A burst packs more into the stretch than the average says.
            if most.max().unwrap_or(0) <= bars * 5 / 4 || length <= least {
                return window;
            }
            length *= 0.8;
        }
    }

    /// Whether any of a stay falls into the window.
    pub(super) fn shows(&self, interval: &Interval) -> bool {
        interval.start < self.to && interval.end_held > self.from
    }

    /// How much of a stretch of time falls into the window.
    pub(super) fn overlap(&self, from: f64, to: f64) -> f64 {
        (to.min(self.to) - from.max(self.from)).max(0.0)
    }
}

/// First start to last end of what the timelines hold.
pub(super) fn span(timelines: &[&Timeline]) -> (f64, f64) {
    let intervals = || timelines.iter().flat_map(|timeline| &timeline.intervals);
    let from = intervals().map(|i| i.start).fold(f64::INFINITY, f64::min);
    let to = intervals().map(|i| i.end_held).fold(f64::NEG_INFINITY, f64::max);
    if from < to { (from, to) } else { (0.0, 1.0) }
}

fn busiest(timelines: &[&Timeline], (from, to): (f64, f64), length: f64) -> Window {
    const TRIES: usize = 200;
    let room = (to - from - length).max(0.0);
    let held =
        |timeline: &Timeline, start: f64| timeline.series.between(start, start + length).held_slots;
    let mut best = (f64::NEG_INFINITY, from);
    for i in 0..=TRIES {
        let start = from + room * i as f64 / TRIES as f64;
        let least = timelines.iter().map(|t| held(t, start)).fold(f64::INFINITY, f64::min);
        // A later stretch must be busier by more than rounding to win.
        if least > best.0 * (1.0 + 1e-9) {
            best = (least, start);
        }
    }
    Window { from: best.1, to: best.1 + length, partial: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Outcome, StepSample};

    /// Stays of one second each, back to back, `held` slots at a time.
    fn timeline(phases: &[(u32, u32)]) -> Timeline {
        let mut timeline = Timeline::default();
        let mut now = 0.0;
        for &(seconds, held) in phases {
            for _ in 0..seconds {
                timeline.series.add(&StepSample {
                    start_s: now,
                    seconds: 1.0,
                    held_slots: held,
                    ..StepSample::default()
                });
                timeline.intervals.extend((0..held).map(|slot| Interval {
                    slot,
                    id: 0,
                    start: now,
                    end_useful: now + 1.0,
                    end_held: now + 1.0,
                    prompt_tokens: 1,
                    cached_tokens: 0,
                    output_tokens: 1,
                    outcome: Outcome::Finished,
                }));
                now += 1.0;
            }
        }
        timeline
    }

    #[test]
    fn a_short_trace_is_shown_whole() {
        let short = timeline(&[(10, 2)]);
        let window = Window::choose(&[&short], 20);
        assert_eq!(window, Window { from: 0.0, to: 10.0, partial: false });
        assert_eq!(Window::choose(&[], 20).to, 1.0);
    }

    #[test]
    fn of_a_long_trace_the_busiest_part() {
        let long = timeline(&[(100, 1), (20, 8), (100, 1)]);
        let window = Window::choose(&[&long], 60);
        assert!(window.partial);
        assert!(window.from >= 99.0 && window.to <= 121.0, "{window:?}");
        let shown = long.intervals.iter().filter(|stay| window.shows(stay)).count();
        assert!((30..=75).contains(&shown), "{shown}");
    }
}
