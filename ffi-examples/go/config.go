package inflight

// #include "boundary.h"
import "C"

import "math"

// set32 sets a number where it is not 0, the default, unless one before it was refused; set64 alike.
func set32(err *error, name string, value int, to *C.uint32_t) {
	switch {
	case *err != nil || value == 0:
	case value < 0 || int64(value) > math.MaxUint32:
		*err = badArgument("create", name, value)
	default:
		*to = C.uint32_t(value)
	}
}

func set64(err *error, name string, value int, to *C.uint64_t) {
	switch {
	case *err != nil || value == 0:
	case value < 0:
		*err = badArgument("create", name, value)
	default:
		*to = C.uint64_t(value)
	}
}

func flag(set bool) C.uint32_t {
	if set {
		return 1
	}
	return 0
}
