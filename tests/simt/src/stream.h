// Streams as queues: what is enqueued happens when someone waits for it, in order.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "driver.h"
#include "machine.h"

// What is queued.
struct Work {
    std::function<CUresult()> run;  // of what is no launch
    // Of a launch: made anew each time it is done, as a graph's are done often.
    std::function<std::shared_ptr<simt::Grid>()> launch;
    bool dependent = false;             // a launch that is one
    bool follows = false;               // it, on a launch of the same stream, with nothing between
    std::shared_ptr<simt::Grid> begun;  // before its turn

    Work() = default;
    template <class F>
        requires std::is_invocable_r_v<CUresult, F>
    Work(F f) : run(std::move(f)) {}
};

// A point in a stream's queue, or in a capture.
struct Record {
    Stream* stream;
    uint64_t position;  // done once so many of the stream's operations are
    double seconds = 0;
    struct Capture* capture = nullptr;
    uint64_t captured_ops = 0;
};
struct Capture {
    std::vector<Work> work;
    int mode;
    Stream* origin;
    std::thread::id thread;
    bool invalidated = false;
    std::vector<Stream*> joined;
    Stream* last = nullptr;  // of the last work; null where others are waited for since
};
struct Stream {
    uint64_t enqueued = 0, done = 0;
    std::deque<Work> queue;
    Capture* capture = nullptr;
    uint64_t captured_ops = 0, rejoined = 0;
    bool running = false;
    bool ends_in_launch = false;  // what was queued last is one
    uint32_t chain = 0;           // of the launch that was begun last; 0: something else was
    bool blocking = true;         // the default stream waits for it
};
struct Event {
    std::shared_ptr<Record> last;
    bool timing = true;
};
struct Graph {
    std::vector<Work> work;
};
struct GraphExec {
    std::vector<Work> work;
};
struct Library {
    std::vector<const KernelHandle*> kernels;
};
struct KernelHandle {
    const simt::Kernel* kernel;
    mutable int max_dynamic_smem = 48 << 10;
};
struct Context {
    int references = 0;
    CUresult lost = CUDA_SUCCESS;  // a fault of a kernel: everything fails from then on
};

// One lock for the whole driver: one kernel runs at a time, on the thread that waits.
extern std::recursive_mutex driver_lock;
extern Context primary;

// What streams and memory say they belong to.
CUcontext context_told();
bool is_stream(CUstream s);
Stream& stream_of(CUstream s);
// Real when captured as much as when queued.
CUresult enqueue(CUstream s, Work work);
CUresult drain(Stream& s, uint64_t until);
CUresult drain_everything();
bool unsafe_call_during_capture();
CUresult current_context_error();
// What simt_fail_call asks of this call.
CUresult asked_to_fail(const char* function);
size_t streams_alive();
size_t events_alive();
size_t graphs_alive();
size_t executables_alive();
CUresult lose_context(bool out_of_bounds);
void streams_reset();
int device_cc();
int multiprocessors();
bool is_kernel(CUkernel k);
// The code of images that the device runs: the PTX it is made from, and what it is made for.
struct Code {
    int ptx = 0, binary = 0;  // 0: there is none
};
Code code_for_device();
// Whether arch::wait_for_prior_kernel is an instruction in it: see csrc/arch/cuda.cuh.
bool code_waits();
uint32_t smem_optin();
// The PTX of a kernel for this device; null, and a report that says why, where there is none.
const ptx_kernel* find_code(const simt::Kernel& kernel);

#define CU_API extern "C" __attribute__((visibility("default"))) CUresult
#define CU_LOCKED std::lock_guard<std::recursive_mutex> lock(driver_lock)
#define CU_TRY(call) \
    if (const CUresult cu_error = (call)) return cu_error
// What nearly every call begins with.
#define CU_ENTER                     \
    CU_LOCKED;                       \
    CU_TRY(asked_to_fail(__func__)); \
    CU_TRY(current_context_error())
