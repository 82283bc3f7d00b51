// Element types of tensors and caches: vectors of 16 bytes to and from f32, and e4m3 (OCP 8-bit
// float: 4 bits of exponent, 3 of mantissa, no infinities, largest 448) on every architecture.
//
// Conversions give the bits that the CPU backend gives (src/kernels/cpu/lanes.rs, tensor.rs).
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

using arch::bf16;
using arch::e4m3;
using arch::f16;
using arch::vec2;
using arch::vec4;

// Elements of a vector of 16 bytes.
template <class T>
constexpr int vec_len = 16 / static_cast<int>(sizeof(T));

template <class A, class B>
constexpr bool same_type = false;
template <class A>
constexpr bool same_type<A, A> = true;

// ---- memory: the address is a multiple of the vector's size

template <class T>
ARCH_FN vec4 load_vec4(const T* from) {
    return *reinterpret_cast<const vec4*>(from);
}
// Of what an earlier kernel may have written, and this one does not.
template <class T>
ARCH_FN vec4 load_vec4_global(const T* from) {
    return arch::load_global(reinterpret_cast<const vec4*>(from));
}
template <class T>
ARCH_FN void store_vec(T* to, vec4 v) {
    arch::store_global(reinterpret_cast<vec4*>(to), v);
}
template <class T>
ARCH_FN void store_vec(T* to, vec2 v) {
    arch::store_global(reinterpret_cast<vec2*>(to), v);
}

// ---- f16 and bf16

// Both numbers of a pair, exact; `first` is in the lower half.
ARCH_FN void unpack2(uint32_t pair, float& first, float& second, bf16) {
    first = arch::as_f32(pair << 16);
    second = arch::as_f32(pair & 0xffff0000u);
}
ARCH_FN void unpack2(uint32_t pair, float& first, float& second, f16) {
    first = arch::to_f32(f16{static_cast<uint16_t>(pair)});
    second = arch::to_f32(f16{static_cast<uint16_t>(pair >> 16)});
}

// The bits of NaN in both halves: the positive quiet one, as on every device.
ARCH_FN uint32_t nan2(bf16) { return 0x7fc07fc0u; }
ARCH_FN uint32_t nan2(f16) { return 0x7e007e00u; }

// A pair rounded to nearest even. NaN becomes the positive quiet one, where arch::pack gives
// whatever the device has.
template <class T>
ARCH_FN uint32_t pack2(float first, float second, T type) {
    uint32_t pair = arch::pack(first, second, type);
    if (first != first) pair = (pair & 0xffff0000u) | (nan2(type) & 0xffffu);
    if (second != second) pair = (pair & 0xffffu) | (nan2(type) & 0xffff0000u);
    return pair;
}

template <class T>
ARCH_FN void unpack(vec4 v, float (&x)[8], T type) {
    unpack2(v.x, x[0], x[1], type);
    unpack2(v.y, x[2], x[3], type);
    unpack2(v.z, x[4], x[5], type);
    unpack2(v.w, x[6], x[7], type);
}
template <class T>
ARCH_FN vec4 pack(const float (&x)[8], T type) {
    return vec4{pack2(x[0], x[1], type), pack2(x[2], x[3], type), pack2(x[4], x[5], type),
                pack2(x[6], x[7], type)};
}

// ---- e4m3

// Rounds to nearest even; beyond 448 becomes 448, NaN stays NaN and keeps its sign. The bits are
// in the lowest byte.
ARCH_FN uint32_t e4m3_from_f32(float value) {
    const uint32_t sign = arch::as_u32(value) >> 24 & 0x80u;
    // Bits of magnitudes are ordered as they are; NaN is the greatest.
    const int32_t bits = static_cast<int32_t>(arch::as_u32(value) & 0x7fffffffu);
    constexpr int32_t largest = 0x43e00000;
    const int32_t bounded = bits < largest ? bits : largest;
    // Steps are 2^(e - 3) from 2^e on, and below 2^-6 as from there: added to 2^(e + 20), a number
    // leaves just as many as it has of them, rounded, in the lowest bits.
    constexpr int32_t least = (127 - 6) << 23;
    const int32_t power = ((bounded > least ? bounded : least) & 0x7f800000) + (20 << 23);
    const float sum = arch::add_rn(arch::as_f32(static_cast<uint32_t>(bounded)),
                                   arch::as_f32(static_cast<uint32_t>(power)));
    const int32_t steps = static_cast<int32_t>(arch::as_u32(sum)) - power;
    // A number of 8 steps has its exponent up by 1, which makes e = -6 the exponent 0 here.
    const int32_t code = steps + (power >> 20) - ((127 + 14) << 3);
    // NaN was bounded to the largest, one below.
    return sign | static_cast<uint32_t>(code + (bits > 0x7f800000 ? 1 : 0));
}

