//! Status codes of the driver as errors.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{CudaError, Error, Result};

/// Calls a function of the driver; anything but success is an [`Error::Cuda`] that names it.
///
/// The call stands in an `unsafe` block of its own, where its safety is argued.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::device::cuda::check::check(
            stringify!($function),
            cudarc::driver::sys::$function($($argument),*),
        )
    };
}
pub(super) use call;

pub(super) fn check(call: &'static str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Cuda(describe(call, result)))
}

/// The error in the driver's own words.
pub(super) fn describe(call: &'static str, result: CUresult) -> CudaError {
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: an error came from the driver, so it is loaded; `text` outlives the call.
        let found = unsafe { get(result, &raw mut text) } == CUresult::CUDA_SUCCESS;
        if !found || text.is_null() {
            return "unknown".to_owned();
        }
        // SAFETY: the driver gives a string with a terminator that is never freed.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    CudaError {
        call,
        code: result as u32,
        name: text(sys::cuGetErrorName),
        meaning: text(sys::cuGetErrorString),
        sticky: is_sticky(result),
    }
}

/// Errors after which a context, and so a process with the primary one, can do nothing more.
fn is_sticky(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_EXTERNAL_DEVICE
    )
}

/// Whether this is the driver's error of that number.
pub(super) fn is(error: &Error, result: CUresult) -> bool {
    matches!(error, Error::Cuda(error) if error.code == result as u32)
}
