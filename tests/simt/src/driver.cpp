// libcuda's functions: device, contexts, memory, images and launches.
#include <cstdio>
#include <cstdlib>
#include <set>

#include "control.h"
#include "stream.h"

using namespace simt;

Context primary;
static bool initialised;
static thread_local std::vector<CUcontext> context_stack;
static std::set<Library*> libraries;

static int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}
// "12.4" as 12040.
static int version_setting(const char* name) {
    const char* text = getenv(name);
    int major = 0, minor = 0;
    return text && sscanf(text, "%d.%d", &major, &minor) == 2 ? major * 1000 + minor * 10 : 0;
}
// The version of this library's driver; build.rs links one of another version with its own.
extern "C" {
__attribute__((weak)) int simt_offers = 13000;
}
// What tests have asked for; 0: nothing.
static int cc_asked, multiprocessors_asked, version_asked, toolkit_asked;
static int driver_version() { return version_asked ? version_asked : simt_offers; }
static int toolkit() {
    return toolkit_asked ? toolkit_asked : version_setting("INFLIGHT_SIMT_TOOLKIT");
}
int device_cc() { return cc_asked ? cc_asked : setting("INFLIGHT_SIMT_CC", 80); }
int multiprocessors() {
    return multiprocessors_asked ? multiprocessors_asked : setting("INFLIGHT_SIMT_SMS", 4);
}
uint32_t smem_optin() {
    const int cc = device_cc();
    return cc == 80 || cc == 87 ? 163 << 10 : cc >= 90 && cc < 120 ? 227 << 10 : 99 << 10;
}

CUresult current_context_error() {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (context_stack.empty() || !context_stack.back()) return CUDA_ERROR_INVALID_CONTEXT;
    return primary.lost;
}

// ---- failures that tests ask for

static struct {
    std::string function;
    uint64_t calls_left;
    CUresult code;
    bool sticky;
} failure;
static bool foreign;
static Context other_context;

CUcontext context_told() { return foreign ? &other_context : &primary; }

CUresult asked_to_fail(const char* function) {
    if (!failure.calls_left) return CUDA_SUCCESS;
    if (!failure.function.empty()) {
        if (failure.function != function) return CUDA_SUCCESS;
    } else {
        for (const char* gives_back :
             {"Free", "Destroy", "CtxP", "Release", "EndCapture", "Exchange"})
            if (strstr(function, gives_back)) return CUDA_SUCCESS;
    }
    if (--failure.calls_left) return CUDA_SUCCESS;
    if (failure.sticky) primary.lost = failure.code;
    return failure.code;
}

CUresult lose_context(bool out_of_bounds) {
    return primary.lost = out_of_bounds ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED;
}

// ---- device

CU_API cuInit(unsigned flags) {
    CU_LOCKED;
    CU_TRY(asked_to_fail(__func__));
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    initialised = true;
    return CUDA_SUCCESS;
}

CU_API cuDriverGetVersion(int* out) {
    CU_LOCKED;
    CU_TRY(asked_to_fail(__func__));
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = driver_version();
    return CUDA_SUCCESS;
}

#define CU_DEVICE(out, dev)                              \
    CU_LOCKED;                                           \
    CU_TRY(asked_to_fail(__func__));                     \
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED; \
    if (!(out)) return CUDA_ERROR_INVALID_VALUE;         \
    if ((dev) != 0) return CUDA_ERROR_INVALID_DEVICE

CU_API cuDeviceGetCount(int* out) {
    CU_DEVICE(out, 0);
    *out = 1;
    return CUDA_SUCCESS;
}
CU_API cuDeviceGet(CUdevice* out, int ordinal) {
    CU_DEVICE(out, ordinal);
    *out = 0;
    return CUDA_SUCCESS;
}
CU_API cuDeviceGetName(char* out, int n, CUdevice dev) {
    CU_DEVICE(out, dev);
    if (n <= 0) return CUDA_ERROR_INVALID_VALUE;
    snprintf(out, static_cast<size_t>(n), "inflight SIMT emulator");
    return CUDA_SUCCESS;
}
CU_API cuDeviceTotalMem_v2(size_t* out, CUdevice dev) {
    CU_DEVICE(out, dev);
    *out = DEVICE_BYTES;
    return CUDA_SUCCESS;
}
CU_API cuDeviceGetUuid_v2(CUuuid* out, CUdevice dev) {
    CU_DEVICE(out, dev);
    memcpy(out->bytes, "inflight-simt-00", 16);
    return CUDA_SUCCESS;
}

