use super::*;

fn config(slots: usize) -> RunConfig {
    RunConfig {
        policy: "test".to_owned(),
        slots,
        usable_blocks: 10,
        block_size: 16,
        unit: Unit::Seconds,
        keep_timeline: true,
    }
}

fn spread(mean: f64, p50: f64, p99: f64) -> Distribution {
    Distribution { mean: Some(mean), p50: Some(p50), p99: Some(p99) }
}

#[test]
fn utilization_is_weighted_by_time() {
    let mut recorder = Recorder::new(config(4));
    recorder.step(&StepSample {
        start_s: 0.0,
        seconds: 1.0,
        useful_rows: 4,
        held_slots: 4,
        waiting: 2,
        useful_tokens: 40,
        recomputed_tokens: 0,
        computed_tokens: 40,
        kv_used_tokens: 80,
        held_blocks: 5,
        output_tokens: 4,
    });
    recorder.step(&StepSample {
        start_s: 2.0,
        seconds: 3.0,
        useful_rows: 1,
        held_slots: 4,
        waiting: 0,
        useful_tokens: 10,
        recomputed_tokens: 0,
        computed_tokens: 60,
        kv_used_tokens: 16,
        held_blocks: 5,
        output_tokens: 1,
    });
    let summary = recorder.finish(5.0).summary;
    assert_eq!(summary.steps, 2);
    assert_eq!((summary.seconds, summary.busy_s), (5.0, 4.0));
    // (1 s × 4 + 3 s × 1) / (4 s × 4 slots)
    assert_eq!(summary.slot_utilization, Some(7.0 / 16.0));
    assert_eq!(summary.slots_held, Some(4.0));
    assert_eq!(summary.slots_useful, Some(7.0 / 16.0));
    assert_eq!(summary.waiting, Some(0.5));
    assert_eq!(summary.padding_waste, Some(0.5));
    assert_eq!(summary.computed_per_useful, Some(2.0));
    // (1 s × 80 + 3 s × 16) / (4 s × 5 blocks × 16)
    assert_eq!(summary.kv_utilization, Some(0.4));
    assert_eq!(summary.kv_held, Some(0.5));
}

#[test]
fn latencies_are_those_of_finished_requests() {
    let mut recorder = Recorder::new(config(4));
    recorder.arrived(0, 1.0, 10);
    recorder.arrived(7, 2.0, 20);
    recorder.arrived(9, 2.0, 30);
    recorder.admitted(0, 2.0, 0);
    recorder.admitted(7, 2.0, 16);
    for t in [3.0, 4.0, 7.0] {
        recorder.token(0, t);
    }
    recorder.token(7, 3.0);
    recorder.ended(7, 3.0);
    recorder.ended(0, 7.0);
    recorder.finished(0, 8.0);
    recorder.finished(7, 8.0);
    recorder.truncated();
    let run = recorder.finish(9.0);
    let summary = &run.summary;
    assert_eq!((summary.requests, summary.unfinished, summary.truncated), (2, 1, 1));
    assert_eq!(summary.seconds, 8.0);
    assert_eq!(summary.output_tokens_per_s, Some(0.5));
    assert_eq!(summary.requests_per_s, Some(0.25));
    assert_eq!(summary.ttft_s, spread(1.5, 1.0, 2.0));
    // The request of one token has no time between tokens.
    assert_eq!(summary.tpot_s, spread(2.0, 2.0, 2.0));
    assert_eq!(summary.latency_s, spread(6.5, 6.0, 7.0));
    assert_eq!(summary.queue_s, spread(0.5, 0.0, 1.0));
    assert_eq!((summary.prefix_hit_tokens, summary.prompt_tokens), (16, 30));
    assert_eq!(run.latencies.latency, [6.0, 7.0]);
}

