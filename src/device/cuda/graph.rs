//! Work recorded once and launched many times.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::check::call;
use super::context::Cuda;
use super::stream::CudaStream;
use crate::error::Result;

/// Work recorded from a stream: one call launches all of it.
#[derive(Debug)]
pub struct CudaGraph {
    cuda: Arc<Cuda>,
    exec: CUgraphExec,
}

// SAFETY: the handle is only read, and the driver's functions may be called from any thread; two
// launches at once of one graph are ruled out by `launch`, which takes it mutably.
unsafe impl Send for CudaGraph {}
// SAFETY: as above; nothing can be done with a shared one.
unsafe impl Sync for CudaGraph {}

impl CudaStream {
    /// Records what `work` queues on this stream, none of which is done now.
    ///
    /// Other threads may go on using the device meanwhile. Within `work` nothing may wait for this
    /// stream, which voids the capture, and nothing that it queues with may be dropped.
    ///
    /// # Errors
    /// That of `work`, or what the driver refuses: among it, work that cannot be recorded.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<CudaGraph> {
        let _current = self.cuda().enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { call!(cuStreamBeginCapture_v2(self.raw(), mode)) }?;
        let mut recording = Recording { stream: self, ended: false };
        let worked = work(self);
        let graph = recording.end();
        // The first error is the cause.
        worked?;
        let graph = graph?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph lives, and `exec` outlives the call.
        unsafe { call!(cuGraphInstantiateWithFlags(&raw mut exec, graph.0, 0)) }?;
        Ok(CudaGraph { cuda: Arc::clone(self.cuda()), exec })
    }
}

impl CudaGraph {
    /// Queues all of it on `stream`.
    ///
    /// # Errors
    /// What the driver refuses.
    ///
    /// # Safety
    /// What the recorded work reads and writes is still there, as each call that was recorded
    /// asks.
    pub unsafe fn launch(&mut self, stream: &CudaStream) -> Result<()> {
        let _current = self.cuda.enter()?;
        // SAFETY: both handles live; the caller answers for the memory.
        unsafe { call!(cuGraphLaunch(self.exec, stream.raw())) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if let Ok(_current) = self.cuda.enter() {
            // SAFETY: made in `capture`, and destroyed once; the driver finishes a launch first.
            let _ = unsafe { call!(cuGraphExecDestroy(self.exec)) };
        }
    }
}

/// A stream in capture; the capture ends with it, in a panic as well.
struct Recording<'a> {
    stream: &'a CudaStream,
    ended: bool,
}

impl Recording<'_> {
    fn end(&mut self) -> Result<Graph> {
        self.ended = true;
        let mut graph = Graph(ptr::null_mut());
        // SAFETY: the stream lives, and `graph` outlives the call.
        unsafe { call!(cuStreamEndCapture(self.stream.raw(), &raw mut graph.0)) }?;
        Ok(graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

struct Graph(CUgraph);

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the end of a capture, and destroyed once.
            let _ = unsafe { call!(cuGraphDestroy(self.0)) };
        }
    }
}
