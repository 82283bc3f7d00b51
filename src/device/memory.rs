//! Host memory for KV caches: aligned, zeroed, on huge pages where the system has them.

use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// A huge page of x86-64 and of aarch64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that start at a multiple of 64, and of 2 MiB from 2 MiB on.
///
/// A decode step reads every block of every sequence: with 4 KiB pages that is a TLB miss every
/// 4 KiB, with huge pages one every 2 MiB.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    /// At most the layout's size, which is at least 1.
    len: usize,
    layout: Layout,
}

// SAFETY: a Buffer owns its bytes alone, as a Vec<u8> does.
unsafe impl Send for Buffer {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `len` zeroed bytes.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no such memory.
    pub fn zeroed(len: usize) -> Result<Self> {
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { 64 };
        let no_memory = || Error::Device(format!("{len} bytes of host memory cannot be had"));
        let layout = Layout::from_size_align(len.max(1), align).map_err(|_| no_memory())?;
        // SAFETY: the layout's size is at least 1.
        let start = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or_else(no_memory)?;
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE {
            // A wish: where it is not granted the memory is as good, only slower.
            // SAFETY: the range is inside the allocation, and nothing has been stored there.
            unsafe {
                libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            }
        }
        // Zeroed by hand, after the advice: `alloc_zeroed` of a large alignment touches it before.
        // SAFETY: the allocation has `layout.size()` bytes.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        Ok(Self { start, len, layout })
    }

    /// Its address, exposed: kernels that are given it may use its memory.
    pub(super) fn expose_address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and freed once.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: all bytes are initialised, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: all bytes are initialised, and borrowed mutably as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
