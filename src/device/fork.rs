//! Which process made something: the child of a `fork` has what its parent made, and not the
//! parent's threads, which its locks, pools and drivers need.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Forks between the first process that used this library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process in which something was made. Processes that one fork made of each other never have
/// the same one; relatives that share no memory may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// This process. Forks are counted from the first call on.
    pub(crate) fn current() -> Self {
        count_forks();
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is still that process: one load, since calls of every step ask for it.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }

    /// A number of it that is not 0.
    #[cfg(feature = "cuda-driver")]
    pub(crate) fn number(self) -> u32 {
        self.0.wrapping_add(1).max(1)
    }
}

#[cfg(unix)]
fn count_forks() {
    use std::sync::atomic::AtomicBool;

    /// rayon's threads make this when they first look for work. A child that was forked in the middle
    /// of that would wait for its end in its own threads: 4 in 600 of those forked right after a pool's
    /// threads had started.
    extern "C" fn about_to_fork() {
        let _ = crossbeam_epoch::default_collector();
    }

    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }

    // No lock, which a thread of the parent could hold: threads that come here at the same time
    // register the handler once each, and a fork counts as several.
    static COUNTED: AtomicBool = AtomicBool::new(false);
    if !COUNTED.load(Ordering::Acquire) {
        // SAFETY: the child's handler does what a signal handler may, an atomic addition; the C library
        // unregisters both when this library is unloaded.
        let registered = unsafe { libc::pthread_atfork(Some(about_to_fork), None, Some(forked)) };
        // Out of memory: the next call tries again.
        COUNTED.store(registered == 0, Ordering::Release);
    }
}

/// There is no fork.
#[cfg(not(unix))]
fn count_forks() {}

/// A value of which each process has its own, made when it is first asked for: what holds a lock is
/// not inherited, since a thread that the child does not have may be inside.
pub(crate) struct PerProcess<T: 'static> {
    newest: AtomicPtr<(Generation, T)>,
}

impl<T: Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()) }
    }

    /// This process's value; `make` is given the parent's.
    pub(crate) fn get(&'static self, make: impl FnOnce(Option<&T>) -> T) -> &'static T {
        let generation = Generation::current();
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: null, or from a box below that is never freed.
        let known = unsafe { newest.as_ref() };
        if let Some((made, value)) = known
            && *made == generation
        {
            return value;
        }
        let made = Box::into_raw(Box::new((generation, make(known.map(|(_, value)| value)))));
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let place = match self.newest.compare_exchange(newest, made, order.0, order.1) {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: it is the box from above, which no other thread has seen.
                drop(unsafe { Box::from_raw(made) });
                other
            }
        };
        // SAFETY: from a box of this process that is never freed.
        &unsafe { &*place }.1
    }
}
