//! Submitting and cancelling from other threads while one steps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use inflight::cache::CacheConfig;
use inflight::scheduler::{Ended, Received, Sampled, Snapshot, Wake};
use inflight::{Config, Error, Policy, Request, RequestId, Scheduler, Time};

fn scheduler(change: impl FnOnce(&mut Config)) -> Scheduler {
    let cache =
        CacheConfig { num_blocks: 64, block_size: 4, prefix_cache: true, num_host_blocks: 0 };
    let mut config = Config::new(cache);
    change(&mut config);
    Scheduler::new(config, Policy::continuous()).expect("a valid configuration")
}

fn request(id: u64, prompt: usize, max_tokens: u32) -> Request {
    Request::new(RequestId(id), vec![1; prompt], max_tokens)
}

fn received(scheduler: &mut Scheduler) -> Vec<Received> {
    let mut all = Vec::new();
    scheduler.receive(|one| all.push(one)).expect("nothing is corrupt");
    all
}

#[test]
fn messages_are_heard_in_order() {
    let mut scheduler = scheduler(|_| {});
    let submitter = scheduler.submitter();
    let of = |client, request| Request { client, ..request };
    submitter.submit(of(5, request(1, 5, 3))).expect("it fits");
    submitter.submit(of(6, request(1, 6, 3))).expect("nobody knows yet");
    submitter.cancel(RequestId(1)).expect("it is handed over");
    submitter.cancel(RequestId(2)).expect("it is handed over");
    submitter.submit(request(1, 5, 3)).expect("it fits");
    submitter.finish(RequestId(1), 2).expect("it is handed over");
    submitter.finish(RequestId(3), 2).expect("it is handed over");
    assert_eq!(scheduler.num_unfinished(), 0, "nothing happens by itself");
    let id = RequestId(1);
    let last = Snapshot {
        running: false,
        num_prompt: 5,
        num_output: 0,
        num_computed: 0,
        num_cached: 0,
        num_preemptions: 0,
        num_drafts: 0,
        num_accepted: 0,
        first_scheduled: None,
        first_token: None,
        client: 0,
    };
    let expected = [
        Received::Submitted(id),
        Received::Refused { id, client: 6, error: Error::DuplicateRequest(id) },
        Received::Cancelled(Ended { id, last: Snapshot { client: 5, ..last } }),
        Received::NothingToEnd(RequestId(2)),
        Received::Submitted(id),
        Received::Finished(Ended { id, last }),
        Received::NothingToEnd(RequestId(3)),
    ];
    assert_eq!(received(&mut scheduler), expected);
    assert_eq!(received(&mut scheduler), []);
    let stats = scheduler.stats();
    assert_eq!((scheduler.num_unfinished(), stats.cancelled, stats.finished), (0, 1, 1));
    scheduler.verify().expect("it is sound");
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let scheduler = scheduler(|config| config.max_model_len = 100);
    let submitter = scheduler.submitter();
    let field = |request: Request| match submitter.submit(request) {
        Err(Error::InvalidArgument { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(request(1, 0, 1)), "prompt");
    assert_eq!(field(request(1, 1, 0)), "max_tokens");
    let long = submitter.submit(request(1, 100, 1));
    assert!(matches!(long, Err(Error::PromptTooLong { prompt_len: 100, .. })), "{long:?}");
    drop(scheduler);
    assert_eq!(submitter.submit(request(1, 1, 1)), Err(Error::Closed));
    assert_eq!(submitter.cancel(RequestId(1)), Err(Error::Closed));
}

#[test]
fn the_queue_is_full_for_submitters_too() {
    let mut scheduler = scheduler(|config| config.max_waiting = 3);
    let submitter = scheduler.submitter();
    let full = Err(Error::QueueFull { max_waiting: 3 });
    for id in 0..3 {
        submitter.submit(request(id, 4, 1)).expect("there is room");
    }
    assert_eq!(submitter.submit(request(3, 4, 1)), full, "not received, and counted");
    assert_eq!(received(&mut scheduler).len(), 3);
    assert_eq!(submitter.clone().submit(request(3, 4, 1)), full, "received, and waiting");
    let step = scheduler.schedule(Time(0)).expect("they fit");
    assert_eq!(step.rows().len(), 3);
    submitter.submit(request(3, 4, 1)).expect("they were admitted");
}

/// Eight threads submit and cancel while this one steps: each request ends exactly once.
#[test]
fn nothing_is_lost_between_threads() {
    const THREADS: u64 = 8;
    const EACH: u64 = 400;
    let mut scheduler = scheduler(|config| config.max_waiting = 50);
    let (wake, woken) = mpsc::channel();
    scheduler.set_wake(Some(Box::new({
        let wake = wake.clone();
        move || wake.send(()).expect("this thread receives")
    })));
    let done = AtomicBool::new(false);
    let mut ends = HashMap::<u64, u32>::new();
    let taken = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let submitter = scheduler.submitter();
                scope.spawn(move || {
                    let mut taken = Vec::new();
                    for n in 0..EACH {
                        let id = thread * EACH + n;
                        let length = 1 + (id % 13) as usize;
                        while submitter.submit(request(id, length, 1 + (id % 5) as u32)).is_err() {
                            thread::yield_now();
                        }
                        taken.push(id);
                        match id % 5 {
                            0 | 1 => submitter.cancel(RequestId(id)).expect("the scheduler lives"),
                            2 => submitter.finish(RequestId(id), 1).expect("the scheduler lives"),
                            _ => {}
                        }
                    }
                    taken
                })
            })
            .collect();
        let watch = scope.spawn({
            let (done, wake) = (&done, wake.clone());
            move || {
                let taken: Vec<u64> =
                    threads.into_iter().flat_map(|t| t.join().expect("it ends")).collect();
                done.store(true, Ordering::Release);
                wake.send(()).expect("the loop goes on until it hears of it");
                taken
            }
        });
        let mut end = |id: RequestId| *ends.entry(id.0).or_default() += 1;
        loop {
            let last = done.load(Ordering::Acquire);
            scheduler
                .receive(|one| match one {
                    Received::Refused { id, .. } => end(id),
                    Received::Cancelled(ended) | Received::Finished(ended) => end(ended.id),
                    Received::Submitted(_) | Received::NothingToEnd(_) => {}
                })
                .expect("nothing is corrupt");
            if scheduler.num_unfinished() == 0 {
                if last {
                    break;
                }
                // Were a call lost, this would be for ever.
                woken.recv().expect("this thread has a sender");
                continue;
            }
            let step = scheduler.schedule(Time(0)).expect("somebody runs");
            let (step, samples) = (step.id(), vec![7; step.num_sampling()]);
            let outputs = scheduler.commit(step, Sampled::One(&samples)).expect("it is due");
            outputs.released().iter().for_each(|&id| end(id));
        }
        watch.join().expect("it ends")
    });
    assert_eq!(taken.len() as u64, THREADS * EACH);
    assert_eq!(ends.len(), taken.len());
    assert!(ends.values().all(|&times| times == 1), "{ends:?}");
    scheduler.verify().expect("it is sound");
    println!("{} requests of {THREADS} threads ended once each", taken.len());
}

