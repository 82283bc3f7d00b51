package inflight

// #include "boundary.h"
import "C"

import (
	"runtime"
	"sync"
)

// Submitter hands requests to a scheduler that another goroutine steps. Any number of goroutines
// may use one at the same time.
//
// What it is given takes effect with the next [Scheduler.Schedule], in order; what became of it is
// told by [Scheduler.Events]. It may outlive its scheduler, and refuses everything then.
type Submitter struct {
	mu     sync.RWMutex
	handle *C.inflight_submitter
}

// Submitter makes a submitter for the scheduler, to be closed.
func (s *Scheduler) Submitter() (*Submitter, error) {
	boundary, err := s.enter("submitter", nil)
	if err != nil {
		return nil, err
	}
	defer s.leave()
	var handle *C.inflight_submitter
	status := C.boundary_submitter_create(boundary, &handle)
	if status != C.INFLIGHT_STATUS_OK {
		return nil, failure("submitter", status, &boundary.error)
	}
	handles.Add(1)
	submitter := &Submitter{handle: handle}
	runtime.SetFinalizer(submitter, func(s *Submitter) { _ = s.Close() })
	return submitter, nil
}

// Submit hands over a request. Whether its id is free shows when the scheduler receives it: one
// that is refused then gives an event [EventRefused].
func (s *Submitter) Submit(request *Request) error {
	return s.call("submit", pass(request), func(p *passed) C.inflight_status {
		return C.inflight_submitter_submit(s.handle, &p.request, &p.err)
	})
}

// Cancel asks for the end of a request, wherever it is. One that has ended already is no error: the
// event is [EventCancelled] where there was something to cancel.
func (s *Submitter) Cancel(id uint64) error {
	return s.call("cancel", passedPool.Get().(*passed), func(p *passed) C.inflight_status {
		return C.inflight_submitter_cancel(s.handle, C.uint64_t(id), &p.err)
	})
}

// Finish asks for the end of a request after its first keepTokens output tokens, as
// [Scheduler.Finish] does. One that has ended already is not an error: the event is [EventFinished],
// with [FinishStopped], where there was something to end.
func (s *Submitter) Finish(id uint64, keepTokens uint32) error {
	return s.call("finish", passedPool.Get().(*passed), func(p *passed) C.inflight_status {
		return C.inflight_submitter_finish(s.handle, C.uint64_t(id), C.uint32_t(keepTokens), &p.err)
	})
}

// call makes one call with what it passes, which is released.
func (s *Submitter) call(op string, p *passed, body func(*passed) C.inflight_status) error {
	defer p.release()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.handle == nil {
		return ErrClosed
	}
	return s.failure(op, body(p), &p.err)
}

// failure is that of a call.
func (s *Submitter) failure(op string, status C.inflight_status, detail *C.inflight_error) error {
	if status == C.INFLIGHT_STATUS_CLOSED {
		return ErrClosed
	}
	return failure(op, status, detail)
}

// Close frees the submitter; what it handed over stays handed over. It returns nil, also where it
// was closed before.
func (s *Submitter) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handle == nil {
		return nil
	}
	runtime.SetFinalizer(s, nil)
	C.inflight_submitter_free(s.handle)
	s.handle = nil
	handles.Add(-1)
	return nil
}
