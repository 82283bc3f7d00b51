//! Points in a stream's work.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUevent_flags, CUresult};

use super::check::{call, is};
use super::context::Cuda;
use super::stream::CudaStream;
use crate::error::{Error, Result};

/// A point in a stream's work, which others can wait for.
#[derive(Debug)]
pub struct CudaEvent {
    cuda: Arc<Cuda>,
    event: CUevent,
    timed: bool,
}

// SAFETY: the driver's functions may be called from any thread; the handle is only read.
unsafe impl Send for CudaEvent {}
// SAFETY: as above.
unsafe impl Sync for CudaEvent {}

impl CudaEvent {
    /// An event to wait for.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self> {
        Self::create(cuda, false)
    }

    /// An event that knows its time, which costs the stream a little.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn timed(cuda: &Arc<Cuda>) -> Result<Self> {
        Self::create(cuda, true)
    }

    fn create(cuda: &Arc<Cuda>, timed: bool) -> Result<Self> {
        let _current = cuda.enter()?;
        let flags = if timed {
            CUevent_flags::CU_EVENT_DEFAULT
        } else {
            CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let mut event = ptr::null_mut();
        // SAFETY: `event` outlives the call.
        unsafe { call!(cuEventCreate(&raw mut event, flags as u32)) }?;
        Ok(Self { cuda: Arc::clone(cuda), event, timed })
    }

    /// Marks what has been queued on `stream` so far.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn record(&self, stream: &CudaStream) -> Result<()> {
        let _current = self.cuda.enter()?;
        // SAFETY: both handles live.
        unsafe { call!(cuEventRecord(self.event, stream.raw())) }
    }

    /// Whether all work that it marks is done; true for an event that was never recorded.
    ///
    /// # Errors
    /// Those of the work, and what the driver refuses.
    pub fn is_done(&self) -> Result<bool> {
        let _current = self.cuda.enter()?;
        // SAFETY: the handle lives.
        match unsafe { call!(cuEventQuery(self.event)) } {
            Err(error) if is(&error, CUresult::CUDA_ERROR_NOT_READY) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Waits for it on this thread.
    ///
    /// # Errors
    /// Those of the work, and what the driver refuses.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.cuda.enter()?;
        // SAFETY: the handle lives.
        unsafe { call!(cuEventSynchronize(self.event)) }
    }

    /// Seconds between `earlier` and this event, both [timed](Self::timed) and done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `event` where one is not timed, and what the driver
    /// refuses.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        if !(self.timed && earlier.timed) {
            return Err(Error::argument("event", "was made without a time"));
        }
        let _current = self.cuda.enter()?;
        let mut milliseconds = 0.0;
        let elapsed = &raw mut milliseconds;
        // SAFETY: both handles live, and `milliseconds` outlives the call.
        unsafe { call!(cuEventElapsedTime(elapsed, earlier.event, self.event)) }?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    pub(super) fn raw(&self) -> CUevent {
        self.event
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(_current) = self.cuda.enter() {
            // SAFETY: made in `create`, and destroyed once; the driver keeps it while it is used.
            let _ = unsafe { call!(cuEventDestroy_v2(self.event)) };
        }
    }
}
