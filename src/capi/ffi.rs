//! The FFI boundary: pointers in, statuses out, no panic across. The only place where pointers of the
//! caller become references.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

pub(super) use super::handle::{Entered, Exclusive, Handle, Watch, create, free, shared};
use super::library::{INFLIGHT_MAX_COUNT, log_panic};
use super::status::{Failure, inflight_error, inflight_status};
pub(super) use super::versioned::{Versioned, check, init, read, versioned, write};
use crate::error::Error;

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Runs the body of a call: its failure, or its panic, becomes a status, and the detail goes to
/// `error` where that is not NULL.
///
/// # Safety
/// `error` is NULL or points to an `inflight_error` whose `struct_size` is its size.
pub(super) unsafe fn call(
    error: *mut inflight_error,
    body: impl FnOnce() -> Result<()>,
) -> inflight_status {
    // First: a call that fails for want of a place for its detail must not have done anything.
    if !error.is_null() {
        // SAFETY: as the caller promises.
        if let Err(failure) = unsafe { check("error", error) } {
            return failure.status;
        }
    }
    let body = || {
        inject_panic("call");
        body()
    };
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let said = payload.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| payload.downcast_ref::<String>().cloned());
        let said = said.unwrap_or_else(|| "of an unknown kind".to_owned());
        log_panic(&said);
        Err(Failure::new(inflight_status::Panic, "", format!("panic: {said}")))
    });
    let (status, detail) = match &outcome {
        Ok(()) => (inflight_status::Ok, Versioned::initial()),
        Err(failure) => (failure.status, failure.detail()),
    };
    if !error.is_null() {
        // SAFETY: the caller promises that it is an `inflight_error`.
        let written = unsafe { write("error", error, detail) };
        debug_assert!(written.is_ok(), "it was looked at above");
    }
    status
}

/// Panics where the environment asks for it, in builds that are to prove that no panic crosses the
/// boundary: those with `--cfg inflight_inject_panic`.
#[cfg(inflight_inject_panic)]
pub(super) fn inject_panic(at: &str) {
    if std::env::var_os("INFLIGHT_PANIC").is_some_and(|wanted| wanted == at) {
        panic!("injected at {at}");
    }
}

#[cfg(not(inflight_inject_panic))]
pub(super) fn inject_panic(_at: &str) {}

/// Runs a body that cannot fail; nothing where it panics.
pub(super) fn infallible<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

pub(super) fn check_pointer<T>(field: &'static str, pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        return Err(Failure::argument(field, "is NULL"));
    }
    if !pointer.is_aligned() {
        let reason = format!("is not at a multiple of {} bytes", align_of::<T>());
        return Err(Failure::argument(field, reason));
    }
    Ok(())
}

/// An array of the library's for the caller; NULL where it is empty: Rust's pointer is made up then,
/// and readers that look at every pointer (Go's runtime) end on it.
pub(super) fn lent<T>(array: &[T]) -> *const T {
    if array.is_empty() { ptr::null() } else { array.as_ptr() }
}

/// An array of the caller's; NULL is an empty one.
///
/// # Safety
/// `from` is NULL, or points to `len` elements that are not written during 'a.
pub(super) unsafe fn array<'a, T>(
    field: &'static str,
    from: *const T,
    len: usize,
) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check_pointer(field, from)?;
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(field, format!("{len} elements do not fit the memory")));
    }
    // SAFETY: not NULL, aligned and of a size that memory can have; the rest the caller promises.
    Ok(unsafe { slice::from_raw_parts(from, len) })
}

/// An array of the caller's of at most `most` elements: the fields of its start and its length.
///
/// # Safety
/// As for [`array`].
pub(super) unsafe fn bounded<'a, T>(
    [start, length]: [&'static str; 2],
    from: *const T,
    len: usize,
    most: u64,
) -> Result<&'a [T]> {
    at_most(length, len as u64, most)?;
    // SAFETY: as the caller promises.
    unsafe { array(start, from, len) }
}

