// The kernels of the cache and the merge, run by the emulator against plain definitions.
//
// Memory around and between what a kernel may write is compared as well, and so is that of tokens
// without a slot. `cache [seed [cases [apart]]]` runs random cases of that seed after the fixed
// ones, and tries the mantissas of scales that lie `apart`: 1 for all of them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cache/append.cuh"
#include "common/dtype.cuh"
#include "kernel_params.h"

namespace {

using arch::as_f32;
using arch::as_u32;

int failures = 0;

void fail(const std::string& what) {
    if (failures++ < 20) fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// ---- plain definitions of numbers

enum class Type { bf16, f16, e4m3 };

const char* name(Type type) {
    return type == Type::bf16 ? "bf16" : type == Type::f16 ? "f16" : "e4m3";
}
size_t size(Type type) { return type == Type::e4m3 ? 1 : 2; }

struct Format {
    int mantissa, bias, largest_exponent;  // the exponent field's largest that has numbers
    bool infinities;
};
Format format(Type type) {
    if (type == Type::bf16) return {7, 127, 254, true};
    if (type == Type::f16) return {10, 15, 30, true};
    return {3, 7, 15, false};
}

double decode(Type type, uint32_t bits) {
    const Format f = format(type);
    const int total = 8 * static_cast<int>(size(type));
    const int field = static_cast<int>(bits >> f.mantissa) & ((1 << (total - 1 - f.mantissa)) - 1);
    const int steps = static_cast<int>(bits) & ((1 << f.mantissa) - 1);
    const double sign = bits >> (total - 1) & 1 ? -1 : 1;
    if (!f.infinities && field == 15 && steps == 7) return NAN;
    if (field > f.largest_exponent) return steps ? NAN : sign * INFINITY;
    if (field == 0) return sign * std::ldexp(steps, 1 - f.bias - f.mantissa);
    return sign * std::ldexp((1 << f.mantissa) + steps, field - f.bias - f.mantissa);
}

// To nearest, ties to even; 16 bits have infinities and one NaN, e4m3 ends at 448.
uint32_t encode(Type type, double x, bool nan_sign) {
    const Format f = format(type);
    const uint32_t sign = std::signbit(x) ? 1u << (8 * size(type) - 1) : 0;
    if (x != x) {
        if (type == Type::e4m3) return nan_sign ? 0xff : 0x7f;
        return type == Type::bf16 ? 0x7fc0 : 0x7e00;
    }
    const double magnitude = std::fabs(x);
    if (type == Type::e4m3 && magnitude >= 448) return sign | 0x7e;
    if (std::isinf(x)) return sign | static_cast<uint32_t>(f.largest_exponent + 1) << f.mantissa;
    int exponent = magnitude == 0 ? -2000 : std::ilogb(magnitude);
    exponent = std::max(exponent, 1 - f.bias);
    const double steps = std::nearbyint(std::ldexp(magnitude, f.mantissa - exponent));
    // As many steps as the next exponent has, or fewer than this one: the fields carry over.
    const uint32_t field = static_cast<uint32_t>(exponent + f.bias - 1) << f.mantissa;
    const uint32_t bits = field + static_cast<uint32_t>(steps);
    return sign | std::min(bits, static_cast<uint32_t>(f.largest_exponent + 1) << f.mantissa);
}

// ---- memory of the emulated device, with what it should become

struct Array {
    uint8_t* data = nullptr;
    std::vector<uint8_t> expected;

    explicit Array(size_t bytes) : expected(std::max<size_t>(bytes, 16)) {
        data = static_cast<uint8_t*>(simt::dmalloc(expected.size()));
    }
    Array(const Array&) = delete;
    ~Array() { simt::dfree(data); }

    uint64_t address() const { return reinterpret_cast<uint64_t>(data); }
    void upload() { memcpy(data, expected.data(), expected.size()); }
    void compare(const std::string& what) const {
        for (size_t i = 0; i < expected.size(); i++) {
            if (data[i] == expected[i]) continue;
            char at[80];
            snprintf(at, sizeof at, ": byte %zu is %02x, not %02x", i, data[i], expected[i]);
            return fail(what + at);
        }
    }
    uint32_t get(Type type, size_t element) const {
        if (type == Type::e4m3) return expected[element];
        return expected[2 * element] | expected[2 * element + 1] << 8;
    }
    void set(Type type, size_t element, uint32_t bits) {
        if (type == Type::e4m3) {
            expected[element] = static_cast<uint8_t>(bits);
        } else {
            expected[2 * element] = static_cast<uint8_t>(bits);
            expected[2 * element + 1] = static_cast<uint8_t>(bits >> 8);
        }
    }
};

using Random = std::mt19937;

size_t below(Random& random, size_t n) { return random() % n; }
template <class T>
T pick(Random& random, std::vector<T> of) {
    return of[below(random, of.size())];
}

// Ordinary numbers mostly, and every kind of special one.
uint32_t number(Random& random, Type type) {
    if (below(random, 16) == 0) return random() & 0xffff;
    if (below(random, 4) == 0) return below(random, 2) ? 0x8000 : 0;
    return encode(type, std::normal_distribution<double>(0, 3)(random), false);
}

// The step buffer of tokens at positions, with slots.
std::vector<uint8_t> step_buffer(const std::vector<uint32_t>& positions,
                                 const std::vector<int64_t>& slots, uint32_t block_size) {
    inflight_step header{};
    header.magic = INFLIGHT_STEP_MAGIC;
    header.num_tokens = static_cast<uint32_t>(positions.size());
    header.block_size = block_size;
    header.positions = (sizeof header + 15) / 16 * 16;
    header.slot_mapping = header.positions + (4 * header.num_tokens + 15) / 16 * 16;
    header.total_bytes = header.slot_mapping + 8 * header.num_tokens;
    std::vector<uint8_t> buffer(header.total_bytes);
    memcpy(buffer.data(), &header, sizeof header);
    memcpy(buffer.data() + header.positions, positions.data(), 4 * positions.size());
    memcpy(buffer.data() + header.slot_mapping, slots.data(), 8 * slots.size());
    return buffer;
}

// ---- append

struct AppendCase {
    Type type = Type::bf16;
    bool quantised = false;
    uint32_t tokens = 5, q_heads = 4, kv_heads = 2, head_dim = 64, block_size = 16;
    uint32_t rope = INFLIGHT_ROPE_NONE, rotary_dim = 0, max_position = 40;
    uint32_t layout = 0;  // 0: NHD, 1: HND, 2: NHD with gaps
    uint32_t scale_stride = 0;
    uint32_t grid_x = 3, grid_y = 1;

    std::string text() const {
        char s[200];
        snprintf(s, sizeof s,
                 "append %s%s: %u tokens, %u + %u heads of %u, blocks of %u, rope %u of %u, "
                 "layout %u, scales %u, grid %u x %u",
                 name(type), quantised ? " to e4m3" : "", tokens, q_heads, kv_heads, head_dim,
                 block_size, rope, rotary_dim, layout, scale_stride, grid_x, grid_y);
        return s;
    }
};

// `heads[d]` rotated by the angles of a position: as f32, product by product.
std::vector<float> rotated(const AppendCase& c, std::vector<float> head, const float* angles) {
    const uint32_t half = c.rotary_dim / 2;
    for (uint32_t pair = 0; c.rope != INFLIGHT_ROPE_NONE && pair < half; pair++) {
        const bool halves = c.rope == INFLIGHT_ROPE_HALF;
        float& x = head[halves ? pair : 2 * pair];
        float& y = head[halves ? pair + half : 2 * pair + 1];
        const float cos = angles[pair], sin = angles[half + pair];
        const volatile float xc = x * cos, ys = y * sin, yc = y * cos, xs = x * sin;
        const float a = xc - ys, b = yc + xs;
        x = a != a ? as_f32(0x7fc00000) : a;
        y = b != b ? as_f32(0x7fc00000) : b;
    }
    return head;
}

void check_append(const AppendCase& c, Random& random) {
    const Type cache_type = c.quantised ? Type::e4m3 : c.type;
    const uint32_t unit = 16 / static_cast<uint32_t>(size(cache_type));
    const auto aligned = [](uint32_t n, uint32_t to) { return (n + to - 1) / to * to; };

    // Strides of tokens: rows may have gaps. A cache's rows begin at multiples of 16 bytes.
    const uint32_t gap = c.layout == 2 ? 8 : 0;
    const int64_t new_head = c.head_dim + gap, new_token = c.kv_heads * new_head + gap;
    const int64_t q_head = c.head_dim + gap, q_token = c.q_heads * q_head + gap;
    const int64_t row = aligned(c.head_dim, unit) + (c.layout == 2 ? unit : 0);
    const bool heads_first = c.layout == 1;
    const int64_t cache_token = heads_first ? row : c.kv_heads * row;
    const int64_t cache_head = heads_first ? c.block_size * row : row;
    const int64_t cache_block = c.block_size * c.kv_heads * row + (c.layout == 2 ? unit : 0);
    const size_t blocks = c.tokens / c.block_size + 3;

    std::vector<int64_t> slots(blocks * c.block_size);
    for (size_t i = 0; i < slots.size(); i++) slots[i] = static_cast<int64_t>(i);
    std::shuffle(slots.begin(), slots.end(), random);
    slots.resize(c.tokens);
    std::vector<uint32_t> positions(c.tokens);
    for (uint32_t i = 0; i < c.tokens; i++) {
        if (below(random, 5) == 0) slots[i] = -1 - static_cast<int64_t>(below(random, 3));
        positions[i] = static_cast<uint32_t>(below(random, c.max_position));
        // Beyond the table: neither rotated nor written.
        if (below(random, 9) == 0) positions[i] = c.max_position + below(random, 2);
    }

    Array k_new(2 * c.tokens * new_token), v_new(2 * c.tokens * new_token);
    Array q(2 * c.tokens * q_token), angles(4 * c.max_position * c.rotary_dim);
    Array k(size(cache_type) * blocks * cache_block), v(size(cache_type) * blocks * cache_block);
    Array k_scale(4 * c.kv_heads), v_scale(4 * c.kv_heads);
    for (Array* a : {&k_new, &v_new, &q}) {
        for (size_t i = 0; i < a->expected.size() / 2; i++) {
            a->set(c.type, i, number(random, c.type));
        }
    }
    for (Array* a : {&k, &v}) {
        for (uint8_t& byte : a->expected) byte = static_cast<uint8_t>(random());
    }
    auto* table = reinterpret_cast<float*>(angles.expected.data());
    for (uint32_t i = 0; i < c.max_position * c.rotary_dim; i++) {
        table[i] = std::uniform_real_distribution<float>(-1, 1)(random);
    }
    for (Array* a : {&k_scale, &v_scale}) {
        for (uint32_t i = 0; i < c.kv_heads; i++) {
            const float scale = pick<float>(
                random, {1.0f, 0.0078125f, 0.03f, 1.7f, 1e-3f, 3e-39f, 3e38f, as_f32(0x3f7fffff)});
            memcpy(a->expected.data() + 4 * i, &scale, 4);
        }
    }
    Array step(1);
    step.expected = step_buffer(positions, slots, c.block_size);
    simt::dfree(step.data);
    step.data = static_cast<uint8_t*>(simt::dmalloc(step.expected.size()));
    for (Array* a : {&k_new, &v_new, &q, &angles, &k, &v, &k_scale, &v_scale, &step}) a->upload();

    inflight_append_params p{};
    p.step = step.address();
    p.k_new = k_new.address();
    p.v_new = v_new.address();
    p.q = c.q_heads ? q.address() : 0;
    p.k = k.address();
    p.v = v.address();
    p.k_scale = c.quantised ? k_scale.address() : 0;
    p.v_scale = c.quantised ? v_scale.address() : 0;
    p.cos_sin = c.rope ? angles.address() : 0;
    p.k_new_token = p.v_new_token = new_token;
    p.k_new_head = p.v_new_head = new_head;
    p.q_token = q_token;
    p.q_head = q_head;
    p.k_block = p.v_block = cache_block;
    p.k_token = p.v_token = cache_token;
    p.k_head = p.v_head = cache_head;
    p.num_q_heads = c.q_heads;
    p.num_kv_heads = c.kv_heads;
    p.head_dim = c.head_dim;
    p.rope = c.rope;
    p.rotary_dim = c.rotary_dim;
    p.max_position = c.max_position;
    p.scale_stride = c.scale_stride;
    const std::string kernel =
        std::string("inflight_append_") + name(c.type) + (c.quantised ? "_e4m3" : "_same");
    void* args[] = {&p};
    simt::launch_kernel(kernel.c_str(), {c.grid_x, c.grid_y, 1}, {128, 1, 1}, 0, args);

    const auto head_of = [&](const Array& from, int64_t at) {
        std::vector<float> head(c.head_dim);
        for (uint32_t d = 0; d < c.head_dim; d++) {
            const uint32_t bits = from.get(c.type, at + d);
            head[d] = static_cast<float>(decode(c.type, bits));
            if (head[d] != head[d]) head[d] = as_f32(bits & 0x8000 ? 0xffc00000 : 0x7fc00000);
        }
        return head;
    };
    for (uint32_t token = 0; token < c.tokens; token++) {
        const bool rope = c.rope != INFLIGHT_ROPE_NONE;
        if (rope && positions[token] >= c.max_position) continue;
        const float* turn = rope ? table + positions[token] * c.rotary_dim : nullptr;
        for (uint32_t head = 0; rope && head < c.q_heads; head++) {
            const int64_t at = token * q_token + head * q_head;
            const std::vector<float> to = rotated(c, head_of(q, at), turn);
            for (uint32_t d = 0; d < c.rotary_dim; d++) {
                q.set(c.type, at + d, encode(c.type, to[d], false));
            }
        }
        if (slots[token] < 0) continue;
        for (uint32_t head = 0; head < 2 * c.kv_heads; head++) {
            const bool is_k = head < c.kv_heads;
            const uint32_t h = head % c.kv_heads;
            Array& to = is_k ? k : v;
            const Array& from = is_k ? k_new : v_new;
            const int64_t at = token * new_token + h * new_head;
            const int64_t out = slots[token] / c.block_size * cache_block +
                                slots[token] % c.block_size * cache_token + h * cache_head;
            std::vector<float> x = head_of(from, at);
            if (is_k && rope) x = rotated(c, x, turn);
            const float scale = reinterpret_cast<const float*>(
                (is_k ? k_scale : v_scale).expected.data())[h * c.scale_stride];
            for (uint32_t d = 0; d < c.head_dim; d++) {
                const bool turned = is_k && rope && d < c.rotary_dim;
                uint32_t bits = from.get(c.type, at + d);
                if (c.quantised) {
                    const bool negative = std::signbit(x[d]);
                    const float quotient = x[d] / scale;
                    bits = encode(cache_type, quotient, negative);
                } else if (turned) {
                    bits = encode(cache_type, x[d], false);
                }
                to.set(cache_type, out + d, bits);
            }
        }
    }
    k.compare(c.text() + ", K");
    v.compare(c.text() + ", V");
    q.compare(c.text() + ", Q");
    k_new.compare(c.text() + ", new K");
    v_new.compare(c.text() + ", new V");
}

AppendCase random_append(Random& random) {
    AppendCase c;
    c.type = pick<Type>(random, {Type::bf16, Type::f16});
    c.quantised = below(random, 2) == 0;
    c.tokens = pick<uint32_t>(random, {0, 1, 2, 7, 33});
    c.head_dim = pick<uint32_t>(random, {8, 40, 64, 80, 128, 256});
    c.kv_heads = pick<uint32_t>(random, {1, 2, 3});
    c.q_heads = c.kv_heads * pick<uint32_t>(random, {0, 1, 4});
    c.block_size = pick<uint32_t>(random, {1, 3, 16});
    c.rope = static_cast<uint32_t>(below(random, 3));
    if (c.rope != INFLIGHT_ROPE_NONE) {
        c.rotary_dim = 2 * (1 + static_cast<uint32_t>(below(random, c.head_dim / 2)));
        if (below(random, 2)) c.rotary_dim = c.head_dim;
        if (below(random, 4) == 0) c.rotary_dim = std::max(8u, c.head_dim / 32 * 16);
    }
    c.layout = static_cast<uint32_t>(below(random, 3));
    c.scale_stride = static_cast<uint32_t>(below(random, 2));
    c.grid_x = pick<uint32_t>(random, {1, 3, 40});
    c.grid_y = pick<uint32_t>(random, {1, 2, 5});
    return c;
}

// Every number of 16 bits as a value, through one head at a time.
void check_all_numbers(Type type, float scale) {
    constexpr uint32_t dim = 256, tokens = 256;
    Array v_new(2 * 65536), v(65536), scales(4);
    for (uint32_t i = 0; i < 65536; i++) {
        v_new.set(type, i, i);
        v.expected[i] = 0x55;
    }
    memcpy(scales.expected.data(), &scale, 4);
    std::vector<uint32_t> positions(tokens);
    std::vector<int64_t> slots(tokens);
    for (uint32_t i = 0; i < tokens; i++) slots[i] = i;
    const std::vector<uint8_t> buffer = step_buffer(positions, slots, 16);
    Array step(buffer.size()), k(65536);
    step.expected = buffer;
    for (Array* a : {&v_new, &v, &scales, &step, &k}) a->upload();
    inflight_append_params p{};
    p.step = step.address();
    p.k_new = p.v_new = v_new.address();
    p.k = k.address();
    p.v = v.address();
    p.k_scale = p.v_scale = scales.address();
    p.k_new_token = p.v_new_token = p.k_token = p.v_token = dim;
    p.k_new_head = p.v_new_head = p.k_head = p.v_head = dim;
    p.k_block = p.v_block = 16 * dim;
    p.num_kv_heads = 1;
    p.head_dim = dim;
    void* args[] = {&p};
    simt::launch_kernel((std::string("inflight_append_") + name(type) + "_e4m3").c_str(), {8, 1, 1},
                        {128, 1, 1}, 0, args);
    for (uint32_t i = 0; i < 65536; i++) {
        const double x = decode(type, i);
        const float quotient = static_cast<float>(x) / scale;
        v.expected[i] = static_cast<uint8_t>(encode(Type::e4m3, quotient, i & 0x8000));
    }
    k.expected = v.expected;
    const std::string what =
        std::string("all numbers of ") + name(type) + " by " + std::to_string(scale);
    v.compare(what);
    k.compare(what);
}

// Every e4m3 number in every place of four, by the instruction and without.
void check_e4m3() {
    using namespace inflight;
    const auto same = [](float a, double b) { return a == b || (a != a && b != b); };
    for (uint32_t code = 0; code < 256; code++) {
        for (int place = 0; place < 4; place++) {
            const uint32_t four = (0x387f01c8u & ~(0xffu << (8 * place))) | code << (8 * place);
            uint32_t lo, hi;
            float x[4];
            const auto compare = [&](const char* what, float by) {
                for (int i = 0; i < 4; i++) {
                    if (same(x[i] * by, decode(Type::e4m3, four >> (8 * i) & 0xff))) continue;
                    fail(std::string("e4m3 as ") + what + ": " + std::to_string(code));
                }
            };
            const auto numbers = [&](auto type) {
                unpack2(lo, x[0], x[1], type);
                unpack2(hi, x[2], x[3], type);
            };
            unpack_e4m3x4<false>(four, lo, hi, f16{});
            numbers(f16{});
            compare("f16", 256);
            unpack_e4m3x4<false>(four, lo, hi, bf16{});
            numbers(bf16{});
            compare("bf16", 1);
            unpack_e4m3x4<true>(four, lo, hi, f16{});
            numbers(f16{});
            compare("f16 by the instruction", 1);
            unpack_e4m3x4<true>(four, lo, hi, bf16{});
            numbers(bf16{});
            compare("bf16 by the instruction", 1);
        }
        if (!same(to_f32(e4m3{static_cast<uint8_t>(code)}), decode(Type::e4m3, code))) {
            fail("e4m3 as f32: " + std::to_string(code));
        }
    }
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 4099) {
        const float x = as_f32(static_cast<uint32_t>(bits));
        const uint32_t code = encode(Type::e4m3, x, std::signbit(x));
        if (e4m3_from_f32(x) != code || (arch::cvt_e4m3x2(0.0f, x) >> 8) != code) {
            fail("f32 as e4m3: " + std::to_string(bits));
        }
    }
}

// Quotients where a number lies between two of e4m3, and near to that, are those of division.
void check_quotients(uint32_t apart) {
    for (uint32_t mantissa = 0; mantissa < 1u << 23; mantissa += apart) {
        const float scale = as_f32(0x3f800000 | mantissa);
        const inflight::Divisor by = inflight::divisor(scale);
        for (int steps = 1; steps < 32; steps += 2) {
            const uint32_t between = as_u32(static_cast<float>(steps * static_cast<double>(scale)));
            for (uint32_t bits = between - 4; bits <= between + 4; bits++) {
                const float x = as_f32(bits);
                if (inflight::quotient(x, by) != x / scale) {
                    return fail("quotient by mantissa " + std::to_string(mantissa));
                }
            }
        }
    }
}

// ---- copies

void check_copy(Random& random) {
    const auto num_arrays = static_cast<uint32_t>(1 + below(random, 4));
    const auto num_pairs = static_cast<uint32_t>(below(random, 7));
    const uint64_t bytes = 16 * pick<uint64_t>(random, {1, 3, 32, 100, 129, 700, 1025, 2500});
    const uint64_t from_block = bytes + 16 * below(random, 3);
    const uint64_t to_block = bytes + 16 * below(random, 3);
    constexpr uint32_t blocks = 16;
    std::vector<uint32_t> order(blocks);
    for (uint32_t i = 0; i < blocks; i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);

    // Within a device both sides are one array; a swap has two.
    const bool swap = below(random, 2);
    std::vector<Array*> from, to;
    for (uint32_t i = 0; i < num_arrays; i++) {
        from.push_back(new Array(blocks * std::max(from_block, to_block)));
        to.push_back(swap ? new Array(blocks * std::max(from_block, to_block)) : from.back());
        for (uint8_t& byte : from[i]->expected) byte = static_cast<uint8_t>(random());
        for (uint8_t& byte : to[i]->expected) byte = static_cast<uint8_t>(random());
        from[i]->upload();
        to[i]->upload();
    }
    Array arrays(num_arrays * sizeof(inflight_copy_array)), pairs(8 * num_pairs);
    auto* array = reinterpret_cast<inflight_copy_array*>(arrays.expected.data());
    auto* pair = reinterpret_cast<uint32_t*>(pairs.expected.data());
    const uint64_t apart = swap ? to_block : from_block;
    for (uint32_t i = 0; i < num_arrays; i++) {
        array[i] = {from[i]->address(), to[i]->address(), from_block, apart};
    }
    for (uint32_t i = 0; i < num_pairs; i++) {
        pair[2 * i] = order[2 * i];
        pair[2 * i + 1] = order[2 * i + 1];
    }
    arrays.upload();
    pairs.upload();
    inflight_copy_params p{arrays.address(), pairs.address(), bytes, num_arrays, num_pairs};
    void* args[] = {&p};
    const auto grid = static_cast<unsigned>(1 + below(random, 9));
    simt::launch_kernel("inflight_copy_blocks", {grid, 1, 1}, {256, 1, 1}, 0, args);
    for (uint32_t i = 0; i < num_arrays; i++) {
        for (uint32_t j = 0; j < num_pairs; j++) {
            memcpy(to[i]->expected.data() + order[2 * j + 1] * apart,
                   from[i]->expected.data() + order[2 * j] * from_block, bytes);
        }
    }
    for (uint32_t i = 0; i < num_arrays; i++) {
        const std::string what = "copy of " + std::to_string(bytes) + " bytes, array ";
        from[i]->compare(what + std::to_string(i) + " read");
        to[i]->compare(what + std::to_string(i) + " written");
        if (swap) delete to[i];
        delete from[i];
    }
}

// ---- merges

void check_merge(Random& random) {
    const Type type = pick<Type>(random, {Type::bf16, Type::f16});
    const auto count = static_cast<uint32_t>(1 + below(random, INFLIGHT_MERGE_MAX));
    const auto tokens = pick<uint32_t>(random, {0, 1, 5, 19});
    const auto heads = pick<uint32_t>(random, {1, 3, 8});
    const auto dim = pick<uint32_t>(random, {8, 40, 64, 80, 128, 256});
    const int64_t o_head = dim + 8 * below(random, 2);
    const int64_t o_token = heads * o_head + 8 * below(random, 2);
    const int64_t out_head = dim + 8 * below(random, 2), out_token = heads * out_head;

    std::vector<Array*> o, lse;
    for (uint32_t i = 0; i < count; i++) {
        o.push_back(new Array(2 * tokens * o_token));
        lse.push_back(new Array(4 * tokens * heads));
        for (size_t j = 0; j < o[i]->expected.size() / 2; j++) {
            const double x = std::normal_distribution<double>(0, 3)(random);
            o[i]->set(type, j, j % 8 == 5 ? 0x8000 : encode(type, x, false));
        }
        for (uint32_t row = 0; row < tokens * heads; row++) {
            float x = std::normal_distribution<float>(0, 4)(random);
            const size_t kind = (row * 7 + below(random, 3)) % 9;
            if (kind < 3 || row % 5 == 4) x = -INFINITY;
            if (kind == 8) x -= 300;
            // All but one, and outputs that must not be read.
            if (row % 11 == 3 && i > 0) x = -INFINITY;
            if (x == -INFINITY) {
                const int64_t at = row / heads * o_token + row % heads * o_head;
                for (uint32_t d = 0; d < dim; d++) o[i]->set(type, at + d, 0x7fff);
            }
            memcpy(lse[i]->expected.data() + 4 * row, &x, 4);
        }
        o[i]->upload();
        lse[i]->upload();
    }
    Array out(2 * tokens * out_token), out_lse(4 * tokens * heads);
    for (Array* a : {&out, &out_lse}) {
        for (uint8_t& byte : a->expected) byte = static_cast<uint8_t>(random());
        a->upload();
    }
    inflight_merge_params p{};
    for (uint32_t i = 0; i < count; i++) {
        p.o[i] = o[i]->address();
        p.lse[i] = lse[i]->address();
    }
    p.out = out.address();
    p.out_lse = below(random, 4) ? out_lse.address() : 0;
    p.o_token = o_token;
    p.o_head = o_head;
    p.out_token = out_token;
    p.out_head = out_head;
    p.count = count;
    p.num_tokens = tokens;
    p.num_heads = heads;
    p.head_dim = dim;
    void* args[] = {&p};
    const std::string kernel = std::string("inflight_merge_") + name(type);
    const std::string what =
        kernel + " of " + std::to_string(count) + ", heads of " + std::to_string(dim);
    const auto run = [&](unsigned x, unsigned y) {
        simt::launch_kernel(kernel.c_str(), {x, y, 1}, {128, 1, 1}, 0, args);
        return std::vector<uint8_t>(out.data, out.data + out.expected.size());
    };
    const std::vector<uint8_t> once = run(1 + static_cast<unsigned>(below(random, 4)), 1);
    if (run(7, 3) != once) fail(what + ": its bits depend on the grid");

    for (uint32_t row = 0; row < tokens * heads; row++) {
        const int64_t at = row / heads * o_token + row % heads * o_head;
        const int64_t to = row / heads * out_token + row % heads * out_head;
        const auto lse_of = [&](uint32_t i) {
            float x;
            memcpy(&x, lse[i]->expected.data() + 4 * row, 4);
            return static_cast<double>(x);
        };
        double most = -INFINITY, sum = 0;
        uint32_t seen = 0, last = 0;
        for (uint32_t i = 0; i < count; i++) {
            most = std::max(most, lse_of(i));
            if (lse_of(i) != -INFINITY) last = i, seen++;
        }
        for (uint32_t i = 0; seen && i < count; i++) sum += std::exp(lse_of(i) - most);
        for (uint32_t d = 0; d < dim; d++) {
            double x = 0, size_of = 0;
            for (uint32_t i = 0; seen && i < count; i++) {
                if (lse_of(i) == -INFINITY) continue;
                const double number = decode(type, o[i]->get(type, at + d));
                const double share = std::exp(lse_of(i) - most) / sum;
                x += share * number;
                size_of += share * std::fabs(number);
            }
            uint16_t bits;
            memcpy(&bits, out.data + 2 * (to + d), 2);
            const double step = type == Type::bf16 ? 0x1p-8 : 0x1p-11;
            // Half a step of the result, and what shares in f32 are off by.
            const double allowed = 1.001 * step * std::fabs(x) + 4e-6 * size_of + 0x1p-25;
            bool exact = seen != 0 || bits == 0;
            if (seen == 1) exact = bits == o[last]->get(type, at + d);
            if (seen && d % 8 == 5) exact = bits == 0x8000;
            if (!exact || !(std::fabs(decode(type, bits) - x) <= allowed)) {
                fail(what + ": " + std::to_string(decode(type, bits)) + " for " +
                     std::to_string(x));
                break;
            }
            out.set(type, to + d, bits);
        }
        if (!p.out_lse) continue;
        float given;
        memcpy(&given, out_lse.data + 4 * row, 4);
        const double expected = most + (seen ? std::log(sum) : 0);
        const bool near = std::fabs(given - expected) <= 1e-6 * (1 + std::fabs(expected));
        if (seen < 2 ? given != expected : !near) fail(what + ": LSE " + std::to_string(given));
        memcpy(out_lse.expected.data() + 4 * row, &given, 4);
    }
    out.compare(what);
    out_lse.compare(what);
    for (uint32_t i = 0; i < count; i++) {
        o[i]->compare(what + ", outputs read");
        delete o[i];
        delete lse[i];
    }
}

}  // namespace

int main(int argc, char** argv) {
    const auto seed = static_cast<unsigned>(argc > 1 ? atoi(argv[1]) : 1);
    const int cases = argc > 2 ? atoi(argv[2]) : 200;
    simt::cfg.seed = seed;
    Random random(seed);
    check_e4m3();
    check_quotients(argc > 3 ? static_cast<uint32_t>(atoi(argv[3])) : 509);
    for (const float scale : {1.0f, 0.03f, 7.0f, 1e-5f, as_f32(0x3f7fffff), 1e-40f}) {
        check_all_numbers(Type::bf16, scale);
        check_all_numbers(Type::f16, scale);
    }
    for (int i = 0; i < cases; i++) {
        check_append(random_append(random), random);
        check_copy(random);
        check_merge(random);
    }
    const simt::Stats found = simt::stats();
    if (found.races + found.oob + found.uninit != 0) fail("reports of the emulator");
    printf("seed %u: %d cases, %d failures\n", seed, cases, failures);
    return failures != 0;
}
