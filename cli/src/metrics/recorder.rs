//! Folds the events of a run into its summary as they happen.

use std::collections::{BTreeMap, HashMap};

use super::timeline::Slots;
use super::{
    Distribution, Integrals, Interval, Latencies, Outcome, Run, RunConfig, StepSample, Summary,
    Timeline, ratio,
};

/// Hears what happens in a run, in order of time, and sums it up.
///
/// A request is forgotten once it is finished or refused, so memory follows the requests in
/// flight. A re-used id must have finished before it arrives again.
#[derive(Debug)]
pub(crate) struct Recorder {
    config: RunConfig,
    live: HashMap<u64, Request>,
    /// The earliest arrival or step.
    origin: f64,
    whole: Integrals,
    steps: u64,
    useful_tokens: u64,
    recomputed_tokens: u64,
    computed_tokens: u64,
    output_tokens: u64,
    prompt_tokens: u64,
    prefix_hit_tokens: u64,
    resumed_hit_tokens: u64,
    requests: u64,
    preemptions: u64,
    truncated: u64,
    refused: BTreeMap<&'static str, u64>,
    latencies: Latencies,
    timeline: Option<(Timeline, Slots)>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    arrived: f64,
    first_token: f64,
    last_token: f64,
    ended: Option<f64>,
    prompt_tokens: u32,
    cached_tokens: u32,
    /// Tokens of its context computed at least once, in chunks.
    computed: u32,
    tokens: u32,
    admitted: bool,
    stay: Option<Stay>,
}

#[derive(Clone, Copy, Debug)]
struct Stay {
    slot: u32,
    start: f64,
}

impl Recorder {
    /// Starts a run.
    pub(crate) fn new(config: RunConfig) -> Self {
        let timeline = config.keep_timeline.then(Default::default);
        Self {
            config,
            live: HashMap::new(),
            origin: f64::INFINITY,
            whole: Integrals::default(),
            steps: 0,
            useful_tokens: 0,
            recomputed_tokens: 0,
            computed_tokens: 0,
            output_tokens: 0,
            prompt_tokens: 0,
            prefix_hit_tokens: 0,
            resumed_hit_tokens: 0,
            requests: 0,
            preemptions: 0,
            truncated: 0,
            refused: BTreeMap::new(),
            latencies: Latencies::default(),
            timeline,
        }
    }

    /// A request arrived; nothing else may be said of it before.
    pub(crate) fn arrived(&mut self, id: u64, t: f64, prompt_tokens: u32) {
        self.origin = self.origin.min(t);
        let request = Request {
            arrived: t,
            first_token: f64::NAN,
            last_token: f64::NAN,
            ended: None,
            prompt_tokens,
            cached_tokens: 0,
            computed: 0,
            tokens: 0,
            admitted: false,
            stay: None,
        };
        let twice = self.live.insert(id, request);
        debug_assert!(twice.is_none(), "request {id} arrived twice");
    }

    /// It got a slot, for the first time or again, and found `cached_tokens` in the cache.
    pub(crate) fn admitted(&mut self, id: u64, t: f64, cached_tokens: u32) {
        let Some(request) = self.live.get_mut(&id) else { return unknown(id) };
        request.cached_tokens = cached_tokens;
        // A request that resumes finds its own tokens: no credit to prefix sharing.
        if request.admitted {
            self.resumed_hit_tokens += u64::from(cached_tokens);
        } else {
            request.admitted = true;
            self.prefix_hit_tokens += u64::from(cached_tokens);
            self.prompt_tokens += u64::from(request.prompt_tokens);
            self.latencies.queue.push(t - request.arrived);
        }
        if let Some((_, slots)) = &mut self.timeline {
            request.stay = Some(Stay { slot: slots.take(), start: t });
        }
    }

    /// Tokens `start..end` of its context were computed, not one by one; how many of them for a
    /// second time.
    pub(crate) fn chunk(&mut self, id: u64, start: u32, end: u32) -> u32 {
        let Some(request) = self.live.get_mut(&id) else { return 0 };
        // With output, all but the newest token had been computed.
        let decoded = match request.tokens {
            0 => 0,
            tokens => request.prompt_tokens + tokens - 1,
        };
        let before = request.computed.max(decoded);
        request.computed = request.computed.max(end);
        end.min(before).saturating_sub(start)
    }

    /// It lost its slot and waits again.
    pub(crate) fn preempted(&mut self, id: u64, t: f64) {
        self.preemptions += 1;
        self.leave(id, t, Outcome::Preempted);
    }

    /// It has one more token.
    pub(crate) fn token(&mut self, id: u64, t: f64) {
        let Some(request) = self.live.get_mut(&id) else { return unknown(id) };
        if request.tokens == 0 {
            request.first_token = t;
        }
        request.last_token = t;
        request.tokens += 1;
        self.output_tokens += 1;
    }

    /// Its last token exists; it may go on holding its slot.
    pub(crate) fn ended(&mut self, id: u64, t: f64) {
        let Some(request) = self.live.get_mut(&id) else { return unknown(id) };
        request.ended = Some(t);
    }

