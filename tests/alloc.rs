//! Steady decoding allocates nothing on the heap: not in `schedule`, nor in building the batch,
//! nor in `commit`, at block boundaries no more than between them.

#[path = "common/bench.rs"]
mod bench;
#[path = "common/rng.rs"]
mod rng;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::hint::black_box;

use bench::{cached, limits, request};
use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::{BlockHash, CacheConfig, KvCache};
use inflight::plan::{Costs, Extent, Plan, PlanConfig};
use inflight::{Config, Policy, Sampled, Scheduler, Time};
use rng::mix;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread allocates while it asks to, and says where the first one came from.
struct Counting;

impl Counting {
    fn note(&self) {
        if COUNTING.get() {
            COUNT.set(COUNT.get() + 1);
            if COUNT.get() == 1 {
                COUNTING.set(false);
                println!("allocated here:\n{}", Backtrace::force_capture());
                COUNTING.set(true);
            }
        }
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    COUNT.set(0);
    COUNTING.set(true);
    work();
    COUNTING.set(false);
    COUNT.get()
}

const RUNNING: usize = 256;
const STEPS: usize = 1_000;
const BLOCK_SIZE: usize = 16;
const WARM_UP: usize = 64;

struct Loop {
    scheduler: Scheduler,
    builder: BatchBuilder,
    sampled: Vec<u32>,
    depth: usize,
    delivered: usize,
}

impl Loop {
    fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config, Policy::continuous()).expect("sound limits"),
            builder: BatchBuilder::new(RowBuckets::ladder(512), Some(128)),
            sampled: vec![7; RUNNING],
            depth: config.max_steps_in_flight,
            delivered: 0,
        }
    }

    fn step(&mut self) {
        if self.scheduler.steps_in_flight().len() == self.depth {
            let oldest = self.scheduler.steps_in_flight().next().expect("in flight");
            let (id, sampling) = (oldest.id(), oldest.num_sampling());
            let sampled = Sampled::One(&self.sampled[..sampling]);
            let outputs = self.scheduler.commit(id, sampled).expect("the oldest");
            self.delivered += outputs.num_tokens();
        }
        let id = self.scheduler.schedule(Time(0)).expect("somebody runs").id();
        let step = self.scheduler.step(id).expect("in flight");
        self.builder.build(&self.scheduler, step).expect("the newest step");
    }
}

/// 256 requests decode for 1,000 steps.
fn steady(what: &str, config: Config) {
    let num_blocks = config.cache.num_blocks;
    let mut run = Loop::new(Config { max_num_seqs: RUNNING, ..config });
    // Others were here before and left the cache full of what they computed.
    for id in 0..num_blocks as u64 / 32 {
        run.scheduler.submit(request(1_000 + id, 500, 1)).expect("room");
    }
    while run.scheduler.num_unfinished() > 0 {
        run.step();
    }
    // Prompts of all lengths, so that blocks fill in every step.
    for id in 0..RUNNING as u64 {
        let prompt = 1 + id as usize % (3 * BLOCK_SIZE);
        run.scheduler.submit(request(id, prompt, 2_000)).expect("room");
    }
    (0..WARM_UP).for_each(|_| run.step());
    assert_eq!(run.scheduler.num_running(), RUNNING);
    let before = (run.delivered, run.scheduler.cache().num_free(), run.scheduler.cache().stats());
    let count = allocations(|| (0..STEPS).for_each(|_| run.step()));
    let cache = run.scheduler.cache();
    let (tokens, blocks) = (run.delivered - before.0, before.1 - cache.num_free());
    let evicted = cache.stats().evicted_blocks - before.2.evicted_blocks;
    println!(
        "{what}: {tokens} tokens, {blocks} blocks taken, {evicted} evicted, {count} allocations"
    );
    assert_eq!((tokens, blocks), (RUNNING * STEPS, RUNNING * STEPS / BLOCK_SIZE));
    assert_eq!(evicted > 1_000, cache.has_prefix_cache());
    assert_eq!(run.scheduler.stats().preemptions, 0);
    assert_eq!(count, 0, "{what}");
    run.scheduler.verify().expect("every invariant");
}

#[test]
fn steady_decoding_allocates_nothing() {
    steady("plain", limits(20_000, BLOCK_SIZE));
    steady("prefix cache", cached(20_000, BLOCK_SIZE));
}

#[test]
fn steady_decoding_with_overlap_allocates_nothing() {
    let overlap = |config| Config { overlap: true, max_steps_in_flight: 2, ..config };
    steady("overlap", overlap(limits(20_000, BLOCK_SIZE)));
    steady("overlap, prefix cache", overlap(cached(20_000, BLOCK_SIZE)));
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(vec![black_box(7)]))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn a_full_prefix_index_takes_new_names_for_old_without_growing() {
    // As many blocks as a hash table of 2^12 buckets takes, all named, one renamed at a time.
    let num_blocks = 3_584;
    let cache = CacheConfig { num_blocks, block_size: 1, prefix_cache: true, num_host_blocks: 0 };
    let mut cache = KvCache::new(cache).expect("a sound configuration");
    let name = |i: u64| {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&mix(i).to_le_bytes());
        BlockHash(name)
    };
    let seq = cache.open();
    let mut renamed = 0;
    let mut rename = |times| {
        for _ in 0..times {
            cache.allocate(seq, &[], 0, 1).expect("one is free");
            cache.register(seq, &[name(renamed)], 1).expect("it is open");
            cache.free(seq).expect("it is open");
            renamed += 1;
        }
    };
    rename(num_blocks);
    let count = allocations(|| rename(200_000));
    println!("{renamed} names for {num_blocks} blocks, {count} allocations");
    assert_eq!(count, 0);
}

#[test]
fn planning_attention_allocates_nothing() {
    let config = PlanConfig {
        shares: 132,
        heads: 8,
        max_packed_q: 8,
        q_tile: 16,
        kv_granularity: 64,
        causal: true,
        window_left: None,
        fixed_split: None,
        split_q: 8,
        costs: Costs::default(),
    };
    let mut plan = Plan::default();
    let (mut parts, mut merges) = (0, 0);
    let mut steps = |steps: std::ops::Range<u32>| {
        for step in steps {
            let kv_len = |row: u32| 16 + mix(row.into()) as u32 % 5000 + step;
            let rows = (0..64).map(|row| Extent { q_len: 1, kv_len: kv_len(row) });
            plan.make(&config, rows).expect("a sound configuration");
            (parts, merges) = (parts + plan.parts().len(), merges + plan.merges().len());
        }
    };
    steps(0..1);
    let count = allocations(|| steps(1..2000));
    println!("{parts} parts, {merges} merges, {count} allocations");
    assert!(count == 0 && merges > 100_000);
}