// Two of them, the first in the lowest byte.
ARCH_FN uint32_t pack_e4m3x2(float first, float second) {
    if constexpr (arch::has_cvt_e4m3) return arch::cvt_e4m3x2(first, second);
    return e4m3_from_f32(first) | e4m3_from_f32(second) << 8;
}

ARCH_FN vec2 pack(const float (&x)[8], e4m3) {
    return vec2{pack_e4m3x2(x[0], x[1]) | pack_e4m3x2(x[2], x[3]) << 16,
                pack_e4m3x2(x[4], x[5]) | pack_e4m3x2(x[6], x[7]) << 16};
}

// Exact.
ARCH_FN float to_f32(e4m3 x) {
    const uint32_t magnitude = x.bits & 0x7fu;
    // The same bits in f32's places are the number by 2^-120, subnormal numbers included.
    const float scaled =
        arch::mul_rn(arch::as_f32(magnitude << 20), arch::as_f32((127u + 120u) << 23));
    const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : arch::as_u32(scaled);
    return arch::as_f32(bits | (x.bits & 0x80u) << 24);
}

// The same bits in f16's places are the number by 2^-8. What the next function gives is to be
// multiplied by this, which callers do once, with the cache's scale; an instruction that converts
// needs no such thing.
constexpr float e4m3_in_f16 = arch::has_cvt_e4m3 ? 1.0f : 256.0f;

// Four e4m3 numbers by e4m3_in_f16, as pairs of f16 in their order: `lo` has the two lower bytes.
// Exact; NaN becomes some NaN.
template <bool CVT = arch::has_cvt_e4m3>
ARCH_FN void unpack_e4m3x4(uint32_t four, uint32_t& lo, uint32_t& hi, f16 type) {
    if constexpr (CVT) {
        arch::cvt_f16x4(four, lo, hi);
        return;
    }
    // A byte in the upper half of each 16 bits: the sign is in place, the rest one too high.
    const auto place = [](uint32_t bytes) {
        return (bytes & 0x80008000u) | (bytes >> 1 & 0x3f803f80u);
    };
    // NaN looks like 1.875 there and 448 like 1.75: by 36864 only NaN becomes infinite, and by
    // zero infinity becomes NaN, anything else the zero that is added.
    const auto keep_nan = [type](uint32_t pair) {
        const uint32_t infinite = arch::mul2(pair, 0x78807880u, type);
        return arch::fma2(infinite, 0u, pair, type);
    };
    lo = keep_nan(place(arch::byte_perm(four, 0, 0x1404)));
    hi = keep_nan(place(arch::byte_perm(four, 0, 0x3424)));
}

// The same as pairs of bf16, the numbers themselves.
template <bool CVT = arch::has_cvt_e4m3>
ARCH_FN void unpack_e4m3x4(uint32_t four, uint32_t& lo, uint32_t& hi, bf16 type) {
    if constexpr (CVT) {
        // There is no direct way; through f32 it takes three instructions a pair.
        arch::cvt_f16x4(four, lo, hi);
        float a, b;
        unpack2(lo, a, b, f16{});
        lo = arch::pack(a, b, type);
        unpack2(hi, a, b, f16{});
        hi = arch::pack(a, b, type);
        return;
    }
    // In bf16's places the bits are the number by 2^-120, subnormal numbers included.
    const auto place = [type](uint32_t bytes) {
        const uint32_t pair = (bytes & 0x80008000u) | (bytes >> 4 & 0x07f007f0u);
        return arch::fma2(pair, 0x7b807b80u, 0x80008000u, type);  // 2^120, -0
    };
    // NaN looks like 480: by 1.125 * 2^119 only it becomes infinite. See above.
    const auto keep_nan = [type](uint32_t pair) {
        const uint32_t infinite = arch::fma2(pair, 0x7b107b10u, 0x80008000u, type);
        return arch::fma2(infinite, 0u, pair, type);
    };
    lo = keep_nan(place(arch::byte_perm(four, 0, 0x1404)));
    hi = keep_nan(place(arch::byte_perm(four, 0, 0x3424)));
}

}  // namespace inflight
