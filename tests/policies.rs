//! What each policy promises.

#[path = "common/bench.rs"]
mod bench;
#[path = "common/device.rs"]
mod device;
#[path = "common/queues.rs"]
mod queues;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/workload.rs"]
mod workload;

use bench::{Bench, cached, limits, request};
use inflight::scheduler::HeadOfLine;
use inflight::scheduler::capacity::{Candidate, Capacity, Occupancy, Optimistic, Orca, Verdict};
use inflight::scheduler::preempt::{LeastComputed, Running, Victim};
use inflight::scheduler::queue::{Ageing, Priority};
use inflight::{Config, Error, FinishReason, Policy, Request, RequestId, Sampled, StepId, Time};
use rng::Rng;
use workload::random_job;

// Static batching.

/// Outputs of eight requests: one ends early, one late.
const OUTPUTS: [u32; 8] = [5, 200, 30, 30, 30, 30, 30, 30];

fn eight(policy: Policy) -> Bench {
    let mut bench = Bench::with(Config { max_num_seqs: 8, ..limits(200, 16) }, policy);
    (0..).zip(OUTPUTS).for_each(|(id, outputs)| {
        bench.submit(id, 10 + 5 * id as usize, outputs);
    });
    bench
}

#[test]
fn a_static_batch_computes_empty_slots_until_its_last_request_ends() {
    let mut bench = eight(Policy::static_batch());
    bench.submit(8, 3, 1);
    let kv = |(i, outputs): (usize, u32)| 10 + 5 * i + outputs as usize - 1;
    let worst = OUTPUTS.into_iter().enumerate().map(|job| kv(job).div_ceil(16)).sum::<usize>();
    for step in 1..=200 {
        let id = bench.schedule();
        let (rows, padding) = {
            let step = bench.s.step(id).expect("in flight");
            (step.rows().len(), step.padding().expect("it is a rectangle"))
        };
        let useful = if step <= 5 {
            8
        } else if step <= 30 {
            7
        } else {
            1
        };
        assert_eq!((rows, padding.rows), (useful, 8), "step {step}");
        assert_eq!(padding.num_tokens, if step == 1 { 45 } else { 1 });
        assert_eq!(padding.kv_len, 45 + step - 1, "every slot is as long as the longest");
        assert_eq!((bench.s.num_running(), bench.s.num_waiting()), (8, 1), "nobody joins");
        assert_eq!(bench.s.cache().num_free(), 200 - worst, "nor leaves");
        let outputs = bench.s.commit(id, Sampled::One(&vec![1; rows])).expect("its samples");
        let finished = outputs.as_slice().iter().filter(|output| output.finish.is_some()).count();
        let released = outputs.released().len();
        let ends = OUTPUTS.iter().filter(|&&outputs| outputs == step).count();
        assert_eq!((finished, released), (ends, if step == 200 { 8 } else { 0 }), "step {step}");
    }
    assert_eq!(bench.s.cache().num_free(), 200);
    assert_eq!(bench.turn(1).0, [(8, 0, 3)], "the next batch");
}

#[test]
fn continuous_batching_fills_a_slot_when_it_is_free() {
    let mut bench = eight(Policy::continuous());
    (8..16).for_each(|id| {
        bench.submit(id, 3, 30);
    });
    let mut admitted = Vec::new();
    let mut steps = 0;
    while bench.s.num_unfinished() > 0 {
        steps += 1;
        let (rows, _) = bench.turn(1);
        let fresh = rows.iter().filter(|row| row.1 == 0).map(|row| (steps, row.0));
        admitted.extend(fresh.filter(|(step, _)| *step > 1));
        assert!(rows.len() == 8 || bench.s.num_waiting() == 0);
    }
    let refilled = (9..15).map(|id| (31, id));
    let expected: Vec<_> = [(6, 8)].into_iter().chain(refilled).chain([(36, 15)]).collect();
    assert_eq!((admitted, steps), (expected, 200));
    // Two static batches take as long as their longest each.
    let mut fixed = eight(Policy::static_batch());
    (8..16).for_each(|id| {
        fixed.submit(id, 3, 30);
    });
    let turns = (1..).find(|_| {
        fixed.turn(1);
        fixed.s.num_unfinished() == 0
    });
    assert_eq!(turns, Some(230));
}

