//! Structs of the ABI that begin with their own size and may only grow.

use std::{ptr, slice};

use super::ffi::{Result, check_pointer};
use super::status::{Failure, inflight_status};

/// A struct of the ABI that begins with its own size and may only grow.
///
/// # Safety
/// It is `repr(C)`, starts with `struct_size: usize`, has no padding, and any bytes are a value of
/// it: integers, floats and raw pointers.
pub(super) unsafe trait Versioned: Copy {
    /// Its size in the first version that had it.
    const FIRST_SIZE: usize;

    /// Its defaults, `struct_size` included.
    fn initial() -> Self;

    /// Its field `reserved`, which must be 0; 0 where it has none.
    fn reserved(&self) -> u32 {
        0
    }
}

/// Makes a struct [`Versioned`], and the function that prepares it, which `tests/header` declares in
/// the header with a description: the name of that function, its parameter's and the struct's; the last
/// field of the struct's first version; and the defaults that are not 0.
macro_rules! versioned {
    (
        $init:ident($to:ident: $name:ident ..= $last:ident) $(where $reserved:ident is 0)? {
            $($field:ident: $default:expr),* $(,)?
        }
    ) => {
        // SAFETY: it is `repr(C)`, the size first; a test of its layout finds no padding, and all its
        // fields are integers, floats and raw pointers.
        unsafe impl Versioned for $name {
            const FIRST_SIZE: usize = std::mem::offset_of!(Self, $last)
                + $crate::capi::versioned::size_of_field(|of: &Self| &of.$last);

            fn initial() -> Self {
                // SAFETY: any bytes are a value.
                let zeros: Self = unsafe { std::mem::zeroed() };
                Self { struct_size: size_of::<Self>(), $($field: $default,)* ..zeros }
            }

            $(fn reserved(&self) -> u32 {
                self.$reserved
            })?
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $init($to: *mut $name, size: usize) {
            // SAFETY: NULL, or the caller's struct has `size` bytes.
            unsafe { $crate::capi::versioned::init($to, size) }
        }
    };
}
pub(super) use versioned;

pub(super) const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// A size that the caller gave for a struct.
fn check_size<T: Versioned>(field: &'static str, size: usize) -> Result<()> {
    // No struct has that size: it is a number that was never set.
    const MOST: usize = 1 << 16;
    if (T::FIRST_SIZE..=MOST).contains(&size) {
        return Ok(());
    }
    let least = T::FIRST_SIZE;
    let reason = format!("struct_size is {size}, not within {least} to {MOST}: call its _init");
    Err(Failure::new(inflight_status::StructSize, field, reason))
}

/// Writes the defaults of a struct; nothing for NULL or a size below the first version's.
///
/// # Safety
/// `to` is NULL or points to `size` bytes that may be written.
pub(super) unsafe fn init<T: Versioned>(to: *mut T, size: usize) {
    if to.is_null() || check_size::<T>("size", size).is_err() {
        return;
    }
    let value = T::initial();
    let known = size.min(size_of::<T>());
    // SAFETY: both have `known` bytes.
    unsafe { ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast(), known) };
    // SAFETY: the rest of the caller's bytes.
    unsafe { to.cast::<u8>().wrapping_add(known).write_bytes(0, size - known) };
    // SAFETY: a struct starts with its size; the caller's may be newer than this library's.
    unsafe { to.cast::<usize>().write_unaligned(size) };
}

/// Reads a struct: the caller's fields over the defaults, where the caller's is older. Where it is
/// newer, the fields that are unknown here must be 0.
///
/// # Safety
/// `from` is NULL or points to as many readable bytes as its first field says.
pub(super) unsafe fn read<T: Versioned>(field: &'static str, from: *const T) -> Result<T> {
    check_pointer(field, from)?;
    // SAFETY: it starts with its size.
    let size = unsafe { from.cast::<usize>().read() };
    check_size::<T>(field, size)?;
    let mut value = T::initial();
    let known = size.min(size_of::<T>());
    // SAFETY: both have `known` bytes, and any bytes are a value.
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast(), known) };
    let rest = from.cast::<u8>().wrapping_add(known);
    // SAFETY: the caller's struct has `size` bytes.
    let unknown = unsafe { slice::from_raw_parts(rest, size - known) };
    if unknown.iter().any(|&byte| byte != 0) {
        let reason = "sets fields that this version of the library does not have";
        return Err(Failure::new(inflight_status::StructSize, field, reason));
    }
    if value.reserved() != 0 {
        return Err(Failure::argument("reserved", format!("of {field} is not 0")));
    }
    Ok(value)
}

/// Whether [`write`] can write there.
///
/// # Safety
/// `to` is NULL or points to as many bytes as its first field says.
pub(super) unsafe fn check<T: Versioned>(field: &'static str, to: *const T) -> Result<()> {
    check_pointer(field, to)?;
    // SAFETY: it starts with its size.
    check_size::<T>(field, unsafe { to.cast::<usize>().read() })
}

/// Writes a struct, as much of it as the caller's has; `struct_size` stays the caller's.
///
/// # Safety
/// `to` is NULL or points to as many writable bytes as its first field says.
pub(super) unsafe fn write<T: Versioned>(field: &'static str, to: *mut T, value: T) -> Result<()> {
    check_pointer(field, to)?;
    // SAFETY: it starts with its size.
    let size = unsafe { to.cast::<usize>().read() };
    check_size::<T>(field, size)?;
    let (first, known) = (size_of::<usize>(), size.min(size_of::<T>()));
    let from = (&raw const value).cast::<u8>().wrapping_add(first);
    let to = to.cast::<u8>().wrapping_add(first);
    // SAFETY: both have `known` bytes, the first of which are the size.
    unsafe { ptr::copy_nonoverlapping(from, to, known - first) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct that has grown by fields, of which one has a default that is not 0.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Grown {
        struct_size: usize,
        old: u64,
        new: u64,
        newer: u64,
    }

    const BEFORE: usize = 16;

    versioned! {
        grown_init(grown: Grown ..= old) {
            old: 1,
            new: 7,
        }
    }

    #[test]
    fn a_program_that_knows_fewer_fields_is_served() {
        let mut given = Grown { struct_size: 0, old: 0, new: 99, newer: 99 };
        // SAFETY: it has more bytes than that.
        unsafe { grown_init(&raw mut given, BEFORE) };
        assert_eq!(given, Grown { struct_size: BEFORE, old: 1, new: 99, newer: 99 });
        given.old = 5;
        // SAFETY: as above.
        let read = unsafe { read("given", &raw const given) }.expect("it is of the first version");
        assert_eq!((read.old, read.new, read.newer), (5, 7, 0), "the defaults behind its end");
        // SAFETY: as above.
        unsafe {
            write("given", &raw mut given, Grown { struct_size: 0, old: 6, new: 8, newer: 8 })
        }
        .expect("it is of the first version");
        assert_eq!(
            given,
            Grown { struct_size: BEFORE, old: 6, new: 99, newer: 99 },
            "nothing past its end"
        );
        given.struct_size = BEFORE - 1;
        // SAFETY: as above.
        assert!(unsafe { check("given", &raw const given) }.is_err());
    }
}
