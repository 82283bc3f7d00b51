//! The library itself: version, build, log.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{PoisonError, RwLock, TryLockError};

use super::ffi::{Versioned, infallible};
use crate::device::fork::PerProcess;

/// Version of this header.
pub const INFLIGHT_VERSION_MAJOR: u32 = 0;
/// Version of this header.
pub const INFLIGHT_VERSION_MINOR: u32 = 1;
/// Version of this header.
pub const INFLIGHT_VERSION_PATCH: u32 = 0;
/// Version of this header in one number: `major * 1000000 + minor * 1000 + patch`.
pub const INFLIGHT_VERSION_NUMBER: u32 = 1_000;
/// Version of the ABI of this header: the number in the library's SONAME. It changes where a
/// program that was compiled before would break, and only there.
pub const INFLIGHT_ABI_VERSION: u32 = 1;

/// Most blocks, tokens or requests, where a field says no other maximum: their numbers are of 31
/// bits.
pub const INFLIGHT_MAX_COUNT: u32 = 0x7fff_ffff;

/// Version of the library that is loaded, like `INFLIGHT_VERSION_NUMBER`.
///
/// A library that is newer than the header, with the same ABI version, serves it as well.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn inflight_version_number() -> u32 {
    INFLIGHT_VERSION_NUMBER
}

/// Version of the library that is loaded, "0.1.0". The string lives as long as the library.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn inflight_version_string() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Version of the ABI of the library that is loaded, to be compared with `INFLIGHT_ABI_VERSION`.
///
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn inflight_abi_version() -> u32 {
    INFLIGHT_ABI_VERSION
}

/// How the library was built. All functions are there in every build: those that need CUDA return
/// `INFLIGHT_STATUS_NO_CUDA` where this one has no support for it, and `INFLIGHT_STATUS_NO_KERNEL_IMAGE`
/// where it has no kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct inflight_build_info {
    /// `sizeof(inflight_build_info)`.
    pub struct_size: usize,
    /// 1 if the library can use a CUDA driver, where there is one.
    pub cuda_driver: u32,
    /// 1 if it has kernels for GPUs.
    pub cuda_kernels: u32,
    /// What the kernels were compiled for, "sm_80, sm_90, PTX 8.0, PTX 9.0"; empty where there are none.
    pub cuda_architectures: *const c_char,
    /// Target of the compiler, "x86_64-unknown-linux-gnu".
    pub target: *const c_char,
    /// The CUDA toolkit that compiled the kernels, 13000 for 13.0; 0 where there are none.
    pub cuda_toolkit: u32,
    /// The CUDA version that the driver must offer, 12040 for 12.4 (driver 550): what the library needs,
    /// or 13000 (driver 580) where a toolkit of 13.x compiled the kernels. 0 where `cuda_driver` is.
    pub cuda_driver_needed: u32,
}

// SAFETY: integers and pointers, without padding, the size first.
unsafe impl Versioned for inflight_build_info {
    const FIRST_SIZE: usize = size_of::<Self>();

    fn initial() -> Self {
        const TARGET: &str = concat!(env!("INFLIGHT_TARGET"), "\0");
        Self {
            struct_size: size_of::<Self>(),
            cuda_driver: u32::from(cfg!(feature = "cuda-driver")),
            cuda_kernels: u32::from(cfg!(inflight_kernels)),
            cuda_architectures: architectures().as_ptr(),
            target: TARGET.as_ptr().cast(),
            cuda_toolkit: versions().0,
            cuda_driver_needed: versions().1,
        }
    }
}

/// Of the toolkit, and of the driver that is needed.
#[cfg(feature = "cuda-driver")]
fn versions() -> (u32, u32) {
    use crate::device::cuda;
    (cuda::toolkit().unwrap_or(0) as u32, cuda::driver_needed() as u32)
}

#[cfg(not(feature = "cuda-driver"))]
fn versions() -> (u32, u32) {
    (0, 0)
}

