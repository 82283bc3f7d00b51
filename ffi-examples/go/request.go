package inflight

// #include "boundary.h"
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// passed is a request as C sees it. Its arrays are Go's, and pinned while a call looks at them.
type passed struct {
	request  C.inflight_request
	contents []C.inflight_content
	err      C.inflight_error
	pinner   runtime.Pinner
}

var passedPool = sync.Pool{New: func() any {
	p := new(passed)
	C.inflight_error_init(&p.err, C.sizeof_inflight_error)
	return p
}}

// pass makes C's view of a request, which release ends.
func pass(r *Request) *passed {
	p := passedPool.Get().(*passed)
	// Through the field: what cgo checks then is the field, and not all of p.
	C.inflight_request_init(&p.request, C.sizeof_inflight_request)
	p.fillRequest(&p.request, r)
	return p
}

// release forgets what was passed.
func (p *passed) release() {
	p.pinner.Unpin()
	p.request = C.inflight_request{}
	clear(p.contents)
	p.contents = p.contents[:0]
	passedPool.Put(p)
}

// pin returns where a slice is, which the collector then leaves there; nil for an empty one.
func pin[T any](p *passed, slice []T) unsafe.Pointer {
	if len(slice) == 0 {
		return nil
	}
	data := unsafe.SliceData(slice)
	p.pinner.Pin(data)
	return unsafe.Pointer(data)
}
