// Decode attention: few queries a row, many keys, bound by reading the cache once.
//
// A block of four warps computes the parts of its share, one after the other. The query rows of a
// part (queries times the heads of a group, at most 16) are one operand of mma m16n8k16, so a key
// is read once for all heads of its group. Keys are dealt to the warps in turn, WARP_KEYS at a
// time, and each warp is a pipeline of its own: it copies what it will read itself into STAGES
// stages of shared memory, and waits for no other warp until the part ends. There the warps'
// results are put together in the stage that each of them has just read, while the other stages
// already fill with keys of the parts that follow: reading does not pause between parts.
//
// K and V of a stage are waited for and asked for again separately, K as soon as its products are
// done. Bytes under way: 64 KB or more a multiprocessor, where 4.8 TB/s over 132 of them and 700 ns
// need 26 KB.
#pragma once

#include "../../common/logits.cuh"
#include "../../common/state.cuh"
#include "operands.cuh"
#include "shape.cuh"

namespace inflight {

// What a warp needs to know of a part, looked up once.
struct alignas(16) DecodePart {
    uint32_t row, head, q_start, q_len;
    uint32_t first_token;  // of query q_start
    uint32_t kv_start, kv_end;
    uint32_t partial, merge;
    uint32_t row_q_len, kv_len;
    uint32_t table;  // where the row's begins in kv_indices
};
static_assert(sizeof(DecodePart) == DECODE_PART_BYTES, "");

// A share's parts. Each warp has its own few in shared memory, so that none waits for another.
template <class Shape>
struct DecodeParts {
    const inflight_step* step;
    const inflight_plan* plan;
    uint32_t end;
    DecodePart* looked_up;

    static constexpr uint32_t AT_ONCE = Shape::PARTS / 2;

    ARCH_MEMBER const uint32_t* tables() const { return at<uint32_t>(step, step->kv_indices); }

    // A lane a part, of the AT_ONCE parts that `index` is among. They take the place of those that
    // are twice as many parts back.
    ARCH_MEMBER void look_up(uint32_t index) {
        const uint32_t lane = threadIdx.x & 31;
        index = index / AT_ONCE * AT_ONCE + lane;
        arch::sync_warp();
        if (lane < AT_ONCE && index < end) {
            const inflight_part part = load_part(plan, index);
            const Row row = load_row(step, step->block_size, part.row);
            DecodePart& x = looked_up[index % Shape::PARTS];
            x.row = part.row;
            x.head = part.head;
            x.q_start = part.q_start;
            x.q_len = part.q_len;
            x.first_token = row.first_token + part.q_start;
            x.kv_start = part.kv_start;
            x.kv_end = part.kv_end;
            x.partial = part.partial;
            x.merge = part.merge;
            x.row_q_len = row.q_len;
            x.kv_len = row.kv_len;
            x.table = static_cast<uint32_t>(row.table - tables());
        }
        arch::sync_warp();
    }
    ARCH_MEMBER const DecodePart& operator[](uint32_t index) const {
        return looked_up[index % Shape::PARTS];
    }
};

// Steps of every warp over a part's keys. A part without keys has one too: so loading is at most
// STAGES parts ahead of computing.
template <class Shape>
ARCH_FN uint32_t decode_steps(uint32_t kv_start, uint32_t kv_end) {
    const uint32_t keys = kv_end - kv_start;
    return keys == 0 ? 1 : (keys + Shape::TILE_KEYS - 1) / Shape::TILE_KEYS;
}

// What a warp asks for, step by step through all parts of its share: rows of K, then of V. Lane r
// (modulo WARP_KEYS) finds row r; its block id is read a step ahead of its use.
template <class Shape, class Operands>
struct DecodeLoader {
    const inflight_attention_params& p;
    DecodeParts<Shape>& parts;
    BlockSize block_size;
    uint32_t part;
    uint32_t steps;     // of the part, this one included
    uint32_t warp_key;  // the step's first key
    Slot slot;

    ARCH_MEMBER uint32_t lane_key() const { return warp_key + threadIdx.x % Shape::WARP_KEYS; }

