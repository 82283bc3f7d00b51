// Attention of many queries over a paged cache: prefill, and chunks of it.
//
// Query rows are the queries of a part times the heads that share its KV head. A block takes 128 of
// them at a time through the keys that any of them sees, as in FlashAttention-2 (Dao, 2023): products
// stay in registers, become weights, and are operand A of the product with V. Keys of the next tile
// are on their way meanwhile. Tiles that all rows see whole take no masking.
#pragma once

#include "../../common/state.cuh"
#include "tiles.cuh"
#include "weights.cuh"

namespace inflight {

template <class Q, class KV, int D, bool GENERAL>
class Prefill {
    using Shape = PrefillShape<KV, D>;
    using QTile = typename Shape::QTile;
    using KvTile = typename Shape::KvTile;
    using Keys = KeyFragments<Q, KV, KvTile>;
    using Values = ValueFragments<Q, KV, KvTile>;
    static constexpr int M = Shape::M;
    static constexpr int N = Shape::KEYS / 8;
    static constexpr int STEPS = D / 16;
    static constexpr int SLOTS = Shape::SLOTS;
    static constexpr bool NARROW = sizeof(KV) == 1;

    const inflight_attention_params& p;
    const inflight_plan* const plan;
    uint8_t* const smem;
    const uint32_t ring;  // of tiles
    const uint32_t group;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t tile = 0;  // address of the one that is computed next

    uint32_t q_fragments[Shape::REGISTER_Q ? STEPS : 1][4];
    float o[M][D / 8][4];
    Weights weights[M];

    // What a lane's row `half` of 16 rows m is among the block's.
    ARCH_MEMBER uint32_t row_of(int m, int half) const {
        return warp * Shape::WARP_ROWS + m * 16 + half * 8 + lane / 4;
    }
    // The batch row's query that a row of the block belongs to.
    ARCH_MEMBER uint32_t* queries() const {
        return reinterpret_cast<uint32_t*>(smem + Shape::QUERIES_AT);
    }

    ARCH_MEMBER const Q* query_at(const Row& row, uint32_t first_head, uint32_t first_row,
                              uint32_t last_row, uint32_t r, uint32_t q_start) const {
        const uint32_t query = queries()[r];
        const uint32_t packed = first_row + r < last_row ? first_row + r : last_row;
        const uint32_t head = first_head + packed - (query - q_start) * group;
        return reinterpret_cast<const Q*>(p.q) +
               (static_cast<int64_t>(row.first_token + query) * p.q_token +
                static_cast<int64_t>(head) * p.q_head);
    }

    // Of a row's 16 elements k the eight words, as operand A wants them in memory: the lanes of
    // KeyFragments take e4m3 elements in fours.
    static ARCH_MEMBER void permute_q(arch::vec4& a, arch::vec4& b) {
        if (!NARROW) return;
        const arch::vec4 lo = a, hi = b;
        a = {lo.x, lo.z, hi.x, hi.z};
        b = {lo.y, lo.w, hi.y, hi.w};
    }

    ARCH_MEMBER arch::vec4 q_chunk(const Q* from, uint32_t d, const LogitRules& rules) const {
        if (d >= p.head_dim) return {0, 0, 0, 0};
        arch::vec4 v = arch::load_const(reinterpret_cast<const arch::vec4*>(from + d));
        v.x = (v.x & rules.q_keep) ^ rules.q_flip;
        v.y = (v.y & rules.q_keep) ^ rules.q_flip;
        v.z = (v.z & rules.q_keep) ^ rules.q_flip;
        v.w = (v.w & rules.q_keep) ^ rules.q_flip;
        return v;
    }