#[test]
fn the_prompts_of_a_static_batch_are_padded_to_the_longest_in_one_pass() {
    let config = Config { max_num_batched_tokens: 16, ..limits(200, 16) };
    let mut bench = Bench::with(config, Policy::static_batch());
    for (id, prompt) in (0..).zip([10, 25, 15, 120]) {
        bench.submit(id, prompt, 4);
    }
    let id = bench.schedule();
    let step = bench.s.step(id).expect("in flight");
    assert_eq!((step.num_tokens(), step.num_padded_tokens()), (170, 480));
    let wasted = 100.0 * (1.0 - step.num_tokens() as f64 / step.num_padded_tokens() as f64);
    assert_eq!(format!("{wasted:.1} %"), "64.6 %");
    bench.commit(id, &[1; 4]);
    let id = bench.schedule();
    let step = bench.s.step(id).expect("in flight");
    assert_eq!((step.num_tokens(), step.num_padded_tokens()), (4, 4));
}

#[test]
fn a_static_batch_goes_when_whoever_is_left_is_cancelled() {
    let mut bench = Bench::with(limits(20, 4), Policy::static_batch());
    bench.submit(0, 3, 1).submit(1, 3, 9);
    assert_eq!(bench.turn(1).1[0], (0, vec![1], Some(FinishReason::Length)));
    assert_eq!(bench.s.num_running(), 2, "the first has ended and keeps its slot");
    bench.s.cancel(RequestId(1)).expect("it runs");
    bench.s.verify().expect("every invariant");
    bench.submit(2, 3, 1);
    assert_eq!(bench.turn(1).0, [(2, 0, 3)], "nobody holds the batch any more");
    assert_eq!((bench.s.num_unfinished(), bench.s.cache().num_free()), (0, 20));
}

#[test]
fn a_static_batch_delivers_nothing_past_the_end() {
    let config = Config { overlap: true, max_steps_in_flight: 2, ..limits(20, 4) };
    let mut bench = Bench::with(config, Policy::static_batch());
    let mut stops = request(0, 3, 9);
    stops.eos = Some(7);
    bench.take(stops).submit(1, 3, 9);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    let end = Some(FinishReason::Eos);
    assert_eq!(bench.commit(first, &[7, 1]), [(0, vec![7], end), (1, vec![1], None)]);
    assert_eq!(bench.commit(second, &[7, 1]), [(1, vec![1], None)]);
    assert_eq!(bench.s.stats().finished, 1);
}

#[test]
fn steps_of_a_cancelled_batch_can_be_abandoned_after_those_of_the_next() {
    let config = Config { overlap: true, max_steps_in_flight: 3, ..limits(20, 4) };
    let mut bench = Bench::with(config, Policy::static_batch());
    bench.submit(0, 3, 9);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    bench.s.cancel(RequestId(0)).expect("it runs");
    bench.submit(1, 2, 9);
    let third = bench.schedule();
    for step in [third, second, first] {
        bench.s.abandon(step).expect("the newest");
        bench.s.verify().expect("every invariant");
    }
    let step = bench.schedule();
    let padding = bench.s.step(step).expect("in flight").padding().expect("a rectangle");
    assert_eq!((padding.rows, padding.num_tokens, padding.kv_len), (1, 2, 2));
}

// Orca.

fn orca(at_once: i32) -> Policy {
    let capacity = Box::new(Orca { at_once, about_to_finish: 8 });
    Policy { capacity, ..Policy::continuous() }
}

#[test]
fn orca_admits_when_the_batch_is_about_to_finish_or_the_request_is_urgent() {
    let mut patient = Bench::with(limits(100, 4), orca(-1));
    patient.submit(0, 4, 20);
    assert_eq!(patient.turn(1).0.len(), 1);
    patient.submit(1, 4, 4);
    for outputs in 1..12 {
        assert_eq!(patient.turn(1).0.len(), 1, "{} to go", 20 - outputs);
    }
    assert_eq!(patient.turn(1).0, [(0, 15, 1), (1, 0, 4)], "8 to go");
    let mut urgent = Bench::with(limits(100, 4), orca(-1));
    urgent.submit(0, 4, 20).turn(1);
    let mut request = request(1, 4, 4);
    request.priority = -1;
    urgent.take(request);
    assert_eq!(urgent.turn(1).0.len(), 2);
    let mut default = Bench::with(limits(100, 4), Policy::orca());
    default.submit(0, 4, 20).turn(1);
    assert_eq!(default.submit(1, 4, 4).turn(1).0.len(), 2, "at every iteration");
}

