// New keys and values to their slots, rotated (RoPE) and quantised on the way, and queries rotated
// in place: one launch for all three.
//
// Elements of 16 bytes are read at once, and written as they come out. An item of work is eight
// elements of a head, or the eight pairs that two such vectors make. What is stored is what the CPU
// backend stores, bit by bit: see src/kernels/cpu/append.rs.
#pragma once

#include "../common/dtype.cuh"
#include "../common/items.cuh"
#include "../common/traits.cuh"
#include "../kernel_params.h"

namespace inflight {

constexpr int append_threads = INFLIGHT_APPEND_THREADS;

// How heads that are rotated are cut into items.
struct HeadItems {
    uint32_t pairs;  // items of pairs: all a query has
    uint32_t all;    // items of a key: pairs first
    bool aligned;    // else pairs or the rest begin within a vector: a key's items are not of
                     // pairs then, but eight elements of what is stored
};

ARCH_FN HeadItems head_items(const inflight_append_params& p) {
    const uint32_t dim = p.rope == INFLIGHT_ROPE_NONE ? 0 : p.rotary_dim;
    const uint32_t width = p.rope == INFLIGHT_ROPE_HALF ? 16 : 8;
    const uint32_t pairs = (dim + width - 1) / width;
    const bool aligned = dim % width == 0;
    return {pairs, aligned ? pairs + (p.head_dim - dim) / 8 : p.head_dim / 8, aligned};
}

// What quantised numbers are divided by.
struct Divisor {
    float lift;  // makes quotients that count ordinary numbers, whatever the scale is
    float by;
    float reciprocal;
};

ARCH_FN Divisor divisor(float scale) {
    constexpr float small = 0x1p-60f, large = 0x1p60f;
    const float lift = scale < small ? 0x1p100f : scale > large ? 0x1p-100f : 1.0f;
    const float by = arch::mul_rn(scale, lift);
    return {lift, by, arch::div_rn(1.0f, by)};
}

// x / scale, for e4m3: wherever two numbers of that type are equally near, and for four numbers of
// f32 to either side, it is the quotient rounded to nearest (all mantissas were tried); elsewhere
// it may be the next. Division takes twice the instructions.
ARCH_FN float quotient(float x, Divisor d) {
    const float lifted = arch::mul_rn(x, d.lift);
    const float near = arch::mul_rn(lifted, d.reciprocal);
    const float rest = arch::fma_rn(-near, d.by, lifted);
    const float better = arch::fma_rn(rest, d.reciprocal, near);
    // Infinity stays, and so does -0, which is exact.
    return fabsf(near) < 0x1p20f && rest != 0.0f ? better : near;
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
        const vec4 v = load_vec4_global(from + i);
        to[i] = arch::as_f32(v.x);
        to[i + 1] = arch::as_f32(v.y);
        to[i + 2] = arch::as_f32(v.z);
        to[i + 3] = arch::as_f32(v.w);
    }
}

ARCH_FN void divide8(float (&x)[8], Divisor scale) {
    for (int i = 0; i < 8; i++) x[i] = quotient(x[i], scale);
}

// Codes of e4m3 get the signs of the source's two pairs: arithmetic does not keep that of NaN.
ARCH_FN uint32_t with_signs(uint32_t codes, uint32_t first_pair, uint32_t second_pair) {
    const uint32_t signs = arch::byte_perm(first_pair, second_pair, 0x7531);
    return (codes & 0x7f7f7f7fu) | (signs & 0x80808080u);
}

// Eight numbers as `C`, divided by the scale if they are quantised. NaN, which comes from
// arithmetic here, is the positive one.
template <class C>
ARCH_FN void store8(C* to, float (&x)[8], Divisor scale) {
    if constexpr (same_type<C, e4m3>) divide8(x, scale);
    store_vec(to, pack(x, C{}));
}

// Eight elements as they are.
template <class T, class C>
ARCH_FN void copy_item(const T* from, C* to, Divisor scale) {
    const vec4 v = load_vec4_global(from);
    if constexpr (same_type<T, C>) {
        store_vec(to, v);
    } else {
        float x[8];
        unpack(v, x, T{});
        divide8(x, scale);
        const vec2 codes = pack(x, C{});
        store_vec(to, vec2{with_signs(codes.x, v.x, v.y), with_signs(codes.y, v.z, v.w)});
    }
}