#[test]
fn a_preempted_request_keeps_its_first_token_and_counts_once() {
    let mut recorder = Recorder::new(config(4));
    recorder.arrived(0, 0.0, 8);
    recorder.arrived(1, 0.0, 8);
    recorder.admitted(0, 0.0, 0);
    recorder.admitted(1, 0.0, 4);
    recorder.token(0, 1.0);
    recorder.token(1, 1.0);
    recorder.preempted(1, 1.0);
    recorder.ended(0, 1.0);
    recorder.finished(0, 2.0);
    recorder.admitted(1, 2.0, 6);
    recorder.token(1, 3.0);
    recorder.ended(1, 3.0);
    recorder.finished(1, 3.0);
    let run = recorder.finish(3.0);
    let summary = &run.summary;
    assert_eq!((summary.requests, summary.preemptions, summary.output_tokens), (2, 1, 3));
    assert_eq!((summary.prefix_hit_tokens, summary.resumed_hit_tokens), (4, 6));
    assert_eq!(summary.prompt_tokens, 16);
    assert_eq!(summary.ttft_s, spread(1.0, 1.0, 1.0));
    assert_eq!(summary.tpot_s, spread(2.0, 2.0, 2.0));
    assert_eq!(run.latencies.queue, [0.0, 0.0]);

    let timeline = run.timeline.unwrap();
    let stays: Vec<_> = (timeline.intervals.iter())
        .map(|stay| (stay.slot, stay.id, stay.start, stay.end_useful, stay.end_held, stay.outcome))
        .collect();
    assert_eq!(
        stays,
        [
            (0, 0, 0.0, 1.0, 2.0, Outcome::Finished),
            (1, 1, 0.0, 1.0, 1.0, Outcome::Preempted),
            (0, 1, 2.0, 3.0, 3.0, Outcome::Finished),
        ]
    );
    assert_eq!(timeline.intervals[2].output_tokens, 2);
    assert_eq!(timeline.intervals[2].cached_tokens, 6);
}

#[test]
fn what_still_runs_at_the_end_is_drawn_but_not_counted() {
    let mut recorder = Recorder::new(config(1));
    recorder.arrived(3, 0.0, 8);
    recorder.admitted(3, 1.0, 0);
    let run = recorder.finish(4.0);
    assert_eq!((run.summary.requests, run.summary.unfinished), (0, 1));
    let stay = run.timeline.unwrap().intervals[0];
    assert_eq!((stay.start, stay.end_held, stay.outcome), (1.0, 4.0, Outcome::Running));
}

#[test]
fn refusals_are_counted_by_kind() {
    let mut recorder = Recorder::new(config(1));
    recorder.arrived(0, 0.0, 9999);
    recorder.refused(0, "too_long");
    recorder.refused(1, "too_long");
    recorder.refused(2, "queue_full");
    let summary = recorder.finish(1.0).summary;
    assert_eq!(summary.unfinished, 0);
    assert_eq!(summary.refused, BTreeMap::from([("queue_full", 1), ("too_long", 2)]));
}

#[test]
fn an_empty_run_has_nulls_and_zeros() {
    let runs = [Recorder::new(config(0)).finish(f64::NAN)];
    assert!(runs[0].timeline.as_ref().is_some_and(|timeline| timeline.intervals.is_empty()));
    let json = serde_json::to_value(document("t", "d", serde_json::Value::Null, &runs)).unwrap();
    let run = &json["runs"][0];
    assert_eq!(run["seconds"], 0.0);
    for key in ["output_tokens_per_s", "slot_utilization", "padding_waste", "kv_utilization"] {
        assert!(run[key].is_null(), "{key}");
    }
    assert!(run["ttft_s"]["p50"].is_null());
    assert_eq!(run["refused"], serde_json::json!({}));
}

#[test]
fn the_document_keeps_its_key_order() {
    let runs = [Recorder::new(config(1)).finish(1.0)];
    let text =
        serde_json::to_string(&document("t", "d", serde_json::json!({"seed": 1}), &runs)).unwrap();
    let keys = [
        "trace",
        "device",
        "runs",
        "policy",
        "requests",
        "steps",
        "seconds",
        "output_tokens",
        "output_tokens_per_s",
        "slot_utilization",
        "padding_waste",
        "kv_utilization",
        "ttft_s",
        "tpot_s",
        "latency_s",
        "refused",
        "preemptions",
        "prefix_hit_tokens",
        "prompt_tokens",
        "unit",
        "config",
    ];
    let places: Vec<_> = keys.iter().map(|key| text.find(&format!("\"{key}\":"))).collect();
    assert!(places.iter().all(Option::is_some), "{text}");
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn no_timeline_unless_wanted() {
    let mut recorder = Recorder::new(RunConfig { keep_timeline: false, ..config(1) });
    recorder.arrived(0, 0.0, 1);
    recorder.admitted(0, 0.0, 0);
    recorder.token(0, 1.0);
    recorder.ended(0, 1.0);
    recorder.finished(0, 1.0);
    let run = recorder.finish(1.0);
    assert!(run.timeline.is_none());
    assert_eq!(run.summary.latency_s, spread(1.0, 1.0, 1.0));
}
