// What tests ask of the emulator besides the driver's functions.
#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

struct simt_counters {
    uint64_t switches, collectives, barriers, accesses, races, uninit, oob, faults, launches;
    uint64_t bank_phases, bank_conflicts;
};

// 0: every schedule is in order; else fibers, blocks and copies are shuffled by it.
SIMT_EXPORT void simt_set_seed(uint64_t seed);
// Whether every launch is looked at as one with programmatic stream serialisation.
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
// Everything as at the start: memory, streams, a lost context, reports, seed.
SIMT_EXPORT void simt_reset();