// Item `nth` of pairs. `angles` are those of the token's position. `from` may be `to`.
template <class T, class C>
ARCH_FN void rotate_item(const T* from, C* to, const float* angles, uint32_t nth, Divisor scale,
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

// The same in place and pair by pair, where vectors do not hold whole items.
template <class T>
ARCH_FN void rotate_pairs(T* row, const float* angles, uint32_t nth,
                          const inflight_append_params& p) {
    const uint32_t half = p.rotary_dim / 2;
    const bool halves = p.rope == INFLIGHT_ROPE_HALF;
    const uint32_t pairs = halves ? 8 : 4;
    const uint32_t end = (nth + 1) * pairs < half ? (nth + 1) * pairs : half;
    for (uint32_t pair = nth * pairs; pair < end; pair++) {
        T& first = row[halves ? pair : 2 * pair];
        T& second = row[halves ? pair + half : 2 * pair + 1];
        float x = arch::to_f32(first), y = arch::to_f32(second);
        rotate(x, y, arch::load_global(angles + pair), arch::load_global(angles + half + pair));
        const uint32_t both = pack2(x, y, T{});
        first.bits = static_cast<uint16_t>(both);
        second.bits = static_cast<uint16_t>(both >> 16);
    }
}

// Element `at` of a key after rotation.
template <class T>
ARCH_FN float rotated_element(const T* key, uint32_t at, const float* angles,
                              const inflight_append_params& p) {
    const uint32_t half = p.rotary_dim / 2;
    const bool halves = p.rope == INFLIGHT_ROPE_HALF;
    const bool is_first = halves ? at < half : at % 2 == 0;
    const uint32_t pair = halves ? (is_first ? at : at - half) : at / 2;
    const uint32_t other = halves ? (is_first ? at + half : at - half) : at ^ 1u;
    float x = arch::to_f32(key[at]), y = arch::to_f32(key[other]);
    if (!is_first) {
        const float swapped = x;
        x = y;
        y = swapped;
    }
    rotate(x, y, arch::load_global(angles + pair), arch::load_global(angles + half + pair));
    return is_first ? x : y;
}

// Eight elements of a key from `at` on, some of them rotated: what is loaded is looked for element
// by element, what is stored is one vector.
template <class T, class C>
ARCH_FN void gather_item(const T* key, C* to, const float* angles, uint32_t at, Divisor scale,
                         const inflight_append_params& p) {
    const vec4 v = load_vec4_global(key + at);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t first = at + 2 * i;
        // rotary_dim is even.
        const bool rotates = first < p.rotary_dim;
        float x, y;
        unpack2(words[i], x, y, T{});
        if (rotates) {
            x = rotated_element(key, first, angles, p);
            y = rotated_element(key, first + 1, angles, p);
        }
        if constexpr (same_type<T, C>) {
            out[i] = rotates ? pack2(x, y, T{}) : words[i];
        } else {
            out[i] = pack_e4m3x2(quotient(x, scale), quotient(y, scale));
            if (!rotates) out[i] = with_signs(out[i], words[i], 0);
        }
    }
    if constexpr (same_type<T, C>) {
        store_vec(to + at, vec4{out[0], out[1], out[2], out[3]});
    } else {
        store_vec(to + at, vec2{out[0] | out[1] << 16, out[2] | out[3] << 16});
    }
}

// One item of a key; `angles` are not looked at where nothing is rotated.
template <class T, class C>
ARCH_FN void key_item(const T* from, C* to, const float* angles, uint32_t nth, HeadItems items,
                      Divisor scale, const inflight_append_params& p) {
    if (!items.aligned) {
        gather_item(from, to, angles, 8 * nth, scale, p);
    } else if (nth < items.pairs) {
        rotate_item(from, to, angles, nth, scale, p);
    } else {
        const uint32_t rotated = items.pairs ? p.rotary_dim : 0;
        const uint32_t at = rotated + 8 * (nth - items.pairs);
        copy_item(from + at, to + at, scale);
    }
}

// What the step says of tokens.
struct AppendStep {
    const uint32_t* positions;
    const int64_t* slots;
    const float* cos_sin;  // null where nothing is rotated
    uint32_t rotary_dim;
    uint32_t max_position;
    uint32_t block_size;
    uint64_t num_tokens;
};

// A token's place in the cache and in the sequence: nothing is done for one that is not `there`.
struct TokenPlace {
    bool there;
    int64_t slot;
    uint32_t position;
};

// Loaded a token ahead, or each token would wait for memory twice. Queries have no slot.
template <bool slots>
ARCH_FN TokenPlace load_place(const AppendStep& step, uint64_t token) {
    TokenPlace place{token < step.num_tokens, 0, 0};
    if (!place.there) return place;
    if (slots) place.slot = step.slots[token];
    if (step.cos_sin) place.position = arch::load_const(step.positions + token);
    return place;
}

// Whether the token is written: not without a slot, nor where the table ends before its position.
ARCH_FN bool is_written(const AppendStep& step, TokenPlace place) {
    return place.slot >= 0 && (!step.cos_sin || place.position < step.max_position);
}

