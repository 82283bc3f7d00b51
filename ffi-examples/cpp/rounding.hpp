// The types that keys, values, queries and outputs are stored in: f32, f16 and bf16, rounded to
// nearest even.
#ifndef SERVE_ROUNDING_HPP
#define SERVE_ROUNDING_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <inflight.hpp>
#include <stdexcept>
#include <string>

namespace serve {

inline std::uint32_t bits_of(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

inline std::uint16_t to_f16(float number) {
    const std::uint32_t bits = bits_of(number);
    const std::uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
        return static_cast<std::uint16_t>(sign | 0x7e00);
    }
    if (size >= 0x47800000) {  // 2^16
        return static_cast<std::uint16_t>(sign | 0x7c00);
    }
    if (size < 0x38800000) {
        // Below 2^-14 the steps are 2^-24, as those of a float from 0.5 on: the sum is rounded so.
        return static_cast<std::uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
    }
    // The exponent's bias is 15 for 127; a carry out of the mantissa makes it one more, as it must.
    const std::uint32_t even = size >> 13 & 1;
    return static_cast<std::uint16_t>(sign | ((size - (112u << 23) + 0xfff + even) >> 13));
}

inline float from_f16(std::uint16_t half) {
    const std::uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    const std::uint32_t sign = std::uint32_t{half} >> 15 << 31;
    if (exponent == 0) {
        return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
    }
    const std::uint32_t widened = exponent == 31 ? 255 : exponent + 112;
    return float_of(sign | widened << 23 | mantissa << 13);
}

inline std::uint16_t to_bf16(float number) {
    const std::uint32_t bits = bits_of(number);
    if (std::isnan(number)) {
        return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    }
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(std::uint16_t half) { return float_of(std::uint32_t{half} << 16); }

inline std::size_t size_of(inflight::dtype type) {
    return type == inflight::dtype::f32 ? sizeof(float) : sizeof(std::uint16_t);
}

inline const char* name_of(inflight::dtype type) {
    return type == inflight::dtype::f32 ? "f32" : type == inflight::dtype::f16 ? "f16" : "bf16";
}

inline inflight::dtype type_of(const std::string& name) {
    for (const auto type : {inflight::dtype::f32, inflight::dtype::f16, inflight::dtype::bf16}) {
        if (name == name_of(type)) {
            return type;
        }
    }
    throw std::invalid_argument("--dtype: f32, f16 or bf16");
}

/// A number as it comes back from memory of a type.
inline float rounded(float number, inflight::dtype type) {
    switch (type) {
        case inflight::dtype::f16:
            return from_f16(to_f16(number));
        case inflight::dtype::bf16:
            return from_bf16(to_bf16(number));
        default:
            return number;
    }
}

/// By how much of itself rounding changes a number at most.
inline float unit_roundoff(inflight::dtype type) {
    return type == inflight::dtype::f32   ? 0x1p-24f
           : type == inflight::dtype::f16 ? 0x1p-11f
                                          : 0x1p-8f;
}

/// Stores numbers as a type.
inline void encode(inflight::dtype type, const float* from, std::size_t count, void* to) {
    if (type == inflight::dtype::f32) {
        std::memcpy(to, from, count * sizeof(float));
        return;
    }
    const auto store = type == inflight::dtype::f16 ? to_f16 : to_bf16;
    for (std::size_t i = 0; i < count; i++) {
        static_cast<std::uint16_t*>(to)[i] = store(from[i]);
    }
}

/// Reads what was stored so.
inline void decode(inflight::dtype type, const void* from, std::size_t count, float* to) {
    if (type == inflight::dtype::f32) {
        std::memcpy(to, from, count * sizeof(float));
        return;
    }
    const auto load = type == inflight::dtype::f16 ? from_f16 : from_bf16;
    for (std::size_t i = 0; i < count; i++) {
        to[i] = load(static_cast<const std::uint16_t*>(from)[i]);
    }
}

}  // namespace serve

#endif
