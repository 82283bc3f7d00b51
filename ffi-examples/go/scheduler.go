package inflight

// #include "boundary.h"
import "C"

import (
	"runtime"
	"runtime/cgo"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// handles counts what has been made and not been closed.
var handles atomic.Int64

// Scheduler decides, step by step, which requests run: [Scheduler.Schedule], run the step, then
// [Step.Commit].
//
// Its methods may be called from any goroutine, and wait for each other; the views that they return
// are for those who know that no such call is under way. Other goroutines submit and cancel through
// a [Submitter], which does not wait for a step.
type Scheduler struct {
	mu       sync.Mutex
	boundary *C.boundary
	closed   atomic.Bool
	// calls counts what ends the validity of outputs.
	calls atomic.Uint64
	// wake is the function that SetWake was given; 0 for none.
	wake cgo.Handle
}

// NewScheduler makes a scheduler without requests, to be closed.
func NewScheduler(config Config) (*Scheduler, error) {
	if abi := uint32(C.inflight_abi_version()); abi != C.INFLIGHT_ABI_VERSION {
		return nil, &Error{
			Op:      "create",
			Status:  StatusUnsupported,
			Message: "the library that was loaded has another ABI than the header",
		}
	}
	c, err := config.toC()
	if err != nil {
		return nil, err
	}
	var (
		detail C.inflight_error
		status C.inflight_status
	)
	C.inflight_error_init(&detail, C.sizeof_inflight_error)
	boundary := C.boundary_create(&c, &detail, &status)
	if boundary == nil {
		return nil, failure("create", status, &detail)
	}
	handles.Add(1)
	s := &Scheduler{boundary: boundary}
	runtime.SetFinalizer(s, func(s *Scheduler) { _ = s.Close() })
	return s, nil
}

// Close frees the scheduler, whatever it holds. Steps are over, and views of them must not be in
// use any more; submitters refuse everything. It returns nil, also where it was closed before.
func (s *Scheduler) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boundary == nil {
		return nil
	}
	runtime.SetFinalizer(s, nil)
	s.calls.Add(1)
	s.closed.Store(true)
	C.boundary_free(s.boundary)
	s.boundary = nil
	s.dropWake()
	handles.Add(-1)
	return nil
}