#[cfg(feature = "cuda-driver")]
fn architectures() -> &'static CStr {
    // A constant, and not made once: a child could inherit a lock from the middle of that.
    const TEXT: &[u8] = crate::device::cuda::architectures().as_bytes();
    const TERMINATED: [u8; TEXT.len() + 1] = {
        let (mut copy, mut at) = ([0; TEXT.len() + 1], 0);
        while at < TEXT.len() {
            copy[at] = TEXT[at];
            at += 1;
        }
        copy
    };
    CStr::from_bytes_until_nul(&TERMINATED).unwrap_or_default()
}

#[cfg(not(feature = "cuda-driver"))]
fn architectures() -> &'static CStr {
    c""
}

/// Says how the library was built.
///
/// `size` is `sizeof(inflight_build_info)`. NULL does nothing. The strings live as long as the
/// library.
///
/// Threads: any. Since 0.1.
///
/// # Safety
/// `info` is NULL or points to `size` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_get_build_info(info: *mut inflight_build_info, size: usize) {
    // SAFETY: as the caller promises.
    infallible((), || unsafe { super::ffi::init(info, size) });
}

/// Something went wrong inside the library.
pub const INFLIGHT_LOG_ERROR: u32 = 1;
/// Something is slower or other than one would expect. This version has no such lines.
pub const INFLIGHT_LOG_WARNING: u32 = 2;
/// What was found and chosen. This version has no such lines.
pub const INFLIGHT_LOG_INFO: u32 = 3;

/// Takes a line of the log: its level (`INFLIGHT_LOG_*`), the text (UTF-8, no line break, valid
/// during the call), and the `user_data` that was given with the callback. It may be called from
/// any thread, several at once, and must not call this library.
pub type inflight_log_callback =
    Option<unsafe extern "C" fn(level: u32, message: *const c_char, user_data: *mut c_void)>;

#[derive(Clone, Copy)]
struct Log {
    callback: unsafe extern "C" fn(u32, *const c_char, *mut c_void),
    user_data: *mut c_void,
    level: u32,
}

// SAFETY: the pointer is only handed back to the caller's function, which is for any thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

/// The parent's stays set in the child of a fork; none where a thread was about to set another.
fn current_log() -> &'static RwLock<Option<Log>> {
    static LOG: PerProcess<RwLock<Option<Log>>> = PerProcess::new();
    LOG.get(|parents| {
        RwLock::new(match parents.map(RwLock::try_read) {
            Some(Ok(log)) => *log,
            Some(Err(TryLockError::Poisoned(log))) => *log.into_inner(),
            Some(Err(TryLockError::WouldBlock)) | None => None,
        })
    })
}

/// Has lines of the log of at most this level (`INFLIGHT_LOG_*`) given to `callback`; NULL for
/// no callback, as at the start.
///
/// The library logs rarely: never in a step that goes well, and in this version only its own panics,
/// which Rust reports on the error output as well. When this call returns, the callback
/// that was set before is not running and will not be called any more.
///
/// Threads: any, but not from inside a callback. Since 0.1.
///
/// # Safety
/// `callback` may be called from any thread, with `user_data`, until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_set_log_callback(
    callback: inflight_log_callback,
    user_data: *mut c_void,
    level: u32,
) {
    let log = callback.map(|callback| Log { callback, user_data, level });
    *current_log().write().unwrap_or_else(PoisonError::into_inner) = log;
}

/// Logs a line. The text is made only where a callback is set.
pub(super) fn log(level: u32, text: impl FnOnce() -> String) {
    let log = current_log().read().unwrap_or_else(PoisonError::into_inner);
    let Some(log) = log.as_ref().filter(|log| level <= log.level) else { return };
    let line = text().replace(['\n', '\0'], " ");
    let Ok(line) = CString::new(line) else { return };
    // SAFETY: the caller who set the callback promised that it may be called so.
    unsafe { (log.callback)(level, line.as_ptr(), log.user_data) };
}

pub(super) fn log_panic(said: &str) {
    log(INFLIGHT_LOG_ERROR, || format!("panic: {said}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_the_package() {
        let of = [INFLIGHT_VERSION_MAJOR, INFLIGHT_VERSION_MINOR, INFLIGHT_VERSION_PATCH];
        assert_eq!(of.map(|n| n.to_string()).join("."), env!("CARGO_PKG_VERSION"));
        assert_eq!(INFLIGHT_VERSION_NUMBER, of[0] * 1_000_000 + of[1] * 1_000 + of[2]);
    }
}
