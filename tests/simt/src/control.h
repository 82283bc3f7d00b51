// What tests ask of the emulator besides the driver's functions.
#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

struct simt_counters {
    uint64_t switches, collectives, barriers, accesses, races, uninit, oob, faults, launches,
        dependents;
    uint64_t bank_phases, bank_conflicts;
};

// 0: every schedule is in order; else fibers, blocks and copies are shuffled by it.
SIMT_EXPORT void simt_set_seed(uint64_t seed);
// Whether on devices before 9.0, which have no such launches, every launch is one with programmatic
// stream serialisation, of code that waits.
SIMT_EXPORT void simt_set_dependent(int on);
// Since they were last taken; 0 all, 1 races, 2 uninitialised reads, 3 out of bounds, 4 faults.
SIMT_EXPORT uint64_t simt_report_count(int kind);
// Texts, each ended by '\1'; returns the bytes needed, and keeps them if those were not given.
SIMT_EXPORT size_t simt_take_reports(char* to, size_t n);
// Lines "file:line phases extra": shared-memory phases, and those that conflicts added.
SIMT_EXPORT size_t simt_bank_conflicts(char* to, size_t n);
SIMT_EXPORT void simt_clear_bank_conflicts();
SIMT_EXPORT void simt_stats(simt_counters* out);
SIMT_EXPORT int simt_is_checking();
// Whether kernels are executed from PTX, and how many instructions of warps have been.
SIMT_EXPORT int simt_is_ptx();
SIMT_EXPORT uint64_t simt_ptx_instructions();
// The device presented: compute capability and multiprocessors; 0 as INFLIGHT_SIMT_CC and
// INFLIGHT_SIMT_SMS say. For contexts made from then on.
SIMT_EXPORT void simt_set_device(int cc, int multiprocessors);
// What images are built for, as INFLIGHT_CUDA_ARCHS names it; null or empty as INFLIGHT_SIMT_ARCHS
// says.
SIMT_EXPORT void simt_set_archs(const char* archs);
// The version the driver says it offers; 0 as usual.
SIMT_EXPORT void simt_set_driver_version(int version);
// The toolkit that images stand for, 13000 for 13.0; 0 as INFLIGHT_SIMT_TOOLKIT says, or one that
// every driver takes.
SIMT_EXPORT void simt_set_toolkit(int version);
// The nth call from now on of this function returns the code and does nothing else, once; sticky:
// the context is lost with it. A null function is any but those that give back, free, destroy,
// release, end a capture, and those that push and pop a context or a mode for it. With nth 0,
// none.
SIMT_EXPORT void simt_fail_call(const char* function, uint64_t nth, int code, int sticky);
// Whether the failure asked for is still to come.
SIMT_EXPORT int simt_fail_pending();
// While it is on, streams and memory say that they are of another context.
SIMT_EXPORT void simt_set_foreign(int on);
// What has been made and not been given back.
struct simt_alive {
    uint64_t device_bytes, host_bytes, streams, events, graphs, executables, current;
};
SIMT_EXPORT void simt_count_alive(simt_alive* out);
// Everything as at the start: memory, streams, a lost context, reports, seed, the device.
SIMT_EXPORT void simt_reset();
