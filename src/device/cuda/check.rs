//! Status codes of the driver as errors.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use cudarc::driver::sys::CUresult;

use super::driver;
use crate::error::{CudaError, Error, Result};

/// Calls a function of the driver; anything but success is an [`Error::Cuda`] that names it, and a
/// function that the driver lacks an [`Error::NoCuda`].
///
/// The call stands in an `unsafe` block of its own, where its safety is argued.
macro_rules! call {
    (@type $argument:expr) => { _ };
    ($function:ident($($argument:expr),* $(,)?)) => {{
        use $crate::device::cuda::{check, driver};
        static SYMBOL: driver::Symbol = driver::Symbol::new(stringify!($function));
        let declared: unsafe fn($(check::call!(@type $argument)),*) -> _ =
            cudarc::driver::sys::$function;
        match SYMBOL.function(declared) {
            Ok(function) => check::check(stringify!($function), function($($argument),*)),
            Err(error) => Err(error),
        }
    }};
}
pub(super) use call;

pub(super) fn check(call: &'static str, result: u32) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS as u32 {
        return Ok(());
    }
    Err(Error::Cuda(describe(call, result)))
}

/// The error in the driver's own words.
fn describe(call: &'static str, result: u32) -> CudaError {
    let text = |name| {
        type Get = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
        let Ok(address) = driver::find(name) else { return "unknown".to_owned() };
        // SAFETY: both functions that are asked for here have this type in C, where an enum is a
        // number of 32 bits.
        let get = unsafe { std::mem::transmute::<*mut c_void, Get>(address) };
        let mut text = ptr::null();
        // SAFETY: any number may be asked for, and `text` outlives the call.
        let found = unsafe { get(result, &raw mut text) } == CUresult::CUDA_SUCCESS as u32;
        if !found || text.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: the driver gives a string with a terminator that is never freed.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    CudaError {
        call,
        code: result,
        name: text("cuGetErrorName"),
        meaning: text("cuGetErrorString"),
        sticky: is_sticky(result),
    }
}

/// Errors after which a context, and so a process with the primary one, can do nothing more.
fn is_sticky(result: u32) -> bool {
    use CUresult::*;
    const STICKY: [CUresult; 12] = [
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_EXTERNAL_DEVICE,
    ];
    /// Those of later versions than 12.4: CUDA_ERROR_CONTAINED, CUDA_ERROR_TENSOR_MEMORY_LEAK.
    const LATER: [u32; 2] = [226, 721];
    STICKY.iter().any(|&sticky| sticky as u32 == result) || LATER.contains(&result)
}

/// Whether this is the driver's error of that number.
pub(super) fn is(error: &Error, result: CUresult) -> bool {
    matches!(error, Error::Cuda(error) if error.code == result as u32)
}
