/* What kernels read: a step's buffer, and one struct per kernel family. Plain C, the only file that
 * bindgen reads; src/params.rs is what it makes, and every module of the library that writes or
 * reads such a struct has it from there.
 *
 * Device addresses are uint64_t: host code of any width fills them in, and they need no cast.
 * Strides are in elements. "Row" is a row of the batch, "token" a query token of the step.
 */
#ifndef INFLIGHT_KERNEL_PARAMS_H
#define INFLIGHT_KERNEL_PARAMS_H

#include <stdint.h>

/* ---- the step buffer -------------------------------------------------------------------------
 * One buffer a step, uploaded by one copy, always at the same device address, so that a captured
 * graph stays valid: every kernel gets this one pointer and reads counts and offsets from it.
 * Offsets are in bytes from the buffer's start; 0 for an array that is not there. */

#define INFLIGHT_STEP_MAGIC 0x31424649u /* "IFB1" */
#define INFLIGHT_MAX_PLANS 8

/* Start of a step's buffer: counts, then the offset of each array. src/batch.rs lays it out. */
struct inflight_step {
    uint32_t magic;       /* INFLIGHT_STEP_MAGIC */
    uint32_t total_bytes; /* of the buffer that are in use */
    uint32_t step[2];     /* the step's id, low and high word */
    uint32_t num_rows;    /* that own tokens */
    uint32_t padded_rows; /* empty rows of a graph's bucket included */
    uint32_t num_tokens;
    uint32_t num_logits;
    uint32_t num_pending;
    uint32_t num_ops;
    uint32_t num_kv_blocks;
    uint32_t block_size;                /* tokens per block */
    uint32_t max_q_len;                 /* tokens of the longest row */
    uint32_t max_kv_len;                /* KV length of the longest row, this step included */
    uint32_t tokens;                    /* u32 [num_tokens] */
    uint32_t positions;                 /* u32 [num_tokens] */
    uint32_t slot_mapping;              /* i64 [num_tokens]; negative: not written */
    uint32_t qo_indptr;                 /* u32 [padded_rows + 1] */
    uint32_t kv_indptr;                 /* u32 [padded_rows + 1] */
    uint32_t kv_last_page_len;          /* u32 [padded_rows] */
    uint32_t logits_indices;            /* u32 [num_logits] */
    uint32_t pending;                   /* inflight_pending [num_pending] */
    uint32_t ops;                       /* inflight_block_op [num_ops] */
    uint32_t kv_indices;                /* u32 [num_kv_blocks] */
    uint32_t plans[INFLIGHT_MAX_PLANS]; /* inflight_plan of each attention group */
};

/* An input token that is not known yet: the device takes it from an earlier step. */
struct inflight_pending {
    uint32_t token; /* index into `tokens` */
    /* That step's id is so much below this step's; at least 1. Steps that were abandoned count,
     * since their ids are not given again. */
    uint32_t steps_back;
    uint32_t logits; /* index among that step's logits */
};

/* Copy of a block in every layer's K and V, made before the step's kernels run. */
struct inflight_block_op {
    uint32_t kind; /* 0 copy, 1 swap out, 2 swap in */
    uint32_t src;  /* block read: of the host pool for a swap in, else of the device pool */
    uint32_t dst;  /* block written: of the host pool for a swap out, else of the device pool */
};

/* Who computes what, for the layers of one attention group. Offsets count from this struct. */
struct inflight_plan {
    uint32_t num_shares; /* thread blocks with work; others of the grid return */
    uint32_t num_parts;
    uint32_t num_merges;
    uint32_t share_indptr; /* u32 [num_shares + 1]: block i computes parts [i]..[i + 1] */
    uint32_t parts;        /* inflight_part [num_parts] */
    uint32_t merges;       /* inflight_merge [num_merges] */
    uint32_t mask_bits;    /* u8: see Mask in src/kernels/attention.rs; 0 without one */
    uint32_t mask_indptr;  /* u32 [rows + 1] */
    uint32_t mask_widths;  /* u32 [rows] */
    uint32_t reserved[3];
};

#define INFLIGHT_WHOLE 0xffffffffu

/* Part of a tile: queries of a row over a range of keys. Query i of a row is at position
 * kv_len - q_len(row) + i. Its state holds, for each query and KV head, output and log-sum-exp; 0
 * and minus infinity for a query that sees none of these keys. */
struct inflight_part {
    uint32_t row;
    uint32_t head;      /* first KV head */
    uint32_t num_heads; /* all, or one: always one on a GPU */
    uint32_t q_start;   /* first query, counted from the row's first */
    uint32_t q_len;
    uint32_t kv_start; /* first key of the sequence; no earlier one is read: it may be evicted */
    uint32_t kv_end;   /* kv_start where no key is seen */
    /* First of its q_len * num_heads states; INFLIGHT_WHOLE where it is its tile's only part and
     * writes the output itself. */
    uint32_t partial;
    uint32_t merge; /* that its states belong to; INFLIGHT_WHOLE: none */
};

/* A tile computed in parts: the states of part p begin at partial + p * q_len * num_heads, in the
 * order of their keys. */
struct inflight_merge {
    uint32_t row;
    uint32_t head;
    uint32_t num_heads;
    uint32_t q_start;
    uint32_t q_len;
    uint32_t partial;
    uint32_t count;      /* parts, at least 2 */
    uint32_t first_part; /* they follow one another in the plan */
};

