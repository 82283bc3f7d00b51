//! The scheduler under random calls: what it schedules can be run, what it delivers is complete.

#[path = "common/device.rs"]
mod device;
#[path = "common/flight.rs"]
mod flight;
#[path = "common/packed.rs"]
mod packed;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/sim.rs"]
mod sim;
#[path = "common/workload.rs"]
mod workload;

use flight::{Counts, Setup};
use inflight::cache::CacheConfig;
use inflight::scheduler::HeadOfLine;
use inflight::scheduler::capacity::Optimistic;
use inflight::scheduler::preempt::LeastComputed;
use inflight::scheduler::queue::{Ageing, Priority};
use inflight::{Config, Policy, Step};
use rng::Rng;
use sim::Sim;

type Choice = (&'static str, fn() -> Policy);

const POLICIES: [Choice; 10] = [
    ("continuous", Policy::continuous),
    ("static", Policy::static_batch),
    ("priority", Policy::priority),
    ("no-evict", Policy::no_evict),
    ("max-utilization", Policy::max_utilization),
    ("orca", Policy::orca),
    ("bypass", bypass),
    ("least computed", least_computed),
    ("strict priority", strict_priority),
    ("chunk must fit", chunk_must_fit),
];

/// Those who promise never to preempt.
const SAFE: [&str; 3] = ["static", "no-evict", "orca"];

fn bypass() -> Policy {
    let head_of_line = HeadOfLine::Bypass { bound: 3, lookahead: 2 };
    Policy { head_of_line, ..Policy::continuous() }
}

fn least_computed() -> Policy {
    Policy { victim: Box::new(LeastComputed), ..Policy::continuous() }
}

fn strict_priority() -> Policy {
    let queue = Box::new(Priority::new(Ageing::Off, u64::MAX, u64::MAX));
    Policy { queue, ..Policy::priority() }
}

fn chunk_must_fit() -> Policy {
    let capacity = Box::new(Optimistic { watermark: 0.1, whole_prompt_must_fit: false });
    Policy { capacity, ..Policy::continuous() }
}

fn setup(seed: u64, (name, policy): Choice) -> Setup {
    let mut rng = Rng::new(!seed);
    let block_size = rng.pick(&[1, 2, 3, 4, 8, 16]);
    let num_blocks = 1 + rng.within(24, 90).div_ceil(block_size).max(4);
    let max_model_len = rng.within(12, 56).min((num_blocks - 1) * block_size);
    let swap = rng.chance(50);
    let chunked_prefill = !rng.chance(15);
    let cache = CacheConfig {
        num_blocks,
        block_size,
        prefix_cache: rng.chance(70),
        num_host_blocks: if swap { rng.below(num_blocks) } else { 0 },
    };
    let overlap = rng.chance(50);
    let config = Config {
        max_num_seqs: rng.within(1, 9),
        max_num_batched_tokens: match chunked_prefill {
            true => rng.within(1, 40),
            false => max_model_len + rng.below(20),
        },
        max_model_len,
        chunked_prefill,
        long_prefill_token_threshold: rng.pick(&[0, 0, 3, 7]),
        max_waiting: rng.pick(&[usize::MAX, 4]),
        max_steps_in_flight: rng.within(1, 4),
        overlap,
        swap,
        ..Config::new(cache)
    };
    let (never_preempts, drafts) = (SAFE.contains(&name), !overlap && name != "static");
    Setup { seed, config, policy, never_preempts, drafts }
}

/// Says which run it was that failed.
struct Running(&'static str, u64);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this was {}, seed {}", self.0, self.1);
        }
    }
}

fn run(seed: u64, policy: Choice) -> (Vec<Step>, Counts) {
    let _running = Running(policy.0, seed);
    Sim::new(setup(seed, policy)).run(500)
}

#[test]
fn what_is_scheduled_can_be_run_and_what_is_delivered_is_complete() {
    let mut total = Counts::default();
    for policy in POLICIES {
        let mut counts = Counts::default();
        for seed in 0..200 {
            counts.merge(&run(seed, policy).1);
        }
        let safe = SAFE.contains(&policy.0);
        assert_eq!(counts.of("preemptions") < 500, safe, "{counts:?}");
        assert_eq!(counts.of("swapped out") < 500, safe, "{counts:?}");
        assert_eq!(counts.of("drafts accepted") < 500, policy.0 == "static", "{counts:?}");
        let usual = ["finished", "hit tokens", "evicted blocks", "overlapped", "dropped"];
        assert!(usual.iter().all(|what| counts.of(what) > 800), "{counts:?}");
        total.merge(&counts);
    }
    println!("{total:#?}");
    for (what, least) in [
        ("steps", 400_000),
        ("chunks", 100_000),
        ("cancelled in flight", 4_000),
        ("preempted in flight", 3_000),
        ("stale", 4_000),
        ("finished waiting", 500),
        ("swapped in", 10_000),
        ("abandoned", 20_000),
        ("abandoned midway", 8_000),
        ("abandoned after copies", 300),
        ("drafts rejected", 7_000),
        ("batches", 400_000),
    ] {
        assert!(total.of(what) > least, "{what}");
    }
}

#[test]
fn the_same_calls_give_the_same_steps() {
    for policy in POLICIES {
        for seed in 1000..1005 {
            let (first, second) = (run(seed, policy), run(seed, policy));
            assert_eq!(first.1, second.1);
            assert!(first.0 == second.0, "{} {seed}", policy.0);
        }
    }
}