    // The first step of `part`.
    ARCH_MEMBER void enter() {
        if (part == parts.end) {
            arch::let_next_kernel_start();
            return;
        }
        if (part % DecodeParts<Shape>::AT_ONCE == 0) parts.look_up(part);
        const DecodePart& x = parts[part];
        steps = decode_steps<Shape>(x.kv_start, x.kv_end);
        warp_key = x.kv_start + threadIdx.x / 32 * Shape::WARP_KEYS;
        find_slot(x);
    }
    ARCH_MEMBER void find_slot(const DecodePart& x) {
        if (lane_key() < x.kv_end) slot = slot_of(parts.tables() + x.table, block_size, lane_key());
    }
    ARCH_MEMBER void request_keys(uint32_t to) {
        if (part != parts.end) {
            const DecodePart& x = parts[part];
            request<typename Operands::KeyTile>(to, key_address<Shape::KV_BYTES>(p, x.head, slot),
                                                x.kv_end);
        }
        arch::cp_async_commit();
    }
    // The step's last request.
    ARCH_MEMBER void request_values(uint32_t to) {
        if (part != parts.end) {
            const DecodePart& x = parts[part];
            request<typename Operands::ValueTile>(
                to, value_address<Shape::KV_BYTES>(p, x.head, slot), x.kv_end);
            warp_key += Shape::TILE_KEYS;
            if (--steps == 0) {
                part++;
                enter();
            } else {
                find_slot(x);
            }
        }
        arch::cp_async_commit();
    }
    template <class Tile>
    ARCH_MEMBER void request(uint32_t to, uint64_t own, uint32_t kv_end) {
        if (warp_key >= kv_end) return;
        copy_rows<Tile, Shape::WARP_KEYS, Shape::KV_BYTES>(
            to, 0, own, static_cast<int32_t>(kv_end - warp_key), p.head_dim);
    }
};

// Where quad `quad` of a query row's output lies among a warp's outputs in shared memory: rows are
// multiples of all banks long, so quads of eight rows are permuted.
template <int D>
ARCH_FN uint32_t output_quad(uint32_t r, uint32_t quad) {
    return r * (D * 4) + ((quad ^ (r & 7)) << 4);
}

// Puts the results of the warps together, each in shared memory `WARP_BYTES` after the other's:
// outputs from byte `outputs` on, and largest logits and sums. Writes the output, or a state.
template <class Q, class Shape>
ARCH_FN void finish_part(const inflight_attention_params& p, const Target& target,
                         const uint8_t* smem, uint32_t outputs, uint32_t rows, uint32_t partial) {
    constexpr int QUADS = Shape::D / 4;
    const auto* max_sum = reinterpret_cast<const float*>(smem + Shape::MAX_SUM);
    for (uint32_t i = threadIdx.x; i < rows * QUADS; i += Shape::THREADS) {
        const uint32_t r = i / QUADS, quad = i % QUADS;
        if (quad * 4 >= p.head_dim) continue;
        float largest = neg_inf(), sum = 0.0f, o[4] = {};
#pragma unroll
        for (int w = 0; w < Shape::WARPS; w++)
            largest = fmaxf(largest, max_sum[(w * Shape::ROWS + r) * 2]);
        const float base = largest == neg_inf() ? 0.0f : largest;
#pragma unroll
        for (int w = 0; w < Shape::WARPS; w++) {
            const float weight = arch::ex2(max_sum[(w * Shape::ROWS + r) * 2] - base);
            sum += weight * max_sum[(w * Shape::ROWS + r) * 2 + 1];
            const auto x = *reinterpret_cast<const arch::vec4*>(
                smem + w * Shape::WARP_BYTES + outputs + output_quad<Shape::D>(r, quad));
            o[0] += weight * arch::as_f32(x.x);
            o[1] += weight * arch::as_f32(x.y);
            o[2] += weight * arch::as_f32(x.z);
            o[3] += weight * arch::as_f32(x.w);
        }
        if (partial == INFLIGHT_WHOLE) {
            const Normal n = normal(p, target, target.head(r), largest, sum);
            write_output_4<Q>(p, target, r, quad * 4, o[0] * n.factor, o[1] * n.factor,
                              o[2] * n.factor, o[3] * n.factor);
            if (quad == 0) write_lse(p, target, r, n.lse);
        } else {
            float* to = state_o(p, partial, target.group, r) + quad * 4;
            *reinterpret_cast<arch::vec4*>(to) = {arch::as_u32(o[0]), arch::as_u32(o[1]),
                                                  arch::as_u32(o[2]), arch::as_u32(o[3])};
            if (quad == 0) write_state_ml(p, partial, target.group, r, largest, sum);
        }
    }
}

ARCH_FN Target decode_target(const inflight_attention_params& p, const DecodePart& part,
                             uint32_t group, float scale) {
    const float v_scale = kv_scale(p.v_scale, p.scale_stride, part.head);
    return {part.first_token, part.head * group, group, v_scale * scale};
}

// What a lane knows of its two query rows, and the keys that all rows of the part see.
struct DecodeRows {
    QueryRow row[2];
    const uint8_t* query[2];  // null for a row that is not there, which sees nothing
    int32_t all_first, all_end;
};

template <class Has>
ARCH_FN DecodeRows decode_rows(const inflight_attention_params& p, const inflight_plan* plan,
                               const DecodePart& part, uint32_t group) {
    const Target target = {part.first_token, part.head * group, group, 1.0f};
    DecodeRows rows;
    const uint32_t lane = threadIdx.x & 31;
    const int32_t kv_end = static_cast<int32_t>(part.kv_end);
    rows.all_first = static_cast<int32_t>(part.kv_start);
    rows.all_end = kv_end;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t r = lane / 4 + 8 * i;
        const bool there = r < part.q_len * group;
        rows.row[i] = {0, 0, 0, 0.0f, nullptr, 0};
        rows.query[i] = nullptr;
        if (!there) continue;
        const uint32_t head = target.head(r), query = part.q_start + r / group;
        QueryRow& q = rows.row[i];
        q = QueryRow::of<Has>(p, static_cast<int32_t>(part.kv_len - part.row_q_len + query),
                              kv_end);
        if (Has::HAS_ALIBI && p.alibi_slopes != 0) q.set_slope(p, head);
        if (q.first > rows.all_first) rows.all_first = q.first;
        if (q.end < rows.all_end) rows.all_end = q.end;
        if (Has::HAS_MASK) {
            q.set_mask(RowMask::of(plan, part.kv_len, part.row), query);
            if (q.mask != nullptr && q.mask_start < rows.all_end) rows.all_end = q.mask_start;
        }
        rows.query[i] = reinterpret_cast<const uint8_t*>(p.q) +
                        (static_cast<int64_t>(target.token(r)) * p.q_token +
                         static_cast<int64_t>(head) * p.q_head) *
                            2;
    }
#pragma unroll
    for (int i = 4; i < 32; i *= 2) {
        const int32_t first = arch::shfl_xor(static_cast<uint32_t>(rows.all_first), i);
        const int32_t end = arch::shfl_xor(static_cast<uint32_t>(rows.all_end), i);
        if (first > rows.all_first) rows.all_first = first;
        if (end < rows.all_end) rows.all_end = end;
    }
    return rows;
}

