//! What a run did over time, in at most [`Series::LIMIT`] bins however long it lasts.

use std::ops::{AddAssign, Mul};

use super::StepSample;

/// Integrals over a stretch of time: a rate times the seconds it lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Integrals {
    /// Time in steps.
    pub(crate) busy: f64,
    /// Rows doing useful work × time.
    pub(crate) useful_rows: f64,
    /// Held slots × time.
    pub(crate) held_slots: f64,
    /// Waiting requests × time.
    pub(crate) waiting: f64,
    /// Tokens stored in the KV cache × time.
    pub(crate) kv_tokens: f64,
    /// Blocks held × time.
    pub(crate) blocks: f64,
    /// Tokens produced.
    pub(crate) output_tokens: f64,
}

impl Integrals {
    /// One whole step.
    pub(crate) fn of(step: &StepSample) -> Self {
        let time = duration(step);
        Self {
            busy: time,
            useful_rows: f64::from(step.useful_rows) * time,
            held_slots: f64::from(step.held_slots) * time,
            waiting: f64::from(step.waiting) * time,
            kv_tokens: step.kv_used_tokens as f64 * time,
            blocks: f64::from(step.held_blocks) * time,
            output_tokens: f64::from(step.output_tokens),
        }
    }
}

impl AddAssign for Integrals {
    fn add_assign(&mut self, other: Self) {
        self.busy += other.busy;
        self.useful_rows += other.useful_rows;
        self.held_slots += other.held_slots;
        self.waiting += other.waiting;
        self.kv_tokens += other.kv_tokens;
        self.blocks += other.blocks;
        self.output_tokens += other.output_tokens;
    }
}

impl Mul<f64> for Integrals {
    type Output = Self;

    fn mul(self, share: f64) -> Self {
        Self {
            busy: self.busy * share,
            useful_rows: self.useful_rows * share,
            held_slots: self.held_slots * share,
            waiting: self.waiting * share,
            kv_tokens: self.kv_tokens * share,
            blocks: self.blocks * share,
            output_tokens: self.output_tokens * share,
        }
    }
}

/// Consecutive bins of equal width; pairs of bins merge whenever the run outgrows them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    origin: f64,
    width: f64,
    bins: Vec<Integrals>,
}

impl Series {
    /// The most bins a series holds.
    pub(crate) const LIMIT: usize = 2000;

    /// Adds a step, spread evenly over the bins it spans; a step of no duration is dropped.
    pub(crate) fn add(&mut self, step: &StepSample) {
        let (start, time) = (step.start_s, duration(step));
        let end = start + time;
        if !end.is_finite() || time == 0.0 {
            return;
        }
        if self.bins.is_empty() {
            // Far narrower than the step: merging coarsens bins, nothing refines them.
            (self.origin, self.width) = (start, (time / 1024.0).max(f64::MIN_POSITIVE));
        }
        while end > self.origin + self.width * Self::LIMIT as f64 {
            self.merge_pairs();
        }
        let whole = Integrals::of(step);
        let (first, last) = (self.bin_at(start), self.bin_at(end));
        if self.bins.len() <= last {
            self.bins.resize(last + 1, Integrals::default());
        }
        for (i, bin) in self.bins.iter_mut().enumerate().take(last + 1).skip(first) {
            let left = self.origin + self.width * i as f64;
            *bin += whole * (overlap(left, left + self.width, start, end) / time);
        }
    }

    /// What happened between two times.
    pub(crate) fn between(&self, from: f64, to: f64) -> Integrals {
        let mut sum = Integrals::default();
        if self.bins.is_empty() {
            return sum;
        }
        let (first, last) = (self.bin_at(from), self.bin_at(to));
        for (i, bin) in self.bins.iter().enumerate().take(last + 1).skip(first) {
            let left = self.origin + self.width * i as f64;
            sum += *bin * (overlap(left, left + self.width, from, to) / self.width);
        }
        sum
    }

    /// The width of a bin: no finer question is worth asking.
    pub(crate) fn resolution(&self) -> f64 {
        self.width
    }

    fn bin_at(&self, time: f64) -> usize {
        // A float-to-int cast saturates, so a time before the origin is in the first bin.
        (((time - self.origin) / self.width) as usize).min(Self::LIMIT - 1)
    }

    fn merge_pairs(&mut self) {
        self.width *= 2.0;
        let half = self.bins.len().div_ceil(2);
        for i in 0..half {
            let mut pair = self.bins[2 * i];
            if let Some(&second) = self.bins.get(2 * i + 1) {
                pair += second;
            }
            self.bins[i] = pair;
        }
        self.bins.truncate(half);
    }
}

/// A step's duration; negative and NaN count as none.
fn duration(step: &StepSample) -> f64 {
    if step.seconds.is_finite() { step.seconds.max(0.0) } else { 0.0 }
}

fn overlap(a_from: f64, a_to: f64, b_from: f64, b_to: f64) -> f64 {
    (a_to.min(b_to) - a_from.max(b_from)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(start_s: f64, seconds: f64, useful_rows: u32) -> StepSample {
        StepSample { start_s, seconds, useful_rows, output_tokens: 1, ..StepSample::default() }
    }

    #[test]
    fn a_long_run_keeps_its_integrals_in_few_bins() {
        let mut series = Series::default();
        for i in 0..100_000 {
            series.add(&step(f64::from(i) * 0.5, 0.25, 4));
        }
        assert!(series.bins.len() <= Series::LIMIT);
        assert!(series.bins.len() > Series::LIMIT / 2);
        let all = series.between(0.0, 1e9);
        assert!((all.output_tokens - 100_000.0).abs() < 1e-6);
        assert!((all.useful_rows - 100_000.0).abs() < 1e-6);
        let half = series.between(0.0, 25_000.0);
        assert!((half.busy - 12_500.0).abs() < 1.0);
    }

    #[test]
    fn hostile_times_are_harmless() {
        let mut series = Series::default();
        series.add(&step(0.0, f64::NAN, 1));
        series.add(&step(f64::INFINITY, 1.0, 1));
        series.add(&step(0.0, -1.0, 1));
        assert_eq!(series.between(0.0, 1.0), Integrals::default());
        series.add(&step(0.0, 1e-9, 1));
        series.add(&step(1e12, 1.0, 1));
        assert!((series.between(0.0, 2e12).output_tokens - 2.0).abs() < 1e-9);
    }
}