    template <class At>
    ARCH_MEMBER void load_queries(const LogitRules& rules, At query_row) {
        if constexpr (Shape::REGISTER_Q) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Q* from = query_row(row_of(0, half));
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint32_t t = lane % 4;
                        const uint32_t d = 16 * k + (NARROW ? 4 * t + 2 * i : 2 * t + 8 * i);
                        uint32_t pair = 0;
                        if (d < p.head_dim)
                            pair = arch::load_const(reinterpret_cast<const uint32_t*>(from + d));
                        q_fragments[k][2 * i + half] = (pair & rules.q_keep) ^ rules.q_flip;
                    }
            }
        } else {
            constexpr int PIECES = Shape::ROWS * STEPS / Shape::THREADS;
#pragma unroll 4
            for (int i = 0; i < PIECES; i++) {
                const uint32_t piece = i * Shape::THREADS + threadIdx.x;
                const uint32_t r = piece / STEPS, k = piece % STEPS;
                const Q* from = query_row(r);
                arch::vec4 a = q_chunk(from, 16 * k, rules), b = q_chunk(from, 16 * k + 8, rules);
                permute_q(a, b);
                uint8_t* tile = smem + Shape::Q_AT;
                *reinterpret_cast<arch::vec4*>(tile + QTile::at(r, 2 * k)) = a;
                *reinterpret_cast<arch::vec4*>(tile + QTile::at(r, 2 * k + 1)) = b;
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
        const RowFragments<QTile> queries(arch::opaque(ring + Shape::Q_AT),
                                          warp * Shape::WARP_ROWS);
        Keys keys(tile);
#pragma unroll
        for (int step = 0; step < STEPS; step += Keys::K_STEPS) {
            uint32_t a[Keys::K_STEPS][M][4];
#pragma unroll
            for (int k = 0; k < Keys::K_STEPS; k++)
#pragma unroll
                for (int m = 0; m < M; m++) {
                    if constexpr (Shape::REGISTER_Q) {
#pragma unroll
                        for (int i = 0; i < 4; i++) a[k][m][i] = q_fragments[step + k][i];
                    } else {
                        queries.load(a[k][m], m * 16, step + k);
                    }
                }
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                keys.load(n * 8, step);
#pragma unroll
                for (int k = 0; k < Keys::K_STEPS; k++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        uint32_t b0, b1;
                        keys.get(half, k, b0, b1);
#pragma unroll
                        for (int m = 0; m < M; m++)
                            arch::mma(s[m][n + half], a[k][m], b0, b1, Q{});
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
                    const float(&pair)[4] = s[m][n + i / 2];
                    a[m][i] = arch::pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1], Q{});
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
                            arch::mma(o[m][2 * (d + pair) + half], a[m], b0, b1, Q{});
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

    ARCH_MEMBER void all_keys(TileLoader<KV, D>& loader, const SeenKeys& keys, const LogitRules& rules,
                          uint32_t first_row, uint32_t last_row, uint32_t first_head,
                          uint32_t q_start) {
        static_assert(SLOTS == 3, "a tile's V is asked for before its K is computed");
        for (int32_t key = keys.start; key < keys.end; key += Shape::KEYS) {
            arch::cp_async_wait<SLOTS - 2>();
            arch::sync_threads();
            loader.load_keys(free_slot(), key + Shape::KEYS, keys.end);
            float s[M][N][4];
            multiply_keys(s);
            next_tile();

            const bool free = keys.free(key, Shape::KEYS);
            if (GENERAL || !free) {
#pragma unroll
                for (int m = 0; m < M; m++) {
                    const uint32_t own[2] = {queries()[row_of(m, 0)], queries()[row_of(m, 1)]};
                    if (GENERAL) {
                        float slopes[2] = {0.0f, 0.0f};
                        if (p.alibi_slopes != 0) {
                            const auto of = reinterpret_cast<const float*>(p.alibi_slopes);
#pragma unroll
                            for (int half = 0; half < 2; half++) {
                                uint32_t packed = first_row + row_of(m, half);
                                if (packed > last_row) packed = last_row;
                                const uint32_t head =
                                    first_head + packed - (own[half] - q_start) * group;
                                slopes[half] = arch::load_const(of + head) * LOG2_E;
                            }
                        }
                        bend(s[m], key, p, keys, rules.scale, own, slopes);
                    }
                    if (!free) hide<GENERAL>(s[m], key, p, keys, own);
                }
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                float correction[2];
                if (!weights[m].update(s[m], rules.factor, correction)) continue;
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
    }

    // Four outputs in a row of the pair of fragments `pair`, `x` of row `half` of 16 rows m:
    // lanes of 16-bit values have two of each fragment, and exchange with the lane beside.
    ARCH_MEMBER void write_output(uint32_t* to, int m, int half, int pair, float factor) const {
        const float(&a)[4] = o[m][2 * pair];
        const float(&b)[4] = o[m][2 * pair + 1];
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
        const float(&a)[4] = o[m][2 * pair];
        const float(&b)[4] = o[m][2 * pair + 1];
        const uint32_t t = lane % 4;
        const auto store = [&](uint32_t d, float x, float y) {
            if (d < p.head_dim)
                *reinterpret_cast<arch::vec2*>(to + d) = {arch::as_u32(x), arch::as_u32(y)};
        };
        if (NARROW) {
            store(16 * pair + 4 * t, a[2 * half], b[2 * half]);
            store(16 * pair + 4 * t + 2, a[2 * half + 1], b[2 * half + 1]);
        } else {
            store(16 * pair + 2 * t, a[2 * half], a[2 * half + 1]);
            store(16 * pair + 8 + 2 * t, b[2 * half], b[2 * half + 1]);
        }
    }

    ARCH_MEMBER void write(const inflight_part& part, const Target& target, const LogitRules& rules,
                       uint32_t first_row, uint32_t rows) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            weights[m].reduce();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t r = first_row + row_of(m, half);
                const float max = weights[m].max[half] * rules.factor;
                const float sum = weights[m].sum[half];
                const bool there = r < rows;
                if (part.partial == INFLIGHT_WHOLE) {
                    float factor = 0.0f;
                    uint32_t* to = nullptr;
                    if (there) {
                        const Normal n = normal(p, target, target.head(r), max, sum);
                        factor = n.factor;
                        to = reinterpret_cast<uint32_t*>(output_at<Q>(p, target, r, 0));
                        if (lane % 4 == 0) write_lse(p, target, r, n.lse);
                    }
#pragma unroll
                    for (int pair = 0; pair < STEPS; pair++) write_output(to, m, half, pair, factor);
                } else if (there) {
                    float* to = state_o(p, part.partial, group, r);
                    if (lane % 4 == 0)
                        write_state_ml(p, part.partial, group, r, max, sum);
#pragma unroll
                    for (int pair = 0; pair < STEPS; pair++) write_state(to, m, half, pair);
                }
            }
        }
    }

public:
    ARCH_MEMBER Prefill(const inflight_attention_params& p, const inflight_plan* plan, uint8_t* smem)
        : p(p),
          plan(plan),
          smem(smem),
          ring(arch::smem_u32(smem)),
          group(p.num_q_heads / p.num_kv_heads) {}

    ARCH_MEMBER void compute(const inflight_part& part, const Row& row, const BlockSize& block_size) {
        // What unpack_e4m3x4 gives for f16 is to be multiplied by this.
        constexpr float unpacked = NARROW && same_type<Q, arch::f16> ? e4m3_in_f16 : 1.0f;
        const float k_scale = kv_scale(p.k_scale, p.scale_stride, part.head) * unpacked;
        const float v_scale = kv_scale(p.v_scale, p.scale_stride, part.head) * unpacked;
        const LogitRules rules = LogitRules::of<GENERAL>(p, k_scale);
        const Target target = {row.first_token + part.q_start, part.head * group, group, v_scale};
        const uint32_t rows = part.q_len * group, last_row = rows - 1;

        for (uint32_t first_row = 0; first_row < rows; first_row += Shape::ROWS) {
            // No one reads the last tiles, or the queries' numbers, any more.
            arch::sync_threads();
            const uint32_t end_row = last_row - first_row < Shape::ROWS ? last_row
                                                                        : first_row + Shape::ROWS - 1;
            const SeenKeys keys =
                SeenKeys::of<GENERAL>(p, plan, row, part, part.q_start + first_row / group,
                                      part.q_start + end_row / group);
            TileLoader<KV, D> loader(p, row, block_size, part.head);
            loader.look_up(keys.start, keys.end);
            tile = ring;
            loader.load_keys(ring, keys.start, keys.end);
            loader.load_values(ring + Shape::SLOT_BYTES, keys.start, keys.end);
            loader.look_up(keys.start + Shape::KEYS, keys.end);
            // Rows beyond the last compute it again and write nothing.
            if (threadIdx.x < Shape::ROWS) {
                const uint32_t r = first_row + threadIdx.x;
                queries()[threadIdx.x] = part.q_start + (r < last_row ? r : last_row) / group;
            }
            arch::sync_threads();
            load_queries(rules, [&](uint32_t r) {
                return query_at(row, target.first_head, first_row, last_row, r, part.q_start);
            });
#pragma unroll
            for (int m = 0; m < M; m++) {
                weights[m] = Weights();
#pragma unroll
                for (int d = 0; d < D / 8; d++)
#pragma unroll
                    for (int i = 0; i < 4; i++) o[m][d][i] = 0.0f;
            }
            all_keys(loader, keys, rules, first_row, last_row, target.first_head, part.q_start);
            arch::cp_async_wait<0>();
            write(part, target, rules, first_row, rows);
        }

        if (part.merge == INFLIGHT_WHOLE) return;
        const inflight_merge merge = load_merge(plan, part.merge);
        if (arrives_last(p, part.merge, merge.count, threadIdx.x, queries(),
                         [] { arch::sync_threads(); }))
            merge_states<Q, Shape::WARPS>(p, merge, target, warp);
        // The flag is read before the queries' numbers take its place.
        arch::sync_threads();
    }
};

