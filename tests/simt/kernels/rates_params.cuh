// What the kernels of rates.cu and rates_hopper.cu are given, and give.
#pragma once

#include "rates_ops.cuh"

namespace {

struct Params {
    // A number for each thread; one of each thread; the readings of the clock, two of each warp.
    uint64_t in, out, clocks;
    uint64_t turns, passes;
};

// Instructions per turn: the loop's own are few compared with them.
constexpr int STEPS = 64;
// Independent ones in a row.
constexpr int MANY = 8;

ARCH_FN uint32_t thread_of_all() { return blockIdx.x * blockDim.x + threadIdx.x; }
ARCH_FN uint32_t given(const Params& p) {
    return reinterpret_cast<const uint32_t*>(p.in)[thread_of_all()];
}
ARCH_FN void result(const Params& p, uint32_t x) {
    reinterpret_cast<uint32_t*>(p.out)[thread_of_all()] = x;
}
ARCH_FN void readings(const Params& p, uint64_t start, uint64_t stop) {
    uint64_t* clocks = reinterpret_cast<uint64_t*>(p.clocks) + thread_of_all() / 32 * 2;
    if (threadIdx.x % 32 == 0) clocks[0] = start, clocks[1] = stop;
}
[[maybe_unused]] constexpr uint32_t BOX = 8192;

}  // namespace
