// Checks of the decode kernels under the emulator, against attention in f64.
//
//   decode [small|full] [seed...]
//
// Outputs begin as NaN, keys beyond a row's end and before its window are NaN, block ids that no
// one may read are invalid. Error rule: at most twice that of attention in f32 whose weights are
// rounded to the queries' type, plus a little.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernel_params.h"
#include "simt.h"

namespace {

using std::vector;

struct RowLength {
    uint32_t q_len, kv_len;
};

struct Case {
    uint32_t head_dim = 128, group = 4, kv_heads = 1, block_size = 16;
    vector<RowLength> rows = {{1, 100}};
    bool f16 = false, e4m3 = false, hnd = false, padded = false;
    bool causal = true, alibi = false, sinks = false, mask = false, lse = true;
    bool scale_per_head = false;
    uint32_t window = INFLIGHT_NO_WINDOW;
    float cap = 0.0f, q_size = 1.0f;
    uint32_t shares = 3;
    uint32_t cuts = 0;  // of each tile, at most
    uint32_t launches = 1;
    unsigned seed = 0;

    uint32_t kernel_dim() const {
        for (uint32_t d : {64u, 96u, 128u, 192u})
            if (head_dim <= d) return d;
        return 256;
    }
    bool general() const { return cap != 0.0f || alibi || mask; }
    uint32_t q_heads() const { return group * kv_heads; }
    std::string kernel() const {
        return std::string("inflight_decode_") + (f16 ? "f16" : "bf16") +
               (e4m3 ? "_e4m3" : "_same") + "_d" + std::to_string(kernel_dim()) +
               (general() ? "_general" : "");
    }
    uint32_t smem() const {
        const uint32_t same[] = {INFLIGHT_DECODE_SMEM_SAME_D64, INFLIGHT_DECODE_SMEM_SAME_D96,
                                 INFLIGHT_DECODE_SMEM_SAME_D128, INFLIGHT_DECODE_SMEM_SAME_D192,
                                 INFLIGHT_DECODE_SMEM_SAME_D256};
        const uint32_t narrow[] = {INFLIGHT_DECODE_SMEM_E4M3_D64, INFLIGHT_DECODE_SMEM_E4M3_D96,
                                   INFLIGHT_DECODE_SMEM_E4M3_D128, INFLIGHT_DECODE_SMEM_E4M3_D192,
                                   INFLIGHT_DECODE_SMEM_E4M3_D256};
        const uint32_t d = kernel_dim();
        const int i = d == 64 ? 0 : d == 96 ? 1 : d == 128 ? 2 : d == 192 ? 3 : 4;
        return e4m3 ? narrow[i] : same[i];
    }
};

// ---- numbers

double from_e4m3(uint8_t x) {
    const int exponent = x >> 3 & 15, mantissa = x & 7;
    const double size =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    return x & 0x80 ? -size : size;
}

uint8_t to_e4m3(float x) {
    uint8_t best = 0;
    for (int code = 0; code < 0x7f; code++)
        if (std::fabs(from_e4m3(code) - std::fabs(x)) < std::fabs(from_e4m3(best) - std::fabs(x)))
            best = static_cast<uint8_t>(code);
    return best | (x < 0 ? 0x80 : 0);
}

float from_bf16(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t to_16(const Case& c, float x) { return c.f16 ? simt::to_f16(x) : simt::to_bf16(x); }
float from_16(const Case& c, uint16_t x) { return c.f16 ? simt::from_f16(x) : from_bf16(x); }

// Memory that kernels see.
template <class T>
struct Device {
    T* at = nullptr;
    size_t len = 0;
    explicit Device(size_t n) : at(static_cast<T*>(simt::dmalloc(n * sizeof(T) + 16))), len(n) {}
    Device(const Device&) = delete;
    ~Device() { simt::dfree(at); }
    uint64_t address() const { return reinterpret_cast<uint64_t>(at); }
    void fill(int byte) { memset(at, byte, len * sizeof(T)); }
};

// ---- the step buffer, and a plan with cuts at random places

struct Words {
    vector<uint32_t> words;
    uint32_t bytes() const { return static_cast<uint32_t>(words.size() * 4); }
    uint32_t add(const vector<uint32_t>& more) {
        while (words.size() % 4) words.push_back(0);
        const uint32_t at = bytes();
        words.insert(words.end(), more.begin(), more.end());
        return at;
    }
};

struct Problem {
    Case c;
    std::mt19937 random;
    vector<uint32_t> qo, kv, last, table, first_seen;
    vector<uint8_t> mask_bits;
    vector<uint32_t> mask_indptr, mask_widths;
    uint32_t tokens = 0, blocks = 0, states = 0, merges = 0;
    // Values as the kernel sees them, exact: [token][head][d], and [row][key][kv head][d].
    vector<float> q;
    vector<vector<float>> k, v;
    vector<float> k_scale, v_scale, slopes, sinks;
    float scale = 1.0f;

    uint32_t below(uint32_t n) { return n == 0 ? 0 : random() % n; }
    float normal() {
        // Sum of twelve uniform numbers: the same on every platform.
        float x = -6.0f;
        for (int i = 0; i < 12; i++) x += static_cast<float>(random() % 65536) / 65536.0f;
        return x;
    }
    int64_t position(uint32_t row, uint32_t query) const {
        return static_cast<int64_t>(c.rows[row].kv_len) - c.rows[row].q_len + query;
    }
    bool in_range(uint32_t row, uint32_t query, uint32_t key) const {
        const int64_t p = position(row, query), j = key;
        if (c.causal && j > p) return false;
        return c.window == INFLIGHT_NO_WINDOW || j >= p - static_cast<int64_t>(c.window);
    }
    bool sees(uint32_t row, uint32_t query, uint32_t key) const {
        if (!in_range(row, query, key)) return false;
        if (!c.mask || mask_widths[row] == 0) return true;
        const uint32_t width = mask_widths[row], start = c.rows[row].kv_len - width;
        if (key < start) return true;
        const uint32_t b = key - start;
        return mask_bits[mask_indptr[row] + query * ((width + 7) / 8) + b / 8] >> (b % 8) & 1;
    }
};

// Parts of all tiles, shares and merges.
vector<uint32_t> make_plan(Problem& x) {
    const Case& c = x.c;
    vector<inflight_part> parts;
    vector<inflight_merge> merges;
    const uint32_t q_tile = std::max(1u, INFLIGHT_DECODE_ROWS / c.group);
    for (uint32_t row = 0; row < c.rows.size(); row++)
        for (uint32_t q_start = 0; q_start < c.rows[row].q_len; q_start += q_tile)
            for (uint32_t head = 0; head < c.kv_heads; head++) {
                const uint32_t q_len = std::min(q_tile, c.rows[row].q_len - q_start);
                uint32_t first = c.rows[row].kv_len, end = 0;
                for (uint32_t key = 0; key < c.rows[row].kv_len; key++)
                    for (uint32_t i = q_start; i < q_start + q_len; i++)
                        if (x.in_range(row, i, key)) {
                            first = std::min(first, key);
                            end = key + 1;
                        }
                if (end == 0) first = 0;
                vector<uint32_t> at = {first, end};
                const uint32_t cuts = x.below(c.cuts + 1);
                // A cut at an end leaves a part without keys.
                for (uint32_t i = 0; i < cuts; i++) at.push_back(first + x.below(end - first + 1));
                std::sort(at.begin(), at.end());
                const uint32_t count = static_cast<uint32_t>(at.size() - 1);
                const bool whole = count == 1;
                if (!whole)
                    merges.push_back({row, head, 1, q_start, q_len, x.states, count,
                                      static_cast<uint32_t>(parts.size())});
                for (uint32_t i = 0; i < count; i++) {
                    parts.push_back(
                        {row, head, 1, q_start, q_len, at[i], at[i + 1],
                         whole ? INFLIGHT_WHOLE : x.states,
                         whole ? INFLIGHT_WHOLE : static_cast<uint32_t>(merges.size() - 1)});
                    if (!whole) x.states += q_len;
                }
            }
    vector<uint32_t> indptr = {0};
    for (uint32_t i = 1; i < c.shares; i++)
        indptr.push_back(x.below(static_cast<uint32_t>(parts.size()) + 1));
    indptr.push_back(static_cast<uint32_t>(parts.size()));
    std::sort(indptr.begin(), indptr.end());
    x.merges = static_cast<uint32_t>(merges.size());

    Words plan;
    plan.words.resize(sizeof(inflight_plan) / 4);
    inflight_plan head = {};
    head.num_shares = c.shares;
    head.num_parts = static_cast<uint32_t>(parts.size());
    head.num_merges = x.merges;
    const auto words = [](const void* from, size_t bytes) {
        vector<uint32_t> w(bytes / 4);
        if (bytes) memcpy(w.data(), from, bytes);
        return w;
    };
    head.share_indptr = plan.add(indptr);
    head.parts = plan.add(words(parts.data(), parts.size() * sizeof(inflight_part)));
    head.merges = plan.add(words(merges.data(), merges.size() * sizeof(inflight_merge)));
    if (c.mask) {
        vector<uint8_t> bits = x.mask_bits;
        while (bits.size() % 4) bits.push_back(0);
        head.mask_bits = plan.add(words(bits.data(), bits.size()));
        head.mask_indptr = plan.add(x.mask_indptr);
        head.mask_widths = plan.add(x.mask_widths);
    }
    memcpy(plan.words.data(), &head, sizeof head);
    return plan.words;
}

vector<uint32_t> make_step(Problem& x) {
    const Case& c = x.c;
    Words step;
    step.words.resize((sizeof(inflight_step) + 15) / 16 * 4);
    inflight_step head = {};
    head.magic = INFLIGHT_STEP_MAGIC;
    head.num_rows = head.padded_rows = static_cast<uint32_t>(c.rows.size());
    head.num_tokens = x.tokens;
    head.block_size = c.block_size;
    head.num_kv_blocks = static_cast<uint32_t>(x.table.size());
    head.qo_indptr = step.add(x.qo);
    head.kv_indptr = step.add(x.kv);
    head.kv_last_page_len = step.add(x.last);
    vector<uint32_t> table = x.table;
    table.resize(table.size() + 8, 0x7fffffffu);
    head.kv_indices = step.add(table);
    head.plans[1] = step.add(make_plan(x));
    head.total_bytes = step.bytes();
    memcpy(step.words.data(), &head, sizeof head);
    return step.words;
}

void make_rows(Problem& x) {
    const Case& c = x.c;
    x.qo = x.kv = {0};
    uint32_t used = 0;
    vector<uint32_t> ids;
    for (const RowLength& r : c.rows) used += (r.kv_len + c.block_size - 1) / c.block_size;
    x.blocks = used + 3;
    for (uint32_t i = 1; i < x.blocks; i++) ids.push_back(i);
    for (size_t i = ids.size(); i > 1; i--) std::swap(ids[i - 1], ids[x.below(uint32_t(i))]);
    size_t next = 0;
    for (uint32_t row = 0; row < c.rows.size(); row++) {
        const RowLength r = c.rows[row];
        x.tokens += r.q_len;
        x.qo.push_back(x.tokens);
        const uint32_t n = (r.kv_len + c.block_size - 1) / c.block_size;
        uint32_t first = r.kv_len;
        for (uint32_t key = r.kv_len; key-- > 0;)
            for (uint32_t i = 0; i < r.q_len; i++)
                if (x.in_range(row, i, key)) first = key;
        x.first_seen.push_back(first);
        for (uint32_t b = 0; b < n; b++) {
            const bool left_behind = (b + 1) * c.block_size <= first;
            x.table.push_back(left_behind ? 0x70000000u + b : ids[next]);
            next++;
        }
        x.kv.push_back(static_cast<uint32_t>(x.table.size()));
        x.last.push_back(n == 0 ? 0 : r.kv_len - (n - 1) * c.block_size);
        const uint32_t width = c.mask ? x.below(std::min(r.kv_len, 40u) + 1) : 0;
        x.mask_widths.push_back(width);
        x.mask_indptr.push_back(static_cast<uint32_t>(x.mask_bits.size()));
        for (uint32_t i = 0; i < r.q_len * ((width + 7) / 8); i++)
            x.mask_bits.push_back(static_cast<uint8_t>(x.random()));
    }
    x.mask_indptr.push_back(static_cast<uint32_t>(x.mask_bits.size()));
}

// ---- attention itself

// In f64; or, `rounded`, in f32 with weights rounded to the queries' type.
void attend(const Problem& x, uint32_t row, uint32_t query, uint32_t head, bool rounded,
            vector<double>& o, double& lse) {
    const Case& c = x.c;
    const uint32_t d = c.head_dim, kv_head = head / c.group, kv_len = c.rows[row].kv_len;
    const float* q = &x.q[(size_t(x.qo[row] + query) * c.q_heads() + head) * d];
    const float ks = x.k_scale[c.scale_per_head ? kv_head : 0];
    const float vs = x.v_scale[c.scale_per_head ? kv_head : 0];
    vector<double> s(kv_len, -INFINITY);
    double largest = -INFINITY;
    for (uint32_t j = 0; j < kv_len; j++) {
        if (!x.sees(row, query, j)) continue;
        const float* k = &x.k[row][(size_t(j) * c.kv_heads + kv_head) * d];
        double dot = 0;
        for (uint32_t i = 0; i < d; i++) dot += double(q[i]) * k[i];
        s[j] = dot * ks * x.scale;
        if (c.cap != 0.0f) s[j] = c.cap * std::tanh(s[j] / c.cap);
        if (c.alibi)
            s[j] -= double(x.slopes[head]) * std::fabs(double(x.position(row, query)) - double(j));
        largest = std::max(largest, s[j]);
    }
    if (c.sinks) largest = std::max(largest, double(x.sinks[head]));
    o.assign(d, 0.0);
    lse = -INFINITY;
    if (largest == -INFINITY) return;
    double sum = c.sinks ? std::exp(x.sinks[head] - largest) : 0.0;
    for (uint32_t j = 0; j < kv_len; j++) {
        if (s[j] == -INFINITY) continue;
        double w = std::exp(s[j] - largest);
        sum += w;
        if (rounded) w = from_16(c, to_16(c, float(w)));
        const float* v = &x.v[row][(size_t(j) * c.kv_heads + kv_head) * d];
        for (uint32_t i = 0; i < d; i++) o[i] += w * v[i];
    }
    for (double& value : o) {
        value *= vs / sum;
        if (rounded) value = from_16(c, to_16(c, float(value)));
    }
    lse = largest + std::log(sum);
}

int failures = 0;
double worst_ratio = 0;

void complain(const Case& c, const char* what, double found, double allowed) {
    failures++;
    printf(
        "FAILED %s: %s %g, allowed %g\n  d %u group %u kv_heads %u block %u hnd %d padded %d "
        "causal %d window %u cap %g alibi %d sinks %d mask %d cuts %u shares %u seed %u rows",
        c.kernel().c_str(), what, found, allowed, c.head_dim, c.group, c.kv_heads, c.block_size,
        c.hnd, c.padded, c.causal, c.window, c.cap, c.alibi, c.sinks, c.mask, c.cuts, c.shares,
        c.seed);
    for (const RowLength& r : c.rows) printf(" %u/%u", r.q_len, r.kv_len);
    printf("\n");
}

void check(const Case& c) {
    Problem x;
    x.c = c;
    x.random.seed(c.seed * 7919 + 17);
    make_rows(x);
    const uint32_t d = c.head_dim, heads = c.q_heads();
    x.scale = 1.0f / std::sqrt(float(d));
    const uint32_t scales = c.scale_per_head ? c.kv_heads : 1;
    for (uint32_t i = 0; i < scales; i++) {
        x.k_scale.push_back(c.e4m3 ? 0.02f + 0.01f * i : 1.0f);
        x.v_scale.push_back(c.e4m3 ? 0.03f + 0.01f * i : 1.0f);
    }
    for (uint32_t h = 0; h < heads; h++) {
        x.slopes.push_back(std::exp2(-8.0f * (h + 1) / heads));
        x.sinks.push_back(h % 3 == 2 ? -INFINITY : x.normal());
    }

    // The cache: NaN but for keys that some query may see.
    const int64_t pad = c.padded ? 16 : 0;
    const int64_t inner = d + pad;
    const int64_t token = c.hnd ? inner : c.kv_heads * inner;
    const int64_t head_stride = c.hnd ? inner * c.block_size : inner;
    const int64_t block = int64_t(c.kv_heads) * inner * c.block_size + pad;
    const size_t bytes = c.e4m3 ? 1 : 2;
    Device<uint8_t> k(size_t(block) * x.blocks * bytes), v(size_t(block) * x.blocks * bytes);
    k.fill(c.e4m3 ? 0x7f : 0xff);
    v.fill(c.e4m3 ? 0x7f : 0xff);
    for (uint32_t row = 0; row < c.rows.size(); row++) {
        const uint32_t kv_len = c.rows[row].kv_len;
        x.k.emplace_back(size_t(kv_len) * c.kv_heads * d);
        x.v.emplace_back(size_t(kv_len) * c.kv_heads * d);
        for (uint32_t key = x.first_seen[row]; key < kv_len; key++)
            for (uint32_t h = 0; h < c.kv_heads; h++)
                for (int side = 0; side < 2; side++) {
                    const uint32_t id = x.table[x.kv[row] + key / c.block_size];
                    const int64_t at = id * block + key % c.block_size * token + h * head_stride;
                    auto& values = side ? x.v[row] : x.k[row];
                    for (uint32_t i = 0; i < d; i++) {
                        float& value = values[(size_t(key) * c.kv_heads + h) * d + i];
                        uint8_t* to = (side ? v.at : k.at) + (at + i) * bytes;
                        if (c.e4m3) {
                            *to = to_e4m3(x.normal() * 40.0f);
                            value = float(from_e4m3(*to));
                        } else {
                            const uint16_t bits = to_16(c, x.normal());
                            memcpy(to, &bits, 2);
                            value = from_16(c, bits);
                        }
                    }
                }
    }
    const vector<uint32_t> step = make_step(x);

    const int64_t q_head = d + pad, q_token = q_head * heads + pad;
    Device<uint16_t> q(size_t(q_token) * (x.tokens + 1)), o(size_t(q_token) * (x.tokens + 1));
    q.fill(0xff);
    x.q.resize(size_t(x.tokens) * heads * d);
    for (uint32_t t = 0; t < x.tokens; t++)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t i = 0; i < d; i++) {
                const uint16_t bits = to_16(c, x.normal() * c.q_size);
                q.at[t * q_token + h * q_head + i] = bits;
                x.q[(size_t(t) * heads + h) * d + i] = from_16(c, bits);
            }

    Device<uint32_t> buffer(step.size());
    memcpy(buffer.at, step.data(), step.size() * 4);
    Device<float> lse(size_t(x.tokens) * heads), states(size_t(x.states) * c.group * d + 1);
    Device<float> ml(size_t(x.states) * c.group * 2 + 1);
    Device<uint32_t> arrived(x.merges + 1);
    Device<float> constants(2 * scales + 2 * heads);
    vector<float> all = x.k_scale;
    for (const auto* more : {&x.v_scale, &x.slopes, &x.sinks})
        all.insert(all.end(), more->begin(), more->end());
    memcpy(constants.at, all.data(), all.size() * 4);
    states.fill(0xff);
    ml.fill(0xff);
    arrived.fill(0);

    inflight_attention_params p = {};
    p.step = buffer.address();
    p.q = q.address();
    p.o = o.address();
    p.lse = c.lse ? lse.address() : 0;
    p.k = k.address();
    p.v = v.address();
    p.q_token = p.o_token = q_token;
    p.q_head = p.o_head = q_head;
    p.k_block = p.v_block = block;
    p.k_token = p.v_token = token;
    p.k_head = p.v_head = head_stride;
    if (c.e4m3) {
        p.k_scale = constants.address();
        p.v_scale = constants.address() + 4 * scales;
    }
    if (c.alibi) p.alibi_slopes = constants.address() + 8 * scales;
    if (c.sinks) p.sinks = constants.address() + 8 * scales + 4 * heads;
    p.state_o = states.address();
    p.state_ml = ml.address();
    p.arrived = arrived.address();
    p.plan = 1;
    p.num_q_heads = heads;
    p.num_kv_heads = c.kv_heads;
    p.head_dim = d;
    p.scale = x.scale;
    p.soft_cap = c.cap;
    p.window_left = c.window;
    p.flags = c.causal ? INFLIGHT_CAUSAL : 0;
    p.scale_stride = c.scale_per_head ? 1 : 0;

    for (uint32_t launch = 0; launch < c.launches; launch++) {
        o.fill(0xff);
        lse.fill(0xff);
        void* args[] = {&p};
        // One block more than there are shares: it has nothing to do.
        simt::launch_kernel(c.kernel().c_str(), {c.shares + 1, 1, 1},
                            {INFLIGHT_DECODE_THREADS, 1, 1}, c.smem(), args);
        double worst = 0, naive = 0, worst_lse = 0;
        for (uint32_t row = 0; row < c.rows.size(); row++)
            for (uint32_t i = 0; i < c.rows[row].q_len; i++)
                for (uint32_t h = 0; h < heads; h++) {
                    const uint32_t t = x.qo[row] + i;
                    vector<double> exact, rounded;
                    double exact_lse, rounded_lse;
                    attend(x, row, i, h, false, exact, exact_lse);
                    attend(x, row, i, h, true, rounded, rounded_lse);
                    for (uint32_t e = 0; e < d; e++) {
                        const double found = from_16(c, o.at[t * q_token + h * q_head + e]);
                        const double error = std::fabs(found - exact[e]);
                        worst = error <= worst ? worst : error;  // NaN is the worst
                        if (std::isnan(error)) worst = INFINITY;
                        naive = std::max(naive, std::fabs(rounded[e] - exact[e]));
                    }
                    const double found = lse.at[size_t(t) * heads + h];
                    if (c.lse && !(found == exact_lse)) {
                        const double error = std::fabs(found - exact_lse);
                        worst_lse = std::isnan(error) ? INFINITY : std::max(worst_lse, error);
                    }
                }
        const double allowed = (c.cap != 0.0f ? 3 : 2) * naive + 1e-5;
        worst_ratio = std::max(worst_ratio, worst / (naive + 1e-5));
        if (!(worst <= allowed)) complain(c, "error", worst, allowed);
        if (!(worst_lse <= 1e-4)) complain(c, "error of LSE", worst_lse, 1e-4);
        // What lies between the heads and after the last token stays as it was.
        for (size_t i = 0; i < o.len; i++) {
            const size_t in_token = i % q_token;
            const bool written = i / q_token < x.tokens && in_token < size_t(q_head) * heads &&
                                 in_token % q_head < d;
            if (!written && o.at[i] != 0xffff) {
                complain(c, "a write beyond outputs, at", double(i), 0);
                break;
            }
        }
        for (uint32_t i = 0; i < x.merges; i++)
            if (arrived.at[i] != 0) complain(c, "a counter left at", arrived.at[i], 0);
    }
}

// ---- the sweep

Case random_case(std::mt19937& random, unsigned seed, bool small) {
    const auto pick = [&](auto... options) {
        const uint32_t values[] = {uint32_t(options)...};
        return values[random() % (sizeof values / sizeof *values)];
    };
    const auto chance = [&](uint32_t percent) { return random() % 100 < percent; };
    Case c;
    c.seed = seed;
    c.head_dim = pick(64, 80, 96, 112, 128, 128, 192, 256);
    c.group = pick(1, 3, 4, 5, 7, 8, 16);
    c.kv_heads = pick(1, 1, 2, 3);
    c.block_size = pick(1, 3, 8, 16, 16, 64, 128);
    c.f16 = chance(40);
    c.e4m3 = chance(40);
    c.hnd = chance(40);
    c.padded = chance(30);
    c.causal = chance(75);
    c.window = chance(30) ? pick(0, 1, 5, 17, 64, 130) : INFLIGHT_NO_WINDOW;
    c.cap = chance(20) ? 3.0f : 0.0f;
    c.alibi = chance(20);
    c.sinks = chance(25);
    c.mask = chance(20);
    c.lse = chance(80);
    c.scale_per_head = chance(50);
    c.q_size = chance(20) ? 6.0f : 1.0f;
    c.shares = pick(1, 2, 3, 5);
    c.cuts = chance(60) ? pick(1, 2, 4) : 0;
    c.launches = chance(20) ? 2 : 1;
    c.rows.clear();
    const uint32_t rows = small ? pick(1, 2) : pick(1, 2, 3, 7, 12);
    for (uint32_t i = 0; i < rows; i++) {
        const uint32_t q_len = pick(1, 1, 1, 2, 3, 4);
        const uint32_t b = c.block_size;
        uint32_t kv_len = pick(0, 1, 2, b, b + 1, 3 * b, 31, 64, 65, 100, 150);
        if (!small && rows <= 3) kv_len = pick(kv_len, kv_len, 300, 500);
        c.rows.push_back({q_len, kv_len});
    }
    return c;
}

}  // namespace