#[test]
fn orca_reserves_all_a_request_may_come_to_need() {
    let mut bench = Bench::with(limits(10, 4), Policy::orca());
    // 4 + 20 - 1 tokens of KV are 6 blocks.
    bench.submit(0, 4, 20).submit(1, 4, 20).submit(2, 4, 1);
    bench.turn(1);
    assert_eq!((bench.s.num_running(), bench.s.cache().num_free()), (1, 4));
    (0..18).for_each(|_| {
        bench.turn(1);
    });
    assert_eq!((bench.s.num_running(), bench.s.cache().num_free()), (1, 4));
    assert_eq!(bench.turn(1).0.len(), 1, "its last");
    assert_eq!(bench.turn(1).0, [(1, 0, 4), (2, 0, 4)]);
}

// Memory.

/// One workload under a policy; its preemptions.
fn preemptions(seed: u64, policy: Policy, drafts: bool) -> u64 {
    let mut rng = Rng::new(seed);
    let block_size = rng.pick(&[1, 4, 16]);
    let usable = 64usize.div_ceil(block_size).max(6);
    let chunk = rng.within(8, 80);
    let config =
        Config { max_num_batched_tokens: chunk, max_num_seqs: 12, ..cached(usable, block_size) };
    let max_model_len = config.max_model_len.min(64);
    let mut bench = Bench::with(Config { max_model_len, ..config }, policy);
    for id in 0..40 {
        let job = random_job(&mut rng, RequestId(id), &[], max_model_len, id);
        let _ = bench.s.submit(job.request);
    }
    for _ in 0..3_000 {
        if bench.s.num_unfinished() == 0 {
            return bench.s.stats().preemptions;
        }
        for id in (0..40).map(RequestId).filter(|_| drafts) {
            let _ = bench.s.set_draft(id, &[100; 6]);
        }
        bench.turn(100);
    }
    panic!("{} requests are left", bench.s.num_unfinished());
}

#[test]
fn who_guarantees_memory_never_preempts_and_who_does_not_does() {
    let total = |policy: fn() -> Policy, drafts| -> u64 {
        (0..40).map(|seed| preemptions(seed, policy(), drafts)).sum()
    };
    for drafts in [false, true] {
        let [no_evict, orca] = [Policy::no_evict, Policy::orca].map(|p| total(p, drafts));
        let [fixed] = [Policy::static_batch].map(|p| total(p, false));
        let [optimistic, most] =
            [Policy::continuous, Policy::max_utilization].map(|p| total(p, drafts));
        let least =
            total(|| Policy { victim: Box::new(LeastComputed), ..Policy::default() }, drafts);
        println!("drafts {drafts}: continuous {optimistic}, max-utilization {most}, least {least}");
        assert_eq!((no_evict, orca, fixed), (0, 0, 0));
        assert!(optimistic > 100 && most > 100 && least > 100);
    }
}

#[test]
fn max_utilization_asks_for_the_whole_context_and_keeps_nothing_free() {
    let config = Config { max_num_batched_tokens: 4, ..limits(10, 1) };
    let mut bench = Bench::with(config, Policy::max_utilization());
    bench.submit(0, 4, 3).submit(1, 7, 3).submit(2, 6, 3);
    assert_eq!(bench.turn(1).0, [(0, 0, 4)]);
    // 5 are held: 7 do not fit, though a chunk of 3 would.
    assert_eq!(bench.turn(1).0, [(0, 4, 1)]);
    assert_eq!(bench.turn(1).0, [(0, 5, 1)], "its last");
    assert_eq!(bench.turn(1).0, [(1, 0, 4)]);
}

// Priorities.

fn prioritised(id: u64, prompt: usize, max_tokens: u32, priority: i32) -> Request {
    Request { priority, arrival: Some(Time(id)), ..request(id, prompt, max_tokens) }
}

#[test]
fn without_ageing_the_order_is_priority_arrival_id() {
    let queue = Box::new(Priority::new(Ageing::Off, u64::MAX, u64::MAX));
    let config = Config { max_num_seqs: 1, ..limits(50, 4) };
    let mut bench = Bench::with(config, Policy { queue, ..Policy::priority() });
    let request = |id, priority, arrival| Request {
        arrival: Some(Time(arrival)),
        ..prioritised(id, 2, 1, priority)
    };
    for (id, priority, arrival) in
        [(0, 1, 5), (1, 1, 4), (2, 0, 9), (4, 1, 4), (3, 1, 4), (5, 2, 0)]
    {
        bench.take(request(id, priority, arrival));
    }
    let order: Vec<u64> = (0..6).map(|_| bench.turn(1).0[0].0).collect();
    assert_eq!(order, [2, 1, 3, 4, 0, 5]);
}

