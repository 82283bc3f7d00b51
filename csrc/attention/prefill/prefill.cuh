// Attention of many queries over a paged cache: prefill, and chunks of it.
//
// Query rows are the queries of a part times the heads that share its KV head. A block takes 128 of
// them at a time through the keys that any of them sees, as in FlashAttention-2 (Dao, 2023):
// products stay in registers, become weights, and are operand A of the product with V. Keys of the
// next tile are on their way meanwhile. Tiles that all rows see whole take no masking.
#pragma once

#include "../../common/fragments.cuh"
#include "../../common/logits.cuh"
#include "../../common/state.cuh"
#include "tiles.cuh"

namespace inflight {

// A part and its row. Read again where they are needed: registers are dear.
struct Work {
    inflight_part part;
    Row row;
    uint32_t group;

    ARCH_MEMBER Work(const inflight_attention_params& p, uint32_t index, uint32_t group)
        : part(load_part(plan_of(step_of(p.step), p.plan), index)),
          row(load_row(step_of(p.step), step_of(p.step)->block_size, part.row)),
          group(group) {}
    ARCH_MEMBER uint32_t rows() const { return part.q_len * group; }
    // `unpacked`: what values are to be multiplied by, besides their scale.
    ARCH_MEMBER Target target(const inflight_attention_params& p, float unpacked) const {
        const float scale = kv_scale(p.v_scale, p.scale_stride, part.head) * unpacked;
        return {row.first_token + part.q_start, part.head * group, group, scale};
    }
};

template <class Q, class Traits, class Has>
class Prefill {
    using Shape = PrefillShape<Traits>;
    using KV = Element<Q, Traits::KV>;
    static constexpr int D = Shape::D;
    using QTile = typename Shape::QTile;
    using KvTile = typename Shape::KvTile;
    using Keys = KeyFragments<Q, KV, KvTile>;
    using P = Probability<Q, KV>;
    using Values = ValueFragments<P, KV, KvTile>;
    static constexpr int M = Shape::M;
    static constexpr int N = Shape::KEYS / 8;
    static constexpr int STEPS = D / 16;
    static constexpr int SLOTS = Shape::SLOTS;
    static constexpr bool NARROW = sizeof(KV) == 1;

    const inflight_attention_params& p;
    const uint32_t ring;  // of tiles
    const uint32_t group;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t tile = 0;  // address of the one that is computed next

    uint32_t q_fragments[Shape::REGISTER_Q ? STEPS : 1][4];
    float o[M][D / 8][4];
    Softmax softmax[M];

    // What a lane's row `half` of 16 rows m is among the block's.
    ARCH_MEMBER uint32_t row_of(int m, int half) const {
        return warp * Shape::WARP_ROWS + m * 16 + half * 8 + lane / 4;
    }
    // The batch row's query that a row of the block belongs to.
    ARCH_MEMBER uint32_t* queries() const {
        ARCH_DYN_SMEM(smem);
        return reinterpret_cast<uint32_t*>(smem + Shape::QUERIES_AT);
    }

    // The query head of a row of the block, whose rows are the part's from first_row on.
    ARCH_MEMBER uint32_t head_of(const Work& work, uint32_t first_row, uint32_t r) const {
        const uint32_t last = work.rows() - 1, row = first_row + r;
        return (work.part.head + work.part.q_start - queries()[r]) * group +
               (row < last ? row : last);
    }
    ARCH_MEMBER const Q* query_at(const Work& work, uint32_t first_row, uint32_t r) const {
        const int64_t token = work.row.first_token + queries()[r];
        const int64_t head = head_of(work, first_row, r);
        return reinterpret_cast<const Q*>(p.q) + (token * p.q_token + head * p.q_head);
    }

    // Of a row's 16 elements k the eight words, as operand A wants them in memory: the lanes of
    // KeyFragments take e4m3 elements in fours.
    static ARCH_MEMBER void permute_q(arch::vec4& a, arch::vec4& b) {
        if (!NARROW) return;
        const arch::vec4 lo = a, hi = b;
        a = {lo.x, lo.z, hi.x, hi.z};
        b = {lo.y, lo.w, hi.y, hi.w};
    }

