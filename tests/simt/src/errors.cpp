// libcuda's words for its errors.
#include "stream.h"

struct ErrorText {
    CUresult code;
    const char *name, *text;
};
#define NAMED(code) code, #code
static const ErrorText error_texts[] = {
    {NAMED(CUDA_SUCCESS), "no error"},
    {NAMED(CUDA_ERROR_INVALID_VALUE), "invalid argument"},
    {NAMED(CUDA_ERROR_OUT_OF_MEMORY), "out of memory"},
    {NAMED(CUDA_ERROR_NOT_INITIALIZED), "initialization error"},
    {NAMED(CUDA_ERROR_INVALID_DEVICE), "invalid device ordinal"},
    {NAMED(CUDA_ERROR_INVALID_IMAGE), "device kernel image is invalid"},
    {NAMED(CUDA_ERROR_INVALID_CONTEXT), "invalid device context"},
    {NAMED(CUDA_ERROR_NO_BINARY_FOR_GPU), "no kernel image is available for the device"},
    {NAMED(CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
     "the provided PTX was compiled with an unsupported toolchain."},
    {NAMED(CUDA_ERROR_INVALID_HANDLE), "invalid resource handle"},
    {NAMED(CUDA_ERROR_NOT_FOUND), "named symbol not found"},
    {NAMED(CUDA_ERROR_NOT_READY), "device not ready"},
    {NAMED(CUDA_ERROR_ILLEGAL_ADDRESS), "an illegal memory access was encountered"},
    {NAMED(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES), "too many resources requested for launch"},
    {NAMED(CUDA_ERROR_LAUNCH_FAILED), "unspecified launch failure"},
    {NAMED(CUDA_ERROR_NOT_SUPPORTED), "operation not supported"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
     "operation not permitted when stream is capturing"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
     "operation failed due to a previous error during capture"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED),
     "capture was not ended in the same stream as it began"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_UNJOINED), "capturing stream has unjoined work"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
     "dependency created on uncaptured work in another stream"},
    {NAMED(CUDA_ERROR_CAPTURED_EVENT),
     "operation not permitted on an event last recorded in a capturing stream"},
    {NAMED(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD),
     "attempt to terminate a thread-local capture sequence from another thread"},
};

static CUresult error_text(CUresult code, const char** out, const char* ErrorText::* field) {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = nullptr;
    for (const ErrorText& e : error_texts)
        if (e.code == code) *out = e.*field;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CU_API cuGetErrorName(CUresult code, const char** out) {
    return error_text(code, out, &ErrorText::name);
}
CU_API cuGetErrorString(CUresult code, const char** out) {
    return error_text(code, out, &ErrorText::text);
}