template <class Q, class Traits, class Has>
ARCH_FN void decode(const inflight_attention_params& p, uint32_t share = blockIdx.x) {
    using Shape = DecodeShape<Traits>;
    constexpr int D = Shape::D;
    using KV = Element<Q, Traits::KV>;
    using Operands = DecodeOperands<Q, KV, D, Shape::WARP_KEYS>;
    using P = Probability<Q, KV>;
    constexpr int KEYS = Shape::WARP_KEYS, STAGES = Shape::STAGES;
    ARCH_DYN_SMEM(smem);

    arch::wait_for_prior_kernel();
    const inflight_step* step = step_of(p.step);
    const inflight_plan* plan = plan_of(step, p.plan);
    if (share >= plan->num_shares) return;

    const uint32_t warp = threadIdx.x / 32, group = p.num_q_heads / p.num_kv_heads;
    uint8_t* warp_smem = smem + warp * Shape::WARP_BYTES;
    const uint32_t stages = arch::smem_u32(warp_smem);
    const uint32_t begin = share_indptr(plan, share);
    DecodeParts<Shape> parts{step, plan, share_indptr(plan, share + 1),
                             reinterpret_cast<DecodePart*>(warp_smem + Shape::LOOKED_UP)};
    DecodeLoader<Shape, Operands> loader{p, parts, BlockSize::of(step->block_size), begin};
    if (begin < parts.end && begin % DecodeParts<Shape>::AT_ONCE != 0) parts.look_up(begin);
    loader.enter();
    for (int i = 0; i < STAGES; i++) {
        loader.request_keys(stages + i * Shape::STAGE_BYTES);
        loader.request_values(stages + i * Shape::STAGE_BYTES + Shape::HALF_BYTES);
    }

    DecodeQueries<D, Shape::SHARED_QUERIES> queries;
    if constexpr (Shape::SHARED_QUERIES)
        queries.shared = reinterpret_cast<arch::vec4*>(smem + Shape::QUERIES);
    uint32_t stage = 0;
    for (uint32_t index = begin; index < parts.end; index++) {
        // Stays in its place until the next one is computed: read again rather than kept.
        const DecodePart& part = parts[index];
        const uint32_t kv_end = part.kv_end;
        const float k_scale = kv_scale(p.k_scale, p.scale_stride, part.head);
        const LogitScale scale = LogitScale::of(p, k_scale * key_scale<Q, KV>);
        DecodeRows rows = decode_rows<Has>(p, plan, part, group);
        queries.template load<Operands>(rows.query, p.head_dim);

        Softmax softmax;
        float o[D / 8][4] = {};
        uint32_t key = part.kv_start + warp * KEYS;
        // The stage whose turn is the part's last; nothing is asked for into it before its end.
        uint32_t last_stage = 0;
        for (uint32_t left = decode_steps<Shape>(part.kv_start, kv_end); left > 0; left--) {
            const uint32_t k_at = stage * Shape::STAGE_BYTES, v_at = k_at + Shape::HALF_BYTES;
            const bool has_keys = key < kv_end;
            // Of 2 STAGES requests under way, the oldest is this step's K.
            arch::cp_async_wait<2 * STAGES - 1>();
            arch::sync_warp();
            float s[KEYS / 8][4] = {};
            if (has_keys) Operands::qk(s, queries, warp_smem + k_at, stages + k_at);
            if (left > 1) {
                arch::sync_warp();
                loader.request_keys(stages + k_at);
            }
            uint32_t probabilities[KEYS / 16][4];
            if (has_keys) {
                const int32_t first = static_cast<int32_t>(key);
                const bool all_seen = first >= rows.all_first && first + KEYS <= rows.all_end;
                apply_soft_cap<Has>(s, scale);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (Has::HAS_ALIBI && p.alibi_slopes != 0)
                        apply_alibi(s, i, first, rows.row[i]);
                    if (!all_seen) apply_mask<Has>(s, i, first, rows.row[i]);
                }
                float correction[2];
                if (softmax.update(s, 1.0f, correction)) {
#pragma unroll
                    for (int n = 0; n < D / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) o[n][i] *= correction[i >> 1];
                }
#pragma unroll
                for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        probabilities[j][i] = arch::pack(s[2 * j + i / 2][i % 2 * 2],
                                                         s[2 * j + i / 2][i % 2 * 2 + 1], P{});
            }
            // V is the oldest now; in the part's last step one request fewer is under way.
            if (left > 1) {
                arch::cp_async_wait<2 * STAGES - 1>();
            } else {
                arch::cp_async_wait<2 * STAGES - 2>();
            }
            arch::sync_warp();
            if (has_keys) Operands::pv(o, probabilities, stages + v_at);
            arch::sync_warp();
            if (left > 1) loader.request_values(stages + v_at);
            key += Shape::TILE_KEYS;
            last_stage = k_at;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }

        softmax.reduce();
        const uint32_t lane = threadIdx.x & 31, num_rows = part.q_len * group;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t r = lane / 4 + 8 * i;
            if (r >= num_rows) continue;
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++)
                each_output<KV>(
                    o[2 * pair], o[2 * pair + 1], pair, i, lane % 4,
                    [&](uint32_t d, float x, float y) {
                        uint8_t* to = warp_smem + last_stage + output_quad<D>(r, d / 4) + d % 4 * 4;
                        *reinterpret_cast<arch::vec2*>(to) = {arch::as_u32(x), arch::as_u32(y)};
                    });
        }
        if (lane % 4 == 0) {
            auto* to = reinterpret_cast<arch::vec2*>(smem + Shape::MAX_SUM) + warp * Shape::ROWS +
                       lane / 4;
#pragma unroll
            for (int i = 0; i < 2; i++)
                to[8 * i] = {arch::as_u32(softmax.max[i]), arch::as_u32(softmax.sum[i])};
        }
        arch::sync_threads();
        const Target target = decode_target(p, part, group, value_scale<KV>);
        finish_part<Q, Shape>(p, target, smem, last_stage, num_rows, part.partial);
        arch::sync_threads();
        loader.request_keys(stages + last_stage);
        loader.request_values(stages + last_stage + Shape::HALF_BYTES);

        if (part.merge == INFLIGHT_WHOLE) continue;
        const inflight_merge merge = load_merge(plan, part.merge);
        auto* flag = reinterpret_cast<uint32_t*>(smem + Shape::FLAG);
        if (arrives_last(p, part.merge, merge.count, threadIdx.x, flag,
                         [] { arch::sync_threads(); }))
            merge_states<Q, Shape::WARPS>(p, merge, target, warp);
    }
}

}  // namespace inflight

// The general kernel knows soft cap, ALiBi and masks, the plain one causality and windows; both
// know sinks.
#define INFLIGHT_DECODE_KERNELS(...) \
    INFLIGHT_ATTENTION_KERNELS(decode, WindowOnly, inflight_attention_params, __VA_ARGS__)