    ARCH_MEMBER arch::vec4 q_chunk(const Q* from, uint32_t d, const QueryScale& scale) const {
        if (d >= p.head_dim) return {0, 0, 0, 0};
        arch::vec4 v = arch::load_global(reinterpret_cast<const arch::vec4*>(from + d));
        v.x = (v.x & scale.q_and_mask) ^ scale.q_xor_mask;
        v.y = (v.y & scale.q_and_mask) ^ scale.q_xor_mask;
        v.z = (v.z & scale.q_and_mask) ^ scale.q_xor_mask;
        v.w = (v.w & scale.q_and_mask) ^ scale.q_xor_mask;
        return v;
    }

    ARCH_MEMBER void load_queries(const Work& work, const QueryScale& scale, uint32_t first_row) {
        if constexpr (Shape::REGISTER_Q) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Q* from = query_at(work, first_row, row_of(0, half));
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint32_t t = lane % 4;
                        const uint32_t d = 16 * k + (NARROW ? 4 * t + 2 * i : 2 * t + 8 * i);
                        uint32_t pair = 0;
                        if (d < p.head_dim)
                            pair = arch::load_global(reinterpret_cast<const uint32_t*>(from + d));
                        q_fragments[k][2 * i + half] = (pair & scale.q_and_mask) ^ scale.q_xor_mask;
                    }
            }
        } else {
            ARCH_DYN_SMEM(smem);
            constexpr int PIECES = Shape::ROWS * STEPS / Shape::THREADS;
#pragma unroll 4
            for (int i = 0; i < PIECES; i++) {
                const uint32_t piece = i * Shape::THREADS + threadIdx.x;
                const uint32_t r = piece / STEPS, k = piece % STEPS;
                const Q* from = query_at(work, first_row, r);
                arch::vec4 a = q_chunk(from, 16 * k, scale), b = q_chunk(from, 16 * k + 8, scale);
                permute_q(a, b);
                uint8_t* tile = smem + Shape::Q_AT;
                *reinterpret_cast<arch::vec4*>(tile + tile_offset<QTile>(r, 2 * k)) = a;
                *reinterpret_cast<arch::vec4*>(tile + tile_offset<QTile>(r, 2 * k + 1)) = b;
            }
        }
    }

    ARCH_MEMBER void multiply_keys(float (&s)[M][N][4]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
        const RowFragments<QTile> rows(arch::opaque(ring + Shape::Q_AT), warp * Shape::WARP_ROWS);
        Keys keys(tile);
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
                if constexpr (Shape::REGISTER_Q) {
#pragma unroll
                    for (int i = 0; i < 4; i++) a[m][i] = q_fragments[k][i];
                } else {
                    rows.load(a[m], m * 16, k);
                }
            }
#pragma unroll
            for (int n = 0; n < N; n += Keys::COUNT) {
                keys.load(n * 8, k);
#pragma unroll
                for (int i = 0; i < Keys::COUNT; i++) {
                    uint32_t b0, b1;
                    keys.get(i, b0, b1);
#pragma unroll
                    for (int m = 0; m < M; m++) arch::mma(s[m][n + i], a[m], b0, b1, Q{});
                }
            }
        }
    }

    ARCH_MEMBER void multiply_values(const float (&s)[M][N][4]) {
        Values values(tile);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float (&pair)[4] = s[m][n + i / 2];
                    a[m][i] = arch::pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1], P{});
                }