#[test]
fn a_patient_request_is_admitted_in_spite_of_endless_urgent_ones() {
    for (ageing, bound, admitted_after) in
        [(Ageing::Off, 20, 20), (Ageing::Admissions(4), 1000, 12), (Ageing::Nanos(5), 1000, 14)]
    {
        let queue = Box::new(Priority::new(ageing, bound, u64::MAX));
        let config = Config { max_num_seqs: 1, ..limits(50, 4) };
        let mut bench = Bench::with(config, Policy { queue, ..Policy::priority() });
        bench.take(prioritised(0, 2, 1, 3));
        let passed = (1..).take_while(|&id| {
            bench.take(prioritised(id, 2, 1, 0));
            bench.turn(1).0[0].0 != 0
        });
        assert_eq!(passed.count(), admitted_after, "{ageing:?}");
    }
}

#[test]
fn the_least_urgent_gives_way_even_if_it_was_scheduled_already() {
    let config = Config { max_num_batched_tokens: 12, ..limits(12, 1) };
    let mut bench = Bench::with(config, Policy::priority());
    // The first to run is the least urgent, and has its row when the last finds no block.
    bench.take(prioritised(0, 4, 9, 5)).turn(1);
    bench.take(prioritised(1, 3, 9, 0)).take(prioritised(2, 3, 9, 0));
    assert_eq!(bench.turn(1).0, [(0, 4, 1), (1, 0, 3), (2, 0, 3)]);
    let step = bench.schedule();
    assert_eq!((bench.rows(step), bench.preempted(step)), (vec![(1, 3, 1), (2, 3, 1)], vec![0]));
    bench.commit(step, &[1, 1]);
    assert_eq!(bench.turn(1).0, [(1, 4, 1), (2, 4, 1)]);
}

#[test]
fn the_tokens_of_a_row_that_gave_way_go_to_others() {
    let capacity = Box::new(Optimistic { watermark: 0.0, whole_prompt_must_fit: false });
    let config = Config { max_num_batched_tokens: 6, ..limits(17, 1) };
    let mut bench = Bench::with(config, Policy { capacity, ..Policy::priority() });
    bench.take(prioritised(0, 4, 5, 5));
    assert_eq!(bench.turn(1).0, [(0, 0, 4)]);
    bench.take(prioritised(1, 5, 5, 0)).take(prioritised(2, 12, 1, 0));
    assert_eq!(bench.turn(1).0, [(0, 4, 1), (1, 0, 5)]);
    assert_eq!(bench.turn(1).0, [(0, 5, 1), (1, 5, 1), (2, 0, 4)], "16 of 17 blocks");
    let step = bench.schedule();
    assert_eq!((bench.rows(step), bench.preempted(step)), (vec![(1, 6, 1), (2, 4, 5)], vec![0]));
}

#[test]
fn victims_differ_by_policy() {
    let running = |victim: Policy| {
        let mut bench =
            Bench::with(limits(13, 1), Policy { victim: victim.victim, ..Policy::default() });
        bench
            .take(prioritised(0, 5, 9, 1))
            .take(prioritised(1, 2, 9, 2))
            .take(prioritised(2, 4, 9, 1));
        bench.turn(1);
        let step = bench.schedule();
        bench.preempted(step)
    };
    assert_eq!(running(Policy::continuous()), [2], "the last admitted");
    assert_eq!(running(Policy::priority()), [1], "the least urgent");
    let least = Policy { victim: Box::new(LeastComputed), ..Policy::default() };
    assert_eq!(running(least), [1], "the one with least to lose");
}

// The head of the line.

fn behind_a_large_one(head_of_line: HeadOfLine) -> Bench {
    let mut bench = Bench::with(limits(20, 1), Policy { head_of_line, ..Policy::default() });
    bench.submit(0, 10, 8);
    bench.turn(1);
    bench.submit(1, 15, 2);
    (2..8).for_each(|id| {
        bench.submit(id, 1, 1);
    });
    bench
}

fn admitted(bench: &mut Bench) -> Vec<u64> {
    let (rows, _) = bench.turn(1);
    rows.into_iter().filter(|row| row.1 == 0).map(|row| row.0).collect()
}

