// simt.h - host-side "GPU" that runs CUDA C++ kernels compiled as plain C++20 (prototype).
// Only declarations live here: kernels TUs may be compiled with -fsanitize=thread and are then
// instrumented by the compiler; the runtime (simt.cpp) supplies its own __tsan_* callbacks.
#pragma once
#include <cstdint>
#include <cstddef>
#include <cstring>
#include <cmath>
#include <utility>

namespace simt {
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct Thread { uint3 tid; unsigned lin, lane, warp; };
struct Block { uint3 bid; dim3 bdim, gdim; uint8_t* smem; uint32_t smem_bytes; unsigned cta_rank = 0, cluster = 1; };
extern __thread Thread* cur;   // __thread: no TLS init wrapper (faster, and no gcc UBSan false positive)
extern __thread Block*  blk;
constexpr uint32_t SMEM_BASE = 1024;                 // like hardware: the first KiB is reserved, 0 is never valid

#define SIMT_L const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_P file, line
[[noreturn]] void fail(const char* file, int line, const char* fmt, ...);

// ---- barriers
void bar_sync(int id, int count, SIMT_L);            // count<0: whole block
void bar_arrive(int id, int count, SIMT_L);
void syncwarp(uint32_t mask, SIMT_L);
// ---- warp collectives: every lane deposits args, the last one runs fn for all lanes
using WarpFn = void (*)(void* const* lane_args, uint32_t mask);
void warp_collective(uint32_t mask, WarpFn fn, void* args, SIMT_L);
void group_collective(int nwarps, WarpFn fn, void* args, SIMT_L);   // warpgroup (nwarps=4)
uint32_t shfl(uint32_t mask, uint32_t v, int src_lane, SIMT_L);
uint32_t ballot(uint32_t mask, bool p, SIMT_L);
// ---- address spaces
uint32_t to_shared(const void* p, SIMT_L);
uint8_t* from_shared(uint32_t a, uint32_t bytes, SIMT_L);
// ---- sm_80
void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, SIMT_L);
void cp_async_commit(); void cp_async_wait(int n);
void ldmatrix(uint32_t* r, int n, bool trans, uint32_t addr, SIMT_L);
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool bf16, SIMT_L);
// ---- sm_90
void mbar_init(uint32_t a, int count, SIMT_L);
void mbar_arrive(uint32_t a, SIMT_L);
void mbar_expect_tx(uint32_t a, uint32_t bytes, SIMT_L);   // arrive.expect_tx
void mbar_wait(uint32_t a, uint32_t parity, SIMT_L);
void fence_proxy_async();
struct alignas(64) TensorMap { uint32_t magic, rank, elt, swz; uint64_t base; uint32_t dim[5]; uint64_t stride[5]; uint32_t box[5]; uint32_t pad[3]; };
void tma_load(uint32_t dst, const TensorMap* m, const int* coord, int rank, uint32_t mbar, SIMT_L);
void wgmma(float* d, int n, const uint32_t* a_regs, uint64_t adesc, uint64_t bdesc, bool tnspB, bool scaleD, SIMT_L);
void wgmma_commit(); void wgmma_wait(int n);
void setmaxnreg(int n, bool inc, SIMT_L);
bool elect_one();
// ---- atomics, numbers
uint32_t atomic_add(uint32_t* at, uint32_t x, SIMT_L);   // acquire and release, device scope
uint16_t to_bf16(float x); uint16_t to_f16(float x); float from_f16(uint16_t x);
// ---- kernels by name: what ARCH_KERNEL declares
struct Kernel { const char* name; void (*entry)(void* const* args); size_t param_bytes; unsigned threads; Kernel* next;
  Kernel(const char* n, void (*e)(void* const*), size_t b, unsigned t); };
Kernel* kernels();   // the first; the others follow
void launch_kernel(const char* name, dim3 g, dim3 b, uint32_t smem, void** args);
// ---- global memory + launch (what a libcuda-shaped shim would sit on)
void* dmalloc(size_t n); void dfree(void*);
struct Config { unsigned seed = 0; bool verbose = true; int max_reports = 5; bool abort_on_race = false; };
extern Config cfg;
struct Stats { uint64_t switches, collectives, barriers, accesses, races, uninit, oob, bank_phases, bank_conflicts; };
Stats stats(); void reset_stats();
using Tramp = void (*)(void* fn, void** params);
void launch_raw(void* fn, Tramp t, dim3 g, dim3 b, uint32_t smem, void** params);
template <class... A, size_t... I> void call(void (*f)(A...), void** p, std::index_sequence<I...>) { f(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(p[I])...); }
template <class... A> void launch(void (*f)(A...), dim3 g, dim3 b, uint32_t smem, A... a) {
  void* p[] = {(void*)&a...};
  launch_raw((void*)f, [](void* fn, void** q) { call((void (*)(A...))fn, q, std::index_sequence_for<A...>{}); }, g, b, smem, p);
}
}  // namespace simt

// ---- CUDA spelling (only in kernels)
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
