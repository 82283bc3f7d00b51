// New keys and values to their slots, rotated (RoPE) and quantised on the way, and queries rotated
// in place: one launch for all three.
//
// Elements of 16 bytes are read at once, and written as they come out. An item of work is eight
// elements of a head, or the eight pairs that two such vectors make. What is stored is what the CPU
// backend stores, bit by bit: see src/kernels/cpu/append.rs.
#pragma once

#include "../common/dtype.cuh"
#include "../common/items.cuh"
#include "../kernel_params.h"

namespace inflight {

constexpr int append_threads = INFLIGHT_APPEND_THREADS;

// How the heads are cut into items. `rotated` items have the first rotary_dim elements, in vectors
// if `aligned`, and in single elements if pairs or the rest begin within a vector.
struct HeadItems {
    uint32_t rotated;
    uint32_t plain;
    bool aligned;
};

ARCH_FN HeadItems rotated_head_items(const inflight_append_params& p) {
    const uint32_t dim = p.rope == INFLIGHT_ROPE_NONE ? 0 : p.rotary_dim;
    const uint32_t width = p.rope == INFLIGHT_ROPE_HALF ? 16 : 8;
    return {(dim + width - 1) / width, (p.head_dim - dim + 7) / 8, dim % width == 0};
}

// Turns a pair by an angle, product by product: fused they would be rounded otherwise.
ARCH_FN void rotate(float& x, float& y, float cos, float sin) {
    const float a = arch::add_rn(arch::mul_rn(x, cos), -arch::mul_rn(y, sin));
    y = arch::add_rn(arch::mul_rn(y, cos), arch::mul_rn(x, sin));
    x = a;
}

template <int N>
ARCH_FN void load_angles(const float* from, float (&to)[N]) {
    static_assert(N % 4 == 0, "in vectors");
    for (int i = 0; i < N; i += 4) {
        const vec4 v = load_vec4_const(from + i);
        to[i] = arch::as_f32(v.x);
        to[i + 1] = arch::as_f32(v.y);
        to[i + 2] = arch::as_f32(v.z);
        to[i + 3] = arch::as_f32(v.w);
    }
}

ARCH_FN void divide8(float (&x)[8], float scale) {
    for (int i = 0; i < 8; i++) x[i] = arch::div_rn(x[i], scale);
}

// Eight numbers as `C`, divided by the scale if they are quantised. NaN, which comes from
// arithmetic here, is the positive one.
template <class C>
ARCH_FN void store8(C* to, float (&x)[8], float scale) {
    if constexpr (same_type<C, e4m3>) divide8(x, scale);
    store_vec(to, pack(x, C{}));
}
template <class C>
ARCH_FN void store1(C* to, float x, float scale) {
    if constexpr (same_type<C, e4m3>) {
        to->bits = static_cast<uint8_t>(e4m3_from_f32(arch::div_rn(x, scale)));
    } else {
        to->bits = static_cast<uint16_t>(pack2(x, 0.0f, C{}));
    }
}

// Eight elements from `at` on, as they are.
template <class T, class C>
ARCH_FN void copy_item(const T* from, C* to, uint32_t at, float scale) {
    const vec4 v = load_vec4_const(from + at);
    if constexpr (same_type<T, C>) {
        store_vec(to + at, v);
    } else {
        float x[8];
        unpack(v, x, T{});
        divide8(x, scale);
        vec2 codes = pack(x, C{});
        // Signs are those of the source: arithmetic does not keep that of NaN.
        codes.x = (codes.x & 0x7f7f7f7fu) | (arch::byte_perm(v.x, v.y, 0x7531) & 0x80808080u);
        codes.y = (codes.y & 0x7f7f7f7fu) | (arch::byte_perm(v.z, v.w, 0x7531) & 0x80808080u);
        store_vec(to + at, codes);
    }
}

// Item `nth` of those rotated, in vectors. `angles` are those of the token's position. `from` may
// be `to`.
template <class T, class C>
ARCH_FN void rotate_item(const T* from, C* to, const float* angles, uint32_t nth, float scale,
                         const inflight_append_params& p) {
    const uint32_t half = p.rotary_dim / 2;
    if (p.rope == INFLIGHT_ROPE_HALF) {
        const uint32_t at = 8 * nth;
        const vec4 first = load_vec4(from + at);
        const vec4 second = load_vec4(from + half + at);
        float x[8], y[8], cos[8], sin[8];
        load_angles(angles + at, cos);
        load_angles(angles + half + at, sin);
        unpack(first, x, T{});
        unpack(second, y, T{});
        for (int i = 0; i < 8; i++) rotate(x[i], y[i], cos[i], sin[i]);
        store8(to + at, x, scale);
        store8(to + half + at, y, scale);
    } else {
        const vec4 v = load_vec4(from + 8 * nth);
        float x[8], cos[4], sin[4];
        load_angles(angles + 4 * nth, cos);
        load_angles(angles + half + 4 * nth, sin);
        unpack(v, x, T{});
        for (int i = 0; i < 4; i++) rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
        store8(to + 8 * nth, x, scale);
    }
}

template <class T>
ARCH_FN float load1(const T* from) {
    return arch::to_f32(*from);
}

// The same element by element: for rotary dimensions that no vectors make up.
template <class T, class C>
ARCH_FN void rotate_item_unaligned(const T* from, C* to, const float* angles, uint32_t nth,
                                   float scale, const inflight_append_params& p) {
    const uint32_t half = p.rotary_dim / 2;
    const bool halves = p.rope == INFLIGHT_ROPE_HALF;
    const uint32_t pairs = halves ? 8 : 4;
    const uint32_t end = (nth + 1) * pairs < half ? (nth + 1) * pairs : half;
    for (uint32_t pair = nth * pairs; pair < end; pair++) {
        const uint32_t i = halves ? pair : 2 * pair;
        const uint32_t j = halves ? pair + half : 2 * pair + 1;
        float x = load1(from + i), y = load1(from + j);
        rotate(x, y, arch::load_const(angles + pair), arch::load_const(angles + half + pair));
        store1(to + i, x, scale);
        store1(to + j, y, scale);
    }
}
template <class T, class C>
ARCH_FN void copy_item_unaligned(const T* from, C* to, uint32_t at, float scale,
                                 const inflight_append_params& p) {
    const uint32_t end = at + 8 < p.head_dim ? at + 8 : p.head_dim;
    for (uint32_t i = at; i < end; i++) {
        if constexpr (same_type<T, C>) {
            to[i] = from[i];
        } else {
            const uint32_t sign = from[i].bits >> 8 & 0x80u;
            store1(to + i, load1(from + i), scale);
            to[i].bits = static_cast<uint8_t>((to[i].bits & 0x7fu) | sign);
        }
    }
}

// One item of a head: the rotated ones come first. `angles` may be null where none is.
template <class T, class C>
ARCH_FN void head_item(const T* from, C* to, const float* angles, uint32_t nth, HeadItems items,
                       float scale, const inflight_append_params& p) {
    if (nth < items.rotated) {
        if (items.aligned) {
            rotate_item(from, to, angles, nth, scale, p);
        } else {
            rotate_item_unaligned(from, to, angles, nth, scale, p);
        }
        return;
    }
    const uint32_t at = (items.rotated ? p.rotary_dim : 0) + 8 * (nth - items.rotated);
    if (items.aligned) {
        copy_item(from, to, at, scale);
    } else {
        copy_item_unaligned(from, to, at, scale, p);
    }
}

// What the step says of tokens.
struct AppendStep {
    const uint32_t* positions;
    const int64_t* slots;
    const float* cos_sin;
    uint32_t rotary_dim;
    uint32_t max_position;
    uint32_t block_size;
};

// Finds the cosines and sines of a token's position, null where nothing is rotated; false where the
// table ends before it.
ARCH_FN bool find_angles(const AppendStep& step, uint64_t token, const float*& angles) {
    angles = nullptr;
    if (!step.cos_sin) return true;
    const uint32_t position = arch::load_const(step.positions + token);
    if (position >= step.max_position) return false;
    angles = step.cos_sin + static_cast<uint64_t>(position) * step.rotary_dim;
    return true;
}

template <class T>
ARCH_FN void rotate_queries(const AppendStep& step, T* q, uint32_t nth, HeadItems items,
                            uint64_t token, uint64_t token_step, uint64_t num_tokens,
                            const inflight_append_params& p) {
    for (; token < num_tokens; token += token_step) {
        T* const row = q + static_cast<int64_t>(token) * p.q_token;
        const float* angles;
        if (!find_angles(step, token, angles)) continue;
        head_item(row, row, angles, nth, items, 1.0f, p);
    }
}

// Keys or values. `from` is the head of token 0, `to` that of slot 0.
template <class T, class C>
ARCH_FN void append_head(const AppendStep& step, const T* from, int64_t from_token, C* to,
                         int64_t to_block, int64_t to_token, uint32_t nth, HeadItems items,
                         float scale, uint64_t token, uint64_t token_step, uint64_t num_tokens,
                         const inflight_append_params& p) {
    for (; token < num_tokens; token += token_step) {
        const int64_t slot = step.slots[token];
        const float* angles;
        if (!find_angles(step, token, angles) || slot < 0) continue;
        const uint64_t block = static_cast<uint64_t>(slot) / step.block_size;
        const uint64_t offset = static_cast<uint64_t>(slot) - block * step.block_size;
        C* const row = to + static_cast<int64_t>(block) * to_block +
                       static_cast<int64_t>(offset) * to_token;
        head_item(from + static_cast<int64_t>(token) * from_token, row, angles, nth, items, scale, p);
    }
}

// `T`: new keys, values and queries; `C`: the cache, `T` or e4m3.
template <class T, class C>
ARCH_FN void append(const inflight_append_params& p) {
    arch::wait_for_prior_kernel();
    arch::let_next_kernel_start();

    const auto* header = reinterpret_cast<const inflight_step*>(p.step);
    const auto* bytes = reinterpret_cast<const uint8_t*>(p.step);
    const bool rope = p.rope != INFLIGHT_ROPE_NONE;
    AppendStep step;
    step.positions =
        reinterpret_cast<const uint32_t*>(bytes + arch::load_const(&header->positions));
    step.slots = reinterpret_cast<const int64_t*>(bytes + arch::load_const(&header->slot_mapping));
    step.cos_sin = rope ? reinterpret_cast<const float*>(p.cos_sin) : nullptr;
    step.rotary_dim = p.rotary_dim;
    step.max_position = p.max_position;
    step.block_size = arch::load_const(&header->block_size);
    const uint64_t num_tokens = arch::load_const(&header->num_tokens);

    const HeadItems k_items = rotated_head_items(p);
    const HeadItems v_items{0, p.head_dim / 8, true};
    const uint32_t a_k_head = k_items.rotated + k_items.plain;
    const uint32_t q_end = p.q ? p.num_q_heads * k_items.rotated : 0;
    const uint32_t k_end = q_end + p.num_kv_heads * a_k_head;
    const uint32_t v_end = k_end + p.num_kv_heads * v_items.plain;

    const TokenItems work = token_items(v_end, append_threads);
    for (uint32_t item = work.item; item < v_end; item += work.item_step) {
        if (item < q_end) {
            const uint32_t head = item / k_items.rotated;
            rotate_queries(step, reinterpret_cast<T*>(p.q) + head * p.q_head,
                           item - head * k_items.rotated, k_items, work.token, work.token_step,
                           num_tokens, p);
            continue;
        }
        const bool is_k = item < k_end;
        const uint32_t a_head = is_k ? a_k_head : v_items.plain;
        const uint32_t nth_item = item - (is_k ? q_end : k_end);
        const uint32_t head = nth_item / a_head;
        const uint32_t nth = nth_item - head * a_head;
        const auto* from = reinterpret_cast<const T*>(is_k ? p.k_new : p.v_new) +
                           head * (is_k ? p.k_new_head : p.v_new_head);
        auto* to = reinterpret_cast<C*>(is_k ? p.k : p.v) + head * (is_k ? p.k_head : p.v_head);
        float scale = 1.0f;
        if constexpr (same_type<C, e4m3>) {
            const auto* scales = reinterpret_cast<const float*>(is_k ? p.k_scale : p.v_scale);
            if (scales) scale = arch::load_const(scales + head * p.scale_stride);
        }
        append_head(step, from, is_k ? p.k_new_token : p.v_new_token, to,
                    is_k ? p.k_block : p.v_block, is_k ? p.k_token : p.v_token, nth,
                    is_k ? k_items : v_items, scale, work.token, work.token_step, num_tokens, p);
    }
}

}  // namespace inflight
