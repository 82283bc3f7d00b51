package inflight

// #include "border.h"
import "C"

import (
	"errors"
	"fmt"
)

// ErrClosed is the error of calls with something that was closed, and of requests that were cut
// short because their [Engine] was.
var ErrClosed = errors.New("inflight: closed")

// Status says in a number why a call failed. It is an error itself, to be given to errors.Is.
//
// Numbers are never reused, and a newer library may have more: treat one that you do not know by
// its [Class].
type Status int32

// What calls fail with.
const (
	// StatusInvalidArgument is an argument, or a field of one, outside its range.
	StatusInvalidArgument Status = C.INFLIGHT_STATUS_INVALID_ARGUMENT
	// StatusDuplicateRequest is the id of a request that has not finished yet.
	StatusDuplicateRequest Status = C.INFLIGHT_STATUS_DUPLICATE_REQUEST
	// StatusUnknownRequest is an id that no request has that waits or runs.
	StatusUnknownRequest Status = C.INFLIGHT_STATUS_UNKNOWN_REQUEST
	// StatusPromptTooLong is a prompt that leaves no room for one output token.
	StatusPromptTooLong Status = C.INFLIGHT_STATUS_PROMPT_TOO_LONG
	// StatusNeverFits is a request that would not fit with the whole cache to itself.
	StatusNeverFits Status = C.INFLIGHT_STATUS_NEVER_FITS
	// StatusUnknownStep is a step that is not in flight: already committed or abandoned.
	StatusUnknownStep Status = C.INFLIGHT_STATUS_UNKNOWN_STEP
	// StatusStepOutOfOrder is a step whose turn it is not: steps are committed oldest first and
	// abandoned newest first.
	StatusStepOutOfOrder Status = C.INFLIGHT_STATUS_STEP_OUT_OF_ORDER
	// StatusOutputMismatch is tokens that do not match the rows of their step.
	StatusOutputMismatch Status = C.INFLIGHT_STATUS_OUTPUT_MISMATCH
	// StatusStructSize is a library that does not know a struct of this package.
	StatusStructSize Status = C.INFLIGHT_STATUS_STRUCT_SIZE
	// StatusInUse is a handle that another thread is inside a call with. This package makes callers
	// wait instead.
	StatusInUse Status = C.INFLIGHT_STATUS_IN_USE
	// StatusClosed is a submitter whose scheduler is gone: [ErrClosed] to callers of this package.
	StatusClosed Status = C.INFLIGHT_STATUS_CLOSED
	// StatusForked is something that a parent of this process made before it forked, which a program
	// in Go does not do.
	StatusForked Status = C.INFLIGHT_STATUS_FORKED

	// StatusQueueFull is a queue that has [Config.MaxWaiting] requests already.
	StatusQueueFull Status = C.INFLIGHT_STATUS_QUEUE_FULL
	// StatusOutOfBlocks is a pool that cannot give so many blocks now.
	StatusOutOfBlocks Status = C.INFLIGHT_STATUS_OUT_OF_BLOCKS
	// StatusTooManyStepsInFlight is [Config.MaxStepsInFlight] steps that await their commit.
	StatusTooManyStepsInFlight Status = C.INFLIGHT_STATUS_TOO_MANY_STEPS_IN_FLIGHT
	// StatusStalled is requests that wait while nothing runs and the policy admits none.
	StatusStalled Status = C.INFLIGHT_STATUS_STALLED
	// StatusOutOfMemory is a process with too little memory left for what was asked.
	StatusOutOfMemory Status = C.INFLIGHT_STATUS_OUT_OF_MEMORY

	// StatusDevice is a device that could not run the step.
	StatusDevice Status = C.INFLIGHT_STATUS_DEVICE
	// StatusCUDA is a call of the CUDA driver that failed.
	StatusCUDA Status = C.INFLIGHT_STATUS_CUDA
	// StatusOutOfDeviceMemory is a device with too little memory left.
	StatusOutOfDeviceMemory Status = C.INFLIGHT_STATUS_OUT_OF_DEVICE_MEMORY
	// StatusNoCUDA is a machine on which CUDA cannot be used.
	StatusNoCUDA Status = C.INFLIGHT_STATUS_NO_CUDA
	// StatusNoKernelImage is a build without kernels that the device can run.
	StatusNoKernelImage Status = C.INFLIGHT_STATUS_NO_KERNEL_IMAGE
	// StatusUnsupported is something that the device, or this build, does not offer.
	StatusUnsupported Status = C.INFLIGHT_STATUS_UNSUPPORTED

	// StatusCorrupt is an invariant of the library that does not hold: a bug in it.
	StatusCorrupt Status = C.INFLIGHT_STATUS_CORRUPT
	// StatusPanic is a panic inside the library: a bug in it. The scheduler can only be closed.
	StatusPanic Status = C.INFLIGHT_STATUS_PANIC
	// StatusPoisoned is a scheduler that an earlier call panicked with: it can only be closed.
	StatusPoisoned Status = C.INFLIGHT_STATUS_POISONED
)

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
