package inflight

// #include "boundary.h"
import "C"

import (
	"errors"
	"fmt"
)

// ErrClosed is the error of calls with something that was closed, and of requests that were cut
// short because their [Engine] was.
var ErrClosed = errors.New("inflight: closed")

// Error says what the status means.
func (s Status) Error() string {
	return "inflight: " + s.String()
}

// String says what the status means, without the package's name.
func (s Status) String() string {
	return C.GoString(C.inflight_status_string(C.int32_t(s)))
}

// Class returns the group of the status.
func (s Status) Class() Class {
	return Class(s / 100)
}

// Is lets errors.Is ask for a [Class].
func (s Status) Is(target error) bool {
	class, ok := target.(Class)
	return ok && s.Class() == class
}

// Class is a group of statuses: what a caller does about a failure depends on it. It is an error
// for errors.Is alone: errors.Is(err, inflight.Capacity).
type Class int32

// The groups of statuses.
const (
	// Argument is what the caller has to mend.
	Argument Class = 1
	// Capacity is that nothing is wrong: try again when requests have finished.
	Capacity Class = 2
	// Device is a device that is missing, too small or broken.
	Device Class = 3
	// Internal is a bug in the library.
	Internal Class = 9
)

// Error names the class.
func (c Class) Error() string {
	return "inflight: " + c.String()
}

// String names the class, without the package's name.
func (c Class) String() string {
	switch c {
	case Argument:
		return "argument error"
	case Capacity:
		return "out of capacity"
	case Device:
		return "device error"
	case Internal:
		return "internal error"
	}
	return fmt.Sprintf("class %d", int32(c))
}

// Error is a failed call.
type Error struct {
	// Op is what failed: "submit", "schedule", ...
	Op string
	// Status says why.
	Status Status
	// Field is the argument or field at fault, as the C header spells it; empty where there is none.
	Field string
	// Message says what is wrong, in English.
	Message string
	// RequestID is the request that the failure is about, where HasRequest says so.
	RequestID uint64
	// HasRequest is whether the failure is about one request: the one that was submitted or named,
	// or with StatusStalled the one at the head of the queue.
	HasRequest bool
}

// Error says what failed and why.
func (e *Error) Error() string {
	message := e.Message
	if message == "" {
		message = e.Status.String()
	}
	if e.Field != "" {
		message = e.Field + ": " + message
	}
	return "inflight: " + e.Op + ": " + message
}

// Unwrap returns the status.
func (e *Error) Unwrap() error {
	return e.Status
}

// failure is the error of a call; nil where it went well.
func failure(op string, status C.inflight_status, detail *C.inflight_error) error {
	if status == C.INFLIGHT_STATUS_OK {
		return nil
	}
	return &Error{
		Op:         op,
		Status:     Status(status),
		Field:      C.GoString(&detail.field[0]),
		Message:    C.GoString(&detail.message[0]),
		RequestID:  uint64(detail.request_id),
		HasRequest: detail.has_request != 0,
	}
}

// badArgument is the error of a value that C's type cannot have.
func badArgument(op, field string, value int) error {
	return &Error{
		Op:      op,
		Status:  StatusInvalidArgument,
		Field:   field,
		Message: fmt.Sprintf("is %d, which is out of range", value),
	}
}
