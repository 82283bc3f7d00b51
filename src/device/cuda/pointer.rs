//! What can be said of a caller's addresses before a kernel follows them.

use std::ffi::c_uint;
use std::ptr;

use cudarc::driver::sys::{CUcontext, CUmemorytype, CUpointer_attribute as Attribute, CUresult};

use super::check::{call, is};
use super::context::Cuda;
use crate::error::{Error, Result};

/// Kernels load and store this many bytes at once.
const ALIGN: u64 = 16;

/// Checks that kernels of the device can use the address.
///
/// Takes microseconds: for a call's first time, and for looking for mistakes.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `field` for null, for memory of the host that is not
/// page-locked, and for memory of another device.
pub fn check_pointer(cuda: &Cuda, field: &'static str, address: u64) -> Result<()> {
    let refused = |reason: &str| Err(Error::argument(field, reason));
    if address == 0 {
        return refused("is null");
    }
    let _current = cuda.enter()?;
    let mut kind: c_uint = 0;
    let kind_at = (&raw mut kind).cast();
    let attribute = Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: this attribute is an unsigned int, and `kind` is one.
    match unsafe { call!(cuPointerGetAttribute(kind_at, attribute, address)) } {
        Err(error) if is(&error, CUresult::CUDA_ERROR_INVALID_VALUE) => {
            return refused("is not an address that CUDA knows");
        }
        result => result?,
    }
    if kind == CUmemorytype::CU_MEMORYTYPE_HOST as c_uint {
        return Ok(());
    }
    let mut context: CUcontext = ptr::null_mut();
    let context_at = (&raw mut context).cast();
    let attribute = Attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
    // SAFETY: this attribute is a CUcontext, and `context` is one.
    let found = unsafe { call!(cuPointerGetAttribute(context_at, attribute, address)) };
    // Memory of a pool, PyTorch's option, belongs to a device and to no context.
    if found.is_ok() && !context.is_null() {
        if context == cuda.raw_context() {
            return Ok(());
        }
        return refused("is memory of another CUDA context");
    }
    let mut ordinal = -1;
    let ordinal_at = (&raw mut ordinal).cast();
    let attribute = Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    // SAFETY: this attribute is an int, and `ordinal` is one.
    unsafe { call!(cuPointerGetAttribute(ordinal_at, attribute, address)) }?;
    if usize::try_from(ordinal) != Ok(cuda.info().ordinal) {
        return refused("is memory of another CUDA device");
    }
    Ok(())
}

/// Checks that an address, and the distances in bytes between what begins there, are multiples of
/// 16 bytes.
///
/// # Errors
/// [`Error::InvalidArgument`] naming `field`.
pub fn check_alignment(field: &'static str, address: u64, strides: &[i64]) -> Result<()> {
    if !address.is_multiple_of(ALIGN) {
        let reason = format!("begins at {address:#x}, not a multiple of {ALIGN} bytes");
        return Err(Error::argument(field, reason));
    }
    match strides.iter().find(|&stride| stride % ALIGN as i64 != 0) {
        Some(stride) => {
            let reason = format!("a stride of {stride} bytes is not a multiple of {ALIGN}");
            Err(Error::argument(field, reason))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment() {
        assert_eq!(check_alignment("k", 0x100, &[16, -32, 0]), Ok(()));
        let message = |address, strides: &[i64]| {
            check_alignment("k", address, strides).expect_err("misaligned").to_string()
        };
        assert_eq!(message(0x108, &[]), "k: begins at 0x108, not a multiple of 16 bytes");
        assert_eq!(message(0x100, &[16, 24]), "k: a stride of 24 bytes is not a multiple of 16");
    }
}