#pragma unroll
            for (int d = 0; d < STEPS; d += Values::PAIRS) {
                values.load(n * 8, d);
#pragma unroll
                for (int pair = 0; pair < Values::PAIRS; pair++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        uint32_t b0, b1;
                        values.get(pair, half, b0, b1);
#pragma unroll
                        for (int m = 0; m < M; m++)
                            arch::mma(o[m][2 * (d + pair) + half], a[m], b0, b1, P{});
                    }
            }
        }
    }

    ARCH_MEMBER void next_tile() {
        tile = tile == ring + (SLOTS - 1) * Shape::SLOT_BYTES ? ring : tile + Shape::SLOT_BYTES;
    }
    // The slot that was computed last is asked for again.
    ARCH_MEMBER uint32_t free_slot() const {
        return tile == ring ? ring + (SLOTS - 1) * Shape::SLOT_BYTES : tile - Shape::SLOT_BYTES;
    }

    ARCH_MEMBER void all_keys(uint32_t index, const Work& work, const QueryScale& scale,
                              uint32_t first_row, const BlockSize& block_size) {
        const uint32_t last = work.rows() - 1;
        const uint32_t end_row =
            last - first_row < Shape::ROWS ? last : first_row + Shape::ROWS - 1;
        const VisibleKeys keys = VisibleKeys::of<Has>(
            p, plan_of(step_of(p.step), p.plan), work.row, work.part,
            work.part.q_start + first_row / group, work.part.q_start + end_row / group);
        TileLoader<Shape> loader(p, work.row, block_size, work.part.head);
        loader.look_up(keys.start, keys.end);
        tile = ring;
        loader.load_keys(ring, keys.start, keys.end);
        loader.load_values(ring + Shape::SLOT_BYTES, keys.start, keys.end);
        loader.look_up(keys.start + Shape::KEYS, keys.end);
        // Rows beyond the last compute it again and write nothing.
        if (threadIdx.x < Shape::ROWS) {
            const uint32_t r = first_row + threadIdx.x;
            queries()[threadIdx.x] = work.part.q_start + (r < last ? r : last) / group;
        }
        arch::sync_threads();
        load_queries(work, scale, first_row);
#pragma unroll
        for (int m = 0; m < M; m++) {
            softmax[m] = Softmax();
#pragma unroll
            for (int d = 0; d < D / 8; d++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[m][d][i] = 0.0f;
        }
        static_assert(SLOTS == 3, "a tile's V is asked for before its K is computed");
        for (int32_t key = keys.start; key < keys.end; key += Shape::KEYS) {
            arch::cp_async_wait<SLOTS - 2>();
            arch::sync_threads();
            loader.load_keys(free_slot(), key + Shape::KEYS, keys.end);
            float s[M][N][4];
            multiply_keys(s);
            next_tile();

            const bool all_seen = keys.template all_seen<Has>(key, Shape::KEYS);
            if (Has::HAS_BIAS || !all_seen) {
#pragma unroll
                for (int m = 0; m < M; m++) {
                    const uint32_t own[2] = {queries()[row_of(m, 0)], queries()[row_of(m, 1)]};
                    if (Has::HAS_BIAS) apply_soft_cap<Has>(s[m], scale.scale);
                    if (Has::HAS_ALIBI && p.alibi_slopes != 0) {
                        const Work again(p, index, group);
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            QueryRow row = QueryRow::of<Has>(
                                p, keys.first_position + static_cast<int32_t>(own[half]), keys.end);
                            row.set_slope(p, head_of(again, first_row, row_of(m, half)));
                            apply_alibi(s[m], half, key, row);
                        }
                    }
                    if (all_seen) continue;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        QueryRow row = QueryRow::of<Has>(
                            p, keys.first_position + static_cast<int32_t>(own[half]), keys.end);
                        if (Has::HAS_MASK) {
                            const Work again(p, index, group);
                            row.set_mask(RowMask::of(plan_of(step_of(p.step), p.plan),
                                                     again.row.kv_len, again.part.row),
                                         own[half]);
                        }
                        apply_mask<Has>(s[m], half, key, row);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                float correction[2];
                if (!softmax[m].update(s[m], scale.factor, correction)) continue;
#pragma unroll
                for (int d = 0; d < D / 8; d++)
#pragma unroll
                    for (int i = 0; i < 4; i++) o[m][d][i] *= correction[i / 2];
            }

            arch::cp_async_wait<SLOTS - 2>();
            arch::sync_threads();
            loader.load_values(free_slot(), key + Shape::KEYS, keys.end);
            loader.look_up(key + 2 * Shape::KEYS, keys.end);
            multiply_values(s);
            next_tile();
        }
        arch::cp_async_wait<0>();
    }

    // Four outputs in a row of the pair of fragments `pair`, `x` of row `half` of 16 rows m:
    // lanes of 16-bit values have two of each fragment, and exchange with the lane next to them.
    ARCH_MEMBER void write_output(uint32_t* to, int m, int half, int pair, float factor) const {
        const float (&a)[4] = o[m][2 * pair];
        const float (&b)[4] = o[m][2 * pair + 1];
        const uint32_t t = lane % 4;
        uint32_t d;
        arch::vec2 out;
        if (NARROW) {
            d = 16 * pair + 4 * t;
            out = {arch::pack(a[2 * half] * factor, b[2 * half] * factor, Q{}),
                   arch::pack(a[2 * half + 1] * factor, b[2 * half + 1] * factor, Q{})};
        } else {
            const uint32_t x = arch::pack(a[2 * half] * factor, a[2 * half + 1] * factor, Q{});
            const uint32_t y = arch::pack(b[2 * half] * factor, b[2 * half + 1] * factor, Q{});
            const uint32_t other = arch::shfl_xor(t % 2 == 0 ? y : x, 1);
            out = t % 2 == 0 ? arch::vec2{x, other} : arch::vec2{other, y};
            d = 16 * pair + t % 2 * 8 + t / 2 * 4;
        }
        if (to != nullptr && d < p.head_dim) *reinterpret_cast<arch::vec2*>(to + d / 2) = out;
    }
    ARCH_MEMBER void write_state(float* to, int m, int half, int pair) const {
        const auto store = [&](uint32_t d, float x, float y) {
            if (d < p.head_dim)
                *reinterpret_cast<arch::vec2*>(to + d) = {arch::as_u32(x), arch::as_u32(y)};
        };
        each_output<KV>(o[m][2 * pair], o[m][2 * pair + 1], pair, half, lane % 4, store);
    }

    ARCH_MEMBER void write(uint32_t index, float factor, uint32_t first_row) {
        const Work work(p, index, group);
        const Target target = work.target(p, value_scale<KV>);
        const uint32_t partial = work.part.partial;
#pragma unroll
        for (int m = 0; m < M; m++) {
            softmax[m].reduce();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t r = first_row + row_of(m, half);
                const float max = softmax[m].max[half] * factor, sum = softmax[m].sum[half];
                const bool there = r < work.rows();
                if (partial == INFLIGHT_WHOLE) {
                    Normal n = {0.0f, 0.0f};
                    uint8_t* to = nullptr;
                    if (there) {
                        n = normal(p, target, target.head(r), max, sum);
                        to = output_at<Q>(p, target, r, 0);
                        if (lane % 4 == 0) write_lse(p, target, r, n.lse);
                    }
                    // All lanes: they exchange what they write.
#pragma unroll
                    for (int pair = 0; pair < STEPS; pair++)
                        write_output(reinterpret_cast<uint32_t*>(to), m, half, pair, n.factor);
                } else if (there) {
                    float* to = state_o(p, partial, group, r);
                    if (lane % 4 == 0) write_state_ml(p, partial, group, r, max, sum);
#pragma unroll
                    for (int pair = 0; pair < STEPS; pair++) write_state(to, m, half, pair);
                }
            }
        }
    }

   public:
    ARCH_MEMBER Prefill(const inflight_attention_params& p, const uint8_t* smem)
        : p(p), ring(arch::smem_u32(smem)), group(p.num_q_heads / p.num_kv_heads) {}

    ARCH_MEMBER void compute(uint32_t index, const BlockSize& block_size) {
        for (uint32_t first_row = 0;; first_row += Shape::ROWS) {
            const Work work(p, index, group);
            if (first_row >= work.rows()) break;
            // No one reads the last tiles, or the queries' numbers, any more.
            arch::sync_threads();
            const QueryScale scale = QueryScale::of<Has>(
                p, kv_scale(p.k_scale, p.scale_stride, work.part.head) * key_scale<Q, KV>);
            all_keys(index, work, scale, first_row, block_size);
            write(index, scale.factor, first_row);
        }
        const uint32_t merge = load_part(plan_of(step_of(p.step), p.plan), index).merge;
        if (merge == INFLIGHT_WHOLE) return;
        const inflight_merge states = load_merge(plan_of(step_of(p.step), p.plan), merge);
        if (arrives_last(p, merge, states.count, threadIdx.x, queries(),
                         [] { arch::sync_threads(); }))
            merge_states<Q, Shape::WARPS>(p, states,
                                          Work(p, index, group).target(p, value_scale<KV>), warp);
        // The flag is read before the queries' numbers take its place.
        arch::sync_threads();
    }
};

template <class Q, class Traits, class Has>
ARCH_FN void prefill(const inflight_attention_params& p) {
    ARCH_DYN_SMEM(smem);
    arch::wait_for_prior_kernel();
    // Read again for every part, as in Work.
    const auto plan = [&] { return plan_of(step_of(p.step), p.plan); };
    if (blockIdx.x >= plan()->num_shares) return;
    const BlockSize block_size = BlockSize::of(step_of(p.step)->block_size);
    for (uint32_t i = share_indptr(plan(), blockIdx.x); i < share_indptr(plan(), blockIdx.x + 1);
         i++)
        Prefill<Q, Traits, Has>(p, smem).compute(i, block_size);
    arch::let_next_kernel_start();
}

}  // namespace inflight

#define INFLIGHT_PREFILL_KERNELS(...) \
    INFLIGHT_ATTENTION_KERNELS(prefill, NoFeature, inflight_attention_params, __VA_ARGS__)
