//! The functions of the ABI, called as C calls them, against the library below them.

mod attention;
mod cache;
#[cfg(feature = "cuda-driver")]
mod cuda;
mod dlpack;

use std::ffi::c_char;

use super::ffi::Versioned;
use super::status::{inflight_error, inflight_status};

fn text(from: &[c_char]) -> String {
    from.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect()
}

/// A struct where arguments can point to it, for as long as the tests run.
fn at<T>(of: T) -> *const T {
    Box::leak(Box::new(of))
}

/// Makes a call that works.
#[track_caller]
fn done(call: impl FnOnce(*mut inflight_error) -> inflight_status) {
    let mut error = inflight_error::initial();
    let status = call(&raw mut error);
    assert_eq!(status as i32, error.code);
    assert!(
        status == inflight_status::Ok,
        "{status:?}: {}: {}",
        text(&error.field),
        text(&error.message)
    );
}

/// Makes a call that fails, and says how: its status and the field at fault.
#[track_caller]
fn refused(call: impl FnOnce(*mut inflight_error) -> inflight_status) -> (inflight_status, String) {
    let mut error = inflight_error::initial();
    let status = call(&raw mut error);
    assert_ne!(status, inflight_status::Ok, "it was accepted");
    assert_eq!(status as i32, error.code);
    assert!(!text(&error.message).is_empty());
    (status, text(&error.field))
}

/// The field of a call that is refused for an argument.
#[track_caller]
fn field(call: impl FnOnce(*mut inflight_error) -> inflight_status) -> String {
    let (status, field) = refused(call);
    assert_eq!(status, inflight_status::InvalidArgument, "{field}");
    field
}

/// Numbers that look random (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }
}
