// What kernels compiled for the host call: the emulator's side of csrc/arch/host.cuh.
//
// Only declarations: translation units of kernels may be instrumented (-fsanitize=thread), and the
// emulator supplies the callbacks of that instrumentation itself (see shadow.cpp).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace simt {

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct Thread {
    uint3 tid;
    unsigned lin, lane, warp;
};
struct Block {
    uint3 bid;
    dim3 bdim, gdim;
    uint8_t* smem;
    uint32_t smem_bytes;
};

// The thread that runs, and its block. Not thread-local: one launch runs at a time.
extern Thread* cur;
extern Block* blk;

// Like hardware: the first KiB of shared memory is reserved, so 0 is never a valid address.
constexpr uint32_t SMEM_BASE = 1024;

#define SIMT_L const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Ends the launch: the report is kept, the device's context is lost.
[[noreturn]] void fail(const char* file, int line, const char* fmt, ...);

// ---- barriers; count < 0: the whole block
void bar_sync(int id, int count, SIMT_L);
void bar_arrive(int id, int count, SIMT_L);
void syncwarp(uint32_t mask, SIMT_L);

// ---- collectives: every lane hands in its arguments, the last one computes for all
using WarpFn = void (*)(void* const* lane_args, uint32_t mask);
void warp_collective(uint32_t mask, WarpFn fn, void* args, SIMT_L);
void group_collective(WarpFn fn, void* args, SIMT_L);  // a warpgroup of 128 threads
uint32_t shfl(uint32_t mask, uint32_t v, int src_lane, SIMT_L);
uint32_t ballot(uint32_t mask, bool p, SIMT_L);

// ---- address spaces
uint32_t to_shared(const void* p, SIMT_L);
uint8_t* from_shared(uint32_t a, uint32_t bytes, SIMT_L);

// ---- sm_80
void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, SIMT_L);
void cp_async_commit();
void cp_async_wait(int groups_left);
// The barrier is arrived at when the thread's copies so far have landed.
void cp_async_mbar_arrive_noinc(uint32_t mbar, SIMT_L);
void ldmatrix(uint32_t* r, int n, bool trans, uint32_t addr, SIMT_L);
void stmatrix(const uint32_t* r, int n, bool trans, uint32_t addr, SIMT_L);
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool bf16, SIMT_L);

// ---- sm_90
void mbar_init(uint32_t a, int count, SIMT_L);
void mbar_arrive(uint32_t a, SIMT_L);
void mbar_expect_tx(uint32_t a, uint32_t bytes, SIMT_L);  // arrive.expect_tx
void mbar_wait(uint32_t a, uint32_t parity, SIMT_L);
void fence_proxy_async();
// 128 bytes, as CUtensorMap: what cuTensorMapEncodeTiled fills in.
struct alignas(128) TensorMap {
    uint32_t magic, rank, elt, swz;
    uint64_t base;
    uint32_t dim[5];
    uint64_t stride[5];
    uint32_t box[5];
    uint32_t pad[3];
};
constexpr uint32_t TENSOR_MAP_MAGIC = 0x7a11;
void tma_load(uint32_t dst, const TensorMap* m, const int* coord, int rank, uint32_t mbar, SIMT_L);
void wgmma(float* d, int n, const uint32_t* a_regs, uint64_t a_desc, uint64_t b_desc,
           bool transpose_b, bool scale_d, SIMT_L);
void wgmma_commit();
void wgmma_wait(int groups_left);
void setmaxnreg(int n, bool increase, SIMT_L);
bool elect_one();

// ---- between blocks, device scope
enum Order { RELAXED = 0, ACQUIRE = 1, RELEASE = 2, ACQ_REL = 3 };
uint32_t atomic_add(uint32_t* at, uint32_t x, Order order, SIMT_L);

// ---- between kernels: a launch that is a dependent begins before the one before it is done. From
// here on a thread may write, and read what earlier kernels write; without effect in code of
// architectures before 9.0
void wait_for_prior_kernel();
void let_next_kernel_start();

// ---- caches that are not coherent: what is read is not written during the launch
void read_const(const void* p, int bytes, SIMT_L);

// ---- numbers
uint16_t to_bf16(float x);
uint16_t to_f16(float x);
float from_f16(uint16_t x);

// ---- kernels by name: what ARCH_KERNEL declares
struct Kernel {
    const char* name;
    void (*entry)(void* const* args);
    size_t param_bytes;
    unsigned threads;
    Kernel* next;
    Kernel(const char* n, void (*e)(void* const*), size_t b, unsigned t);
};
Kernel* kernels();  // the first; the others follow
void launch_kernel(const char* name, dim3 g, dim3 b, uint32_t smem, void** args);

// ---- for programs that run kernels without the driver's interface
void* dmalloc(size_t n);
void dfree(void* p);
struct Config {
    uint64_t seed = 0;       // 0: everything in order
    bool dependent = false;  // of devices before 9.0: every launch is a dependent, and waits
    bool verbose = false;
    unsigned max_reports = 64;
};
extern Config cfg;
struct Stats {
    uint64_t switches, collectives, barriers, accesses, races, uninit, oob, faults, launches,
        dependents;
    uint64_t bank_phases, bank_conflicts;
};
Stats stats();
void reset_stats();

using Trampoline = void (*)(void* fn, void** params);
void launch_raw(void* fn, Trampoline t, dim3 g, dim3 b, uint32_t smem, void** params);
template <class... A, size_t... I>
void call(void (*f)(A...), void** p, std::index_sequence<I...>) {
    f(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(p[I])...);
}
template <class... A>
void launch(void (*f)(A...), dim3 g, dim3 b, uint32_t smem, A... a) {
    void* p[] = {(void*)&a...};
    launch_raw(
        (void*)f,
        [](void* fn, void** q) { call((void (*)(A...))fn, q, std::index_sequence_for<A...>{}); }, g,
        b, smem, p);
}

}  // namespace simt

// ---- CUDA's spelling, for kernels only
#ifndef SIMT_NO_CUDA_NAMES
#define threadIdx (simt::cur->tid)
#define blockIdx (simt::blk->bid)
#define blockDim (simt::blk->bdim)
#define gridDim (simt::blk->gdim)
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __syncthreads() simt::bar_sync(0, -1)
#define __syncwarp() simt::syncwarp(0xffffffffu)
#endif
