//! Calls that are refused: a typed error, and nothing has changed.

use inflight::cache::CacheConfig;
use inflight::error::{CudaError, CudaUnavailable, Pool};
use inflight::request::Repetition;
use inflight::{Config, Error, FinishReason, Policy, Request, RequestId, Sampled, Scheduler};
use inflight::{StepId, Token};

use crate::bench::{Bench, field, limits, request};

fn two_steps() -> Config {
    Config { max_steps_in_flight: 2, ..limits(50, 4) }
}

#[test]
fn a_request_can_be_cancelled_wherever_it_is() {
    let mut bench = Bench::new(Config { max_num_seqs: 2, ..limits(50, 4) });
    bench.submit(0, 3, 5).submit(1, 3, 5).submit(2, 3, 5);
    bench.turn(1);
    bench.s.cancel(RequestId(2)).expect("it waits");
    bench.s.cancel(RequestId(0)).expect("it runs");
    let step = bench.schedule();
    bench.s.cancel(RequestId(1)).expect("it is in flight");
    assert!(bench.s.sequence(&bench.s.step(step).expect("in flight").rows()[0]).is_none());
    assert_eq!((bench.s.num_unfinished(), bench.s.cache().num_free()), (0, 50));
    // Its id and slot may serve again, and its sample is not taken for the new one's.
    bench.submit(1, 3, 1);
    assert_eq!(bench.commit(step, &[7]), []);
    assert_eq!(bench.turn(8).1, [(1, vec![8], Some(FinishReason::Length))]);
    for id in [0, 1, 2, 77].map(RequestId) {
        assert_eq!(bench.refused(|s| s.cancel(id)), Error::UnknownRequest(id));
    }
    assert_eq!((bench.s.stats().cancelled, bench.s.stats().finished), (3, 1));
}

#[test]
fn a_step_is_committed_once_in_turn_and_with_its_own_samples() {
    let mut bench = Bench::new(two_steps());
    bench.submit(0, 3, 5).submit(1, 3, 5);
    let first = bench.schedule();
    bench.submit(2, 3, 5);
    let second = bench.schedule();
    let mut commit = |step, tokens: &[Token]| {
        bench.refused(|s| s.commit(step, Sampled::One(tokens)).map(|_| ()))
    };
    let early = Error::StepOutOfOrder { step: second, expected: first };
    assert_eq!(commit(second, &[1]), early);
    assert_eq!(commit(StepId(7), &[1]), Error::UnknownStep(StepId(7)));
    let mismatch = |given| Error::OutputMismatch { step: first, expected: 2, given };
    assert_eq!(commit(first, &[]), mismatch(0));
    assert_eq!(commit(first, &[1]), mismatch(1));
    assert_eq!(commit(first, &[1, 2, 3]), mismatch(3));
    bench.commit(first, &[1, 2]);
    let again = bench.refused(|s| s.commit(first, Sampled::One(&[1, 2])).map(|_| ()));
    assert_eq!(again, Error::UnknownStep(first));
}

#[test]
fn ragged_samples_give_each_row_its_share() {
    let mut bench = Bench::new(limits(50, 4));
    bench.submit(0, 3, 9).submit(1, 3, 9);
    bench.turn(1);
    bench.s.set_draft(RequestId(1), &[10, 11]).expect("it runs");
    let step = bench.schedule();
    let mut commit = |tokens: &[Token], indptr: &[u32]| {
        bench.refused(|s| s.commit(step, Sampled::Ragged { tokens, indptr }).map(|_| ()))
    };
    let mismatch = |given| Error::OutputMismatch { step, expected: 2, given };
    assert_eq!(commit(&[], &[]), mismatch(0));
    assert_eq!(commit(&[1], &[0, 1]), mismatch(1));
    assert_eq!(commit(&[1, 2, 3], &[0, 1, 2, 3]), mismatch(3));
    for (tokens, indptr) in [
        (&[1, 2][..], [0, 0, 2]),
        (&[1, 2], [0, 2, 2]),
        (&[1, 2], [0, 2, 1]),
        (&[1, 2, 3], [0, 2, 3]),
        (&[1, 2, 3], [1, 2, 3]),
        (&[1, 2, 3], [0, 1, 2]),
        (&[1, 2], [0, 1, 3]),
        (&[1, 2, 3, 4, 5], [0, 1, 5]),
        (&[1, 2], [0, u32::MAX, 2]),
    ] {
        assert_eq!(field(commit(tokens, &indptr)), "indptr", "{indptr:?}");
    }
    let sampled = Sampled::Ragged { tokens: &[1, 10, 11, 4], indptr: &[0, 1, 4] };
    assert_eq!(bench.deliver(step, sampled), [(0, vec![1], None), (1, vec![10, 11, 4], None)]);
}

