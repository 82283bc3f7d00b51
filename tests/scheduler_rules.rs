//! Each rule of the scheduler in the smallest case that shows it.

#[path = "common/bench.rs"]
mod bench;
#[path = "common/refused_calls.rs"]
mod refused_calls;

use bench::{Bench, cached, field, limits, request};
use inflight::cache::ExtraKey;
use inflight::request::Repetition;
use inflight::{Config, Error, FinishReason, Policy, Request, RequestId, Sampled};
use inflight::{StepId, Time, Token};

// How a request ends.

fn lone(change: impl FnOnce(&mut Request)) -> Bench {
    let mut bench = Bench::new(limits(50, 4));
    let mut request = request(0, 5, 3);
    change(&mut request);
    bench.take(request);
    bench
}

#[test]
fn the_end_of_sequence_is_looked_for_before_stop_tokens_and_those_before_the_length() {
    let all = |r: &mut Request| {
        (r.max_tokens, r.eos, r.stop_tokens) = (1, Some(7), vec![7, 8]);
    };
    assert_eq!(lone(all).say(&[7]), [Some(FinishReason::Eos)]);
    assert_eq!(lone(all).say(&[8]), [Some(FinishReason::StopToken(8))]);
    assert_eq!(lone(all).say(&[9]), [Some(FinishReason::Length)]);
    let rule = Repetition { min_pattern: 1, max_pattern: 1, min_count: 2 };
    let repeating = |r: &mut Request| (r.max_tokens, r.repetition) = (2, Some(rule));
    assert_eq!(lone(repeating).say(&[9, 9]), [None, Some(FinishReason::Length)]);
}

#[test]
fn min_tokens_holds_back_repetition_and_nothing_else() {
    let early = |r: &mut Request| (r.min_tokens, r.eos, r.stop_tokens) = (9, Some(7), vec![8]);
    assert_eq!(lone(early).say(&[1, 7]), [None, Some(FinishReason::Eos)]);
    assert_eq!(lone(early).say(&[1, 8]), [None, Some(FinishReason::StopToken(8))]);
    assert_eq!(lone(early).say(&[1, 1, 1]), [None, None, Some(FinishReason::Length)]);
    let rule = Repetition { min_pattern: 1, max_pattern: 1, min_count: 2 };
    let repeating = |r: &mut Request| {
        (r.max_tokens, r.min_tokens, r.repetition) = (9, 4, Some(rule));
    };
    let end = Some(FinishReason::Repetition);
    assert_eq!(lone(repeating).say(&[5, 5, 5, 5]), [None, None, None, end]);
    assert_eq!(lone(repeating).say(&[5, 5, 5, 6, 6]), [None, None, None, None, end]);
}

#[test]
fn max_model_len_caps_prompt_and_output_together() {
    let config = Config { max_model_len: 8, ..limits(50, 4) };
    let mut bench = Bench::new(config);
    bench.submit(0, 5, 100);
    assert_eq!(bench.say(&[1, 1, 1]), [None, None, Some(FinishReason::Length)]);
    assert_eq!(bench.s.num_unfinished(), 0);
}

// How a prompt is computed.

#[test]
fn a_chunk_of_a_prompt_says_nothing() {
    let mut bench = Bench::new(Config { max_num_batched_tokens: 4, ..limits(50, 4) });
    bench.submit(0, 10, 5);
    assert_eq!(bench.turn(1), (vec![(0, 0, 4)], vec![]));
    assert_eq!(bench.turn(1), (vec![(0, 4, 4)], vec![]));
    assert_eq!(bench.turn(1), (vec![(0, 8, 2)], vec![(0, vec![1], None)]));
    assert_eq!(bench.turn(2), (vec![(0, 10, 1)], vec![(0, vec![2], None)]));
}

