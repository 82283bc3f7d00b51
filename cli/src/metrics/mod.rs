//! What a run achieved: utilization, throughput, latency, and where the time and memory went.
//!
//! A replay tells a [`Recorder`] what happens and gets back a [`Run`]. Times are seconds, or steps
//! when the run is decisions only ([`Unit`]); nothing here reads a clock.

mod recorder;
mod series;
mod stats;
mod timeline;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

pub(crate) use recorder::Recorder;
pub(crate) use series::{Integrals, Series};
pub(crate) use stats::{Distribution, percentile, ratio};
pub(crate) use timeline::{Interval, Outcome, Timeline};

/// What a run's times count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Seconds, measured or modelled.
    #[default]
    Seconds,
    /// Steps: nothing was executed, so no step has a duration.
    Steps,
}

/// What a recorder must know of a run beforehand.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunConfig {
    /// Name of the policy, the run's name in every output.
    pub(crate) policy: String,
    /// The most requests that can hold a slot at once.
    pub(crate) slots: usize,
    /// KV blocks the run may hold.
    pub(crate) usable_blocks: usize,
    /// Tokens per block.
    pub(crate) block_size: usize,
    /// What times count.
    pub(crate) unit: Unit,
    /// Whether to keep what only a report needs.
    pub(crate) keep_timeline: bool,
}

/// One step as the replay saw it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepSample {
    /// When it started.
    pub(crate) start_s: f64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Rows that advanced a request.
    pub(crate) useful_rows: u32,
    /// Requests holding a slot, those of a static batch that have ended included.
    pub(crate) held_slots: u32,
    /// Requests arrived but not admitted.
    pub(crate) waiting: u32,
    /// Tokens computed that a request needed, each counted once.
    pub(crate) useful_tokens: u64,
    /// Tokens computed again, since a preemption had lost them.
    pub(crate) recomputed_tokens: u64,
    /// Tokens computed, padding included.
    pub(crate) computed_tokens: u64,
    /// Tokens stored in the blocks held.
    pub(crate) kv_used_tokens: u64,
    /// KV blocks held.
    pub(crate) held_blocks: u32,
    /// Tokens produced.
    pub(crate) output_tokens: u32,
}

/// A finished run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// What the run was.
    pub(crate) config: RunConfig,
    /// The numbers, as in the JSON document.
    pub(crate) summary: Summary,
    /// Per-request times, for distributions.
    pub(crate) latencies: Latencies,
    /// Slots and rates over time, if [`RunConfig::keep_timeline`].
    pub(crate) timeline: Option<Timeline>,
}

/// Per-request times in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    /// Arrival to first token.
    pub(crate) ttft: Vec<f64>,
    /// Mean time between a request's tokens; requests of one token have none.
    pub(crate) tpot: Vec<f64>,
    /// Arrival to return.
    pub(crate) latency: Vec<f64>,
    /// Arrival to first admission.
    pub(crate) queue: Vec<f64>,
}

/// The numbers of a run. A quantity that is undefined (an empty set, a zero denominator) is `None`
/// and `null` in JSON, so no non-finite number gets out.
///
/// Latencies are of finished requests. All times are in [`Summary::unit`], in which a run that is
/// decisions only counts steps although field names say seconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// Name of the policy.
    pub(crate) policy: String,
    /// Requests finished.
    pub(crate) requests: u64,
    /// Steps taken.
    pub(crate) steps: u64,
    /// Makespan: first arrival (or step) to the end.
    pub(crate) seconds: f64,
    /// Tokens produced.
    pub(crate) output_tokens: u64,
    /// Tokens produced per second of makespan.
    pub(crate) output_tokens_per_s: Option<f64>,
    /// Useful rows ÷ slots, weighted by step time; idle time between steps does not count.
    pub(crate) slot_utilization: Option<f64>,
    /// 1 − useful ÷ computed tokens.
    pub(crate) padding_waste: Option<f64>,
    /// Tokens stored ÷ capacity of the blocks held, both integrated over step time.
    pub(crate) kv_utilization: Option<f64>,
    /// Time to first token.
    pub(crate) ttft_s: Distribution,
    /// Time per output token after the first.
    pub(crate) tpot_s: Distribution,
    /// Arrival to return.
    pub(crate) latency_s: Distribution,
    /// Requests refused, by reason.
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// Times a request lost its slot.
    pub(crate) preemptions: u64,
    /// Prompt tokens found in the cache at a request's first admission.
    pub(crate) prefix_hit_tokens: u64,
    /// Prompt tokens of the requests admitted, each request once.
    pub(crate) prompt_tokens: u64,

    /// What times count.
    pub(crate) unit: Unit,
    /// Slots of the run.
    pub(crate) slots: usize,
    /// Finished requests per second of makespan.
    pub(crate) requests_per_s: Option<f64>,
    /// Requests neither finished nor refused when the run ended.
    pub(crate) unfinished: u64,
    /// Requests cut short.
    pub(crate) truncated: u64,
    /// Time spent in steps.
    pub(crate) busy_s: f64,
    /// Slots held, mean over step time.
    pub(crate) slots_held: Option<f64>,
    /// Useful rows ÷ held slots, both integrated over step time.
    pub(crate) slots_useful: Option<f64>,
    /// Tokens computed again, since a preemption had lost them.
    pub(crate) recomputed_tokens: u64,
    /// Tokens computed that a request needed.
    pub(crate) useful_tokens: u64,
    /// Tokens computed, padding included.
    pub(crate) computed_tokens: u64,
    /// Computed ÷ useful tokens.
    pub(crate) computed_per_useful: Option<f64>,
    /// Blocks held ÷ usable blocks, mean over step time.
    pub(crate) kv_held: Option<f64>,
    /// Requests waiting, mean over step time.
    pub(crate) waiting: Option<f64>,
    /// Arrival to first admission.
    pub(crate) queue_s: Distribution,
    /// Tokens found in the cache when preempted requests were admitted again.
    pub(crate) resumed_hit_tokens: u64,
    /// What the device computed, if it does; else there is no such key in JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) measured: Option<Measured>,
}

/// What a device really computed in a run, padding included.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Measured {
    /// FLOPs of attention.
    pub(crate) attention_flops: f64,
    /// Bytes of keys and values read, each row's once per step and layer.
    pub(crate) kv_bytes_read: f64,
}

/// The JSON document of a replay; its keys keep the order of the fields.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    trace: &'a str,
    device: &'a str,
    runs: Vec<&'a Summary>,
    config: serde_json::Value,
}

/// Assembles the JSON document; `config` echoes the settings the runs share.
pub(crate) fn document<'a>(
    trace: &'a str,
    device: &'a str,
    config: serde_json::Value,
    runs: &'a [Run],
) -> Document<'a> {
    Document { trace, device, runs: runs.iter().map(|run| &run.summary).collect(), config }
}