    /// It was returned and its slot released.
    pub(crate) fn finished(&mut self, id: u64, t: f64) {
        self.leave(id, t, Outcome::Finished);
        let Some(request) = self.live.remove(&id) else { return unknown(id) };
        self.requests += 1;
        self.latencies.latency.push(t - request.arrived);
        if request.tokens > 0 {
            self.latencies.ttft.push(request.first_token - request.arrived);
        }
        if request.tokens > 1 {
            let gaps = f64::from(request.tokens - 1);
            self.latencies.tpot.push((request.last_token - request.first_token) / gaps);
        }
    }

    /// It will never be served; it may never have arrived.
    pub(crate) fn refused(&mut self, id: u64, kind: &'static str) {
        self.live.remove(&id);
        *self.refused.entry(kind).or_default() += 1;
    }

    /// It was cut short; its end is reported as any other's.
    pub(crate) fn truncated(&mut self) {
        self.truncated += 1;
    }

    /// One step was taken.
    pub(crate) fn step(&mut self, sample: &StepSample) {
        self.origin = self.origin.min(sample.start_s);
        self.steps += 1;
        self.useful_tokens += sample.useful_tokens;
        self.recomputed_tokens += sample.recomputed_tokens;
        self.computed_tokens += sample.computed_tokens;
        self.whole += Integrals::of(sample);
        if let Some((timeline, _)) = &mut self.timeline {
            timeline.series.add(sample);
        }
    }

    /// The run is over.
    pub(crate) fn finish(mut self, end_s: f64) -> Run {
        let holding = |request: &Request| request.stay.is_some();
        let running: Vec<u64> =
            self.live.iter().filter(|(_, r)| holding(r)).map(|(&id, _)| id).collect();
        for id in running {
            self.leave(id, end_s, Outcome::Running);
        }
        let Latencies { ttft, tpot, latency, queue } = &mut self.latencies;
        for times in [ttft, tpot, latency, queue] {
            times.retain(|time| time.is_finite());
            times.sort_unstable_by(f64::total_cmp);
        }
        let summary = self.summary(end_s);
        let timeline = self.timeline.map(|(mut timeline, _)| {
            timeline
                .intervals
                .sort_unstable_by(|a, b| a.start.total_cmp(&b.start).then(a.slot.cmp(&b.slot)));
            timeline
        });
        Run { config: self.config, summary, latencies: self.latencies, timeline }
    }

    fn leave(&mut self, id: u64, t: f64, outcome: Outcome) {
        let Some((timeline, slots)) = &mut self.timeline else { return };
        let Some(request) = self.live.get_mut(&id) else { return };
        let Some(Stay { slot, start }) = request.stay.take() else { return };
        slots.release(slot);
        timeline.intervals.push(Interval {
            slot,
            id,
            start,
            end_useful: request.ended.unwrap_or(t),
            end_held: t,
            prompt_tokens: request.prompt_tokens,
            cached_tokens: request.cached_tokens,
            output_tokens: request.tokens,
            outcome,
        });
    }

    fn summary(&self, end_s: f64) -> Summary {
        let RunConfig { policy, slots, usable_blocks, block_size, unit, .. } = &self.config;
        let whole = &self.whole;
        let makespan = end_s - self.origin;
        let seconds = if makespan.is_finite() { makespan.max(0.0) } else { 0.0 };
        let (useful, computed) = (self.useful_tokens as f64, self.computed_tokens as f64);
        let padding = computed - useful - self.recomputed_tokens as f64;
        let mean = |integral: f64| ratio(integral, whole.busy);
        Summary {
            policy: policy.clone(),
            requests: self.requests,
            steps: self.steps,
            seconds,
            output_tokens: self.output_tokens,
            output_tokens_per_s: ratio(self.output_tokens as f64, seconds),
            slot_utilization: ratio(whole.useful_rows, whole.busy * *slots as f64),
            padding_waste: ratio(padding, computed),
            kv_utilization: ratio(whole.kv_tokens, whole.blocks * *block_size as f64),
            ttft_s: Distribution::of(&self.latencies.ttft),
            tpot_s: Distribution::of(&self.latencies.tpot),
            latency_s: Distribution::of(&self.latencies.latency),
            refused: self.refused.clone(),
            preemptions: self.preemptions,
            prefix_hit_tokens: self.prefix_hit_tokens,
            prompt_tokens: self.prompt_tokens,
            unit: *unit,
            slots: *slots,
            requests_per_s: ratio(self.requests as f64, seconds),
            unfinished: self.live.len() as u64,
            truncated: self.truncated,
            busy_s: whole.busy,
            slots_held: mean(whole.held_slots),
            slots_useful: ratio(whole.useful_rows, whole.held_slots),
            recomputed_tokens: self.recomputed_tokens,
            useful_tokens: self.useful_tokens,
            computed_tokens: self.computed_tokens,
            computed_per_useful: ratio(computed, useful),
            kv_held: ratio(whole.blocks, whole.busy * *usable_blocks as f64),
            waiting: mean(whole.waiting),
            queue_s: Distribution::of(&self.latencies.queue),
            resumed_hit_tokens: self.resumed_hit_tokens,
            measured: None,
        }
    }
}

/// An event of a request that is not in flight is the replay's mistake, and changes nothing.
fn unknown(id: u64) {
    debug_assert!(false, "request {id} is not in flight");
}
