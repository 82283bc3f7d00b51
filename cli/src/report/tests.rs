use super::*;
use crate::metrics::{Recorder, RunConfig, StepSample};

/// A run of batches of `slots` requests; each request lasts as many seconds as its place says.
fn run(policy: &str, requests: u64, slots: u32, unit: Unit) -> Run {
    let mut recorder = Recorder::new(RunConfig {
        policy: policy.to_owned(),
        slots: slots as usize,
        usable_blocks: 4 * slots as usize,
        block_size: 16,
        unit,
        keep_timeline: true,
    });
    let mut now = 0.0;
    for first in (0..requests).step_by(slots as usize) {
        let batch: Vec<u64> = (first..requests.min(first + u64::from(slots))).collect();
        for &id in &batch {
            recorder.arrived(id, now, 20);
            recorder.admitted(id, now, 0);
        }
        for (i, &id) in batch.iter().enumerate() {
            recorder.step(&StepSample {
                start_s: now,
                seconds: 1.0,
                useful_rows: (batch.len() - i) as u32,
                held_slots: batch.len() as u32,
                useful_tokens: (batch.len() - i) as u64,
                recomputed_tokens: 0,
                computed_tokens: batch.len() as u64,
                kv_used_tokens: 20,
                held_blocks: slots,
                output_tokens: 1,
                ..StepSample::default()
            });
            now += 1.0;
            recorder.token(id, now);
            recorder.ended(id, now);
        }
        for &id in &batch {
            recorder.finished(id, now);
        }
    }
    recorder.finish(now)
}

fn page(trace: &str, runs: &[Run]) -> String {
    html(trace, "test <device>", &[("a".to_owned(), "<b>".to_owned())], runs)
}

/// Checks that tags nest; returns how many elements there are.
fn elements(html: &str) -> usize {
    let mut open: Vec<&str> = Vec::new();
    let mut count = 0;
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.split_whitespace().next().expect("a tag has a name");
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "near {}", &rest[..rest.len().min(80)]);
        } else {
            count += 1;
            assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
            if !(tag.ends_with('/') || ["!DOCTYPE", "meta"].contains(&name)) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    count
}

#[test]
fn well_formed_whatever_the_runs() {
    let seconds = |policy, requests, slots| run(policy, requests, slots, Unit::Seconds);
    assert!(elements(&page("none", &[])) > 10);
    assert!(elements(&page("empty", &[seconds("a", 0, 4)])) > 10);
    assert!(elements(&page("mixed", &[seconds("a", 0, 4), seconds("b", 9, 4)])) > 50);
    assert!(elements(&page("one", &[seconds("a", 1, 4)])) > 50);
    assert!(elements(&page("two", &[seconds("a", 30, 4), seconds("b", 30, 8)])) > 100);
    let steps: Vec<Run> = (0..7).map(|i| run("p", 20 + i, 4, Unit::Steps)).collect();
    assert!(elements(&page("seven", &steps)) > 100);
}

#[test]
fn self_contained_and_escaped() {
    let name = "<script>alert('x')</script>.jsonl";
    let runs = [run("<i>&", 30, 4, Unit::Seconds), run("b\"", 30, 4, Unit::Seconds)];
    let page = page(name, &runs);
    for forbidden in ["http", "<script", "<link", "<i>&", "@import", "NaN", "inf%"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;.jsonl"));
    assert!(page.contains("test &lt;device&gt;"));
    assert!(page.contains("<dd>&lt;b&gt;</dd>"));
}

#[test]
fn long_traces_make_small_pages() {
    let runs: Vec<Run> = [64, 256, 4096].map(|n| run("p", 19_000, n, Unit::Seconds)).into();
    let page = page("long", &runs);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert!(page.contains("The busiest"));
    assert!(page.contains("The band marks"));
}

#[test]
fn short_traces_are_shown_whole() {
    let runs = [run("p", 12, 4, Unit::Seconds)];
    let page = page("short", &runs);
    assert!(page.contains("The whole trace."));
    assert_eq!(page.matches("<title>request ").count(), 12);
    assert!(page.contains(
        "request 0, slot 0\nprompt 20, output 1 tokens\n0 s to 1.00 s, held until 4.00 s"
    ));
    // Of 4 slots × 12 s, useful are 3 batches × (1 + 2 + 3 + 4) s.
    assert!(page.contains("62 % useful") || page.contains("63 % useful"));
}

#[test]
fn without_timelines_only_numbers() {
    let mut run = run("p", 12, 4, Unit::Seconds);
    run.timeline = None;
    let page = page("t", &[run]);
    assert!(elements(&page) > 50);
    assert!(!page.contains("Who holds which slot"));
    assert!(page.contains("How long requests take"));
}