#[test]
fn running_requests_come_first_and_admissions_share_what_is_left() {
    let mut bench = Bench::new(Config { max_num_batched_tokens: 7, ..limits(50, 4) });
    bench.submit(0, 5, 5).submit(1, 4, 5).submit(2, 9, 5);
    assert_eq!(bench.turn(1).0, [(0, 0, 5), (1, 0, 2)]);
    assert_eq!(bench.turn(1).0, [(0, 5, 1), (1, 2, 2), (2, 0, 4)]);
    assert_eq!(bench.turn(1).0, [(0, 6, 1), (1, 4, 1), (2, 4, 5)]);
}

#[test]
fn without_chunked_prefill_a_prompt_waits_until_it_fits_as_a_whole() {
    let config = Config {
        max_num_batched_tokens: 10,
        max_model_len: 10,
        chunked_prefill: false,
        ..limits(50, 4)
    };
    let mut bench = Bench::new(config);
    bench.submit(0, 6, 2).submit(1, 6, 2).submit(2, 1, 2);
    assert_eq!(bench.turn(1).0, [(0, 0, 6)], "the third does not jump the queue");
    assert_eq!(bench.turn(1).0, [(0, 6, 1), (1, 0, 6), (2, 0, 1)]);
}

#[test]
fn a_long_prompt_is_cut_only_in_company() {
    let config = Config { long_prefill_token_threshold: 4, ..limits(50, 4) };
    let mut alone = Bench::new(config);
    alone.submit(0, 10, 2);
    assert_eq!(alone.turn(1).0, [(0, 0, 10)]);
    let mut crowded = Bench::new(config);
    crowded.submit(0, 10, 2).submit(1, 9, 2);
    assert_eq!(crowded.turn(1).0, [(0, 0, 4), (1, 0, 4)]);
    // Whoever only waits is company too.
    let mut queued = Bench::new(Config { max_num_seqs: 1, ..config });
    queued.submit(0, 10, 2).submit(1, 9, 2);
    assert_eq!(queued.turn(1).0, [(0, 0, 4)]);
}

#[test]
fn a_prompt_that_is_cached_as_a_whole_computes_its_last_block_again() {
    let mut bench = Bench::new(cached(50, 4));
    let prompt: Vec<Token> = (0..9).collect();
    let ask = |id, len: usize| Request::new(RequestId(id), prompt[..len].to_vec(), 1);
    bench.take(ask(0, 9)).turn(100);
    bench.take(ask(1, 8));
    assert_eq!(bench.turn(100).0, [(1, 4, 4)], "8 of 8 tokens are cached: 7 would do, 4 are used");
    bench.take(ask(2, 9));
    assert_eq!(bench.turn(100).0, [(2, 8, 1)]);
    bench.take(ask(3, 4));
    assert_eq!(bench.turn(100).0, [(3, 0, 4)]);
    let mut reads_nothing = ask(4, 9);
    reads_nothing.read_prefix_cache = false;
    bench.take(reads_nothing);
    assert_eq!(bench.turn(100).0, [(4, 0, 9)]);
    let mut salted = ask(5, 9);
    salted.extra_keys.push(ExtraKey::Salt(b"tenant".to_vec()));
    bench.take(salted);
    assert_eq!(bench.turn(100).0, [(5, 0, 9)]);
    let stats = bench.s.cache().stats();
    assert_eq!((stats.queried_tokens, stats.hit_tokens), (9 + 8 + 9 + 4 + 9, 4 + 8));
}

#[test]
fn an_answer_is_found_by_the_prompt_that_continues_it() {
    let mut bench = Bench::new(cached(50, 4));
    bench.take(Request::new(RequestId(0), vec![1, 2, 3], 6));
    bench.say(&[10, 11, 12, 13, 14, 15]);
    let prompt = vec![1, 2, 3, 10, 11, 12, 13, 14, 15, 4];
    bench.take(Request::new(RequestId(1), prompt, 1));
    assert_eq!(bench.turn(1).0, [(1, 8, 2)], "the KV of 15 was never computed, 8 are whole blocks");
}

// Several steps in flight.

fn pipeline(depth: usize) -> Config {
    Config { max_steps_in_flight: depth, ..limits(50, 4) }
}

