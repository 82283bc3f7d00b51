//! What a child of a fork has: not its parent's threads, nor locks that they may hold.
#![cfg(unix)]

#[path = "common/kv.rs"]
mod kv;
#[path = "common/rng.rs"]
mod rng;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use inflight::cache::CacheConfig;
use inflight::device::cpu::{Cpu, Isa};
use inflight::kernels::DType;
use inflight::kernels::cpu::{State, merge};
use inflight::{Config, Error, Policy, Request, RequestId, Scheduler};
use kv::{Tensor, finite_number};
use rng::Rng;

/// Whether `child` returns in a child of this process.
fn in_child(child: impl FnOnce()) -> bool {
    // SAFETY: the child runs `child` and ends; all that it takes of the system is there after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no process can be made");
    if pid == 0 {
        // SAFETY: no preconditions; a child that waits for ever is ended.
        unsafe { libc::alarm(120) };
        let outcome = catch_unwind(AssertUnwindSafe(child));
        // SAFETY: no preconditions; what the test harness would do at the end is the parent's.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = -1;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status == 0
}

/// The merge of a state with itself, of so many tokens.
fn merge_of(cpu: &Cpu, tokens: usize) -> inflight::Result<()> {
    let mut rng = Rng::new(1);
    let shape = [tokens, 8, 64];
    let state = Tensor::new(&mut rng, DType::F32, shape, false, finite_number);
    let lse = vec![0.0; tokens * 8];
    let state = || State { o: state.view(), lse: &lse };
    let mut out = Tensor::new(&mut rng, DType::F32, shape, false, |_| 7.0);
    let merged = merge(cpu, &[state(), state()], out.view_mut(), None);
    let is_written = (0..tokens).any(|token| out.get(token, 0, 0) != 7.0);
    assert_eq!(merged.is_ok(), is_written);
    merged
}

/// Runs `forks` while another thread repeats `work`, which has begun.
fn during(work: impl Fn() + Sync, forks: impl FnOnce() -> bool) {
    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                work();
                begun.store(true, Ordering::Relaxed);
            }
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let all_well = forks();
        stop.store(true, Ordering::Relaxed);
        assert!(all_well, "a child has failed, or waited for ever");
    });
}

/// One test, so that no other starts threads at a fork: Rust's own library takes locks for that.
#[test]
fn a_child_is_refused_what_its_parents_threads_use() {
    threads_of_a_cpu();
    lock_of_a_scheduler();
}

fn threads_of_a_cpu() {
    // On the caller's thread, and shared among threads.
    const SIZES: [usize; 2] = [1, 200];
    let cpu = kv::cpu(2, Isa::best());
    let work = || merge_of(&cpu, SIZES[1]).expect("the parent's goes on");
    during(work, || {
        (0..10).all(|_| {
            in_child(|| {
                for tokens in SIZES {
                    let refused = merge_of(&cpu, tokens).expect_err("its threads are not here");
                    assert_eq!(refused, Error::Forked { what: "the CPU" });
                    let said = "the CPU was made before fork(): make another in this process";
                    assert_eq!(refused.to_string(), said);
                }
                // SAFETY: the child ends without using it again.
                drop(unsafe { std::ptr::read(&raw const cpu) });
                let own = kv::cpu(2, Isa::best());
                for tokens in SIZES {
                    merge_of(&own, tokens).expect("it has threads of its own");
                }
                assert!(in_child(|| {
                    merge_of(&own, 1).expect_err("it is the parent's again");
                }));
            })
        })
    });
}

fn scheduler() -> Scheduler {
    let cache =
        CacheConfig { num_blocks: 64, block_size: 4, prefix_cache: true, num_host_blocks: 0 };
    Scheduler::new(Config::new(cache), Policy::continuous()).expect("a valid configuration")
}

fn lock_of_a_scheduler() {
    let request = || Request::new(RequestId(1), vec![1; 5], 3);
    let mut parents = scheduler();
    let submitter = parents.submitter();
    let work = || submitter.cancel(RequestId(1)).expect("the parent's goes on");
    during(work, || {
        (0..20).all(|_| {
            parents.receive(|_| {}).expect("the parent's goes on");
            in_child(|| {
                let forked = || Err(Error::Forked { what: "the scheduler" });
                assert_eq!(submitter.submit(request()), forked());
                assert_eq!(submitter.cancel(RequestId(1)), forked());
                assert_eq!(parents.receive(|_| panic!("nothing is received")), forked());
                let mut own = scheduler();
                own.submitter().submit(request()).expect("it is this process's");
                own.receive(|_| {}).expect("it is this process's");
                assert_eq!(own.num_waiting(), 1);
            })
        })
    });
}
