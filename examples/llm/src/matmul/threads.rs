//! Fork and join in a microsecond: a step has some 150 products of tens of microseconds each.
//!
//! Workers wait for the next job spinning, and sleep when none comes for a while.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of a waiting loop, some tens of microseconds in all, before a worker sleeps and a caller
/// offers its core to others: there may be more threads than cores.
const SPINS: u32 = 1000;

/// A team of threads. The caller is one of them, thread 0.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held by the caller that the workers serve.
    caller: Mutex<()>,
}

struct Worker {
    sleeps: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
    thread: Thread,
}

struct Shared {
    /// Counts jobs; a worker that sees it change runs the job.
    epoch: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the job.
    running: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

/// A closure that the caller keeps alive until `running` is zero.
type Job = *const (dyn Fn(usize, usize) + Sync);

// SAFETY: `job` is written by the caller alone, while no worker runs (`running` is zero), and read
// by workers only between the change of `epoch` and their decrement of `running`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure behind `job` is `Sync`.
unsafe impl Send for Shared {}

impl Threads {
    /// A team of `count` threads, the caller among them.
    pub fn new(count: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let count = count.max(1);
        let workers = (1..count)
            .map(|index| {
                let (shared, sleeps) = (shared.clone(), Arc::new(AtomicBool::new(false)));
                let flag = sleeps.clone();
                let handle = thread::Builder::new()
                    .name(format!("matmul-{index}"))
                    .spawn(move || work(&shared, &flag, index, count))
                    .expect("the system starts a thread");
                let thread = handle.thread().clone();
                Worker { sleeps, handle: Some(handle), thread }
            })
            .collect();
        Self { shared, workers, caller: Mutex::new(()) }
    }

    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread, threads)` once for each thread, and waits for all. A panic in any of them
    /// goes on in the caller. Where the team is busy (from within a job, or for another caller) the
    /// caller runs all of them itself.
    pub fn run(&self, job: impl Fn(usize, usize) + Sync) {
        let count = self.count();
        let guard = match self.caller.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        };
        if guard.is_none() || self.workers.is_empty() {
            return (0..count).for_each(|thread| job(thread, count));
        }
        self.start(&job);
        let own = catch_unwind(AssertUnwindSafe(|| job(0, count)));
        self.wait();
        // Before the next caller's workers may leave theirs.
        let theirs = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    fn start(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        // SAFETY: only the lifetime changes; `run` returns after the last worker is done with it.
        let job: Job =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), Job>(job) };
        // SAFETY: no worker runs: the last `wait` saw `running` at zero.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        // Sequentially consistent, as is the flag: either the worker sees the job before it
        // sleeps, or this thread sees that it sleeps.
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        for worker in &self.workers {
            if worker.sleeps.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }

    fn wait(&self) {
        let mut turns = 0;
        while self.shared.running.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                turns = 0;
                thread::yield_now();
            }
        }
    }

    /// Divides the rows of `data` (`width` items each) among the threads:
    /// `job(first row, rows)`.
    pub fn run_rows<T: Send>(
        &self,
        data: &mut [T],
        width: usize,
        job: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(width > 0 && data.len().is_multiple_of(width));
        let rows = data.len() / width;
        let data = SharedMut::new(data);
        self.run(|thread, threads| {
            let own = parts(rows, threads, thread);
            // SAFETY: the parts of different threads do not overlap, and a thread runs once.
            let items = unsafe { data.slice(own.start * width..own.end * width) };
            if !items.is_empty() {
                job(own.start, items);
            }
        });
    }

    /// Divides the columns of `data` (rows of `width`) into shares: share `n` is columns
    /// `cuts[n]..cuts[n + 1]`, which the next thread that is free takes: `job(n, columns)`.
    pub fn run_columns(
        &self,
        data: &mut [f32],
        width: usize,
        cuts: &[usize],
        job: impl Fn(usize, &mut Columns<'_>) + Sync,
    ) {
        assert!(width > 0 && data.len().is_multiple_of(width));
        assert!(cuts.is_sorted() && cuts.last().is_some_and(|&end| end <= width));
        let rows = data.len() / width;
        let data = SharedMut::new(data);
        let next = AtomicUsize::new(0);
        self.run(|_, _| {
            loop {
                let share = next.fetch_add(1, Ordering::Relaxed);
                let Some(&[start, end]) = cuts.get(share..share + 2) else { return };
                if start < end && rows > 0 {
                    job(share, &mut Columns { data: &data, rows, width, range: start..end });
                }
            }
        });
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for worker in &mut self.workers {
            if let Some(handle) = worker.handle.take() {
                // A job's panic was caught; no caller is left to tell about another.
                let _ = handle.join();
            }
        }
    }
}

fn work(shared: &Shared, sleeps: &AtomicBool, index: usize, count: usize) {
    let mut seen = 0;
    loop {
        await_job(shared, sleeps, seen);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch changed, so the job is there, and stays until `running` falls.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(index, count)))
        {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Returns when the epoch is no longer `seen`.
fn await_job(shared: &Shared, sleeps: &AtomicBool, seen: u32) {
    for _ in 0..SPINS {
        if shared.epoch.load(Ordering::Acquire) != seen {
            return;
        }
        std::hint::spin_loop();
    }
    sleeps.store(true, Ordering::SeqCst);
    while shared.epoch.load(Ordering::SeqCst) == seen {
        thread::park();
    }
    sleeps.store(false, Ordering::SeqCst);
}

/// The share of a thread: `0..n` in `threads` ranges whose lengths differ by one at most.
pub fn parts(n: usize, threads: usize, thread: usize) -> Range<usize> {
    n * thread / threads..n * (thread + 1) / threads
}

/// A slice that several threads write, each its own elements.
struct SharedMut<'a, T> {
    data: *mut T,
    len: usize,
    lives: PhantomData<&'a mut [T]>,
}

// SAFETY: hands out `&mut` parts to other threads, as `&mut [T]` may be split and sent.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), lives: PhantomData }
    }

    /// # Safety
    /// No other slice that lives at the same time overlaps this one.
    #[expect(clippy::mut_from_ref, reason = "what the caller promises")]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds as just checked; not aliased as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// Some columns of a matrix, which one thread may write.
pub struct Columns<'a> {
    data: &'a SharedMut<'a, f32>,
    rows: usize,
    width: usize,
    range: Range<usize>,
}

impl Columns<'_> {
    /// Writes `values` to a row, from a column of the whole matrix on.
    pub fn write(&mut self, row: usize, column: usize, values: &[f32]) {
        let end = column + values.len();
        assert!(row < self.rows && self.range.start <= column && end <= self.range.end);
        let at = row * self.width;
        // SAFETY: `cuts` ascend and a share is taken once, so no other thread has these columns, and `&mut self` is the only
        // access of this one.
        unsafe { self.data.slice(at + column..at + end) }.copy_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_in_every_round() {
        for count in 1..=4 {
            let team = Threads::new(count);
            let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=400 {
                team.run(|thread, threads| {
                    assert_eq!(threads, count);
                    runs[thread].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|run| run.load(Ordering::Relaxed) == round));
                if round % 100 == 0 {
                    // Long enough for workers to sleep.
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn a_panic_in_any_thread_reaches_the_caller_and_the_team_goes_on() {
        let team = Threads::new(3);
        for round in 0..60 {
            let broken = round % 3;
            let panic = catch_unwind(AssertUnwindSafe(|| {
                team.run(|thread, _| {
                    if thread == broken {
                        resume_unwind(Box::new(round));
                    }
                });
            }));
            assert_eq!(*panic.unwrap_err().downcast::<usize>().unwrap(), round);
            let sum = AtomicUsize::new(0);
            team.run(|thread, _| {
                sum.fetch_add(thread + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 6);
        }
    }

    #[test]
    fn a_job_within_a_job_and_two_callers_at_once_end() {
        let team = Threads::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.run(|_, _| {
                            team.run(|_, _| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 2 * 200 * 4);
    }

    #[test]
    fn parts_cover_everything_once() {
        for n in 0..40 {
            for threads in 1..9 {
                let all: Vec<usize> = (0..threads).flat_map(|t| parts(n, threads, t)).collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn rows_and_columns_are_divided_among_the_threads() {
        let team = Threads::new(3);
        let mut data = [0.0f32; 35];
        team.run_rows(&mut data, 5, |first, rows| {
            for (at, row) in rows.chunks_mut(5).enumerate() {
                row.fill((first + at) as f32);
            }
        });
        // More shares than threads, an empty one among them.
        team.run_columns(&mut data, 5, &[0, 1, 2, 2, 4, 5], |share, columns| {
            let (at, len) = [(0, 1), (1, 1), (2, 0), (2, 2), (4, 1)][share];
            columns.write(6, at, &vec![share as f32 + 100.0; len]);
        });
        for (row, values) in data[..30].chunks(5).enumerate() {
            assert_eq!(values, [row as f32; 5]);
        }
        assert_eq!(data[30..], [100.0, 101.0, 103.0, 103.0, 104.0]);
        let outside = catch_unwind(AssertUnwindSafe(|| {
            team.run_columns(&mut data, 5, &[0, 2, 2, 5], |_, columns| {
                columns.write(0, 1, &[0.0; 2])
            });
        }));
        assert!(outside.is_err());
    }
}
