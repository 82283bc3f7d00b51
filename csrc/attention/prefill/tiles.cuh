// Tiles of keys and values from the paged cache to shared memory.
#pragma once

#include "../../common/step.cuh"
#include "shape.cuh"

namespace inflight {

// Asks for one tile after another of a row's keys and values: K of a tile, then its V.
template <class Shape>
class TileLoader {
    static constexpr int WARP_KEYS = Shape::KEYS / Shape::WARPS;
    static_assert(WARP_KEYS <= 32, "a lane looks one key up");

    const inflight_attention_params& p;
    const uint32_t* const table;
    const BlockSize block_size;
    const uint32_t head;
    Slot slot;  // of this lane's key of the tile that is asked for next

    static ARCH_MEMBER uint32_t warp_key() { return threadIdx.x / 32 * WARP_KEYS; }

    ARCH_MEMBER void copy(uint32_t to, uint64_t own, int32_t first, int32_t end) const {
        const int32_t keys = end - first - static_cast<int32_t>(warp_key());
        copy_rows<typename Shape::KvTile, WARP_KEYS, Shape::KV_BYTES>(to, warp_key(), own, keys,
                                                                      p.head_dim);
    }

   public:
    ARCH_MEMBER TileLoader(const inflight_attention_params& p, const Row& row,
                           const BlockSize& block_size, uint32_t head)
        : p(p), table(row.table), block_size(block_size), head(head), slot{0, 0} {}

    // Each lane looks a key up of the tile that is asked for next, well before its address is
    // needed.
    ARCH_MEMBER void look_up(int32_t first, int32_t end) {
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t key = static_cast<uint32_t>(first) + warp_key() + lane;
        slot = {0, 0};
        if (lane < WARP_KEYS && key < static_cast<uint32_t>(end))
            slot = slot_of(table, block_size, key);
    }

    // A group of copies each, an empty one after the last tile: keys from `first` on, zeros from
    // `end` on.
    ARCH_MEMBER void load_keys(uint32_t to, int32_t first, int32_t end) const {
        if (first < end) copy(to, key_address<Shape::KV_BYTES>(p, head, slot), first, end);
        arch::cp_async_commit();
    }
    ARCH_MEMBER void load_values(uint32_t to, int32_t first, int32_t end) const {
        if (first < end) copy(to, value_address<Shape::KV_BYTES>(p, head, slot), first, end);
        arch::cp_async_commit();
    }
};

}  // namespace inflight