template <class Q, class KV, int D, bool GENERAL>
ARCH_FN void prefill(const inflight_attention_params& p) {
    ARCH_DYN_SMEM(smem);
    arch::wait_for_prior_kernel();
    const inflight_step* step = step_of(p.step);
    const inflight_plan* plan = plan_of(step, p.plan);
    if (blockIdx.x >= plan->num_shares) return;
    const uint32_t size = step->block_size;
    const BlockSize block_size = BlockSize::of(size);
    const uint32_t end = share_indptr(plan, blockIdx.x + 1);
    for (uint32_t i = share_indptr(plan, blockIdx.x); i < end; i++) {
        const inflight_part part = load_part(plan, i);
        const Row row = load_row(step, size, part.row);
        Prefill<Q, KV, D, GENERAL>(p, plan, smem).compute(part, row, block_size);
    }
    arch::let_next_kernel_start();
}

}  // namespace inflight

// Plain and general kernels of a type of queries, one of the cache, and a head_dim.
#define INFLIGHT_PREFILL(name, Q, KV, D)                                                         \
    ARCH_KERNEL(inflight_prefill_##name, INFLIGHT_PREFILL_THREADS_D##D,                          \
                (inflight::PrefillShape<KV, D>::BLOCKS), inflight_attention_params,              \
                inflight::prefill<Q, KV, D, false>)                                              \
    ARCH_KERNEL(inflight_prefill_##name##_general, INFLIGHT_PREFILL_THREADS_D##D,                \
                (inflight::PrefillShape<KV, D>::BLOCKS), inflight_attention_params,              \
                inflight::prefill<Q, KV, D, true>)
