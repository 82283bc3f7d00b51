// What rates.cu times and csrc/arch does not have; and the clock.
#pragma once

#include "hopper_ops.cuh"

namespace rates {

#ifdef __CUDACC__
// Cycles of the multiprocessor.
ARCH_FN uint64_t clock() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
}
// The 8 x 8 numbers of 16 bits that a warp holds, transposed.
ARCH_FN uint32_t movmatrix(uint32_t x) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
    return r;
}
// Two e4m3, the lower half, to two f16: one instruction from sm_89 on.
ARCH_FN uint32_t from_e4m3x2(uint32_t x) {
#if __CUDA_ARCH__ >= 890
    uint32_t r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<uint16_t>(x)));
    return r;
#else
    __trap();
    return 0;
#endif
}
// Eight bytes, around L1.
ARCH_FN uint64_t load_pointer(uint64_t at) {
    uint64_t r;
    asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(r) : "l"(at) : "memory");
    return r;
}
ARCH_FN arch::vec4 load_around_l1(const arch::vec4* from) {
    arch::vec4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
// One thread of a warp, as the assembler knows it to be (sm_90).
ARCH_FN bool elect_one() {
    uint32_t is_it;
    asm volatile(
        "{\n.reg .pred p;\n.reg .b32 r;\nelect.sync r|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(is_it));
    return is_it != 0;
}
// `bytes` in a row, by the copy engine (sm_90).
ARCH_FN void bulk_load(uint32_t to, uint64_t from, uint32_t bytes, uint32_t bar) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to),
        "l"(from), "r"(bytes), "r"(bar)
        : "memory");
}
#else
ARCH_FN uint64_t clock() {
    static uint64_t readings = 0;
    return ++readings;
}
ARCH_FN uint32_t movmatrix(uint32_t x, ARCH_AT) {
    // Rows of the result are columns: two lanes have one number each.
    const int lane = static_cast<int>(simt::cur->lane), row = lane / 4, column = lane % 4 * 2;
    const uint32_t lo = simt::shfl(~0u, x, column * 4 + row / 2, file, line);
    const uint32_t hi = simt::shfl(~0u, x, (column + 1) * 4 + row / 2, file, line);
    const int half = row % 2 * 16;
    return (lo >> half & 0xffffu) | (hi >> half & 0xffffu) << 16;
}
ARCH_FN uint32_t from_e4m3x2(uint32_t x) {
    uint32_t lo, hi;
    arch::cvt_f16x4(x, lo, hi);
    return lo;
}
ARCH_FN uint64_t load_pointer(uint64_t at) { return *reinterpret_cast<const uint64_t*>(at); }
ARCH_FN arch::vec4 load_around_l1(const arch::vec4* from) { return *from; }
ARCH_FN bool elect_one() { return threadIdx.x % 32 == 0; }
ARCH_FN void bulk_load(uint32_t to, uint64_t from, uint32_t bytes, uint32_t bar, ARCH_AT) {
    // A tensor of one dimension.
    simt::TensorMap map = {simt::TENSOR_MAP_MAGIC, 1, 1, 0, from, {bytes}, {1}, {bytes}, {}};
    const int at = 0;
    simt::tma_load(to, &map, &at, 1, bar, file, line);
}
#endif

}  // namespace rates