// enter begins a call, which leave ends; step is the one that the call would end, if any.
func (s *Scheduler) enter(op string, step *Step) (*C.boundary, error) {
	if s == nil {
		return nil, &Error{Op: op, Status: StatusUnknownStep, Message: "the step is a copy"}
	}
	s.mu.Lock()
	if s.boundary == nil {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if step != nil && step.ended.Load() {
		s.mu.Unlock()
		return nil, &Error{Op: op, Status: StatusUnknownStep}
	}
	s.calls.Add(1)
	return s.boundary, nil
}

func (s *Scheduler) leave() {
	s.mu.Unlock()
}

// Schedule schedules the next step at time now, from any origin; earlier than the last reads as the
// last. What submitters handed over is received first.
//
// A step has no rows where there is nothing to run; it is committed, without tokens, or abandoned
// as any other. There is no step where the error is [StatusTooManyStepsInFlight], or
// [StatusStalled] because the policy lets no request run.
func (s *Scheduler) Schedule(now time.Duration) (*Step, error) {
	step := &Step{scheduler: s}
	boundary, err := s.enter("schedule", nil)
	if err != nil {
		return nil, err
	}
	defer s.leave()
	status := C.boundary_schedule(boundary, C.uint64_t(max(now, 0)))
	if status != C.INFLIGHT_STATUS_OK {
		return nil, failure("schedule", status, &boundary.error)
	}
	step.view = boundary.step
	step.blockSize = step.view.groups.block_size
	return step, nil
}

// Submit queues a request.
func (s *Scheduler) Submit(request *Request) error {
	p := pass(request)
	defer p.release()
	return s.call("submit", func(b *C.boundary) C.inflight_status {
		return C.boundary_submit(b, &p.request)
	})
}

// Cancel ends a request wherever it is, and frees its slot and blocks. Samples of it that are still
// in flight are dropped. There is no event.
func (s *Scheduler) Cancel(id uint64) error {
	return s.call("cancel", func(b *C.boundary) C.inflight_status {
		return C.boundary_cancel(b, C.uint64_t(id))
	})
}

// Finish ends a request after its first keepTokens output tokens, or after all that were delivered
// where those are fewer, and says what it has come to: for an end that the caller looks for itself,
// such as a stop string. It counts as finished; samples in flight are dropped. There is no event.
func (s *Scheduler) Finish(id uint64, keepTokens uint32) (RequestResult, error) {
	boundary, err := s.enter("finish", nil)
	if err != nil {
		return RequestResult{}, err
	}
	defer s.leave()
	status := C.boundary_finish(boundary, C.uint64_t(id), C.uint32_t(keepTokens))
	if status != C.INFLIGHT_STATUS_OK {
		return RequestResult{}, failure("finish", status, &boundary.error)
	}
	return *(*RequestResult)(unsafe.Pointer(&boundary.result)), nil
}

// SetDraft gives tokens to be verified in the step in which the request samples next; they replace
// earlier ones, and none takes them back.
func (s *Scheduler) SetDraft(id uint64, draft []Token) error {
	return s.call("set draft", func(b *C.boundary) C.inflight_status {
		data := (*C.uint32_t)(unsafe.SliceData(draft))
		return C.boundary_set_draft(b, C.uint64_t(id), data, C.size_t(len(draft)))
	})
}

// Verify checks every invariant: for tests and debugging, since it looks at all there is.
func (s *Scheduler) Verify() error {
	return s.call("verify", func(b *C.boundary) C.inflight_status {
		return C.boundary_verify(b)
	})
}

// ResetPrefixCache forgets cached prefixes: for a model whose weights have changed. It fails with
// [StatusOutOfBlocks] while a request holds KV, on the device or swapped out.
func (s *Scheduler) ResetPrefixCache() error {
	return s.call("reset prefix cache", func(b *C.boundary) C.inflight_status {
		return C.boundary_reset_prefix_cache(b)
	})
}

// call makes one call whose only result is its status.
func (s *Scheduler) call(op string, body func(*C.boundary) C.inflight_status) error {
	boundary, err := s.enter(op, nil)
	if err != nil {
		return err
	}
	defer s.leave()
	return failure(op, body(boundary), &boundary.error)
}

// Events takes the oldest events, as many as events has room for, and returns their number. The
// others stay for the next call. There are none before the first [Submitter].
func (s *Scheduler) Events(events []Event) (int, error) {
	boundary, err := s.enter("events", nil)
	if err != nil {
		return 0, err
	}
	defer s.leave()
	data := (*C.inflight_event)(unsafe.Pointer(unsafe.SliceData(events)))
	status := C.boundary_events(boundary, data, C.size_t(len(events)))
	if status != C.INFLIGHT_STATUS_OK {
		return 0, failure("events", status, &boundary.error)
	}
	return int(boundary.num_events), nil
}

// Stats returns counters and state.
func (s *Scheduler) Stats() (Stats, error) {
	boundary, err := s.enter("stats", nil)
	if err != nil {
		return Stats{}, err
	}
	defer s.leave()
	status := C.boundary_get_stats(boundary)
	if status != C.INFLIGHT_STATUS_OK {
		return Stats{}, failure("stats", status, &boundary.error)
	}
	return statsOf(&boundary.stats), nil
}

// Request returns a request as it is now; [StatusUnknownRequest] when it has finished, or never
// was.
func (s *Scheduler) Request(id uint64) (Snapshot, error) {
	boundary, err := s.enter("request", nil)
	if err != nil {
		return Snapshot{}, err
	}
	defer s.leave()
	status := C.boundary_get_request(boundary, C.uint64_t(id))
	if status != C.INFLIGHT_STATUS_OK {
		return Snapshot{}, failure("request", status, &boundary.error)
	}
	return snapshotOf(&boundary.snapshot), nil
}
