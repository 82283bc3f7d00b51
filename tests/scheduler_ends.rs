//! What a request leaves behind: blocks for those that come later, and what it has come to.

#[path = "common/bench.rs"]
mod bench;

use bench::{Bench, cached, field, limits, request};
use inflight::scheduler::{Ended, Snapshot};
use inflight::{Config, Error, Policy, Request, RequestId, Sampled, Time, Token};

// What a later request finds.

/// What a request of this prompt finds in the prefix cache when it is admitted next.
fn finds(bench: &mut Bench, prompt: &[Token]) -> u32 {
    bench.take(Request::new(RequestId(99), prompt.to_vec(), 1));
    let step = bench.schedule();
    let found = bench.s.snapshot(RequestId(99)).expect("it runs").num_cached;
    bench.s.abandon(step).expect("the newest");
    bench.s.cancel(RequestId(99)).expect("it waits");
    found
}

/// A request of prompt `[0, 1]` that has output 2 and verified drafts 3 and 4, in blocks of 4.
fn verified(max_tokens: u32, sampled: &[Token]) -> Bench {
    let mut bench = Bench::new(cached(50, 4));
    bench.take(Request::new(RequestId(0), vec![0, 1], max_tokens));
    bench.turn(2);
    bench.s.set_draft(RequestId(0), &[3, 4]).expect("it runs");
    let step = bench.schedule();
    bench.deliver(step, Sampled::Ragged { tokens: sampled, indptr: &[0, sampled.len() as u32] });
    bench
}

#[test]
fn a_block_that_accepted_drafts_complete_is_found() {
    // With its last step, and before a cancellation.
    let mut ended = verified(4, &[3, 4, 5]);
    assert_eq!(ended.s.num_unfinished(), 0);
    assert_eq!(finds(&mut ended, &[0, 1, 2, 3, 4, 99]), 4);
    let mut cancelled = verified(9, &[3, 4, 5]);
    cancelled.s.cancel(RequestId(0)).expect("it runs");
    assert_eq!(finds(&mut cancelled, &[0, 1, 2, 3, 4, 99]), 4);
    // Token 4 was rejected: the block holds [0, 1, 2, 3]. Token 3 was, and it holds none of it.
    assert_eq!(finds(&mut verified(9, &[3, 7]), &[0, 1, 2, 3, 7, 99]), 4);
    let mut rejected = verified(9, &[7]);
    rejected.s.cancel(RequestId(0)).expect("it runs");
    assert_eq!(finds(&mut rejected, &[0, 1, 2, 3, 4, 99]), 0);
    assert_eq!(finds(&mut rejected, &[0, 1, 2, 7, 4, 99]), 0, "7 is not computed");
}

#[test]
fn a_draft_that_is_the_last_token_is_not_computed() {
    // As in vLLM: the KV of a last token is never counted, accepted or not.
    let mut bench = Bench::new(cached(50, 4));
    let request = Request::new(RequestId(0), vec![0, 1], 9);
    bench.take(Request { eos: Some(3), ..request });
    bench.turn(2);
    bench.s.set_draft(RequestId(0), &[3, 4]).expect("it runs");
    let step = bench.schedule();
    let sampled = Sampled::Ragged { tokens: &[3, 4, 5], indptr: &[0, 3] };
    let outputs = bench.s.commit(step, sampled).expect("the oldest");
    assert_eq!((outputs.all_tokens(), outputs.ended()[0].last.num_computed), (&[3][..], 3));
    assert_eq!(finds(&mut bench, &[0, 1, 2, 3, 99]), 0);
}

#[test]
fn accepted_tokens_are_those_of_the_draft() {
    let mut bench = Bench::new(cached(50, 4));
    bench.submit(0, 3, 9).submit(1, 3, 9);
    bench.turn(2);
    bench.s.set_draft(RequestId(1), &[3, 4]).expect("it runs");
    let step = bench.schedule();
    let sampled = Sampled::Ragged { tokens: &[9, 3, 5, 6], indptr: &[0, 1, 4] };
    let error = bench.refused(|s| s.commit(step, sampled).map(|_| ())).to_string();
    assert!(error.contains("request 1: token 1 is 5") && error.contains("has 4 there"), "{error}");
    let sampled = Sampled::Ragged { tokens: &[9, 3, 5], indptr: &[0, 1, 3] };
    assert_eq!(bench.deliver(step, sampled), [(0, vec![9], None), (1, vec![3, 5], None)]);
}

#[test]
fn with_overlap_a_block_is_found_when_its_last_token_is_known_and_scheduled() {
    // vLLM's rule: a commit registers what has run (`update_from_output`), and a step what it computes
    // of the tokens that are known (`allocate_slots`).
    for (max_tokens, found) in [(2, 2), (3, 3)] {
        let overlap = Config { overlap: true, max_steps_in_flight: 3, ..cached(50, 1) };
        let mut bench = Bench::new(overlap);
        bench.take(Request::new(RequestId(0), vec![0, 1], max_tokens));
        let [first, _second] = [0; 2].map(|_| bench.schedule());
        assert_eq!(bench.s.cache().num_cached(), 2);
        bench.commit(first, &[2]);
        assert_eq!(bench.s.cache().num_cached(), 2, "token 2 is known, and in flight");
        assert_eq!(finds(&mut bench, &[0, 1, 2, 3]), found);
    }
}

