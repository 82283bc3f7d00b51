// Reading the step buffer: rows, plans, block tables, and where a key lies in the cache.
#pragma once

#include "../arch/arch.cuh"
#include "../kernel_params.h"

namespace inflight {

template <class T>
ARCH_FN const T* at(const void* base, uint32_t bytes) {
    return reinterpret_cast<const T*>(static_cast<const uint8_t*>(base) + bytes);
}

ARCH_FN const inflight_step* step_of(uint64_t address) {
    return reinterpret_cast<const inflight_step*>(address);
}

// Division of keys (below 2^31) by the block size, without a division: block tables are looked up
// once per key. With l = ceil(log2 size) and magic = ceil(2^(31 + l) / size), which fits 32 bits,
// key / size is exactly key * magic >> (31 + l).
struct BlockSize {
    uint32_t size, magic, shift;

    static ARCH_MEMBER BlockSize of(uint32_t size) {
        uint32_t l = 0;
        while (l < 31 && (1u << l) < size) l++;
        // Powers of two, the usual sizes, need no division even here.
        const uint32_t magic = size == 1u << l
                                   ? 1u << 31
                                   : static_cast<uint32_t>(((1ull << (31 + l)) + size - 1) / size);
        return {size, magic, l};
    }
    ARCH_MEMBER uint32_t blocks(uint32_t key) const {
        return static_cast<uint32_t>((static_cast<uint64_t>(key) * magic) >> 31 >> shift);
    }
};

// One row of the batch.
struct Row {
    uint32_t first_token;  // of its queries, among the step's tokens
    uint32_t q_len;
    uint32_t kv_len;
    const uint32_t* table;  // its block ids
};

ARCH_FN Row load_row(const inflight_step* step, uint32_t block_size, uint32_t row) {
    const uint32_t* qo = at<uint32_t>(step, step->qo_indptr) + row;
    const uint32_t* kv = at<uint32_t>(step, step->kv_indptr) + row;
    const uint32_t first_token = arch::load_const(qo), first_block = arch::load_const(kv);
    const uint32_t blocks = arch::load_const(kv + 1) - first_block;
    const uint32_t last = arch::load_const(at<uint32_t>(step, step->kv_last_page_len) + row);
    return {first_token, arch::load_const(qo + 1) - first_token,
            blocks == 0 ? 0 : (blocks - 1) * block_size + last,
            at<uint32_t>(step, step->kv_indices) + first_block};
}

// The plan of an attention group.
ARCH_FN const inflight_plan* plan_of(const inflight_step* step, uint32_t plan) {
    return at<inflight_plan>(step, step->plans[plan]);
}
ARCH_FN uint32_t share_indptr(const inflight_plan* plan, uint32_t share) {
    return arch::load_const(at<uint32_t>(plan, plan->share_indptr) + share);
}
ARCH_FN inflight_part load_part(const inflight_plan* plan, uint32_t part) {
    return at<inflight_part>(plan, plan->parts)[part];
}
ARCH_FN inflight_merge load_merge(const inflight_plan* plan, uint32_t merge) {
    return at<inflight_merge>(plan, plan->merges)[merge];
}

// Where key `key` lies in the cache.
struct Slot {
    uint32_t block, offset;
};
// Only for keys below kv_len: what else a table holds is not to be read.
ARCH_FN Slot slot_of(const uint32_t* table, const BlockSize& size, uint32_t key) {
    const uint32_t index = size.blocks(key);
    return {arch::load_const(table + index), key - index * size.size};
}

// Its address for a head. Strides are read from the parameters each time: registers are dear.
template <int ELEMENT_BYTES>
ARCH_FN uint64_t slot_address(uint64_t cache, int64_t block, int64_t token, int64_t head_stride,
                              uint32_t head, const Slot& slot) {
    const int64_t elements = block * static_cast<int64_t>(slot.block) +
                             token * static_cast<int64_t>(slot.offset) +
                             head_stride * static_cast<int64_t>(head);
    return cache + static_cast<uint64_t>(elements * ELEMENT_BYTES);
}
template <int ELEMENT_BYTES>
ARCH_FN uint64_t key_address(const inflight_attention_params& p, uint32_t head, const Slot& slot) {
    return slot_address<ELEMENT_BYTES>(p.k, p.k_block, p.k_token, p.k_head, head, slot);
}
template <int ELEMENT_BYTES>
ARCH_FN uint64_t value_address(const inflight_attention_params& p, uint32_t head,
                               const Slot& slot) {
    return slot_address<ELEMENT_BYTES>(p.v, p.v_block, p.v_token, p.v_head, head, slot);
}

// Scale of an e4m3 cache's keys or values for a head; 1 for other caches.
ARCH_FN float kv_scale(uint64_t scales, uint32_t stride, uint32_t head) {
    if (scales == 0) return 1.0f;
    return arch::load_global(reinterpret_cast<const float*>(scales) +
                             static_cast<uint64_t>(stride) * head);
}

}  // namespace inflight
