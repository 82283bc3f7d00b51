// Package inflight is continuous batching for Go programs: the scheduler of the inflight library,
// which decides at every iteration which requests run and with how many tokens, over its C ABI.
//
// There are two ways to use it.
//
// [Engine] is the whole loop. It is given a [Model], which runs a step and samples; [Engine.Generate]
// then takes requests from any goroutine and hands back a [Stream] of tokens, which ends early when
// its context does.
//
// [Scheduler] is the parts, for programs with a loop of their own:
//
//	scheduler, err := inflight.NewScheduler(inflight.Config{NumBlocks: 1024})
//	...
//	defer scheduler.Close()
//	err = scheduler.Submit(&inflight.Request{ID: 1, Prompt: prompt, MaxTokens: 64})
//	for {
//		step, err := scheduler.Schedule(time.Since(start))
//		...
//		tokens := run(step.Tokens(), step.SlotMapping(), step.KVIndices(), ...)
//		outputs, err := step.Commit(tokens)
//		for i := 0; i < outputs.Len(); i++ { ... outputs.At(i), outputs.Tokens(i) ... }
//	}
//
// # Memory
//
// The arrays of a step are views of the library's memory: no copy is made, and they are valid until
// the step is committed or abandoned, or its scheduler closed. A slice that is kept longer must be
// cloned. Methods that are asked for a view after that return nil. The library keeps nothing of
// Go's: what is passed to it is copied within the call.
//
// [Scheduler.Close] and [Submitter.Close] give memory back. Finalizers do so for what was forgotten,
// at some later time.
//
// # Errors
//
// Calls of the library fail with an [*Error], which wraps a [Status], so that errors.Is(err,
// inflight.StatusQueueFull) asks for one, errors.Is(err, inflight.Capacity) for its group, and
// errors.As for the field at fault. After Close, calls fail with [ErrClosed].
//
// # Building
//
// The package is linked with pkg-config: PKG_CONFIG_PATH has to have the folder of inflight.pc, and
// at run time the loader has to find libinflight.so.1, by LD_LIBRARY_PATH for example.
package inflight

/*
#cgo pkg-config: inflight
#include "boundary.h"
*/
import "C"

// Token is the id of a token.
type Token = uint32

// NoToken is the id of no token: what [Output.StopToken] has where no stop token ended a request,
// and an input token that a step in flight samples.
const NoToken Token = C.INFLIGHT_NO_TOKEN

// Version returns the version of the library that is loaded, "0.1.0".
func Version() string {
	return C.GoString(C.inflight_version_string())
}

// BuildInfo says how the library that is loaded was built.
type BuildInfo struct {
	// CUDADriver says whether it can use a CUDA driver, where there is one.
	CUDADriver bool
	// CUDAKernels says whether it has kernels for GPUs.
	CUDAKernels bool
	// CUDAArchitectures is what the kernels were compiled for, "sm_80, sm_90, PTX 8.0, PTX 9.0".
	CUDAArchitectures string
	// Target is the compiler's, "x86_64-unknown-linux-gnu".
	Target string
	// CUDAToolkit is what compiled the kernels, 13000 for 13.0; 0 where there are none.
	CUDAToolkit int
	// CUDADriverNeeded is the CUDA version that the driver must offer, 12040 for 12.4.
	CUDADriverNeeded int
}

// Build returns how the library that is loaded was built.
func Build() BuildInfo {
	var info C.inflight_build_info
	C.inflight_get_build_info(&info, C.sizeof_inflight_build_info)
	return BuildInfo{
		CUDADriver:        info.cuda_driver != 0,
		CUDAKernels:       info.cuda_kernels != 0,
		CUDAArchitectures: C.GoString(info.cuda_architectures),
		Target:            C.GoString(info.target),
		CUDAToolkit:       int(info.cuda_toolkit),
		CUDADriverNeeded:  int(info.cuda_driver_needed),
	}
}