CU_API cuDeviceGetAttribute(int* out, int attribute, CUdevice dev) {
    CU_DEVICE(out, dev);
    const bool hopper = device_cc() >= 90;
    static const std::map<int, int> fixed = {
        {1, 1024},     {2, 1024},     {3, 1024},      {4, 64},    {5, 0x7fffffff},  {6, 65535},
        {7, 65535},    {8, 48 << 10}, {9, 64 << 10},  {10, 32},   {11, 0x7fffffff}, {12, 65536},
        {13, 1410000}, {14, 512},     {15, 1},        {17, 0},    {18, 0},          {19, 1},
        {20, 0},       {31, 1},       {32, 0},        {33, 0},    {34, 0},          {35, 0},
        {36, 1593000}, {37, 5120},    {38, 40 << 20}, {39, 2048}, {40, 2},          {41, 1},
        {50, 0},       {78, 1},       {79, 1},        {80, 1},    {82, 65536},      {83, 1},
        {84, 0},       {88, 0},       {89, 1},        {90, 1},    {95, 1},          {106, 32},
        {111, 1024},   {115, 0}};
    switch (attribute) {
        case 16:
            *out = multiprocessors();
            return CUDA_SUCCESS;
        case 75:
            *out = device_cc() / 10;
            return CUDA_SUCCESS;
        case 76:
            *out = device_cc() % 10;
            return CUDA_SUCCESS;
        case 81:
            *out = static_cast<int>(smem_optin()) + 1024;
            return CUDA_SUCCESS;
        case 97:
            *out = static_cast<int>(smem_optin());
            return CUDA_SUCCESS;
        case 120:
            *out = hopper;
            return CUDA_SUCCESS;
        case 127:
            *out = hopper;
            return CUDA_SUCCESS;
    }
    const auto at = fixed.find(attribute);
    if (at == fixed.end()) return CUDA_ERROR_INVALID_VALUE;
    *out = at->second;
    return CUDA_SUCCESS;
}

// ---- contexts: the primary one of the one device

CU_API cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice dev) {
    CU_DEVICE(out, dev);
    primary.references++;
    *out = &primary;
    return CUDA_SUCCESS;
}

CU_API cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    CU_DEVICE(&dev, dev);
    if (!primary.references) return CUDA_ERROR_INVALID_CONTEXT;
    if (--primary.references == 0) drain_everything();
    return CUDA_SUCCESS;
}