#[test]
fn without_overlap_a_request_waits_for_its_sample() {
    let mut bench = Bench::new(pipeline(2));
    bench.submit(0, 3, 5);
    let first = bench.schedule();
    bench.submit(1, 3, 5);
    let second = bench.schedule();
    assert_eq!((bench.rows(first), bench.rows(second)), (vec![(0, 0, 3)], vec![(1, 0, 3)]));
    let full = bench.refused(|s| s.schedule(Time(9)).cloned());
    assert_eq!(full, Error::TooManyStepsInFlight { limit: 2 });
    bench.commit(first, &[7]);
    let third = bench.schedule();
    assert_eq!(bench.rows(third), [(0, 3, 1)]);
    bench.commit(second, &[8]);
    let fourth = bench.schedule();
    assert_eq!(bench.rows(fourth), [(1, 3, 1)]);
}

#[test]
fn chunks_of_one_prompt_follow_each_other_through_the_pipeline() {
    let mut bench = Bench::new(Config { max_num_batched_tokens: 4, ..pipeline(4) });
    bench.submit(0, 10, 5);
    let steps = [0; 4].map(|_| bench.schedule());
    let rows = steps.map(|step| bench.rows(step));
    assert_eq!(rows, [vec![(0, 0, 4)], vec![(0, 4, 4)], vec![(0, 8, 2)], vec![]]);
}

#[test]
fn with_overlap_a_request_runs_on_but_not_past_its_last_token() {
    for depth in 1..=6 {
        let mut bench = Bench::new(Config { overlap: true, ..pipeline(depth) });
        bench.submit(0, 3, 4);
        let (mut rows, mut said) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            while bench.s.steps_in_flight().len() < depth {
                let step = bench.schedule();
                rows.extend(bench.rows(step));
            }
            let oldest = bench.s.steps_in_flight().next().expect("in flight");
            let (oldest, sampling) = (oldest.id(), oldest.num_sampling());
            said.extend(bench.commit(oldest, &vec![5; sampling]));
        }
        assert_eq!(rows, [(0, 0, 3), (0, 3, 1), (0, 4, 1), (0, 5, 1)], "depth {depth}");
        let end = Some(FinishReason::Length);
        let none = || (0, vec![5], None);
        assert_eq!(said, [none(), none(), none(), (0, vec![5], end)], "depth {depth}");
    }
}

#[test]
fn a_row_that_runs_ahead_says_where_its_token_comes_from() {
    let mut bench = Bench::new(Config { overlap: true, ..pipeline(3) });
    bench.submit(0, 3, 9).submit(1, 3, 9);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    let sources = |bench: &Bench, step| -> Vec<_> {
        let sources = bench.s.step(step).expect("in flight").sources();
        sources.iter().map(|source| (source.row, source.step, source.logits)).collect()
    };
    assert_eq!(sources(&bench, first), []);
    assert_eq!(sources(&bench, second), [(0, first, 0), (1, first, 1)]);
    // The token that has returned is known, the next is not.
    bench.commit(first, &[5, 6]);
    bench.s.cancel(RequestId(0)).expect("it runs");
    let third = bench.schedule();
    assert_eq!(sources(&bench, third), [(0, second, 1)]);
    assert_eq!(bench.commit(second, &[7, 8]), [(1, vec![8], None)]);
    let step = bench.schedule();
    assert_eq!(sources(&bench, step), [(0, third, 0)]);
}

#[test]
fn what_was_sampled_past_the_end_is_dropped() {
    let mut bench = Bench::new(Config { overlap: true, ..pipeline(2) });
    let mut request = request(0, 3, 9);
    request.eos = Some(7);
    bench.take(request);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    assert_eq!(bench.commit(first, &[7]), [(0, vec![7], Some(FinishReason::Eos))]);
    assert_eq!(bench.commit(second, &[8]), []);
    assert_eq!(bench.s.num_unfinished(), 0);
}

