//! Streams: queues of work in order.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstream, CUstream_flags, CUstreamCaptureStatus};

use super::check::{call, is};
use super::context::Cuda;
use super::event::CudaEvent;
use super::memory::CudaBuffer;
use crate::error::{Error, Result};

/// A queue of work that is done in order.
#[derive(Debug)]
pub struct CudaStream {
    cuda: Arc<Cuda>,
    stream: CUstream,
    owned: bool,
}

// SAFETY: the driver's functions may be called from any thread; the handle is only read.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// A stream of its own, which does not wait for the default one.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self> {
        let _current = cuda.enter()?;
        let mut stream = ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` outlives the call.
        unsafe { call!(cuStreamCreate(&raw mut stream, flags)) }?;
        Ok(Self { cuda: Arc::clone(cuda), stream, owned: true })
    }

    /// The caller's stream, a `CUstream` or `cudaStream_t`; null for the default one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `stream` if it is not one of the device's primary context.
    ///
    /// # Safety
    /// The handle is null, or that of a stream that lives as long as what is returned.
    pub unsafe fn borrowed(cuda: &Arc<Cuda>, stream: *mut c_void) -> Result<Self> {
        let _current = cuda.enter()?;
        let stream = stream.cast();
        let mut context = ptr::null_mut();
        // SAFETY: the caller says that the stream lives, and `context` outlives the call.
        let result = unsafe { call!(cuStreamGetCtx(stream, &raw mut context)) };
        let refused = |reason: String| Error::argument("stream", reason);
        result.map_err(|error| match error {
            Error::Cuda(error) if !error.sticky => refused(error.to_string()),
            error => error,
        })?;
        if context != cuda.raw_context() {
            let ordinal = cuda.info().ordinal;
            let reason = format!("is not one of the primary context of CUDA device {ordinal}");
            return Err(refused(reason));
        }
        Ok(Self { cuda: Arc::clone(cuda), stream, owned: false })
    }

    /// Waits for its work on this thread.
    ///
    /// # Errors
    /// Those of the work, and what the driver refuses.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.cuda.enter()?;
        // SAFETY: the handle lives.
        unsafe { call!(cuStreamSynchronize(self.stream)) }
    }

    /// Whether all its work is done.
    ///
    /// # Errors
    /// Those of the work, and what the driver refuses.
    pub fn is_done(&self) -> Result<bool> {
        let _current = self.cuda.enter()?;
        // SAFETY: the handle lives.
        match unsafe { call!(cuStreamQuery(self.stream)) } {
            Err(error) if is(&error, CUresult::CUDA_ERROR_NOT_READY) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Whether work is recorded for a graph instead of being done.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn is_capturing(&self) -> Result<bool> {
        let _current = self.cuda.enter()?;
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the handle lives, and `status` outlives the call.
        unsafe { call!(cuStreamIsCapturing(self.stream, &raw mut status)) }?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// What is queued from now on begins after what `event` marks.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn wait(&self, event: &CudaEvent) -> Result<()> {
        let _current = self.cuda.enter()?;
        // SAFETY: both handles live.
        unsafe { call!(cuStreamWaitEvent(self.stream, event.raw(), 0)) }
    }

    /// Queues a copy of `from` to byte `at` of `to`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it does not fit, and what the driver refuses.
    ///
    /// # Safety
    /// `from` lives and is not written until the copy is done, and whenever a graph that it was
    /// recorded in is launched.
    pub unsafe fn upload(&self, to: &CudaBuffer, at: usize, from: &[u8]) -> Result<()> {
        let to = to.range(at, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let _current = self.cuda.enter()?;
        let (start, len) = (from.as_ptr().cast(), from.len());
        // SAFETY: the range lies inside the buffer; the caller keeps `from`.
        unsafe { call!(cuMemcpyHtoDAsync_v2(to, start, len, self.stream)) }
    }

    /// Queues a copy to `to` from byte `at` of `from`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it does not fit, and what the driver refuses.
    ///
    /// # Safety
    /// `to` lives and is neither read nor written until the copy is done, and whenever a graph that
    /// it was recorded in is launched.
    pub unsafe fn download(&self, to: &mut [u8], from: &CudaBuffer, at: usize) -> Result<()> {
        let from = from.range(at, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        let _current = self.cuda.enter()?;
        let (start, len) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: the range lies inside the buffer; the caller keeps `to`.
        unsafe { call!(cuMemcpyDtoHAsync_v2(start, from, len, self.stream)) }
    }

    /// Copies `from` to byte `at` of `to`, after what is queued, and waits.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn write(&self, to: &CudaBuffer, at: usize, from: &[u8]) -> Result<()> {
        // SAFETY: `from` is borrowed until the copy is done.
        let queued = unsafe { self.upload(to, at, from) };
        queued.and_then(|()| self.synchronize())
    }

    /// Copies to `to` from byte `at` of `from`, after what is queued, and waits.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub fn read(&self, to: &mut [u8], from: &CudaBuffer, at: usize) -> Result<()> {
        // SAFETY: `to` is borrowed until the copy is done.
        let queued = unsafe { self.download(to, from, at) };
        queued.and_then(|()| self.synchronize())
    }

    /// Queues a copy of `len` bytes between buffers of the device, from and to these bytes of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it does not fit, and what the driver refuses.
    pub fn copy(
        &self,
        (to, to_at): (&CudaBuffer, usize),
        (from, from_at): (&CudaBuffer, usize),
        len: usize,
    ) -> Result<()> {
        let (to, from) = (to.range(to_at, len)?, from.range(from_at, len)?);
        if len == 0 {
            return Ok(());
        }
        let _current = self.cuda.enter()?;
        // SAFETY: both ranges lie inside their buffers.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to, from, len, self.stream)) }
    }

    /// Queues setting `len` bytes from `at` on to `byte`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where they are not inside, and what the driver refuses.
    pub fn fill(&self, buffer: &CudaBuffer, at: usize, len: usize, byte: u8) -> Result<()> {
        let start = buffer.range(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let _current = self.cuda.enter()?;
        // SAFETY: the range lies inside the buffer.
        unsafe { call!(cuMemsetD8Async(start, byte, len, self.stream)) }
    }

    /// Its device.
    #[must_use]
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Its handle, a `CUstream`.
    #[must_use]
    pub fn handle(&self) -> *mut c_void {
        self.stream.cast()
    }

    pub(super) fn raw(&self) -> CUstream {
        self.stream
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Ok(_current) = self.cuda.enter() {
            // SAFETY: made in `new`, and destroyed once; the driver finishes its work first.
            let _ = unsafe { call!(cuStreamDestroy_v2(self.stream)) };
        }
    }
}