CU_API cuCtxGetCurrent(CUcontext* out) {
    CU_DEVICE(out, 0);
    *out = context_stack.empty() ? nullptr : context_stack.back();
    return CUDA_SUCCESS;
}
CU_API cuCtxSetCurrent(CUcontext c) {
    CU_DEVICE(&c, 0);
    if (c && c != &primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context_stack.empty()) context_stack.pop_back();
    if (c) context_stack.push_back(c);
    return CUDA_SUCCESS;
}
CU_API cuCtxPushCurrent_v2(CUcontext c) {
    CU_DEVICE(&c, 0);
    if (c != &primary) return CUDA_ERROR_INVALID_CONTEXT;
    context_stack.push_back(c);
    return CUDA_SUCCESS;
}
CU_API cuCtxPopCurrent_v2(CUcontext* out) {
    CU_DEVICE(&out, 0);
    if (context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (out) *out = context_stack.back();
    context_stack.pop_back();
    return CUDA_SUCCESS;
}
CU_API cuCtxGetDevice(CUdevice* out) {
    CU_ENTER;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = 0;
    return CUDA_SUCCESS;
}
CU_API cuCtxSynchronize() {
    CU_ENTER;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return drain_everything();
}

// ---- memory

CU_API cuMemAlloc_v2(CUdeviceptr* out, size_t n) {
    CU_ENTER;
    if (!out || !n) return CUDA_ERROR_INVALID_VALUE;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    void* p = arena_alloc(n, DEVICE_MEM);
    *out = reinterpret_cast<CUdeviceptr>(p);
    return p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CU_API cuMemFree_v2(CUdeviceptr p) {
    CU_ENTER;
    if (!p) return CUDA_SUCCESS;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CU_TRY(drain_everything());  // it waits, as the driver does
    return arena_free(reinterpret_cast<void*>(p), DEVICE_MEM) ? CUDA_SUCCESS
                                                              : CUDA_ERROR_INVALID_VALUE;
}

CU_API cuMemHostAlloc(void** out, size_t n, unsigned flags) {
    CU_ENTER;
    if (!out || !n || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    *out = arena_alloc(n, HOST_MEM);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CU_API cuMemFreeHost(void* p) {
    CU_ENTER;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CU_TRY(drain_everything());
    return arena_free(p, HOST_MEM) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CU_API cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* p, unsigned flags) {
    CU_ENTER;
    const Allocation a = find_allocation(reinterpret_cast<uintptr_t>(p));
    if (!out || flags || !a.found || a.kind != HOST_MEM) return CUDA_ERROR_INVALID_VALUE;
    *out = reinterpret_cast<CUdeviceptr>(p);
    return CUDA_SUCCESS;
}

CU_API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    CU_ENTER;
    if (free_bytes) *free_bytes = DEVICE_BYTES - device_bytes_used();
    if (total) *total = DEVICE_BYTES;
    return CUDA_SUCCESS;
}

CU_API cuPointerGetAttribute(void* out, int attribute, CUdeviceptr p) {
    CU_ENTER;
    const Allocation a = find_allocation(static_cast<uintptr_t>(p));
    if (!out || !a.found) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
        case 1:
            *static_cast<CUcontext*>(out) = context_told();
            return CUDA_SUCCESS;
        case 2:
            *static_cast<unsigned*>(out) = a.kind;
            return CUDA_SUCCESS;
        case 3:
            *static_cast<CUdeviceptr*>(out) = p;
            return CUDA_SUCCESS;
        case 4:
            if (a.kind != HOST_MEM) return CUDA_ERROR_INVALID_VALUE;
            *static_cast<CUdeviceptr*>(out) = p;
            return CUDA_SUCCESS;
        case 8:
            *static_cast<unsigned*>(out) = 0;
            return CUDA_SUCCESS;
        case 9:
            *static_cast<int*>(out) = 0;
            return CUDA_SUCCESS;
        case 11:
            *static_cast<CUdeviceptr*>(out) = a.start;
            return CUDA_SUCCESS;
        case 12:
            *static_cast<size_t*>(out) = a.bytes;
            return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static bool within(CUdeviceptr p, size_t n) {
    const Allocation a = find_allocation(static_cast<uintptr_t>(p));
    return a.found && n <= a.start + a.bytes - static_cast<uintptr_t>(p);
}
static bool is_pinned(const void* p) {
    const Allocation a = find_allocation(reinterpret_cast<uintptr_t>(p));
    return a.found && a.kind == HOST_MEM;
}

// Ordinary memory is copied away before the call returns. Pinned memory is read when the copy
// happens, which is as late as someone waits: a buffer filled anew too early shows.
CU_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t n, CUstream s) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (!n) return CUDA_SUCCESS;
    if (!from || !within(to, n)) return CUDA_ERROR_INVALID_VALUE;
    const bool pinned = is_pinned(from);
    if (pinned && !within(reinterpret_cast<CUdeviceptr>(from), n)) return CUDA_ERROR_INVALID_VALUE;
    if (!pinned && stream_of(s).capture) {
        stream_of(s).capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    auto staged = std::make_shared<std::vector<uint8_t>>();
    if (!pinned)
        staged->assign(static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + n);
    return enqueue(s, [=] {
        memcpy(reinterpret_cast<void*>(to), pinned ? from : staged->data(), n);
        if (CHECK) shadow_init(static_cast<uintptr_t>(to), n);
        return CUDA_SUCCESS;
    });
}

CU_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t n, CUstream s) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (!n) return CUDA_SUCCESS;
    if (!to || !within(from, n)) return CUDA_ERROR_INVALID_VALUE;
    const bool pinned = is_pinned(to);
    if (pinned && !within(reinterpret_cast<CUdeviceptr>(to), n)) return CUDA_ERROR_INVALID_VALUE;
    if (!pinned && stream_of(s).capture) {
        stream_of(s).capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    CU_TRY(enqueue(s, [=] {
        memcpy(to, reinterpret_cast<const void*>(from), n);
        return CUDA_SUCCESS;
    }));
    // To ordinary memory the driver returns once the copy is made.
    return pinned ? CUDA_SUCCESS : drain(stream_of(s), ~0ull);
}

CU_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (!n) return CUDA_SUCCESS;
    if (!within(to, n) || !within(from, n)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(s, [=] {
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), n);
        if (CHECK) shadow_copy_init(static_cast<uintptr_t>(to), static_cast<uintptr_t>(from), n);
        return CUDA_SUCCESS;
    });
}

