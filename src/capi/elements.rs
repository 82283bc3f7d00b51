//! Structs that stand in arrays, without a size of their own: the side that passes an array says how large
//! its elements are, so that they may grow.

use std::borrow::Cow;
use std::{ptr, slice};

use super::ffi::{Result, check_pointer};
use super::status::{Failure, inflight_status};

/// A struct of arrays, which may only grow.
///
/// # Safety
/// It is `repr(C)`, has no padding, and any bytes are a value of it.
pub(super) unsafe trait Element: Copy {
    /// Its size in the first version that had it.
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// The names of an array's arguments: where it begins, and how large its elements are.
pub(super) type Names = [&'static str; 2];

/// Checks pointer, element size and length of the caller's array.
fn check<T: Element>(
    [name, size_name]: Names,
    at: *const T,
    size: usize,
    len: usize,
) -> Result<()> {
    const MOST: usize = 1 << 16;
    if len == 0 {
        return Ok(());
    }
    let least = T::FIRST_SIZE;
    if !(least..=MOST).contains(&size) || !size.is_multiple_of(align_of::<T>()) {
        let reason = format!("is {size}, not within {least} to {MOST}: pass sizeof an element");
        return Err(Failure::new(inflight_status::StructSize, size_name, reason));
    }
    check_pointer(name, at)?;
    if len.checked_mul(size).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(name, format!("{len} elements do not fit the memory")));
    }
    Ok(())
}

/// An array of the caller's, whose elements have `size` bytes; NULL is an empty one. Fields of a newer
/// version must be 0, and those that an older program does not have are.
///
/// # Safety
/// `from` is NULL, or points to `len` elements of that size, not written during 'a.
pub(super) unsafe fn elements<'a, T: Element>(
    names: Names,
    from: *const T,
    size: usize,
    len: usize,
) -> Result<Cow<'a, [T]>> {
    check(names, from, size, len)?;
    if len == 0 {
        return Ok(Cow::Borrowed(&[]));
    }
    if size == size_of::<T>() {
        // SAFETY: not NULL, aligned and of a size that memory can have; the rest the caller promises.
        return Ok(Cow::Borrowed(unsafe { slice::from_raw_parts(from, len) }));
    }
    let known = size.min(size_of::<T>());
    let element = |at: usize| {
        let from = from.cast::<u8>().wrapping_add(at * size);
        // SAFETY: any bytes are a value.
        let mut value: T = unsafe { std::mem::zeroed() };
        // SAFETY: both have `known` bytes.
        unsafe { ptr::copy_nonoverlapping(from, (&raw mut value).cast(), known) };
        // SAFETY: the caller's element has `size` bytes.
        let unknown = unsafe { slice::from_raw_parts(from.wrapping_add(known), size - known) };
        match unknown.iter().all(|&byte| byte == 0) {
            true => Ok(value),
            false => Err(Failure::new(
                inflight_status::StructSize,
                names[0],
                "sets fields that this version of the library does not have",
            )),
        }
    };
    (0..len).map(element).collect::<Result<Vec<T>>>().map(Cow::Owned)
}

/// An array of the caller's to be filled, whose elements have `size` bytes.
#[derive(Debug)]
pub(super) struct Room<T> {
    to: *mut u8,
    size: usize,
    len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Element> Room<T> {
    /// # Safety
    /// `to` is NULL, or points to `len` elements of that size in no other use while this lives.
    pub(super) unsafe fn new(names: Names, to: *mut T, size: usize, len: usize) -> Result<Self> {
        check(names, to.cast_const(), size, len)?;
        Ok(Self { to: to.cast(), size, len, of: std::marker::PhantomData })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes an element, as much of it as the caller's has; zeros past what the library knows.
    pub(super) fn write(&mut self, at: usize, value: T) {
        assert!(at < self.len, "there are {} elements", self.len);
        let (to, known) = (self.to.wrapping_add(at * self.size), self.size.min(size_of::<T>()));
        // SAFETY: both have `known` bytes, and the element is the caller's to be written.
        unsafe { ptr::copy_nonoverlapping((&raw const value).cast(), to, known) };
        // SAFETY: the rest of the element.
        unsafe { to.wrapping_add(known).write_bytes(0, self.size - known) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Grown {
        old: u32,
        new: u32,
    }

    // SAFETY: integers, without padding.
    unsafe impl Element for Grown {
        const FIRST_SIZE: usize = 4;
    }

    const NAMES: Names = ["grown", "grown_size"];

    fn read(from: &[u32], size: usize) -> Result<Vec<Grown>> {
        let len = 4 * from.len() / size;
        // SAFETY: it has as many bytes.
        unsafe { elements(NAMES, from.as_ptr().cast(), size, len) }.map(Cow::into_owned)
    }

    #[test]
    fn elements_of_other_versions_are_read() {
        let grown = |old, new| Grown { old, new };
        let of = |from: &[u32], size| read(from, size).expect("it is of a version");
        assert_eq!(of(&[1, 2], 4), [grown(1, 0), grown(2, 0)], "older");
        assert_eq!(of(&[1, 2, 3, 4], 8), [grown(1, 2), grown(3, 4)], "of this");
        assert_eq!(of(&[1, 2, 0, 3, 4, 0], 12), [grown(1, 2), grown(3, 4)], "newer");
        for (from, size) in [(&[1, 2, 9][..], 12), (&[1], 2), (&[1, 2], 6)] {
            let refused = read(from, size).expect_err("it is of none").status;
            assert_eq!(refused, inflight_status::StructSize, "{size}");
        }
    }

    #[test]
    fn elements_of_other_versions_are_written() {
        for (size, wanted) in
            [(4, [5, 7, 77, 77, 77]), (8, [5, 6, 7, 8, 77]), (12, [5, 6, 0, 7, 8])]
        {
            let mut to = [77_u32; 6];
            // SAFETY: it has as many bytes.
            let room = unsafe { Room::new(NAMES, to.as_mut_ptr().cast::<Grown>(), size, 2) };
            let mut room = room.expect("it is of a version");
            room.write(0, Grown { old: 5, new: 6 });
            room.write(1, Grown { old: 7, new: 8 });
            assert_eq!(to[..5], wanted, "{size}");
        }
    }
}