/// Two requests in a step that is in flight, and the second preempted by the step after.
fn preempted_in_flight(max_tokens: u32) -> (Bench, StepId, StepId) {
    let config = Config { overlap: true, max_steps_in_flight: 4, ..limits(8, 1) };
    let mut bench = Bench::new(config);
    bench.submit(0, 4, 5).submit(1, 4, max_tokens);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    assert_eq!(bench.rows(first), [(0, 0, 4), (1, 0, 4)]);
    assert_eq!((bench.rows(second), bench.preempted(second)), (vec![(0, 4, 1)], vec![1]));
    (bench, first, second)
}

#[test]
fn a_preempted_request_gets_its_late_output_and_is_not_resumed_before() {
    let (mut bench, first, second) = preempted_in_flight(5);
    // There is room for it again, but its sample is on the way.
    bench.s.cancel(RequestId(0)).expect("it runs");
    let third = bench.schedule();
    assert_eq!(bench.rows(third), []);
    assert_eq!(bench.commit(first, &[6, 7]), [(1, vec![7], None)]);
    let fourth = bench.schedule();
    assert_eq!(bench.rows(fourth), [(1, 0, 5)], "with what it was told meanwhile");
    assert_eq!(bench.commit(second, &[6]), []);
    assert_eq!(bench.commit(third, &[]), []);
    assert_eq!(bench.commit(fourth, &[8]), [(1, vec![8], None)]);
}

#[test]
fn a_preempted_request_can_end_while_it_waits() {
    let (mut bench, first, _) = preempted_in_flight(1);
    let end = Some(FinishReason::Length);
    assert_eq!(bench.commit(first, &[6, 7]), [(0, vec![6], None), (1, vec![7], end)]);
    assert_eq!((bench.s.num_waiting(), bench.s.num_unfinished()), (0, 1));
}

// Abandoned steps.

#[test]
fn the_newest_step_is_abandoned_first() {
    let mut bench = Bench::new(Config { overlap: true, ..pipeline(2) });
    bench.submit(0, 3, 5);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    let error = bench.refused(|s| s.abandon(first));
    assert_eq!(error, Error::StepOutOfOrder { step: first, expected: second });
    assert_eq!(bench.refused(|s| s.abandon(StepId(9))), Error::UnknownStep(StepId(9)));
    bench.s.abandon(second).expect("the newest");
    assert_eq!(bench.refused(|s| s.abandon(second)), Error::UnknownStep(second));
    bench.s.abandon(first).expect("the newest");
    bench.s.verify().expect("every invariant");
    assert_eq!((bench.s.num_waiting(), bench.s.cache().num_free()), (1, 50));
}

#[test]
fn after_an_abandoned_step_comes_the_same_step() {
    let mut bench = Bench::new(Config { max_num_batched_tokens: 9, ..cached(50, 4) });
    bench.submit(0, 3, 9).submit(1, 2, 9);
    bench.turn(1);
    bench.submit(2, 3, 9).submit(3, 2, 9).submit(4, 8, 9);
    let step = bench.schedule();
    let (rows, tables) = (bench.rows(step), bench.tables(step));
    assert_eq!(rows, [(0, 3, 1), (1, 2, 1), (2, 0, 3), (3, 0, 2), (4, 0, 2)]);
    bench.s.abandon(step).expect("the newest");
    bench.s.verify().expect("every invariant");
    assert_eq!((bench.s.num_running(), bench.s.num_waiting()), (2, 3));
    let again = bench.schedule();
    assert_eq!((bench.rows(again), bench.tables(again)), (rows, tables));
    assert_eq!(bench.commit(again, &[7, 7, 7, 7]).len(), 4);
}

#[test]
fn whom_an_abandoned_step_preempted_waits_on() {
    let mut bench = Bench::new(limits(9, 1));
    bench.submit(0, 4, 5).submit(1, 4, 5);
    bench.turn(1);
    let step = bench.schedule();
    assert_eq!((bench.rows(step), bench.preempted(step)), (vec![(0, 4, 1)], vec![1]));
    bench.s.abandon(step).expect("the newest");
    let again = bench.schedule();
    assert_eq!((bench.rows(again), bench.preempted(again)), (vec![(0, 4, 1)], vec![]));
}

