package inflight

// #include "boundary.h"
import "C"

import "runtime/cgo"

// SetWake has wake called when there is something to schedule again: with the first thing that a
// [Submitter] hands over since the last [Scheduler.Schedule], on its goroutine; at once where there is
// something already. nil is for no calls. wake must return soon, must not panic, and must not use the
// scheduler or its submitters; to send to a channel that has room is what most need. It is kept until
// the scheduler is closed: one that refers to the scheduler keeps it from being collected.
func (s *Scheduler) SetWake(wake func()) error {
	boundary, err := s.enter("set wake", nil)
	if err != nil {
		return err
	}
	defer s.leave()
	var handle cgo.Handle
	if wake != nil {
		handle = cgo.NewHandle(wake)
	}
	status := C.boundary_set_wake(boundary, C.uintptr_t(handle))
	if status != C.INFLIGHT_STATUS_OK {
		if handle != 0 {
			handle.Delete()
		}
		return failure("set wake", status, &boundary.error)
	}
	// The one before is not called any more.
	s.dropWake()
	s.wake = handle
	return nil
}

func (s *Scheduler) dropWake() {
	if s.wake != 0 {
		s.wake.Delete()
		s.wake = 0
	}
}

//export inflightGoWake
func inflightGoWake(handle C.uintptr_t) {
	defer func() {
		if cause := recover(); cause != nil {
			// Recovered further out, as by a HTTP server, it would leave the library's lock locked.
			go func() { panic(cause) }()
			select {}
		}
	}()
	cgo.Handle(handle).Value().(func())()
}