/* ---- attention ------------------------------------------------------------------------------- */

#define INFLIGHT_NO_WINDOW 0xffffffffu
#define INFLIGHT_CAUSAL 1u

/* Prefill, decode and mixtures. Semantics: src/kernels/attention.rs.
 * A state is `group` query heads of a query over some keys: for query head g of state s,
 * state_o[(s * group + g) * head_dim + d], not divided by the sum, and
 * state_ml[(s * group + g) * 2]: largest logit to base 2, and sum of 2^(logit - largest). */
struct inflight_attention_params {
    uint64_t step; /* struct inflight_step */
    uint64_t q;    /* [tokens, num_q_heads, head_dim] f16 or bf16 */
    uint64_t o;    /* like q */
    uint64_t lse;  /* f32 [tokens, num_q_heads], natural logarithm; or 0 */
    uint64_t k;    /* cache, first element of block 0 */
    uint64_t v;
    int64_t q_token, q_head, o_token, o_head;
    int64_t k_block, k_token, k_head;
    int64_t v_block, v_token, v_head;
    uint64_t k_scale; /* f32, one, or one a KV head, of an e4m3 cache; else 0 */
    uint64_t v_scale;
    uint64_t alibi_slopes; /* f32 [num_q_heads] or 0 */
    uint64_t sinks;        /* f32 [num_q_heads] or 0; natural logits */
    uint64_t state_o;      /* f32 */
    uint64_t state_ml;     /* f32 pairs */
    uint64_t arrived;      /* u32 [merges]: 0 before a launch, and after it */
    uint32_t plan;         /* which of the step's plans */
    uint32_t num_q_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim; /* of the tensors: at most that of the kernel */
    float scale;
    float soft_cap;        /* 0: none */
    uint32_t window_left;  /* INFLIGHT_NO_WINDOW: none */
    uint32_t flags;        /* INFLIGHT_CAUSAL */
    uint32_t scale_stride; /* of k_scale and v_scale: 0 for one, 1 for one per head */
    uint32_t reserved;
};

/* Rows of both kinds in one launch: blocks 0.. compute the shares of the prefill plan, those after
 * them the shares of the decode plan, others nothing. Both sides run at once, so their states and
 * counters lie apart. */
struct inflight_mixed_params {
    struct inflight_attention_params decode;
    struct inflight_attention_params prefill;
};

/* Merging states of the same queries over different keys (cascade): outputs are divided by their
 * sums, LSE is the natural logarithm. out = sum of exp(lse_i - lse) * o_i, in the order given. */
#define INFLIGHT_MERGE_MAX 16
#define INFLIGHT_MERGE_THREADS 128

struct inflight_merge_params {
    uint64_t o[INFLIGHT_MERGE_MAX];   /* [tokens, heads, head_dim], type of the kernel */
    uint64_t lse[INFLIGHT_MERGE_MAX]; /* f32 [tokens, heads] */
    uint64_t out;
    uint64_t out_lse; /* or 0 */
    int64_t o_token, o_head, out_token, out_head;
    uint32_t count;
    uint32_t num_tokens;
    uint32_t num_heads;
    uint32_t head_dim;
};

/* ---- cache ----------------------------------------------------------------------------------- */

/* Threads of a block. */
#define INFLIGHT_APPEND_THREADS 128
#define INFLIGHT_COPY_THREADS 256

#define INFLIGHT_ROPE_NONE 0u
#define INFLIGHT_ROPE_HALF 1u        /* pairs i and i + rotary_dim / 2 */
#define INFLIGHT_ROPE_INTERLEAVED 2u /* pairs 2 i and 2 i + 1 */

/* New keys and values to their slots, rotated and quantised on the way; queries rotated in place.
 */
struct inflight_append_params {
    uint64_t step;
    uint64_t k_new; /* [tokens, num_kv_heads, head_dim], type of the kernel */
    uint64_t v_new;
    uint64_t q; /* [tokens, num_q_heads, head_dim] rotated in place, or 0 */
    uint64_t k; /* cache */
    uint64_t v;
    uint64_t k_scale; /* as in attention; numbers are divided by it */
    uint64_t v_scale;
    uint64_t cos_sin; /* f32 [max_position, rotary_dim]: cosines, then sines; or 0 */
    int64_t k_new_token, k_new_head, v_new_token, v_new_head, q_token, q_head;
    int64_t k_block, k_token, k_head;
    int64_t v_block, v_token, v_head;
    uint32_t num_q_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;
    uint32_t rope; /* INFLIGHT_ROPE_* */
    uint32_t rotary_dim;
    uint32_t max_position; /* rows of cos_sin; a later position is not rotated or written */
    uint32_t scale_stride;
    uint32_t reserved;
};

/* One array of blocks (K or V of a layer) on either side. Blocks of an array lie `*_block` bytes
 * apart. */
struct inflight_copy_array {
    uint64_t from;
    uint64_t to;
    uint64_t from_block;
    uint64_t to_block;
};

/* Whole blocks of many arrays in one launch: copies within a device, and swaps where one side is
 * page-locked host memory. No block is both read and written. */
struct inflight_copy_params {
    uint64_t arrays;      /* inflight_copy_array [num_arrays] */
    uint64_t pairs;       /* u32 pairs [num_pairs]: from, to */
    uint64_t block_bytes; /* bytes of a block that are copied: a multiple of 16, contiguous */
    uint32_t num_arrays;
    uint32_t num_pairs;
};

#endif
