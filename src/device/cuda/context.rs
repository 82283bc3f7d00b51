//! A device's primary context.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUstreamCaptureMode};

use super::check::call;
use super::probe::{self, CudaDeviceInfo};
use crate::error::Result;

/// A GPU in use: its primary context, which the runtime API of the same process shares.
pub struct Cuda {
    device: CUdevice,
    context: CUcontext,
    info: CudaDeviceInfo,
}

// SAFETY: the driver's functions may be called from any thread; the context's handle is only read.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Device `ordinal`, as the driver counts them.
    ///
    /// # Errors
    /// [`Error::NoCuda`](crate::Error::NoCuda) where CUDA cannot be used,
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) naming `device` where there are
    /// fewer, and what the driver refuses.
    pub fn new(ordinal: usize) -> Result<Arc<Self>> {
        let device = probe::device(ordinal)?;
        let info = probe::look(ordinal)?;
        let mut context = ptr::null_mut();
        // SAFETY: `device` is the driver's, and `context` outlives the call.
        unsafe { call!(cuDevicePrimaryCtxRetain(&raw mut context, device)) }?;
        Ok(Arc::new(Self { device, context, info }))
    }

    /// What the device is.
    #[must_use]
    pub fn info(&self) -> &CudaDeviceInfo {
        &self.info
    }

    /// Bytes of memory free, and in all.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both numbers outlive the call.
        unsafe { call!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok((free, total))
    }

    /// Waits for all work of the context, and so for other users of the device in this process.
    ///
    /// # Errors
    /// Those of the work, and what the driver refuses.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: has no preconditions but a current context.
        unsafe { call!(cuCtxSynchronize()) }
    }

    /// The primary context, a `CUcontext`, for a caller who has work of its own.
    #[must_use]
    pub fn context(&self) -> *mut std::ffi::c_void {
        self.context.cast()
    }

    pub(super) fn raw_device(&self) -> CUdevice {
        self.device
    }

    pub(super) fn raw_context(&self) -> CUcontext {
        self.context
    }

    /// Makes the context current to this thread until the guard is dropped, and lets it do as if
    /// no thread were capturing: what allocates, frees or waits would else void the capture of another
    /// thread that is in the global mode, or of this one. Nothing here touches what is captured.
    pub(super) fn enter(&self) -> Result<Current<'_>> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` outlives the call.
        unsafe { call!(cuThreadExchangeStreamCaptureMode(&raw mut mode)) }?;
        // From here on dropped, where the next call fails.
        let mut current = Current { mode, is_pushed: false, of: PhantomData };
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { call!(cuCtxPushCurrent_v2(self.context)) }?;
        current.is_pushed = true;
        Ok(current)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // An error has no reader here, and leaves nothing to be undone. In the child of a fork it is
        // one, as with all that is freed here.
        // SAFETY: retained once, in `new`.
        let _ = unsafe { call!(cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The context is current as long as this lives; then what was current before is again, and so is
/// the thread's capture mode. It stays on its thread, for it holds a raw pointer's marker.
pub(super) struct Current<'a> {
    mode: CUstreamCaptureMode,
    is_pushed: bool,
    of: PhantomData<(&'a Cuda, *const ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.is_pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: `popped` outlives the call; the context was pushed on this thread.
            let _ = unsafe { call!(cuCtxPopCurrent_v2(&raw mut popped)) };
        }
        // SAFETY: the mode outlives the call.
        let _ = unsafe { call!(cuThreadExchangeStreamCaptureMode(&raw mut self.mode)) };
    }
}
