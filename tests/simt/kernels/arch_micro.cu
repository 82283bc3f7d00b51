// One warp (or two) per kernel: every function of csrc/arch, so that its two bodies can be
// compared.
#include "arch/arch.cuh"

namespace {

using arch::bf16;
using arch::f16;

// in: u32 words; out: as many as the operation gives.
struct Params {
    uint64_t in, out;
};

ARCH_FN const uint32_t* in(const Params& p) { return reinterpret_cast<const uint32_t*>(p.in); }
ARCH_FN uint32_t* out(const Params& p) { return reinterpret_cast<uint32_t*>(p.out); }

// smem_u32, cp_async_*, sync_threads: 16 bytes per thread, odd threads zeros.
ARCH_FN void copies(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x, base = arch::smem_u32(smem);
    arch::cp_async_16(base + 16 * t, in(p) + 4 * t, t % 2 == 0);
    arch::cp_async_commit();
    arch::cp_async_16(arch::smem_u32(smem + 1024 + 16 * t), in(p) + 4 * t, true);
    arch::cp_async_commit();
    arch::cp_async_wait<1>();
    arch::sync_threads();
    const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
    const uint32_t other = (t + 1) % 64;
    for (uint32_t i = 0; i < 4; i++) out(p)[4 * t + i] = words[4 * other + i];
    arch::cp_async_wait<0>();
    arch::sync_threads();
    for (uint32_t i = 0; i < 4; i++) out(p)[256 + 4 * t + i] = words[256 + 4 * other + i];
}

template <bool TRANS>
ARCH_FN void matrices(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x;
    for (uint32_t i = 0; i < 4; i++)
        reinterpret_cast<uint32_t*>(smem)[4 * t + i] = in(p)[4 * t + i];
    arch::sync_warp();
    uint32_t r[4];
    if (TRANS)
        arch::ldmatrix_x4_trans(r, arch::smem_u32(smem + 16 * t));
    else
        arch::ldmatrix_x4(r, arch::smem_u32(smem + 16 * t));
    for (uint32_t i = 0; i < 4; i++) out(p)[4 * t + i] = r[i];
}

template <class T>
ARCH_FN void products(const Params& p) {
    const uint32_t t = threadIdx.x;
    uint32_t a[4];
    float d[4];
    for (uint32_t i = 0; i < 4; i++) a[i] = in(p)[4 * t + i];
    for (uint32_t i = 0; i < 4; i++) d[i] = arch::as_f32(in(p)[256 + 4 * t + i]);
    arch::mma(d, a, in(p)[128 + 2 * t], in(p)[129 + 2 * t], T{});
    for (uint32_t i = 0; i < 4; i++) out(p)[4 * t + i] = arch::as_u32(d[i]);
}

ARCH_FN void shuffles(const Params& p) {
    const uint32_t t = threadIdx.x, x = in(p)[t];
    const uint64_t wide = arch::shfl(uint64_t(x) << 32 | t, 9);
    out(p)[t] = arch::shfl(x, 5);
    out(p)[32 + t] = arch::as_u32(arch::shfl(arch::as_f32(x), 31));
    out(p)[64 + t] = uint32_t(wide);
    out(p)[96 + t] = uint32_t(wide >> 32);
    out(p)[128 + t] = arch::shfl_xor(x, 3);
    out(p)[160 + t] = arch::as_u32(arch::shfl_xor(arch::as_f32(x), 16));
    out(p)[192 + t] = arch::ballot(x & 1);
}

ARCH_FN void barriers(const Params& p) {
    ARCH_DYN_SMEM(smem);
    uint32_t* words = reinterpret_cast<uint32_t*>(smem);
    arch::wait_for_prior_kernel();
    arch::let_next_kernel_start();
    const uint32_t t = threadIdx.x;
    if (t < 32) {
        words[t] = in(p)[t];
        arch::named_arrive(2, 64);
    } else {
        arch::named_sync(2, 64);
        out(p)[t - 32] = words[t - 32];
    }
    // Every thread gets another value; their order is open.
    out(p)[64 + t] = 0;
    arch::sync_threads();
    const uint32_t before = arch::atomic_add_acq_rel(out(p) + 32, 2);
    out(p)[64 + before / 2] = before;
}

// Of pairs x = in[2t], y = in[2t + 1], as f32.
ARCH_FN void numbers(const Params& p) {
    const uint32_t t = threadIdx.x, n = 64;
    const float x = arch::load_global(reinterpret_cast<const float*>(p.in) + 2 * t);
    const float y = arch::as_f32(arch::load_const(in(p) + 2 * t + 1));
    out(p)[t] = arch::as_u32(arch::ex2(x));
    out(p)[n + t] = arch::as_u32(arch::lg2(x < 0 ? -x : x));
    out(p)[2 * n + t] = arch::as_u32(arch::rcp(x));
    out(p)[3 * n + t] = arch::as_u32(arch::div_rn(x, y));
    out(p)[4 * n + t] = arch::as_u32(arch::mul_rn(x, y));
    out(p)[5 * n + t] = arch::as_u32(arch::add_rn(x, y));
    out(p)[6 * n + t] = arch::pack(x, y, bf16{});
    out(p)[7 * n + t] = arch::pack(x, y, f16{});
    const uint32_t h = arch::pack(x, y, f16{});
    out(p)[8 * n + t] = arch::as_u32(arch::to_f32(bf16{uint16_t(arch::as_u32(x) >> 16)}));
    out(p)[9 * n + t] = arch::as_u32(arch::to_f32(f16{uint16_t(h >> 16)}));
    out(p)[10 * n + t] = arch::mul2(h, h, f16{});
    // Rounded products and sums are not fused.
    out(p)[11 * n + t] = arch::as_u32(arch::add_rn(arch::mul_rn(x, y), x));
    const arch::vec4* at = reinterpret_cast<const arch::vec4*>(p.in) + t / 2;
    const arch::vec4 v = t % 4 < 2 ? arch::load_const(at) : arch::load_global(at);
    out(p)[12 * n + t] = v.x ^ v.y ^ v.z ^ v.w;
}

// All functions of f32, of three numbers per thread, whatever they
// are: infinities, NaN, subnormal ones, ties.
ARCH_FN void edges(const Params& p) {
    const uint32_t t = threadIdx.x, n = 64;
    const uint32_t bits = in(p)[3 * t];
    const float x = arch::as_f32(bits), y = arch::as_f32(in(p)[3 * t + 1]),
                z = arch::as_f32(in(p)[3 * t + 2]);
    out(p)[t] = arch::as_u32(arch::ex2(x));
    out(p)[n + t] = arch::as_u32(arch::lg2(x));
    out(p)[2 * n + t] = arch::as_u32(arch::rcp(x));
    out(p)[3 * n + t] = arch::as_u32(arch::div_rn(x, y));
    out(p)[4 * n + t] = arch::as_u32(arch::mul_rn(x, y));
    out(p)[5 * n + t] = arch::as_u32(arch::add_rn(x, y));
    out(p)[6 * n + t] = arch::as_u32(arch::fma_rn(x, y, z));
    out(p)[7 * n + t] = arch::pack(x, y, bf16{});
    out(p)[8 * n + t] = arch::pack(x, y, f16{});
    out(p)[9 * n + t] = arch::as_u32(arch::to_f32(bf16{uint16_t(bits >> 16)}));
    out(p)[10 * n + t] = arch::as_u32(arch::to_f32(f16{uint16_t(bits >> 16)}));
    out(p)[11 * n + t] = arch::as_u32(arch::to_f32(f16{uint16_t(bits)}));
}

// Pairs of numbers, and bytes: of three words per thread.
ARCH_FN void pairs(const Params& p) {
    const uint32_t t = threadIdx.x, n = 64;
    const uint32_t a = in(p)[3 * t], b = in(p)[3 * t + 1], c = in(p)[3 * t + 2];
    out(p)[t] = arch::mul2(a, b, f16{});
    out(p)[n + t] = arch::fma2(a, b, c, f16{});
    out(p)[2 * n + t] = arch::fma2(a, b, c, bf16{});
    out(p)[3 * n + t] = arch::byte_perm(a, b, c & 0x7777u);
    out(p)[4 * n + t] = arch::byte_perm(a, b, 0x5410u);
    out(p)[5 * n + t] = arch::opaque(a) + arch::opaque(b);
}

#ifdef __CUDACC__
constexpr bool has_cvt_e4m3 = arch::has_cvt_e4m3;
#else
// Both libraries have the functions, whichever way kernels take.
constexpr bool has_cvt_e4m3 = true;
#endif
// Conversions of e4m3, where they are instructions; the last word says whether they are. Of pairs
// of f32, and of four bytes.
ARCH_FN void bytes(const Params& p) {
    const uint32_t t = threadIdx.x, n = 64;
    if constexpr (has_cvt_e4m3) {
        const uint32_t* at = in(p) + 3 * t;
        uint32_t lo, hi;
        arch::cvt_f16x4(at[2], lo, hi);
        out(p)[t] = arch::cvt_e4m3x2(arch::as_f32(at[0]), arch::as_f32(at[1]));
        out(p)[n + t] = lo;
        out(p)[2 * n + t] = hi;
    }
    if (t == 0) out(p)[3 * n] = has_cvt_e4m3;
}

// Loads and stores of every width: 16 bytes per thread.
ARCH_FN void widths(const Params& p) {
    const uint32_t t = threadIdx.x;
    const arch::vec4* from = reinterpret_cast<const arch::vec4*>(p.in) + t;
    arch::vec4* to = reinterpret_cast<arch::vec4*>(p.out) + t;
    arch::store_global(to, arch::load_const(from));
    const arch::vec4 v = arch::load_global(from);
    arch::vec2* pairs = reinterpret_cast<arch::vec2*>(p.out) + 128 + 2 * t;
    arch::store_global(pairs, arch::vec2{v.w, v.z});
    arch::store_global(pairs + 1, arch::vec2{v.y, v.x});
    out(p)[512 + t] = arch::load_const(in(p) + 4 * t + 1);
    out(p)[576 + t] = arch::load_global(in(p) + 4 * t + 2);
    const float x = arch::load_global(reinterpret_cast<const float*>(p.in) + 4 * t + 3);
    out(p)[640 + t] = arch::as_u32(x);
}

// A copy without its line, groups that end one after the other, and none at all.
ARCH_FN void groups(const Params& p) {
    ARCH_DYN_SMEM(smem);
    const uint32_t t = threadIdx.x, base = arch::smem_u32(smem);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
    for (uint32_t g = 0; g < 3; g++) {
        arch::cp_async_16<false>(base + 16 * (32 * g + t), in(p) + 4 * (32 * g + t),
                                 (g + t) % 3 != 0);
        arch::cp_async_commit();
    }
    arch::cp_async_wait<2>();
    out(p)[t] = words[4 * t];
    arch::cp_async_wait<1>();
    out(p)[32 + t] = words[4 * (32 + t) + 1];
    arch::cp_async_wait<0>();
    out(p)[64 + t] = words[4 * (64 + t) + 3];
    arch::cp_async_commit();
    arch::cp_async_wait<0>();
    arch::sync_warp();
    out(p)[96 + t] = words[4 * (t ^ 1) + 2];
}

// Votes, and numbers from and to every lane.
ARCH_FN void lanes(const Params& p) {
    const uint32_t t = threadIdx.x, x = in(p)[t];
    for (uint32_t i = 0; i < 32; i++) out(p)[32 * i + t] = arch::ballot(x >> i & 1);
    for (int i = 0; i < 5; i++) out(p)[32 * (32 + i) + t] = arch::shfl_xor(x, 1 << i);
    out(p)[32 * 37 + t] = arch::shfl(x, static_cast<int>(x & 31));
    const uint64_t wide = arch::shfl(uint64_t(x) << 32 | ~x, static_cast<int>(t + 1) % 32);
    out(p)[32 * 38 + t] = uint32_t(wide >> 32);
    out(p)[32 * 39 + t] = uint32_t(wide);
    out(p)[32 * 40 + t] = arch::ballot(true);
    out(p)[32 * 41 + t] = arch::ballot(false);
}

}  // namespace

ARCH_KERNEL(arch_copies, 64, 1, Params, copies)
ARCH_KERNEL(arch_ldmatrix, 32, 1, Params, matrices<false>)
ARCH_KERNEL(arch_ldmatrix_trans, 32, 1, Params, matrices<true>)
ARCH_KERNEL(arch_mma_bf16, 32, 1, Params, products<bf16>)
ARCH_KERNEL(arch_mma_f16, 32, 1, Params, products<f16>)
ARCH_KERNEL(arch_shuffles, 32, 1, Params, shuffles)
ARCH_KERNEL(arch_barriers, 64, 1, Params, barriers)
ARCH_KERNEL(arch_numbers, 64, 1, Params, numbers)
ARCH_KERNEL(arch_edges, 64, 1, Params, edges)
ARCH_KERNEL(arch_pairs, 64, 1, Params, pairs)
ARCH_KERNEL(arch_bytes, 64, 1, Params, bytes)
ARCH_KERNEL(arch_widths, 64, 1, Params, widths)
ARCH_KERNEL(arch_groups, 32, 1, Params, groups)
ARCH_KERNEL(arch_lanes, 32, 1, Params, lanes)
