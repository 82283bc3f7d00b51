//! What holds even when a caller or a policy of his own breaks its side of the bargain.

use inflight::cache::CacheConfig;
use inflight::executor::DryRun;
use inflight::scheduler::Batching;
use inflight::scheduler::capacity::Optimistic;
use inflight::scheduler::queue::{Clock, Fcfs, Queue, Waiting};
use inflight::{Config, Engine, Error, Policy, Request, RequestId, Sampled, Scheduler, Time};

fn config(max_num_seqs: usize, num_blocks: usize) -> Config {
    let cache = CacheConfig { num_blocks, block_size: 4, prefix_cache: true, num_host_blocks: 0 };
    Config { max_num_seqs, ..Config::new(cache) }
}

fn request(id: u64, prompt: usize, max_tokens: u32, priority: i32) -> Request {
    let prompt = (0..prompt as u32).map(|i| id as u32 * 1000 + i).collect();
    Request { priority, ..Request::new(RequestId(id), prompt, max_tokens) }
}

/// Steps until everybody has finished; which requests each step admits.
fn admissions(scheduler: &mut Scheduler) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    while scheduler.num_unfinished() > 0 {
        let step = scheduler.schedule(Time(all.len() as u64)).expect("somebody runs");
        let (id, n) = (step.id(), step.num_sampling());
        all.push(step.rows().iter().filter(|r| r.admitted).map(|r| r.id.0).collect());
        scheduler.commit(id, Sampled::One(&vec![7; n])).expect("its samples");
        scheduler.verify().expect("every invariant");
    }
    all
}

#[test]
fn under_orca_the_urgent_pass_the_patient() {
    let mut scheduler = Scheduler::new(config(4, 100), Policy::orca()).expect("sound");
    // 0 runs for 50 steps; 1 may wait for the end of its round; 2 is urgent and came last.
    scheduler.submit(request(0, 4, 50, 0)).expect("room");
    let id = scheduler.schedule(Time(0)).expect("it runs").id();
    scheduler.commit(id, Sampled::One(&[7])).expect("its sample");
    scheduler.submit(request(1, 4, 3, 1)).expect("room");
    scheduler.submit(request(2, 4, 3, 0)).expect("room");
    let steps = admissions(&mut scheduler);
    assert_eq!(steps[0], [2], "the urgent one does not stand behind the patient one");
    let patient = steps.iter().position(|ids| ids.contains(&1)).expect("it runs in the end");
    assert_eq!(patient, 41, "when 0 has 8 of its 50 tokens to go");
}

#[test]
fn who_names_no_arrival_came_when_he_was_submitted() {
    // The last admitted of equals gives way, not the first.
    let limits = Config { max_model_len: 16, ..config(3, 7) };
    let mut scheduler = Scheduler::new(limits, Policy::priority()).expect("sound");
    for id in 0..3 {
        scheduler.submit(request(id, 6, 8, 0)).expect("room");
    }
    let mut preempted = Vec::new();
    for at in 0..40 {
        if scheduler.num_unfinished() == 0 {
            break;
        }
        let step = scheduler.schedule(Time(at)).expect("somebody runs");
        let (id, n) = (step.id(), step.num_sampling());
        preempted.extend(step.preempted().iter().map(|id| id.0));
        scheduler.commit(id, Sampled::One(&vec![7; n])).expect("its samples");
    }
    assert_eq!(preempted.first(), Some(&2));
    assert!(!preempted.contains(&0));
}

/// Names requests that are not there, after the first `good` looks.
struct Liar {
    honest: Fcfs,
    good: std::cell::Cell<u32>,
    removes: bool,
}

impl Queue for Liar {
    fn push(&mut self, request: Waiting) {
        self.honest.push(request);
    }

    fn push_front(&mut self, request: Waiting) {
        self.honest.push_front(request);
    }

    fn peek(&self, clock: Clock) -> Option<Waiting> {
        let left = self.good.get();
        self.good.set(left.saturating_sub(1));
        let head = self.honest.peek(clock)?;
        Some(if left > 0 { head } else { Waiting { slot: 99, ..head } })
    }

    fn remove(&mut self, request: &Waiting) -> bool {
        !self.removes || self.honest.remove(request)
    }

    fn len(&self) -> usize {
        self.honest.len()
    }
}

#[test]
fn a_queue_that_lies_is_found_out_and_nothing_has_happened() {
    for (good, removes) in [(0, true), (1, true), (2, true), (3, false)] {
        let honest = Fcfs::default();
        let queue = Box::new(Liar { honest, good: good.into(), removes });
        let policy = Policy { queue, ..Policy::continuous() };
        let mut scheduler = Scheduler::new(config(8, 100), policy).expect("sound");
        for id in 0..4 {
            scheduler.submit(request(id, 6, 3, 0)).expect("room");
        }
        let error = scheduler.schedule(Time(0)).expect_err("it lies");
        assert!(matches!(error, Error::Corrupt(_)), "{error}");
        scheduler.verify().expect("nothing is half done");
        assert_eq!((scheduler.num_running(), scheduler.steps_in_flight().len()), (0, 0));
        assert_eq!(scheduler.num_waiting(), 4);
        let free = scheduler.cache().pool().num_usable();
        assert_eq!(scheduler.cache().num_free(), free, "no block is lost");
    }
}

#[test]
fn a_used_queue_is_refused() {
    let mut queue = Fcfs::default();
    queue.push(Waiting::default());
    let policy = Policy { queue: Box::new(queue), ..Policy::continuous() };
    let error = Scheduler::new(config(8, 100), policy).expect_err("somebody waits in it");
    assert!(matches!(error, Error::InvalidArgument { field: "policy", .. }), "{error}");
}

#[test]
fn a_static_batch_reserves_or_is_refused() {
    let policy = Policy {
        capacity: Box::new(Optimistic::default()),
        batching: Batching::Static,
        ..Policy::continuous()
    };
    let error = Scheduler::new(config(8, 100), policy).expect_err("its members could give way");
    assert!(matches!(error, Error::InvalidArgument { field: "policy", .. }), "{error}");
}

#[test]
fn the_end_of_a_batch_is_told_even_if_its_last_member_is_cancelled() {
    let executor = DryRun { sampler: |_, k| k };
    let mut engine = Engine::new(config(8, 100), Policy::static_batch(), executor).expect("sound");
    engine.submit(request(1, 4, 1, 0)).expect("room");
    engine.submit(request(2, 4, 9, 0)).expect("room");
    let ran = engine.step(Time(0)).expect("it runs").expect("somebody is there");
    assert!(ran.outputs.released().is_empty(), "1 has ended and its slot is held");
    engine.cancel(RequestId(2)).expect("it runs");
    assert_eq!(engine.cancel(RequestId(1)), Err(Error::UnknownRequest(RequestId(1))));
    let ran = engine.step(Time(1)).expect("nothing to run").expect("something to tell");
    assert_eq!(ran.outputs.released(), [RequestId(1)]);
    assert!(engine.step(Time(2)).expect("idle").is_none());
}

#[test]
fn a_token_that_stands_for_none_cannot_be_sampled() {
    let mut scheduler = Scheduler::new(config(8, 100), Policy::continuous()).expect("sound");
    scheduler.submit(request(1, 4, 2, 0)).expect("room");
    let id = scheduler.schedule(Time(0)).expect("it runs").id();
    let error = scheduler.commit(id, Sampled::One(&[u32::MAX])).expect_err("no token");
    assert!(matches!(error, Error::InvalidArgument { field: "tokens", .. }), "{error}");
    scheduler.commit(id, Sampled::One(&[1])).expect("the step is still in flight");
}