CU_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream s) {
    CU_ENTER;
    if (!is_stream(s)) return CUDA_ERROR_INVALID_HANDLE;
    if (!n) return CUDA_SUCCESS;
    if (!within(to, n)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(s, [=] {
        memset(reinterpret_cast<void*>(to), value, n);
        if (CHECK) shadow_init(static_cast<uintptr_t>(to), n);
        return CUDA_SUCCESS;
    });
}

// ---- images: kernels are compiled in, so an image only has to look like one

static const char TAG[] = "INFLIGHT-SIMT";

static bool looks_like_an_image(const void* image) {
    uint32_t word;
    memcpy(&word, image, 4);
    const bool binary = word == 0xba55ed50 || word == 0x464c457f || word == 0xfd2fb528;
    return binary || !strncmp(static_cast<const char*>(image), TAG, sizeof TAG);
}

// As drivers answer: code for a GPU runs on every driver of its toolkit's major version, or a later
// one; PTX is read by drivers that are as new as the toolkit.
static CUresult image_error() {
    if (device_cc() >= 100)
        return toolkit() > driver_version() ? CUDA_ERROR_UNSUPPORTED_PTX_VERSION : CUDA_SUCCESS;
    return toolkit() / 1000 > driver_version() / 1000 ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

CU_API cuLibraryLoadData(CUlibrary* out, const void* image, int*, void**, unsigned, int*, void**,
                         unsigned) {
    CU_ENTER;
    if (!out || !image) return CUDA_ERROR_INVALID_VALUE;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!looks_like_an_image(image)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    CU_TRY(image_error());
    *out = new Library;
    libraries.insert(*out);
    return CUDA_SUCCESS;
}

CU_API cuLibraryUnload(CUlibrary l) {
    CU_ENTER;
    if (!libraries.count(l)) return CUDA_ERROR_INVALID_HANDLE;
    CU_TRY(drain_everything());
    libraries.erase(l);
    for (const KernelHandle* k : l->kernels) delete k;
    delete l;
    return CUDA_SUCCESS;
}

bool is_kernel(CUkernel k) {
    for (const Library* l : libraries)
        for (const KernelHandle* h : l->kernels)
            if (h == k) return true;
    return false;
}

// An image is as build.rs makes it for a list of architectures: code for each of them, PTX of 8.0,
// and that of 9.0 where one of them is 9.0 or later.
static std::string images_asked;
static std::vector<int> built_for() {
    const char* text = getenv("INFLIGHT_SIMT_ARCHS");
    const std::string list = !images_asked.empty() ? images_asked : text && *text ? text : "80;90";
    std::vector<int> archs;
    for (size_t at = 0; at < list.size(); at = list.find_first_of(";, ", at) + 1) {
        archs.push_back(atoi(list.c_str() + at));
        if (list.find_first_of(";, ", at) == std::string::npos) break;
    }
    return archs;
}

// The code that the device runs, as the driver chooses it: that for its own major version and the
// highest minor one that is not above its own; else compiled from the latest PTX that is not above
// it, which CUDA_FORCE_PTX_JIT=1 asks for in any case.
Code code_for_device() {
    const int cc = device_cc();
    Code code;
    int ptx = cc >= 80 ? 80 : 0;
    for (const int arch : built_for()) {
        if (arch / 10 == cc / 10 && arch <= cc && arch > code.binary) code = {arch, arch};
        if (arch >= 90 && cc >= 90) ptx = 90;
    }
    const bool has_cubin = code.binary && !setting("CUDA_FORCE_PTX_JIT", 0);
    return has_cubin ? code : ptx ? Code{ptx, cc} : Code{};
}
static bool has_code_for_device() { return code_for_device().binary; }
bool code_waits() { return code_for_device().ptx >= 90; }

CU_API cuLibraryGetKernel(CUkernel* out, CUlibrary l, const char* name) {
    CU_ENTER;
    if (!out || !name) return CUDA_ERROR_INVALID_VALUE;
    if (!libraries.count(l)) return CUDA_ERROR_INVALID_HANDLE;
    if (!has_code_for_device()) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    for (const KernelHandle* h : l->kernels) {
        if (strcmp(h->kernel->name, name)) continue;
        *out = h;
        return CUDA_SUCCESS;
    }
    for (Kernel* k = kernels(); k; k = k->next) {
        if (strcmp(k->name, name)) continue;
        if (PTX && !find_code(*k)) return CUDA_ERROR_NOT_FOUND;
        *out = new KernelHandle{k};
        l->kernels.push_back(*out);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}

CU_API cuKernelGetFunction(CUfunction* out, CUkernel k) {
    CU_ENTER;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!is_kernel(k)) return CUDA_ERROR_INVALID_HANDLE;
    *out = k;
    return CUDA_SUCCESS;
}

CU_API cuFuncLoad(CUkernel k) {
    CU_ENTER;
    if (!is_kernel(k)) return CUDA_ERROR_INVALID_HANDLE;
    if (unsafe_call_during_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return CUDA_SUCCESS;
}

CU_API cuKernelSetAttribute(int attribute, int value, CUkernel k, CUdevice dev) {
    CU_ENTER;
    if (!is_kernel(k)) return CUDA_ERROR_INVALID_HANDLE;
    if (dev != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute == 9)
        return value >= -1 && value <= 100 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (attribute != 8 || value < 0 || static_cast<uint32_t>(value) > smem_optin())
        return CUDA_ERROR_INVALID_VALUE;
    k->max_dynamic_smem = value;
    return CUDA_SUCCESS;
}

CU_API cuKernelGetAttribute(int* out, int attribute, CUkernel k, CUdevice dev) {
    CU_ENTER;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!is_kernel(k)) return CUDA_ERROR_INVALID_HANDLE;
    if (dev != 0) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
        case 0:
            *out = static_cast<int>(k->kernel->threads);
            return CUDA_SUCCESS;
        case 4:
            *out = 128;
            return CUDA_SUCCESS;
        case 5:
            *out = code_for_device().ptx;
            return CUDA_SUCCESS;
        case 6:
            *out = code_for_device().binary;
            return CUDA_SUCCESS;
        case 8:
            *out = k->max_dynamic_smem;
            return CUDA_SUCCESS;
        case 1:
        case 2:
        case 3:
        case 7:
            *out = 0;
            return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

// ---- tests

void simt_set_device(int cc, int sms) {
    CU_LOCKED;
    cc_asked = cc;
    multiprocessors_asked = sms;
}
void simt_set_driver_version(int version) {
    CU_LOCKED;
    version_asked = version;
}
void simt_set_toolkit(int version) {
    CU_LOCKED;
    toolkit_asked = version;
}
void simt_set_archs(const char* archs) {
    CU_LOCKED;
    images_asked = archs ? archs : "";
}
void simt_fail_call(const char* function, uint64_t nth, int code, int sticky) {
    CU_LOCKED;
    failure = {function ? function : "", nth, code, sticky != 0};
}
int simt_fail_pending() {
    CU_LOCKED;
    return failure.calls_left != 0;
}
void simt_set_foreign(int on) {
    CU_LOCKED;
    foreign = on != 0;
}
void simt_count_alive(simt_alive* out) {
    CU_LOCKED;
    *out = {device_bytes_used(), host_bytes_used(),   streams_alive(),     events_alive(),
            graphs_alive(),      executables_alive(), context_stack.size()};
}

void simt_reset() {
    CU_LOCKED;
    simt_set_device(0, 0);
    simt_set_driver_version(0);
    simt_set_toolkit(0);
    simt_set_archs(nullptr);
    simt_fail_call(nullptr, 0, 0, 0);
    simt_set_foreign(0);
    streams_reset();
    arena_reset();
    primary.lost = CUDA_SUCCESS;
    cfg = {};
    reset_stats();
    simt_clear_bank_conflicts();
    const size_t n = simt_take_reports(nullptr, 0);
    std::vector<char> dropped(n);
    simt_take_reports(dropped.data(), n);
}
