// arch.cuh for nvcc: the only file with inline assembly.
#pragma once

#define ARCH_FN __device__ __forceinline__
// Of a class: static or not.
#define ARCH_MEMBER __device__ __forceinline__

// Dynamic shared memory, aligned for swizzled tiles.
#define ARCH_DYN_SMEM(name) extern __shared__ __align__(1024) uint8_t name[]

// A kernel `name(Params)` of `threads` threads per block and `blocks` blocks per multiprocessor,
// whose body is `body(const Params&)`.
#define ARCH_KERNEL(name, threads, blocks, Params, ...)           \
    extern "C" __global__ void __launch_bounds__(threads, blocks) \
        name(const __grid_constant__ Params params) {             \
        __VA_ARGS__(params);                                      \
    }

namespace arch {

// ---- shared memory and asynchronous copies (sm_80)

ARCH_FN uint32_t smem_u32(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, around L1; zeros if not `pred` (then nothing is read).
// WITH_LINE: L2 fetches the 128 bytes that they lie in, which pays where all of them are asked for.
template <bool WITH_LINE = true>
ARCH_FN void cp_async_16(uint32_t to, const void* from, bool pred) {
    if constexpr (WITH_LINE) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(pred ? 16 : 0)
                     : "memory");
    } else {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(pred ? 16 : 0)
                     : "memory");
    }
}
ARCH_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N groups are under way.
template <int N>
ARCH_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

ARCH_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
ARCH_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// The same number, unknown to the compiler: what is computed from it is not kept in registers
// from one turn of a loop to the next.
ARCH_FN uint32_t opaque(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// ---- tensor cores: d += a * b, m16n8k16

ARCH_FN void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
ARCH_FN void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- warps and blocks

ARCH_FN uint32_t shfl_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
ARCH_FN float shfl_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
ARCH_FN uint32_t shfl(uint32_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
ARCH_FN float shfl(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
ARCH_FN uint64_t shfl(uint64_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
ARCH_FN uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
ARCH_FN void sync_warp() { __syncwarp(); }
ARCH_FN void sync_threads() { __syncthreads(); }
// Barrier `id` (1 to 15) of `n` threads of the block.
ARCH_FN void named_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
ARCH_FN void named_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

// ---- between blocks

// Adds and returns what was there. What the thread has seen happen happens before what a thread
// sees that reads the sum with the same call.
ARCH_FN uint32_t atomic_add_acq_rel(uint32_t* at, uint32_t x) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(at), "r"(x)
                 : "memory");
    return old;
}

// A dependent launch begins before the kernel it depends on is done, and waits here for that one to
// be done and for what it wrote to be seen. The contract (src/device/cuda/kernels.rs, Launch):
// * before it only loads of the step buffer's header, plans and tables, which no kernel writes;
// * no store and no atomic before it;
// * every block calls it on every way out: a kernel all of whose blocks end without is done before
//   the one before it is, and the next one waits for this one alone.
// Nothing at all in code for 8.x, which is never launched as a dependent.
ARCH_FN void wait_for_prior_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
ARCH_FN void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- loads; volatile, so that they stay behind wait_for_prior_kernel

// Of what no kernel writes: the step buffer. Else a kernel before this one may write while this one
// has begun, and ld.global.nc is for what no kernel writes as long as this one runs.
ARCH_FN vec4 load_const(const vec4* from) {
    vec4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
ARCH_FN uint32_t load_const(const uint32_t* from) {
    uint32_t x;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(from));
    return x;
}
// Of anything else that this kernel does not write itself: queries, caches, scales, tables of
// angles, states of other kernels.
ARCH_FN vec4 load_global(const vec4* from) {
    vec4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
ARCH_FN uint32_t load_global(const uint32_t* from) {
    uint32_t x;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(from));
    return x;
}
ARCH_FN float load_global(const float* from) {
    float x;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(from));
    return x;
}

// ---- stores to addresses that come out of memory: not known to be global ones otherwise

ARCH_FN void store_global(vec4* to, vec4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
ARCH_FN void store_global(vec2* to, vec2 v) {
    asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}

// ---- numbers

// Approximate, as the hardware has them: 2^x, log2 x, 1 / x.
ARCH_FN float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
ARCH_FN float lg2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
ARCH_FN float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
ARCH_FN uint32_t as_u32(float x) { return __float_as_uint(x); }
ARCH_FN float as_f32(uint32_t x) { return __uint_as_float(x); }

// Two numbers rounded to nearest even, the first in the lower half.
ARCH_FN uint32_t pack(float lo, float hi, bf16) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
ARCH_FN uint32_t pack(float lo, float hi, f16) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
ARCH_FN float to_f32(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
ARCH_FN float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
// Products of pairs.
ARCH_FN uint32_t mul2(uint32_t a, uint32_t b, f16) {
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// Products of pairs and a third, rounded once.
ARCH_FN uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, f16) {
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
ARCH_FN uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, bf16) {
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
// Four bytes of the eight of (a, b), chosen by the hexadecimal digits of `which`.
ARCH_FN uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t which) {
    return __byte_perm(a, b, which);
}

// Whether the next two are instructions: from sm_89 on. They must not be called where not.
#if __CUDA_ARCH__ >= 890
constexpr bool has_cvt_e4m3 = true;
#else
constexpr bool has_cvt_e4m3 = false;
#endif
// Two numbers rounded to e4m3, the first in the lowest byte: to nearest even, the largest is 448,
// NaN keeps its sign.
ARCH_FN uint32_t cvt_e4m3x2(float first, float second) {
#if __CUDA_ARCH__ >= 890
    uint16_t r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(second), "f"(first));
    // Nothing says which NaN it gives.
    const uint32_t signs = __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x73);
    return (r & 0x7f7fu) | (signs & 0x8080u);
#else
    __trap();
    return 0;
#endif
}
// Four e4m3 numbers as pairs of f16, exact; `lo` has those of the lower bytes.
ARCH_FN void cvt_f16x4(uint32_t four, uint32_t& lo, uint32_t& hi) {
#if __CUDA_ARCH__ >= 890
    asm("{\n\t.reg .b16 l, h;\n\tmov.b32 {l, h}, %2;\n\t"
        "cvt.rn.f16x2.e4m3x2 %0, l;\n\tcvt.rn.f16x2.e4m3x2 %1, h;\n\t}"
        : "=&r"(lo), "=r"(hi)
        : "r"(four));
#else
    __trap();
    lo = hi = four;
#endif
}

// The quotient rounded to nearest even, subnormal numbers kept: what is stored in a cache is the
// same on every device. NaN is the positive one.
ARCH_FN float div_rn(float a, float b) { return __fdiv_rn(a, b); }
ARCH_FN float mul_rn(float a, float b) { return __fmul_rn(a, b); }
ARCH_FN float add_rn(float a, float b) { return __fadd_rn(a, b); }
// a * b + c, rounded once.
ARCH_FN float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }

}  // namespace arch
