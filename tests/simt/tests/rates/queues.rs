//! Time between events of a stream, and graphs of what is queued.
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]

use cudarc::driver::sys;

use crate::common::ok;

/// Two events, before and after what is timed.
pub(crate) struct Events(sys::CUevent, sys::CUevent);

impl Events {
    pub(crate) fn new() -> Self {
        let event = || {
            let mut event = std::ptr::null_mut();
            // SAFETY: the pointer is to a local.
            ok(unsafe { sys::cuEventCreate(&raw mut event, 0) });
            event
        };
        Self(event(), event())
    }

    /// Seconds of what is queued.
    pub(crate) fn once(&self, stream: sys::CUstream, work: impl FnOnce()) -> f64 {
        // SAFETY: the events are this struct's, the stream is the caller's.
        ok(unsafe { sys::cuEventRecord(self.0, stream) });
        work();
        let mut ms = 0.0;
        // SAFETY: as above; the pointer is to a local.
        unsafe {
            ok(sys::cuEventRecord(self.1, stream));
            ok(sys::cuEventSynchronize(self.1));
            ok(sys::cuEventElapsedTime(&raw mut ms, self.0, self.1));
        }
        f64::from(ms) / 1e3
    }

    /// Seconds of one of `n` in a row, the least of some tries. One more goes before, which keeps the
    /// device at work while the host queues the others.
    pub(crate) fn time(
        &self,
        tries: usize,
        n: usize,
        stream: sys::CUstream,
        mut work: impl FnMut(),
    ) -> f64 {
        let mut best = f64::INFINITY;
        for _ in 0..tries {
            work();
            best = best.min(self.once(stream, || (0..n).for_each(|_| work())) / n as f64);
        }
        best
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and waited for.
        unsafe {
            ok(sys::cuEventDestroy_v2(self.0));
            ok(sys::cuEventDestroy_v2(self.1));
        }
    }
}

/// What is queued to a stream, as a graph to be launched.
pub(crate) fn graph(stream: sys::CUstream, queue: impl Fn()) -> sys::CUgraphExec {
    let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is the caller's.
    ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
    queue();
    // SAFETY: the pointers are to locals; the graph is not used after the executable was made.
    unsafe {
        ok(sys::cuStreamEndCapture(stream, &raw mut graph));
        ok(sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        ok(sys::cuGraphDestroy(graph));
    }
    executable
}