#[test]
fn a_step_can_be_abandoned_after_a_later_one_that_preempted_its_request() {
    let (mut bench, first, second) = preempted_in_flight(5);
    bench.s.abandon(second).expect("the newest");
    bench.s.abandon(first).expect("the newest");
    bench.s.verify().expect("every invariant");
    assert_eq!((bench.s.num_running(), bench.s.num_waiting()), (0, 2));
    assert_eq!(bench.turn(1).0, [(0, 0, 4), (1, 0, 4)]);
}

#[test]
fn a_block_that_was_never_computed_is_never_found() {
    // Its step is abandoned after the request has gone, and with it what the step would compute.
    let mut bench = Bench::new(cached(50, 4));
    bench.submit(0, 9, 5);
    let step = bench.schedule();
    bench.s.cancel(RequestId(0)).expect("it runs");
    bench.s.abandon(step).expect("the newest");
    assert_eq!(bench.s.cache().num_cached(), 0);
    bench.submit(0, 9, 5);
    assert_eq!(bench.turn(1).0, [(0, 0, 9)]);
}

#[test]
fn a_block_that_was_never_swapped_in_is_never_found() {
    let mut config = Config { swap: true, ..cached(5, 1) };
    config.cache.num_host_blocks = 5;
    let mut bench = Bench::new(config);
    bench.submit(0, 2, 3).submit(1, 2, 3);
    bench.turn(7);
    assert_eq!(bench.turn(7).0, [(0, 2, 1)], "the other is swapped out");
    assert_eq!(bench.turn(7).0, [(0, 3, 1)], "and the first ends");
    let step = bench.schedule();
    assert_eq!(bench.rows(step), [(1, 2, 1)], "it goes on where it was");
    bench.s.abandon(step).expect("the newest");
    bench.s.verify().expect("every invariant");
    assert_eq!(bench.turn(7).0, [(1, 0, 3)], "the copies were not made");
}

#[test]
fn nor_is_one_whose_step_was_abandoned_after_another_with_copies() {
    let mut config = Config { swap: true, max_steps_in_flight: 2, ..cached(10, 1) };
    config.long_prefill_token_threshold = 3;
    config.cache.num_host_blocks = 10;
    let mut bench = Bench::new(config);
    bench.submit(0, 9, 1).submit(1, 3, 5);
    assert_eq!(bench.turn(1).0, [(0, 0, 3), (1, 0, 3)]);
    let [second, third] = [0; 2].map(|_| bench.schedule());
    assert_eq!(bench.rows(second), [(0, 3, 3), (1, 3, 1)]);
    assert_eq!((bench.rows(third), bench.preempted(third)), (vec![(0, 6, 3)], vec![1]));
    assert_eq!(bench.s.step(third).expect("in flight").block_ops().len(), 4);
    for step in [third, second] {
        bench.s.abandon(step).expect("the newest");
        bench.s.verify().expect("every invariant");
    }
    let step = bench.schedule();
    assert_eq!(bench.rows(step)[0], (0, 3, 3), "only three tokens were ever computed");
}

// Drafts.

fn drafted(draft: &[Token]) -> (Bench, StepId) {
    let mut bench = Bench::new(limits(50, 4));
    bench.submit(0, 3, 9);
    bench.turn(1);
    bench.s.set_draft(RequestId(0), draft).expect("it runs");
    let step = bench.schedule();
    (bench, step)
}

#[test]
fn drafts_are_accepted_in_whole_in_part_or_not_at_all() {
    for accepted in 0..=3 {
        let (mut bench, step) = drafted(&[10, 11, 12]);
        assert_eq!(bench.rows(step), [(0, 3, 4)]);
        let row = bench.s.step(step).expect("in flight").rows()[0];
        assert_eq!((row.num_draft, row.is_decode, row.samples), (3, true, true));
        assert_eq!(bench.s.step(step).expect("in flight").num_logits(), 4);
        assert_eq!(bench.s.sequence(&row).expect("it runs").draft, [10, 11, 12]);
        let mut tokens: Vec<Token> = (10..10 + accepted).collect();
        tokens.push(99);
        let indptr = [0, accepted + 1];
        let delivered = bench.deliver(step, Sampled::Ragged { tokens: &tokens, indptr: &indptr });
        assert_eq!(delivered, [(0, tokens, None)]);
        assert_eq!(bench.turn(1).0, [(0, 4 + accepted, 1)], "rejected ones are not computed");
    }
}