#[test]
fn the_first_message_to_an_empty_inbox_wakes() {
    let mut scheduler = scheduler(|_| {});
    let submitter = scheduler.submitter();
    let count = Arc::new(AtomicUsize::new(0));
    let calls = || count.load(Ordering::Relaxed);
    let counting = || {
        let count = Arc::clone(&count);
        let wake = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        Some(Box::new(wake) as Wake)
    };
    scheduler.set_wake(counting());
    assert_eq!(calls(), 0, "there is nothing yet");
    submitter.submit(request(1, 4, 1)).expect("it fits");
    assert_eq!(calls(), 1);
    submitter.submit(request(2, 4, 1)).expect("it fits");
    submitter.cancel(RequestId(2)).expect("it is handed over");
    assert_eq!(calls(), 1, "the others are received with it");
    received(&mut scheduler);
    submitter.cancel(RequestId(1)).expect("it is handed over");
    assert_eq!(calls(), 2);
    scheduler.set_wake(counting());
    assert_eq!(calls(), 3, "what is there already is told at once");
    received(&mut scheduler);
    scheduler.set_wake(None);
    submitter.finish(RequestId(1), 1).expect("it is handed over");
    received(&mut scheduler);
    scheduler.set_wake(counting());
    assert_eq!((calls(), Arc::strong_count(&count)), (3, 2));
    drop(scheduler);
    assert_eq!(submitter.cancel(RequestId(1)), Err(Error::Closed));
    assert_eq!((calls(), Arc::strong_count(&count)), (3, 1), "what it held is dropped");
}
