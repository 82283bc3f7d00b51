// arch.cuh for a host compiler: every operation is a call of the emulator, or plain C++.
#pragma once

#include <cmath>
#include <cstring>

#include "simt.h"

using std::fmaxf;
using std::fminf;

#define ARCH_FN static inline __attribute__((always_inline, unused))
#define ARCH_MEMBER inline __attribute__((always_inline, unused))
#define ARCH_DYN_SMEM(name) uint8_t* const name = simt::blk->smem

#define ARCH_KERNEL(name, threads, blocks, Params, ...)    \
    static void name##_entry(void* const* args) {          \
        __VA_ARGS__(*static_cast<const Params*>(args[0])); \
    }                                                      \
    static const simt::Kernel name##_kernel{#name, name##_entry, sizeof(Params), threads};

// Where a call stands, for reports.
#define ARCH_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace arch {

ARCH_FN uint32_t smem_u32(const void* p, ARCH_AT) { return simt::to_shared(p, file, line); }

template <bool WITH_LINE = true>
ARCH_FN void cp_async_16(uint32_t to, const void* from, bool pred, ARCH_AT) {
    simt::cp_async(to, from, 16, pred ? 16 : 0, file, line);
}
ARCH_FN void cp_async_commit() { simt::cp_async_commit(); }
template <int N>
ARCH_FN void cp_async_wait() {
    simt::cp_async_wait(N);
}

ARCH_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t at, ARCH_AT) {
    simt::ldmatrix(r, 4, false, at, file, line);
}
ARCH_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t at, ARCH_AT) {
    simt::ldmatrix(r, 4, true, at, file, line);
}

ARCH_FN uint32_t opaque(uint32_t x) { return x; }

ARCH_FN void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16, ARCH_AT) {
    const uint32_t b[2] = {b0, b1};
    simt::mma_16816(d, a, b, true, file, line);
}
ARCH_FN void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16, ARCH_AT) {
    const uint32_t b[2] = {b0, b1};
    simt::mma_16816(d, a, b, false, file, line);
}