/// A copy of what may be gigabytes: where there is no memory for it, that is no abort.
pub(super) fn copied<T: Copy>(from: &[T]) -> Result<Vec<T>> {
    let mut copy = Vec::new();
    append(&mut copy, from)?;
    Ok(copy)
}

/// Appends such a copy.
pub(super) fn append<T: Copy>(to: &mut Vec<T>, from: &[T]) -> Result<()> {
    let failed = |_| Error::OutOfMemory { bytes: size_of_val(from) };
    to.try_reserve(from.len()).map_err(failed)?;
    to.extend_from_slice(from);
    Ok(())
}

/// An array of the caller's to be written; NULL is an empty one.
///
/// # Safety
/// `to` is NULL, or points to `len` elements in no other use during 'a.
pub(super) unsafe fn array_mut<'a, T>(
    field: &'static str,
    to: *mut T,
    len: usize,
) -> Result<&'a mut [T]> {
    // SAFETY: as the caller promises; this view is gone before the one below is made.
    if unsafe { array(field, to.cast_const(), len) }?.is_empty() {
        return Ok(&mut []);
    }
    // SAFETY: `array` found pointer and size right; the rest the caller promises.
    Ok(unsafe { slice::from_raw_parts_mut(to, len) })
}

/// A place for a result, to be written once nothing can fail any more.
///
/// # Safety
/// `to` is NULL, or may be written and is in no other use during 'a.
pub(super) unsafe fn output<'a, T>(
    field: &'static str,
    to: *mut T,
) -> Result<&'a mut MaybeUninit<T>> {
    check_pointer(field, to)?;
    // SAFETY: not NULL, aligned, and the caller's as promised; it need not hold a value.
    Ok(unsafe { &mut *to.cast() })
}

/// Runs a call that gives a pointer to the caller: `*to` is NULL if it fails, for whatever reason.
///
/// # Safety
/// `to` is NULL or may be written; `error` is as for [`call`].
pub(super) unsafe fn give<T>(
    field: &'static str,
    to: *mut *mut T,
    error: *mut inflight_error,
    make: impl FnOnce() -> Result<*mut T>,
) -> inflight_status {
    // SAFETY: as the caller promises.
    if let Ok(to) = unsafe { output(field, to) } {
        to.write(ptr::null_mut());
    }
    let body = || {
        // SAFETY: as the caller promises.
        let to = unsafe { output(field, to) }?;
        to.write(make()?);
        Ok(())
    };
    // SAFETY: as the caller promises.
    unsafe { call(error, body) }
}

/// A struct that another library made, and that has no size in it.
///
/// # Safety
/// `from` is NULL, or points to one that is not written during 'a.
pub(super) unsafe fn plain<'a, T>(field: &'static str, from: *const T) -> Result<&'a T> {
    check_pointer(field, from)?;
    // SAFETY: as the caller promises.
    Ok(unsafe { &*from })
}

/// Copies text with a terminator, cut between two characters where it is too long.
pub(super) fn text(to: &mut [c_char], from: &str) {
    let most = to.len() - 1;
    let cut = (0..=most.min(from.len())).rev().find(|&at| from.is_char_boundary(at)).unwrap_or(0);
    for (to, &from) in to.iter_mut().zip(&from.as_bytes()[..cut]) {
        *to = from as c_char;
    }
    to[cut] = 0;
}

/// A flag: 0 or 1.
pub(super) fn flag(field: &'static str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(field, format!("is {other}, not 0 or 1"))),
    }
}

/// A number of at most [`INFLIGHT_MAX_COUNT`].
pub(super) fn at_most_max(field: &'static str, value: u64) -> Result<usize> {
    at_most(field, value, INFLIGHT_MAX_COUNT.into())
}

/// A number of at most `most`.
pub(super) fn at_most(field: &'static str, value: u64, most: u64) -> Result<usize> {
    if value > most {
        return Err(Failure::argument(field, format!("{value} is above {most}")));
    }
    count(field, value)
}

/// A number that this machine can count with.
pub(super) fn count(field: &'static str, value: u64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Failure::argument(field, format!("{value} does not fit this machine")))
}