#[test]
fn a_request_that_cannot_be_served_is_refused() {
    let config = Config { max_model_len: 30, max_waiting: 2, ..limits(5, 4) };
    let mut bench = Bench::new(config);
    let mut submit = |request: Request| {
        let checked = bench.s.check(&request).err();
        let error = bench.refused(|s| s.submit(request));
        assert_eq!(checked.as_ref(), Some(&error));
        error
    };
    let id = RequestId(0);
    assert_eq!(field(submit(request(0, 0, 1))), "prompt");
    assert_eq!(field(submit(request(0, 1, 0))), "max_tokens");
    for (rule, at) in
        [((1, 1, 1), "min_count"), ((2, 1, 2), "max_pattern"), ((0, 0, 2), "max_pattern")]
    {
        let (min_pattern, max_pattern, min_count) = rule;
        let mut bad = request(0, 1, 1);
        bad.repetition = Some(Repetition { min_pattern, max_pattern, min_count });
        assert_eq!(field(submit(bad)), format!("repetition.{at}"), "{rule:?}");
    }
    let too_long = Error::PromptTooLong { id, prompt_len: 30, max_model_len: 30, blocks: None };
    assert_eq!(submit(request(0, 30, 1)), too_long);
    let never = Error::NeverFits { id, needed: 6, usable: 5 };
    assert_eq!(submit(request(0, 1, 21)), never, "21 tokens of KV");
    assert_eq!(submit(request(0, 20, u32::MAX)), Error::NeverFits { id, needed: 8, usable: 5 });
    bench.submit(0, 1, 20).submit(1, 1, 1);
    assert_eq!(
        bench.refused(|s| s.submit(request(1, 1, 1))),
        Error::DuplicateRequest(RequestId(1))
    );
    assert_eq!(bench.refused(|s| s.submit(request(2, 1, 1))), Error::QueueFull { max_waiting: 2 });
    bench.turn(1);
    bench.submit(2, 1, 1);
}

#[test]
fn limits_are_checked_one_by_one() {
    let good = limits(50, 4);
    let cache = good.cache;
    let refused = |config| field(Scheduler::new(config, Policy::default()).expect_err("bad"));
    assert_eq!(refused(Config { max_num_seqs: 0, ..good }), "max_num_seqs");
    assert_eq!(refused(Config { max_num_batched_tokens: 0, ..good }), "max_num_batched_tokens");
    assert_eq!(refused(Config { max_model_len: 0, ..good }), "max_model_len");
    assert_eq!(refused(Config { max_model_len: 1, ..good }), "max_model_len");
    assert_eq!(refused(Config { max_steps_in_flight: 0, ..good }), "max_steps_in_flight");
    let with = |cache: CacheConfig| refused(Config { cache, ..good });
    assert_eq!(with(CacheConfig { num_blocks: 0, ..cache }), "num_blocks");
    assert_eq!(with(CacheConfig { num_blocks: 1, ..cache }), "num_blocks");
    assert_eq!(with(CacheConfig { block_size: 0, ..cache }), "block_size");
    let whole = Config { chunked_prefill: false, max_num_batched_tokens: 199, ..good };
    assert_eq!(refused(whole), "max_num_batched_tokens");
    let most = Config { chunked_prefill: false, max_num_batched_tokens: 200, ..good };
    assert!(Scheduler::new(most, Policy::default()).is_ok());
}

#[test]
fn limits_beyond_32_bits_are_refused_not_cut() {
    let good = limits(50, 4);
    let refused = |config| field(Scheduler::new(config, Policy::default()).expect_err("bad"));
    let huge = (1 << 32) + 1;
    assert_eq!(refused(Config { max_num_seqs: huge, ..good }), "max_num_seqs");
    assert_eq!(refused(Config { max_num_batched_tokens: huge, ..good }), "max_num_batched_tokens");
    assert_eq!(refused(Config { max_model_len: huge, ..good }), "max_model_len");
    let threshold = Config { long_prefill_token_threshold: huge, ..good };
    assert_eq!(refused(threshold), "long_prefill_token_threshold");
    let cache = CacheConfig { block_size: huge, ..good.cache };
    assert_eq!(refused(Config { cache, ..good }), "block_size");
}

#[test]
fn status_numbers_never_change() {
    let (id, step) = (RequestId(1), StepId(2));
    let argument = Error::InvalidArgument { field: "f", reason: String::new() };
    let refused = CudaError {
        call: "cuInit",
        code: 999,
        name: "CUDA_ERROR_UNKNOWN".to_owned(),
        meaning: "unknown error".to_owned(),
        sticky: false,
    };
    for (status, error) in [
        (100, argument),
        (101, Error::DuplicateRequest(id)),
        (102, Error::UnknownRequest(id)),
        (103, Error::PromptTooLong { id, prompt_len: 1, max_model_len: 1, blocks: None }),
        (104, Error::NeverFits { id, needed: 1, usable: 0 }),
        (105, Error::UnknownStep(step)),
        (106, Error::StepOutOfOrder { step, expected: step }),
        (107, Error::OutputMismatch { step, expected: 1, given: 0 }),
        (200, Error::QueueFull { max_waiting: 1 }),
        (201, Error::OutOfBlocks { pool: Pool::Device, needed: 1, free: 0 }),
        (202, Error::TooManyStepsInFlight { limit: 1 }),
        (203, Error::Stalled { head: id, needed: 1, free: 0 }),
        (204, Error::OutOfMemory { bytes: 1 }),
        (300, Error::Device(String::new())),
        (301, Error::Cuda(refused.clone())),
        (302, Error::OutOfDeviceMemory { needed: 2, free: 1 }),
        (303, Error::NoCuda(CudaUnavailable::Failed(refused))),
        (304, Error::NoKernelImage { device: "sm_75".to_owned(), built: "sm_80", outdated: None }),
        (900, Error::Corrupt(String::new())),
    ] {
        assert_eq!(error.status(), status, "{error:?}");
        assert!(!error.to_string().is_empty());
    }
}