#[test]
fn a_draft_ends_with_the_request() {
    let (mut bench, step) = drafted(&[10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    // One token is out, seven of eight may be drafts: the last is never computed.
    assert_eq!(bench.rows(step), [(0, 3, 8)]);
    let tokens: Vec<Token> = (10..18).collect();
    let delivered = bench.deliver(step, Sampled::Ragged { tokens: &tokens, indptr: &[0, 8] });
    assert_eq!(delivered, [(0, tokens, Some(FinishReason::Length))]);
}

#[test]
fn a_draft_in_flight_is_judged_even_if_its_request_is_swapped_out_meanwhile() {
    let mut config = Config { swap: true, max_steps_in_flight: 2, ..limits(12, 1) };
    config.max_num_batched_tokens = 4;
    config.cache.num_host_blocks = 12;
    let mut bench = Bench::new(config);
    bench.submit(0, 4, 9).submit(1, 4, 9);
    let [first, second] = [0; 2].map(|_| bench.schedule());
    bench.commit(first, &[7]);
    let third = bench.schedule();
    bench.commit(second, &[7]);
    bench.s.set_draft(RequestId(1), &[8, 9]).expect("its sample has returned");
    let fourth = bench.schedule();
    assert_eq!((bench.rows(third), bench.rows(fourth)), (vec![(0, 4, 1)], vec![(1, 4, 3)]));
    bench.commit(third, &[7]);
    let fifth = bench.schedule();
    assert_eq!((bench.rows(fifth), bench.preempted(fifth)), (vec![(0, 5, 1)], vec![1]));
    let sampled = Sampled::Ragged { tokens: &[8, 5], indptr: &[0, 2] };
    assert_eq!(bench.deliver(fourth, sampled), [(1, vec![8, 5], None)]);
    bench.s.cancel(RequestId(0)).expect("it runs");
    let sixth = bench.schedule();
    assert_eq!(bench.rows(sixth), [(1, 6, 1)], "4, 7 and 8 are computed, 9 was wrong");
}

#[test]
fn accepted_drafts_past_a_stop_are_cut() {
    let mut bench = lone(|r| (r.max_tokens, r.eos) = (9, Some(11)));
    bench.turn(1);
    bench.s.set_draft(RequestId(0), &[10, 11, 12]).expect("it runs");
    let step = bench.schedule();
    let sampled = Sampled::Ragged { tokens: &[10, 11, 12, 13], indptr: &[0, 4] };
    assert_eq!(bench.deliver(step, sampled), [(0, vec![10, 11], Some(FinishReason::Eos))]);
}

#[test]
fn drafts_need_their_past() {
    let mut overlap = Bench::new(Config { overlap: true, ..limits(50, 4) });
    overlap.submit(0, 3, 5);
    assert_eq!(field(overlap.refused(|s| s.set_draft(RequestId(0), &[1]))), "draft");
    let mut fixed = Bench::with(limits(50, 4), Policy::static_batch());
    fixed.submit(0, 3, 5);
    assert_eq!(field(fixed.refused(|s| s.set_draft(RequestId(0), &[1]))), "draft");
    let unknown = fixed.refused(|s| s.set_draft(RequestId(1), &[1]));
    assert_eq!(unknown, Error::UnknownRequest(RequestId(1)));
    // The token before them is on its way.
    let mut bench = Bench::new(pipeline(2));
    bench.submit(0, 3, 5).schedule();
    let _ = bench.s.set_draft(RequestId(0), &[1]);
    let step = bench.schedule();
    assert_eq!(bench.rows(step), []);
}