#[test]
fn kv_that_is_swapped_out_is_not_found_after_a_reset() {
    let mut config = Config { swap: true, ..cached(6, 4) };
    config.cache.num_host_blocks = 16;
    let mut bench = Bench::new(config);
    bench.submit(0, 8, 16).submit(1, 8, 16);
    while bench.s.stats().preemptions == 0 {
        bench.turn(7);
    }
    bench.s.cancel(RequestId(0)).expect("it runs");
    assert_eq!(bench.s.cache().num_free(), 6, "the other is on the host");
    assert!(!bench.s.reset_prefix_cache());
    bench.s.cancel(RequestId(1)).expect("it waits");
    assert!(bench.s.reset_prefix_cache());
    assert_eq!(finds(&mut bench, &request(1, 9, 1).prompt), 0);
}

#[test]
fn no_token_is_refused_everywhere_with_its_index() {
    const NONE: Token = Token::MAX;
    let mut bench = Bench::new(limits(50, 4));
    let mut refused = |change: fn(&mut Request)| {
        let mut request = request(1, 5, 3);
        change(&mut request);
        match bench.refused(|s| s.submit(request)) {
            Error::InvalidArgument { field, reason } => format!("{field}: {reason}"),
            other => panic!("{other:?}"),
        }
    };
    let why = "is 4294967295, which stands for no token";
    assert_eq!(refused(|r| r.prompt[3] = NONE), format!("prompt: index 3 {why}"));
    assert_eq!(refused(|r| r.stop_tokens = vec![1, NONE]), format!("stop_tokens: index 1 {why}"));
    assert_eq!(refused(|r| r.eos = Some(NONE)), format!("eos: index 0 {why}"));
    bench.submit(0, 3, 9);
    assert_eq!(field(bench.refused(|s| s.set_draft(RequestId(0), &[5, NONE]))), "draft");
    let step = bench.schedule();
    let error = bench.refused(|s| s.commit(step, Sampled::One(&[NONE])).map(|_| ()));
    assert!(error.to_string().contains("index 0"), "{error}");
}

// What a request has come to.

#[test]
fn a_request_says_at_its_end_what_it_was_given() {
    let mut bench = Bench::new(cached(50, 4));
    let prompt: Vec<Token> = (0..9).collect();
    bench.take(Request::new(RequestId(0), prompt.clone(), 1)).turn(5);
    bench.take(Request { client: 7, ..Request::new(RequestId(1), prompt, 5) });
    bench.turn(5);
    bench.s.set_draft(RequestId(1), &[6, 7]).expect("it runs");
    let step = bench.schedule();
    bench.deliver(step, Sampled::Ragged { tokens: &[6, 8], indptr: &[0, 2] });
    let so_far = bench.s.snapshot(RequestId(1)).expect("it runs");
    bench.turn(9);
    let step = bench.schedule();
    let outputs = bench.s.commit(step, Sampled::One(&[9])).expect("the oldest");
    let [ended] = outputs.ended() else { panic!("{outputs:?}") };
    let last = Snapshot { num_output: 5, num_computed: 13, ..so_far };
    assert_eq!(*ended, Ended { id: RequestId(1), last });
    let Snapshot { num_cached, num_drafts, num_accepted, client, .. } = last;
    assert_eq!((num_cached, num_drafts, num_accepted, client), (8, 2, 1, 7));
    assert_eq!((last.first_scheduled, last.first_token), (Some(Time(2)), Some(Time(2))));
    bench.submit(2, 3, 3);
    let step = bench.schedule();
    let outputs = bench.s.commit(step, Sampled::One(&[1])).expect("the oldest");
    assert_eq!(outputs.ended(), [], "those of this commit alone");
}

#[test]
fn the_first_token_has_the_time_of_the_step_that_sampled_it() {
    let mut bench = Bench::new(Config {
        overlap: true,
        max_num_batched_tokens: 4,
        max_steps_in_flight: 3,
        ..limits(50, 4)
    });
    bench.submit(0, 10, 5);
    let steps = [0; 3].map(|_| bench.schedule());
    let tokens = [&[][..], &[], &[5]];
    for (step, tokens) in steps.into_iter().zip(tokens) {
        let before = bench.s.snapshot(RequestId(0)).expect("it runs");
        assert_eq!((before.first_scheduled, before.first_token), (Some(Time(1)), None));
        bench.commit(step, tokens);
    }
    assert_eq!(bench.s.snapshot(RequestId(0)).expect("it runs").first_token, Some(Time(3)));
}