ARCH_FN uint32_t as_u32(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
ARCH_FN float as_f32(uint32_t x) {
    float f;
    memcpy(&f, &x, 4);
    return f;
}

ARCH_FN uint32_t shfl(uint32_t x, int lane, ARCH_AT) {
    return simt::shfl(~0u, x, lane, file, line);
}
ARCH_FN float shfl(float x, int lane, ARCH_AT) {
    return as_f32(simt::shfl(~0u, as_u32(x), lane, file, line));
}
ARCH_FN uint64_t shfl(uint64_t x, int lane, ARCH_AT) {
    const uint64_t lo = simt::shfl(~0u, static_cast<uint32_t>(x), lane, file, line);
    return lo |
           static_cast<uint64_t>(simt::shfl(~0u, static_cast<uint32_t>(x >> 32), lane, file, line))
               << 32;
}
ARCH_FN uint32_t shfl_xor(uint32_t x, int mask, ARCH_AT) {
    return simt::shfl(~0u, x, static_cast<int>(simt::cur->lane) ^ mask, file, line);
}
ARCH_FN float shfl_xor(float x, int mask, ARCH_AT) {
    return as_f32(simt::shfl(~0u, as_u32(x), static_cast<int>(simt::cur->lane) ^ mask, file, line));
}
ARCH_FN uint32_t ballot(bool x, ARCH_AT) { return simt::ballot(~0u, x, file, line); }
ARCH_FN void sync_warp(ARCH_AT) { simt::syncwarp(~0u, file, line); }
ARCH_FN void sync_threads(ARCH_AT) { simt::bar_sync(0, -1, file, line); }
ARCH_FN void named_sync(int id, int n, ARCH_AT) { simt::bar_sync(id, n, file, line); }
ARCH_FN void named_arrive(int id, int n, ARCH_AT) { simt::bar_arrive(id, n, file, line); }

ARCH_FN uint32_t atomic_add_acq_rel(uint32_t* at, uint32_t x, ARCH_AT) {
    return simt::atomic_add(at, x, simt::ACQ_REL, file, line);
}
ARCH_FN void wait_for_prior_kernel() { simt::wait_for_prior_kernel(); }
ARCH_FN void let_next_kernel_start() { simt::let_next_kernel_start(); }

template <class T>
ARCH_FN T load_const(const T* from, ARCH_AT) {
#if SIMT_CHECK
    simt::read_const(from, sizeof(T), file, line);
#endif
    return *from;
}
template <class T>
ARCH_FN T load_global(const T* from) {
    return *from;
}
ARCH_FN void store_global(vec4* to, vec4 v) { *to = v; }
ARCH_FN void store_global(vec2* to, vec2 v) { *to = v; }

// Subnormal numbers are zeros, as for the three that are approximate.
ARCH_FN float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
ARCH_FN float ex2(float x) { return flush(exp2f(x)); }
ARCH_FN float lg2(float x) { return log2f(flush(x)); }
ARCH_FN float rcp(float x) { return flush(1.0f / flush(x)); }
// NaN is the positive one that GPUs' arithmetic gives, whatever it comes from.
ARCH_FN float gpu_nan(float x) { return x != x ? as_f32(0x7fffffffu) : x; }
ARCH_FN float div_rn(float a, float b) { return gpu_nan(a / b); }
// volatile: a host compiler may fuse a product and a sum, which rounds once.
ARCH_FN float mul_rn(float a, float b) {
    const volatile float p = a * b;
    return gpu_nan(p);
}
ARCH_FN float add_rn(float a, float b) { return gpu_nan(a + b); }
ARCH_FN float fma_rn(float a, float b, float c) { return gpu_nan(std::fma(a, b, c)); }

ARCH_FN uint32_t pack(float lo, float hi, bf16) {
    return simt::to_bf16(lo) | static_cast<uint32_t>(simt::to_bf16(hi)) << 16;
}
ARCH_FN uint32_t pack(float lo, float hi, f16) {
    return simt::to_f16(lo) | static_cast<uint32_t>(simt::to_f16(hi)) << 16;
}
ARCH_FN float to_f32(bf16 x) { return as_f32(static_cast<uint32_t>(x.bits) << 16); }
ARCH_FN float to_f32(f16 x) { return simt::from_f16(x.bits); }
ARCH_FN uint32_t mul2(uint32_t a, uint32_t b, f16 t) {
    const auto at = [](uint32_t x, int i) {
        return simt::from_f16(static_cast<uint16_t>(x >> (16 * i)));
    };
    return pack(at(a, 0) * at(b, 0), at(a, 1) * at(b, 1), t);
}
// a * b + c for the next rounding: of what does not fit, the last bit is set, so that no tie is
// seen where there is none.
ARCH_FN float fma_to_odd(float a, float b, float c) {
    const double exact = static_cast<double>(a) * b;
    const double sum = exact + c;
    const float near = static_cast<float>(sum);
    if (sum != sum || std::isinf(near)) return near;
    bool beyond = std::fabs(static_cast<double>(near)) > std::fabs(sum);
    if (near == sum) {
        // What the sum itself has lost, of numbers of very different sizes.
        const double of_c = sum - exact;
        const double rest = (exact - (sum - of_c)) + (c - of_c);
        if (rest == 0) return near;
        beyond = (rest > 0) != (sum > 0);
    }
    return as_f32((as_u32(near) - (beyond ? 1u : 0u)) | 1u);
}
ARCH_FN uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, f16 t) {
    const auto at = [](uint32_t x, int i) {
        return simt::from_f16(static_cast<uint16_t>(x >> (16 * i)));
    };
    return pack(fma_to_odd(at(a, 0), at(b, 0), at(c, 0)), fma_to_odd(at(a, 1), at(b, 1), at(c, 1)),
                t);
}
ARCH_FN uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, bf16 t) {
    const auto at = [](uint32_t x, int i) {
        return to_f32(bf16{static_cast<uint16_t>(x >> (16 * i))});
    };
    return pack(fma_to_odd(at(a, 0), at(b, 0), at(c, 0)), fma_to_odd(at(a, 1), at(b, 1), at(c, 1)),
                t);
}
ARCH_FN uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t which) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t from = which >> (4 * i) & 7u;
        r |= static_cast<uint32_t>(bytes >> (8 * from) & 0xffu) << (8 * i);
    }
    return r;
}

// Both ways run: that of sm_89 and later in the fast library, that of what is before in the
// checking one.
#if SIMT_CHECK
constexpr bool has_cvt_e4m3 = false;
#else
constexpr bool has_cvt_e4m3 = true;
#endif
ARCH_FN uint32_t cvt_e4m3x2(float first, float second) {
    const auto one = [](float x) -> uint32_t {
        const uint32_t sign = std::signbit(x) ? 0x80u : 0u;
        const double size = std::fabs(static_cast<double>(x));
        if (x != x) return sign | 0x7fu;
        if (size >= 448.0) return sign | 0x7eu;
        int exponent = -6;
        while (exponent < 8 && size >= std::ldexp(1.0, exponent + 1)) exponent++;
        // Ties to even; 16 steps are the next exponent's 8.
        const double steps = std::nearbyint(std::ldexp(size, 3 - exponent));
        return sign | (static_cast<uint32_t>(exponent + 6) * 8 + static_cast<uint32_t>(steps));
    };
    return one(first) | one(second) << 8;
}
ARCH_FN void cvt_f16x4(uint32_t four, uint32_t& lo, uint32_t& hi) {
    const auto one = [four](int i) {
        const uint32_t x = four >> (8 * i);
        const int exponent = static_cast<int>(x >> 3 & 15u), steps = static_cast<int>(x & 7u);
        const double size = exponent ? std::ldexp(8 + steps, exponent - 10) : std::ldexp(steps, -9);
        return (x & 0x7fu) == 0x7fu ? NAN : static_cast<float>(x & 0x80u ? -size : size);
    };
    lo = pack(one(0), one(1), f16{});
    hi = pack(one(2), one(3), f16{});
}

}  // namespace arch
