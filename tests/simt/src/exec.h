// Blocks whose kernels are executed from PTX: what the executor (tests/ptx, in Rust) offers the
// emulator, and what it asks of it.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// ---- by the executor

struct ptx_kernel;
struct ptx_block;
struct ptx_launch {
    const uint8_t* params;  // there as long as the blocks are
    uint32_t param_bytes;
    uint32_t grid[3], threads[3];
    uint32_t smem_bytes;
    uint32_t dependent;  // it may begin before the launch before it is done
    uint32_t reserved;
    uint64_t seed;  // 0: all in order
};
// Null: there is none, and `why` says what to do. Targets are 80 and 90.
const ptx_kernel* ptx_find(const char* name, uint32_t target, char* why, size_t why_bytes);
uint32_t ptx_kernel_param_bytes(const ptx_kernel*);
uint32_t ptx_kernel_threads(const ptx_kernel*);
ptx_block* ptx_block_begin(const ptx_kernel*, const ptx_launch*, const uint32_t block[3],
                           uint8_t* smem);
// WAITS: for the kernel before; it is taken up again once exec_prior_done says so.
enum { PTX_ENDED, PTX_WAITS, PTX_FAULT };
uint32_t ptx_block_run(ptx_block*);
void ptx_block_end(ptx_block*);
// "decode.cuh:43 (decode_bf16_same_d128.80.ptx:1234)"; returns the bytes it takes, the final 0
// included.
size_t ptx_place(uint32_t pc, char* to, size_t bytes);
// Of warps, so far.
uint64_t ptx_instructions();
// Writes what INFLIGHT_PTX_COVERAGE and INFLIGHT_PTX_SPEED ask for, when the process ends.
void ptx_at_exit();

// ---- by the emulator, for the block that runs
//
// Threads are numbered in their block, async operations from its number of threads on. Global
// addresses are the host's; shared ones are offsets from SMEM_BASE (1024). What returns a number
// returns 0 where the block is to end: a report says why. A race is reported, and the block goes
// on.

enum { EXEC_SHARED = 1, EXEC_WRITE = 2, EXEC_CONST = 4 };
// An instruction of the lanes in a mask, which are aligned: bounds, shadow, bank conflicts.
uint32_t exec_access(uint32_t warp, uint32_t mask, const uint64_t* at, uint32_t bytes,
                     uint32_t kind, uint32_t pc);
// One access of a thread or an async operation.
uint32_t exec_check(uint32_t id, uint64_t at, uint32_t bytes, uint32_t kind, uint32_t pc);
// Of 4 bytes; `of_device`, or of the block alone.
uint32_t exec_atomic(uint32_t thread, uint64_t at, uint32_t kind, uint32_t order,
                     uint32_t of_device, uint32_t pc);
// cp.async: asked for, and landed; of `read` bytes each lane, others are zeros. `seen_in`: the
// clock by which others see it, or none of them (~0).
uint32_t exec_copy_issued(uint32_t warp, uint32_t mask, const uint64_t* to, uint32_t bytes,
                          uint32_t pc);
uint32_t exec_copy_landed(uint32_t warp, uint32_t mask, const uint64_t* to, const uint64_t* from,
                          uint32_t bytes, const uint32_t* read, uint32_t seen_in, uint32_t pc);
void exec_pending(uint32_t id, uint32_t at, uint32_t bytes, uint32_t on, uint32_t pc);
void exec_mbarrier(uint32_t at, uint32_t live);
void exec_mbarrier_used(uint32_t id, uint32_t at, uint32_t fenced, uint32_t pc);
// Clocks that many add to and take from: numbered by the executor, empty at first.
void exec_release(uint32_t clock, uint32_t warp, uint32_t mask);
void exec_acquire(uint32_t clock, uint32_t warp, uint32_t mask);
void exec_release_id(uint32_t clock, uint32_t id);
void exec_move(uint32_t from, uint32_t to);
void exec_clear(uint32_t clock);
// Lanes see what all of them have done: bar.warp.sync.
void exec_sync_warp(uint32_t warp, uint32_t mask);
uint32_t exec_new_agent(uint32_t thread);
void exec_fence_proxy(uint32_t warp, uint32_t mask);
uint32_t exec_prior_done();
void exec_has_waited(uint32_t warp, uint32_t mask);
void exec_let_next();
// A kind is one of simt::Kind.
void exec_report(uint32_t kind, uint32_t thread, uint32_t pc, const char* text);
struct exec_map {
    uint64_t base;
    uint32_t rank, element_bytes, swizzle, pad;
    uint32_t dim[5], box[5];
    uint64_t stride[5];
};
// 0: no tensor map lies there.
uint32_t exec_tensor_map(uint64_t at, exec_map* out);
}