#[test]
fn an_admission_that_is_abandoned_does_not_count() {
    let mut bench = Bench::new(cached(50, 4));
    bench.submit(0, 9, 1).turn(5);
    bench.take(Request { id: RequestId(1), ..request(0, 9, 2) });
    let step = bench.schedule();
    assert_eq!(bench.s.snapshot(RequestId(1)).expect("it runs").num_cached, 8);
    bench.s.abandon(step).expect("the newest");
    let waits = bench.s.snapshot(RequestId(1)).expect("it waits");
    assert_eq!((waits.first_scheduled, waits.num_cached), (None, 0));
    assert!(bench.s.reset_prefix_cache());
    bench.turn(5);
    let runs = bench.s.snapshot(RequestId(1)).expect("it runs");
    assert_eq!((runs.first_scheduled, runs.num_cached), (Some(Time(3)), 0));
}

#[test]
fn a_request_that_is_finished_keeps_so_many_tokens() {
    let mut bench = Bench::new(Config { overlap: true, max_steps_in_flight: 2, ..cached(50, 4) });
    bench.submit(0, 4, 50).submit(1, 4, 50);
    for token in 0..6 {
        bench.turn(token);
    }
    let step = bench.schedule();
    let ended = bench.s.finish(RequestId(0), 4).expect("it runs");
    assert_eq!((ended.id, ended.last.num_output), (RequestId(0), 4));
    bench.s.verify().expect("every invariant");
    assert_eq!(bench.s.finish(RequestId(0), 4), Err(Error::UnknownRequest(RequestId(0))));
    assert_eq!(bench.commit(step, &[7, 7]), [(1, vec![7], None)], "what was in flight is dropped");
    assert_eq!((bench.s.stats().finished, bench.s.stats().cancelled), (1, 0));
    let mut again = request(0, 4, 1).prompt;
    again.extend([0, 1, 2, 3, 99]);
    assert_eq!(finds(&mut bench, &again), 8, "its full blocks serve others");
    // All that it has output; before its admission too.
    assert_eq!(bench.s.finish(RequestId(1), u32::MAX).expect("it runs").last.num_output, 7);
    bench.submit(2, 4, 4);
    let ended = bench.s.finish(RequestId(2), 3).expect("it waits");
    assert_eq!((ended.last.num_output, ended.last.first_scheduled), (0, None));
    assert_eq!((bench.s.num_unfinished(), bench.s.cache().num_free()), (0, 50));
}

#[test]
fn one_that_is_finished_does_not_come_back_with_an_abandoned_step() {
    for overlap in [false, true] {
        let config = Config { overlap, max_steps_in_flight: 2, ..limits(50, 4) };
        let mut bench = Bench::with(config, Policy::static_batch());
        bench.submit(0, 4, 9).submit(1, 4, 9);
        let step = bench.schedule();
        bench.s.finish(RequestId(0), 0).expect("it runs");
        bench.s.abandon(step).expect("the newest");
        bench.s.verify().expect("every invariant");
        let stats = bench.s.stats();
        assert_eq!((bench.s.num_waiting(), stats.finished), (1, 1), "the other alone");
        // It holds its place until its batch has ended.
        while bench.s.num_unfinished() > 0 {
            let (_, delivered) = bench.turn(7);
            assert!(delivered.iter().all(|(id, ..)| *id == 1), "{delivered:?}");
        }
        assert_eq!((bench.s.stats().finished, bench.s.cache().num_free()), (2, 50));
    }
}

#[test]
fn an_admission_before_a_preemption_does_not_count_where_both_are_abandoned() {
    let config = Config { overlap: true, max_steps_in_flight: 4, ..limits(8, 1) };
    let mut bench = Bench::new(config);
    bench.submit(0, 4, 5).submit(1, 4, 5);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    assert_eq!(bench.preempted(second), [1]);
    bench.s.abandon(second).expect("the newest");
    assert!(bench.s.snapshot(RequestId(1)).expect("it waits").first_scheduled.is_some());
    bench.s.abandon(first).expect("the newest");
    let scheduled = |id| bench.s.snapshot(RequestId(id)).expect("it waits").first_scheduled;
    assert_eq!([scheduled(0), scheduled(1)], [None, None]);
}

#[test]
fn a_static_batch_holds_what_it_had_of_one_that_is_finished() {
    let mut bench = Bench::with(limits(50, 4), Policy::static_batch());
    bench.submit(0, 4, 50).submit(1, 4, 3).submit(2, 4, 3);
    bench.turn(7);
    bench.s.finish(RequestId(0), 1).expect("it runs");
    bench.s.verify().expect("every invariant");
    assert_eq!(bench.s.finish(RequestId(0), 1), Err(Error::UnknownRequest(RequestId(0))));
    assert_eq!((bench.s.num_running(), bench.s.num_unfinished()), (3, 3));
    bench.turn(7);
    bench.s.finish(RequestId(1), 2).expect("it runs");
    bench.s.finish(RequestId(2), 2).expect("it runs");
    bench.submit(3, 4, 1);
    let step = bench.schedule();
    assert_eq!(bench.rows(step), [(3, 0, 4)], "the batch is over");
    let outputs = bench.s.commit(step, Sampled::One(&[7])).expect("the oldest");
    assert_eq!(outputs.released(), [0, 1, 2, 3].map(RequestId));
}