int main(int argc, char** argv) {
    const bool small = argc > 1 && !strcmp(argv[1], "small");
    vector<unsigned> seeds;
    for (int i = 2; i < argc; i++) seeds.push_back(unsigned(atoi(argv[i])));
    if (seeds.empty()) seeds = {0, 1, 2};
    int checked = 0;
    for (unsigned seed : seeds) {
        simt::cfg.seed = seed;
        // Every kernel, whole rows and cut ones.
        for (uint32_t d : {64u, 80u, 96u, 112u, 128u, 192u, 256u})
            for (int types = 0; types < 4; types++)
                for (int general = 0; general < 2; general++) {
                    Case c;
                    c.head_dim = d;
                    c.f16 = types & 1;
                    c.e4m3 = types & 2;
                    c.cap = general ? 5.0f : 0.0f;
                    c.kv_heads = small ? 1 : 2;
                    c.rows = {{1, small ? 70u : 200u}, {2, 33}, {1, 0}};
                    c.cuts = 2;
                    c.seed = seed;
                    check(c);
                    checked++;
                }
        std::mt19937 random(seed + 1);
        for (int i = 0; i < (small ? 40 : 250); i++) {
            check(random_case(random, seed * 1000 + unsigned(i), small));
            checked++;
        }
    }
    const simt::Stats found = simt::stats();
    printf(
        "%d cases, %d failures; largest error %.2f of the naive one; races %llu, uninitialised "
        "%llu, out of bounds %llu; bank conflicts %llu in %llu\n",
        checked, failures, worst_ratio, (unsigned long long)found.races,
        (unsigned long long)found.uninit, (unsigned long long)found.oob,
        (unsigned long long)found.bank_conflicts, (unsigned long long)found.bank_phases);
    return failures != 0 || found.races != 0 || found.uninit != 0 || found.oob != 0;
}
