// Instructions of sm_90 that the self-test's kernel uses and csrc/arch does not have.
#pragma once

#include "arch/arch.cuh"

#ifdef __CUDACC__
#include <cuda.h>
using tensor_map_t = CUtensorMap;
#else
#include <algorithm>
using tensor_map_t = simt::TensorMap;
using std::min;
#endif

namespace hopper {

// Orders of an atomic: relaxed, acquire, release.
template <int ORDER>
ARCH_FN uint32_t atomic_add(uint32_t* at, uint32_t x) {
#ifdef __CUDACC__
    uint32_t old;
    if constexpr (ORDER == 0)
        asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                     : "=r"(old)
                     : "l"(at), "r"(x)
                     : "memory");
    else if constexpr (ORDER == 1)
        asm volatile("atom.acquire.gpu.global.add.u32 %0, [%1], %2;"
                     : "=r"(old)
                     : "l"(at), "r"(x)
                     : "memory");
    else
        asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
                     : "=r"(old)
                     : "l"(at), "r"(x)
                     : "memory");
    return old;
#else
    return simt::atomic_add(at, x, static_cast<simt::Order>(ORDER));
#endif
}

#ifdef __CUDACC__
ARCH_FN void mbar_init(uint32_t a, int n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(a), "r"(n) : "memory");
}
ARCH_FN void mbar_arrive(uint32_t a) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(a) : "memory");
}
ARCH_FN void mbar_expect_tx(uint32_t a, uint32_t n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(a), "r"(n)
                 : "memory");
}
ARCH_FN void mbar_wait(uint32_t a, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred p;\nL_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra L_%=;\n}" ::"r"(a),
        "r"(parity)
        : "memory");
}
ARCH_FN void fence_mbar_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
ARCH_FN void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
ARCH_FN void tma_load_4d(uint32_t d, const tensor_map_t* m, int x, int y, int z, int w,
                         uint32_t bar) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3,%4,%5,%6}], [%2];" ::"r"(d),
        "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
ARCH_FN void cp_async_mbar_arrive_noinc(uint32_t a) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(a) : "memory");
}
ARCH_FN void stmatrix_x4(const uint32_t (&r)[4], uint32_t at) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
// Before the fence, of the accumulators and A of what follows: else nvcc may move what it writes to
// them behind it.
template <int N>
ARCH_FN void settle(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
ARCH_FN void settle(uint32_t (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}
ARCH_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ARCH_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
ARCH_FN void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
ARCH_FN void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
ARCH_FN void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#define D8(i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define R32                                                                               \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
    "%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define R64                                                                               \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
    "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,"    \
    "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
ARCH_FN void wgmma_ss_n64(float (&d)[32], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " R32 ", %32, %33, p, 1, 1, 0, 0;\n}"
        : D32(0)
        : "l"(a), "l"(b), "r"(scale_d));
}
ARCH_FN void wgmma_ss_n128(float (&d)[64], uint64_t a, uint64_t b, int scale_d) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " R64 ", %64, %65, p, 1, 1, 0, 0;\n}"
        : D32(0), D32(32)
        : "l"(a), "l"(b), "r"(scale_d));
}
ARCH_FN void wgmma_rs_n128_tb(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int scale_d) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " R64
        ", {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"
        : D32(0), D32(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d));
}
#undef D8
#undef D32
#undef R32
#undef R64
#else
ARCH_FN void mbar_init(uint32_t a, int n, ARCH_AT) { simt::mbar_init(a, n, file, line); }
ARCH_FN void mbar_arrive(uint32_t a, ARCH_AT) { simt::mbar_arrive(a, file, line); }
ARCH_FN void mbar_expect_tx(uint32_t a, uint32_t n, ARCH_AT) {
    simt::mbar_expect_tx(a, n, file, line);
}
ARCH_FN void mbar_wait(uint32_t a, uint32_t parity, ARCH_AT) {
    simt::mbar_wait(a, parity, file, line);
}
ARCH_FN void fence_mbar_init() {}
ARCH_FN void fence_proxy_async() { simt::fence_proxy_async(); }
ARCH_FN void tma_load_4d(uint32_t d, const tensor_map_t* m, int x, int y, int z, int w,
                         uint32_t bar, ARCH_AT) {
    const int c[4] = {x, y, z, w};
    simt::tma_load(d, m, c, 4, bar, file, line);
}
ARCH_FN void cp_async_mbar_arrive_noinc(uint32_t a, ARCH_AT) {
    simt::cp_async_mbar_arrive_noinc(a, file, line);
}
ARCH_FN void stmatrix_x4(const uint32_t (&r)[4], uint32_t at, ARCH_AT) {
    simt::stmatrix(r, 4, false, at, file, line);
}
template <class T, int N>
ARCH_FN void settle(T (&)[N]) {}
ARCH_FN void wgmma_fence() {}
ARCH_FN void wgmma_commit() { simt::wgmma_commit(); }
template <int N>
ARCH_FN void wgmma_wait() {
    simt::wgmma_wait(N);
}
template <int N>
ARCH_FN void setmaxnreg_inc(ARCH_AT) {
    simt::setmaxnreg(N, true, file, line);
}
template <int N>
ARCH_FN void setmaxnreg_dec(ARCH_AT) {
    simt::setmaxnreg(N, false, file, line);
}
ARCH_FN void wgmma_ss_n64(float (&d)[32], uint64_t a, uint64_t b, int scale_d, ARCH_AT) {
    simt::wgmma(d, 64, nullptr, a, b, false, scale_d, file, line);
}
ARCH_FN void wgmma_ss_n128(float (&d)[64], uint64_t a, uint64_t b, int scale_d, ARCH_AT) {
    simt::wgmma(d, 128, nullptr, a, b, false, scale_d, file, line);
}
ARCH_FN void wgmma_rs_n128_tb(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int scale_d,
                              ARCH_AT) {
    simt::wgmma(d, 128, a, 0, b, true, scale_d, file, line);
}
#endif

// Descriptor of an operand in the 128-byte swizzled layout.
ARCH_FN uint64_t descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
    return static_cast<uint64_t>((at & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | 1ull << 62;
}

}  // namespace hopper