#[test]
fn a_strict_line_waits_behind_its_head() {
    let mut bench = behind_a_large_one(HeadOfLine::Strict);
    (0..7).for_each(|_| assert_eq!(admitted(&mut bench), [0; 0]));
    assert_eq!(admitted(&mut bench), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn no_more_than_bound_pass_the_head() {
    let bypass = HeadOfLine::Bypass { bound: 2, lookahead: 10 };
    let mut bench = behind_a_large_one(bypass);
    assert_eq!(admitted(&mut bench), [2, 3], "in the order they came");
    (0..6).for_each(|_| assert_eq!(admitted(&mut bench), [0; 0], "strict from here on"));
    assert_eq!(admitted(&mut bench), [1, 4, 5, 6, 7]);
}

#[test]
fn the_bound_counts_over_steps() {
    let bypass = HeadOfLine::Bypass { bound: 3, lookahead: 10 };
    let mut bench =
        Bench::with(limits(20, 1), Policy { head_of_line: bypass, ..Policy::default() });
    bench.submit(0, 10, 8);
    bench.turn(1);
    bench.submit(1, 15, 2);
    for id in 2..5 {
        assert_eq!(admitted(bench.submit(id, 1, 1)), [id]);
    }
    assert_eq!(admitted(bench.submit(5, 1, 1)), [0; 0]);
}

#[test]
fn no_more_than_lookahead_are_tried_behind_the_head() {
    for (lookahead, expected) in [(0, &[][..]), (1, &[]), (2, &[]), (3, &[4])] {
        let bypass = HeadOfLine::Bypass { bound: 9, lookahead };
        let mut bench =
            Bench::with(limits(20, 1), Policy { head_of_line: bypass, ..Policy::default() });
        bench.submit(0, 10, 8);
        bench.turn(1);
        // Two more that do not fit, then one that does.
        bench.submit(1, 15, 2).submit(2, 12, 2).submit(3, 11, 2).submit(4, 1, 1);
        assert_eq!(admitted(&mut bench), expected, "lookahead {lookahead}");
        assert_eq!(bench.s.num_waiting(), 4 - expected.len());
    }
}

#[test]
fn policies_have_names() {
    for name in Policy::NAMES {
        assert!(Policy::by_name(name).is_ok(), "{name}");
    }
    let error = Policy::by_name("fifo").expect_err("no such policy");
    assert_eq!(bench::field(error.clone()), "policy");
    assert!(Policy::NAMES.iter().all(|name| error.to_string().contains(name)), "{error}");
}

// Parts of one's own.

#[test]
fn a_watermark_is_kept_while_others_run() {
    let capacity = Optimistic { watermark: 0.5, whole_prompt_must_fit: true };
    let policy = Policy { capacity: Box::new(capacity), ..Policy::default() };
    let mut bench = Bench::with(limits(10, 1), policy);
    // Half of 11 blocks is 5 whole ones. Alone, anybody may have them.
    bench.submit(0, 7, 2);
    assert_eq!(bench.turn(1).0, [(0, 0, 7)]);
    bench.submit(1, 3, 1).submit(2, 1, 1);
    assert_eq!(bench.turn(1).0, [(0, 7, 1)], "3 + 5 are not free, and the line is strict");
    assert_eq!(bench.turn(1).0, [(1, 0, 3), (2, 0, 1)], "7 are left, then 5 + 1");
}

struct Nobody;

impl Capacity for Nobody {
    fn admit(&mut self, _: &Candidate, _: &Occupancy) -> Verdict {
        Verdict::Wait
    }
}

impl Victim for Nobody {
    fn choose(&self, running: &mut dyn ExactSizeIterator<Item = Running>) -> usize {
        running.len()
    }
}

#[test]
fn a_policy_that_lets_nobody_run_is_found_out() {
    let policy = Policy { capacity: Box::new(Nobody), ..Policy::default() };
    let mut bench = Bench::with(limits(10, 4), policy);
    assert!(bench.s.schedule(Time(0)).expect("nobody is there").is_empty());
    bench.commit(StepId(0), &[]);
    bench.submit(3, 6, 1);
    let error = bench.refused(|s| s.schedule(Time(1)).cloned());
    assert_eq!(error, Error::Stalled { head: RequestId(3), needed: 2, free: 10 });
    bench.s.cancel(RequestId(3)).expect("it waits");
    assert_eq!(bench.schedule(), StepId(1), "the number of a step that failed is not lost");
}

#[test]
fn who_finds_no_block_and_no_victim_waits_for_one() {
    let policy = Policy { victim: Box::new(Nobody), ..Policy::default() };
    let mut bench = Bench::with(limits(9, 1), policy);
    bench.submit(0, 4, 2).submit(1, 4, 3);
    bench.turn(1);
    assert_eq!(bench.turn(1).0, [(0, 4, 1)], "and ends");
    assert_eq!(bench.turn(1).0, [(1, 4, 1)]);
    assert_eq!(bench.s.stats().preemptions, 0);
}
