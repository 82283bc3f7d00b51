//! The queues by themselves: order, removal, and the bounds that `Priority` keeps.

use inflight::scheduler::queue::{Ageing, Clock, Fcfs, Priority, Queue, Waiting};
use inflight::{RequestId, Time};

use crate::rng::Rng;

fn waiting(id: u64, priority: i32, clock: Clock) -> Waiting {
    let (slot, arrival, since) = (id as u32, clock.now, clock.admissions);
    Waiting { slot, id: RequestId(id), priority, arrival, since, ..Waiting::default() }
}

fn drain(queue: &mut dyn Queue) -> Vec<u64> {
    let mut order = Vec::new();
    while let Some(head) = queue.peek(Clock::default()) {
        assert!(queue.remove(&head));
        order.push(head.id.0);
    }
    assert!(queue.is_empty());
    order
}

#[test]
fn first_come_first_served_and_who_comes_back_comes_first() {
    let mut queue = Fcfs::default();
    let [a, b, c, d] = [0, 1, 2, 3].map(|id| waiting(id, 0, Clock::default()));
    [a, b, c].into_iter().for_each(|w| queue.push(w));
    queue.push_front(d);
    assert!(queue.remove(&b) && !queue.remove(&b));
    assert_eq!(queue.len(), 3);
    assert_eq!(queue.peek(Clock::default()), Some(d), "to look is not to take");
    assert_eq!(drain(&mut queue), [3, 0, 2]);
}

#[test]
fn a_priority_queue_removes_whom_it_is_told() {
    let mut queue = Priority::default();
    let [a, b, c] = [(0, 2), (1, 0), (2, 1)].map(|(id, p)| waiting(id, p, Clock::default()));
    [a, b, c].into_iter().for_each(|w| queue.push(w));
    assert!(queue.remove(&b) && !queue.remove(&b));
    assert_eq!((queue.len(), queue.is_empty()), (2, false));
    queue.push_front(b);
    assert_eq!(drain(&mut queue), [1, 2, 0]);
    assert_eq!(queue.peek(Clock::default()), None);
}

#[test]
fn waiting_raises_by_one_level_for_so_many_admissions_or_so_long_a_time() {
    let at = |now, admissions| Clock { now: Time(now), admissions };
    let mut queue = Priority::new(Ageing::Admissions(3), u64::MAX, u64::MAX);
    queue.push(waiting(0, 2, at(0, 0)));
    // Two levels are six admissions: whoever comes later than that comes after.
    queue.push(waiting(1, 0, at(9, 5)));
    queue.push(waiting(2, 0, at(9, 6)));
    assert_eq!(drain(&mut queue), [1, 0, 2]);
    let mut queue = Priority::new(Ageing::Nanos(10), u64::MAX, u64::MAX);
    queue.push(waiting(0, 2, at(0, 0)));
    queue.push(waiting(1, 0, at(19, 5)));
    queue.push(waiting(2, 0, at(20, 6)));
    assert_eq!(drain(&mut queue), [1, 0, 2]);
    let mut queue = Priority::new(Ageing::Off, u64::MAX, u64::MAX);
    queue.push(waiting(0, 2, at(0, 0)));
    queue.push(waiting(1, 0, at(1000, 1000)));
    assert_eq!(drain(&mut queue), [1, 0]);
}

/// Random arrivals, admissions and returns; how often somebody was overtaken, at most.
fn most_overtaken(seed: u64, ageing: Ageing, max_admissions: u64, max_wait: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let mut queue = Priority::new(ageing, max_admissions, max_wait);
    let mut clock = Clock::default();
    // In the order they came, and how many that came later went first.
    let mut there: Vec<(Waiting, u64)> = Vec::new();
    let mut gone: Vec<Waiting> = Vec::new();
    let (mut next, mut most, mut overdue) = (0, 0, 0);
    for _ in 0..4_000 {
        clock.now.0 += rng.below(3) as u64;
        // Urgent ones never cease to come.
        for _ in 0..rng.below(4) {
            if there.len() > 12 {
                break;
            }
            let priority = if rng.chance(80) { 0 } else { rng.below(200) as i32 - 100 };
            let w = waiting(next, priority, clock);
            queue.push(w);
            there.push((w, 0));
            next += 1;
        }
        if rng.chance(10) && !gone.is_empty() {
            // A preemption: back with its old age.
            let w = gone.swap_remove(rng.below(gone.len()));
            queue.push_front(w);
            let at = there.partition_point(|(other, _)| other.id < w.id);
            there.insert(at, (w, 0));
        }
        for _ in 0..rng.below(4) {
            let Some(head) = queue.peek(clock) else { break };
            assert!(queue.remove(&head));
            let at = there.iter().position(|(w, _)| *w == head).expect("it waits");
            for (w, overtaken) in &mut there[..at] {
                *overtaken += 1;
                most = most.max(*overtaken);
                assert!(*overtaken <= max_admissions, "{w:?} is overtaken again");
                assert!(clock.now.since(w.arrival) < max_wait, "{w:?} waits too long");
            }
            overdue += u64::from(clock.admissions - head.since >= max_admissions);
            overdue += u64::from(clock.now.since(head.arrival) >= max_wait);
            gone.push(there.remove(at).0);
            clock.admissions += 1;
        }
        assert_eq!(queue.len(), there.len());
    }
    (most, overdue)
}

#[test]
fn nobody_is_overtaken_more_often_than_the_bound_or_after_it_in_time() {
    let (mut most, mut overdue) = (0, 0);
    for seed in 0..30 {
        for ageing in [Ageing::Off, Ageing::Admissions(7), Ageing::Nanos(5)] {
            for (max_admissions, max_wait) in [(10, u64::MAX), (u64::MAX, 60), (300, 500), (0, 0)] {
                let (by, late) = most_overtaken(seed, ageing, max_admissions, max_wait);
                if (ageing, max_admissions) == (Ageing::Off, 10) {
                    most = most.max(by);
                }
                overdue += late;
            }
        }
    }
    println!("overtaken {most} times at most where 10 is the bound, {overdue} went overdue");
    assert_eq!(most, 10, "the bound is reached");
    assert!(overdue > 1000);
}