ARCH_FN const float* angles_of(const AppendStep& step, TokenPlace place) {
    return step.cos_sin + static_cast<uint64_t>(place.position) * step.rotary_dim;
}

template <class T>
ARCH_FN void rotate_queries(const AppendStep& step, T* q, uint32_t nth, HeadItems items,
                            TokenItems work, const inflight_append_params& p) {
    TokenPlace next = load_place<false>(step, work.token);
    for (uint64_t token = work.token; next.there; token += work.token_step) {
        const TokenPlace place = next;
        next = load_place<false>(step, token + work.token_step);
        if (!is_written(step, place)) continue;
        T* const row = q + static_cast<int64_t>(token) * p.q_token;
        const float* const angles = angles_of(step, place);
        if (items.aligned) {
            rotate_item(row, row, angles, nth, Divisor{}, p);
        } else {
            rotate_pairs(row, angles, nth, p);
        }
    }
}

// An item of a head's keys or values. `from` is the head of token 0, `to` that of slot 0, `item`
// carries it out for a token.
template <class T, class C, class Item>
ARCH_FN void append_head(const AppendStep& step, const T* from, int64_t from_token, C* to,
                         int64_t to_block, int64_t to_token, TokenItems work, Item item) {
    TokenPlace next = load_place<true>(step, work.token);
    for (uint64_t token = work.token; next.there; token += work.token_step) {
        const TokenPlace place = next;
        next = load_place<true>(step, token + work.token_step);
        if (!is_written(step, place)) continue;
        const uint64_t slot = static_cast<uint64_t>(place.slot);
        const uint64_t block = slot / step.block_size;
        const uint64_t offset = slot - block * step.block_size;
        item(from + static_cast<int64_t>(token) * from_token,
             to + static_cast<int64_t>(block) * to_block + static_cast<int64_t>(offset) * to_token,
             angles_of(step, place));
    }
}

// The divisor of a head, of a quantised cache.
template <class C>
ARCH_FN Divisor head_divisor(uint64_t scales, uint32_t head, const inflight_append_params& p) {
    if constexpr (!same_type<C, e4m3>) return Divisor{};
    if (!scales) return divisor(1.0f);
    const auto* first = reinterpret_cast<const float*>(scales);
    return divisor(arch::load_global(first + head * p.scale_stride));
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
    step.num_tokens = arch::load_const(&header->num_tokens);

    const HeadItems items = head_items(p);
    const uint32_t a_value = p.head_dim / 8;
    const uint32_t q_end = p.q ? p.num_q_heads * items.pairs : 0;
    const uint32_t k_end = q_end + p.num_kv_heads * items.all;
    const uint32_t v_end = k_end + p.num_kv_heads * a_value;

    const TokenItems work = token_items(v_end, append_threads);
    for (uint32_t item = work.item; item < v_end; item += work.item_step) {
        if (item < q_end) {
            const uint32_t head = item / items.pairs;
            const uint32_t nth = item - head * items.pairs;
            rotate_queries(step, reinterpret_cast<T*>(p.q) + head * p.q_head, nth, items, work, p);
        } else if (item < k_end) {
            const uint32_t head = (item - q_end) / items.all;
            const uint32_t nth = item - q_end - head * items.all;
            const Divisor scale = head_divisor<C>(p.k_scale, head, p);
            append_head(step, reinterpret_cast<const T*>(p.k_new) + head * p.k_new_head,
                        p.k_new_token, reinterpret_cast<C*>(p.k) + head * p.k_head, p.k_block,
                        p.k_token, work, [=, &p](const T* from, C* to, const float* angles) {
                            key_item(from, to, angles, nth, items, scale, p);
                        });
        } else {
            const uint32_t head = (item - k_end) / a_value;
            const uint32_t at = 8 * (item - k_end - head * a_value);
            const Divisor scale = head_divisor<C>(p.v_scale, head, p);
            append_head(step, reinterpret_cast<const T*>(p.v_new) + head * p.v_new_head + at,
                        p.v_new_token, reinterpret_cast<C*>(p.v) + head * p.v_head + at, p.v_block,
                        p.v_token, work,
                        [=](const T* from, C* to, const float*) { copy_item(from, to, scale); });
        }
    }
}

}  // namespace inflight

#define INFLIGHT_APPEND_KERNELS(name, q, kv)                                    \
    ARCH_KERNEL(name, inflight::append_threads, inflight::append_##kv##_blocks, \
                inflight_append_params,                                         \
                inflight::append<arch::q, inflight::Element<arch::q, inflight::Kv::kv>>)
