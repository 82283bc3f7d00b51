//! What the handles of the ABI point to, and who may use it: the process that made it, and some of it
//! one thread at a time.
//!
//! A child of `fork` has its parent's objects without the parent's threads. What waits for one, or
//! takes a lock that one may hold, never returns there, so every call with such an object is refused.
//! To free it is safe: what is in it sees that too (`Exclusive`, and the devices), and stays where it
//! cannot be released.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::ffi::{Result, check_pointer, give, infallible, inject_panic};
use super::status::{Failure, inflight_error, inflight_status};
use crate::device::fork::Generation;

/// A type that callers have opaque pointers to: what they point to is a [`Made`] of it.
pub(super) trait Handle {}

/// An object, and the process that made it.
struct Made<T> {
    made_in: Generation,
    object: T,
}

/// Runs a call that gives an object to the caller, who frees it with [`free`].
///
/// # Safety
/// As for [`give`].
pub(super) unsafe fn create<T: Handle>(
    field: &'static str,
    to: *mut *mut T,
    error: *mut inflight_error,
    make: impl FnOnce() -> Result<T>,
) -> inflight_status {
    let make = || {
        let made_in = Generation::current();
        Ok(Box::into_raw(Box::new(Made { made_in, object: make()? })).cast())
    };
    // SAFETY: as the caller promises.
    unsafe { give(field, to, error, make) }
}

/// Frees an object; NULL is none.
///
/// # Safety
/// `object` is NULL, or comes from [`create`] and is not used any more.
pub(super) unsafe fn free<T: Handle>(object: *mut T) {
    if !object.is_null() {
        // SAFETY: it comes from `Box::into_raw` of a `Made`.
        infallible((), || drop(unsafe { Box::from_raw(object.cast::<Made<T>>()) }));
    }
}

/// A caller's object, shared, which this process has made.
///
/// # Safety
/// `object` is NULL, or comes from [`create`] and is not freed during 'a.
pub(super) unsafe fn shared<'a, T: Handle>(field: &'static str, object: *const T) -> Result<&'a T> {
    let made = object.cast::<Made<T>>();
    check_pointer(field, made)?;
    // SAFETY: it comes from the box of a `Made`, and lives.
    let made = unsafe { &*made };
    if made.made_in.is_current() {
        return Ok(&made.object);
    }
    let reason = format!(
        "the handle passed as {field} was made before fork(): make another in this process"
    );
    Err(Failure::new(inflight_status::Forked, "", reason))
}

/// An object for one thread at a time, which is checked; poisoned by a panic.
#[derive(Debug)]
pub(super) struct Exclusive<T> {
    state: Arc<AtomicU8>,
    value: ManuallyDrop<UnsafeCell<T>>,
}

impl<T> Drop for Exclusive<T> {
    fn drop(&mut self) {
        // A thread of the parent was inside at the fork and has left the value half changed: it stays.
        if self.state.load(Ordering::Acquire) != IN_USE {
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// Tells whether an [`Exclusive`] is poisoned, without entering it, and may outlive it.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<AtomicU8>);

impl Watch {
    pub(super) fn is_poisoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == POISONED
    }
}

const IDLE: u8 = 0;
const IN_USE: u8 = 1;
const POISONED: u8 = 2;

// SAFETY: the value is reached through `enter` alone, by one thread at a time.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub(super) fn new(value: T) -> Self {
        let value = ManuallyDrop::new(UnsafeCell::new(value));
        Self { state: Arc::new(AtomicU8::new(IDLE)), value }
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.state))
    }

    /// The value, until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Entered<'_, T>> {
        let entered =
            self.state.compare_exchange(IDLE, IN_USE, Ordering::Acquire, Ordering::Relaxed);
        match entered {
            Ok(_) => {
                let entered = Entered { owner: self };
                inject_panic("enter");
                Ok(entered)
            }
            Err(POISONED) => {
                let reason = "an earlier call with this handle panicked: free it";
                Err(Failure::new(inflight_status::Poisoned, "", reason))
            }
            Err(_) => {
                let reason = "another thread is inside a call with this handle";
                Err(Failure::new(inflight_status::InUse, "", reason))
            }
        }
    }
}

/// The value of an [`Exclusive`].
#[derive(Debug)]
pub(super) struct Entered<'a, T> {
    owner: &'a Exclusive<T>,
}

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is one guard at a time.
        unsafe { &*self.owner.value.get() }
    }
}

impl<T> DerefMut for Entered<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is one guard at a time, borrowed mutably.
        unsafe { &mut *self.owner.value.get() }
    }
}

impl<T> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { POISONED } else { IDLE };
        self.owner.state.store(state, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_inside_is_seen_from_outside() {
        let value = Exclusive::new(1);
        let watch = value.watch();
        drop(value.enter().expect("no thread is inside"));
        assert!(!watch.is_poisoned());
        let inside = || {
            let _entered = value.enter().expect("no thread is inside");
            std::panic::resume_unwind(Box::new("inside"));
        };
        assert!(catch_unwind(AssertUnwindSafe(inside)).is_err());
        assert!(watch.is_poisoned() && value.enter().is_err());
        drop(value);
        assert!(watch.is_poisoned());
    }

    #[test]
    fn what_a_thread_was_inside_of_stays_and_all_else_is_dropped() {
        let value = Arc::new(());
        drop(Exclusive::new(Arc::clone(&value)));
        assert_eq!(Arc::strong_count(&value), 1);
        let exclusive = Exclusive::new(Arc::clone(&value));
        // What the child of a fork finds.
        std::mem::forget(exclusive.enter().expect("no thread is inside"));
        drop(exclusive);
        assert_eq!(Arc::strong_count(&value), 2);
    }
}
