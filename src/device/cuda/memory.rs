//! Memory of the device, and page-locked memory of the host.

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::check::{call, is};
use super::context::Cuda;
use crate::error::{Error, Result};

/// Bytes of device memory. They start at a multiple of 256, and hold anything at first.
///
/// Freeing waits for the device's work, so no kernel that was launched before reads freed memory.
#[derive(Debug)]
pub struct CudaBuffer {
    cuda: Arc<Cuda>,
    /// 0 where `len` is.
    address: u64,
    len: usize,
}

impl CudaBuffer {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`], and what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, len: usize) -> Result<Self> {
        let mut address = 0;
        if len > 0 {
            let _current = cuda.enter()?;
            // SAFETY: `address` outlives the call.
            let result = unsafe { call!(cuMemAlloc_v2(&raw mut address, len)) };
            result.map_err(|error| {
                if is(&error, CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                    let free = cuda.memory().map_or(0, |(free, _)| free);
                    return Error::OutOfDeviceMemory { needed: len, free };
                }
                error
            })?;
        }
        Ok(Self { cuda: Arc::clone(cuda), address, len })
    }

    /// Its address on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its device.
    #[must_use]
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// The address of `len` bytes from `at` on, which must lie inside.
    pub(super) fn range(&self, at: usize, len: usize) -> Result<u64> {
        let end = at.checked_add(len).filter(|&end| end <= self.len);
        end.map(|_| self.address + at as u64).ok_or_else(|| {
            let reason = format!("{len} bytes from {at} on are not inside of {}", self.len);
            Error::argument("buffer", reason)
        })
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        if let Ok(_current) = self.cuda.enter() {
            // SAFETY: allocated in `new`, and freed once.
            let _ = unsafe { call!(cuMemFree_v2(self.address)) };
        }
    }
}

/// Zeroed host memory that the device can read and write itself, and copy without the host's help.
#[derive(Debug)]
pub struct PinnedBuffer {
    cuda: Arc<Cuda>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its bytes alone, as a Vec<u8> does.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `len` zeroed bytes.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no such memory, and what the driver refuses.
    pub fn new(cuda: &Arc<Cuda>, len: usize) -> Result<Self> {
        let mut start = ptr::null_mut::<c_void>();
        if len > 0 {
            let _current = cuda.enter()?;
            // All contexts see it, at the address that it has for the host.
            let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
            // SAFETY: `start` outlives the call.
            let result = unsafe { call!(cuMemHostAlloc(&raw mut start, len, flags)) };
            result.map_err(|error| {
                if is(&error, CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                    let what = format!("{len} bytes of page-locked host memory cannot be had");
                    return Error::Device(what);
                }
                error
            })?;
            // SAFETY: the allocation has `len` bytes.
            unsafe { start.cast::<u8>().write_bytes(0, len) };
        }
        let start = NonNull::new(start.cast()).unwrap_or(NonNull::dangling());
        Ok(Self { cuda: Arc::clone(cuda), start, len })
    }

    /// Its address for kernels.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn device_address(&self) -> Result<u64> {
        let mut address = 0;
        if self.len > 0 {
            let _current = self.cuda.enter()?;
            let start = self.start.as_ptr().cast();
            // SAFETY: the memory is the driver's, and `address` outlives the call.
            unsafe { call!(cuMemHostGetDevicePointer_v2(&raw mut address, start, 0)) }?;
        }
        Ok(address)
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        if let Ok(_current) = self.cuda.enter() {
            // SAFETY: allocated in `new`, and freed once.
            let _ = unsafe { call!(cuMemFreeHost(self.start.as_ptr().cast())) };
        }
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: all bytes are initialised, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: all bytes are initialised, and borrowed mutably as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
