// Work that is a number of equal items for each token: which of them a thread does.
#pragma once

#include "../arch/arch.cuh"

namespace inflight {

// A thread keeps its item while it goes from token to token, so that what the item stands for is
// found once. Loops go from `item` by `item_step`, and for each from `token` by `token_step`.
//
// Any grid does all of the work; with y = ceil(items / threads) no thread has a second item, and x
// blocks share the tokens.
struct TokenItems {
    uint32_t item;
    uint32_t item_step;
    uint64_t token;
    uint64_t token_step;
};

ARCH_FN TokenItems token_items(uint32_t items, uint32_t threads) {
    const uint32_t thread = threadIdx.x;
    if (2 * items > threads) {
        return {blockIdx.y * threads + thread, gridDim.y * threads, blockIdx.x, gridDim.x};
    }
    // Several tokens at a time, or most threads would have nothing to do.
    const uint32_t tokens = items == 0 ? 1 : threads / items;
    const uint32_t nth = items == 0 ? 0 : thread / items;
    const bool idle = nth >= tokens || blockIdx.y > 0;
    return {idle ? items : thread - nth * items, items,
            static_cast<uint64_t>(blockIdx.x) * tokens + nth,
            static_cast<uint64_t>(gridDim.x) * tokens};
}

}  // namespace inflight
