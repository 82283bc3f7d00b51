// Made by bindgen from csrc/kernel_params.h: see tests/kernel_params.rs.

pub const INFLIGHT_STEP_MAGIC: u32 = 826426953;
pub const INFLIGHT_MAX_PLANS: u32 = 8;
pub const INFLIGHT_WHOLE: u32 = 4294967295;
pub const INFLIGHT_NO_WINDOW: u32 = 4294967295;
pub const INFLIGHT_CAUSAL: u32 = 1;
pub const INFLIGHT_MERGE_MAX: u32 = 16;
pub const INFLIGHT_MERGE_THREADS: u32 = 128;
pub const INFLIGHT_APPEND_THREADS: u32 = 128;
pub const INFLIGHT_COPY_THREADS: u32 = 256;
pub const INFLIGHT_ROPE_NONE: u32 = 0;
pub const INFLIGHT_ROPE_HALF: u32 = 1;
pub const INFLIGHT_ROPE_INTERLEAVED: u32 = 2;
#[doc = " Start of a step's buffer: counts, then the offset of each array. src/batch.rs lays it out."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_step {
    #[doc = " INFLIGHT_STEP_MAGIC"]
    pub magic: u32,
    #[doc = " of the buffer that are in use"]
    pub total_bytes: u32,
    #[doc = " the step's id, low and high word"]
    pub step: [u32; 2usize],
    #[doc = " that own tokens"]
    pub num_rows: u32,
    #[doc = " empty rows of a graph's bucket included"]
    pub padded_rows: u32,
    pub num_tokens: u32,
    pub num_logits: u32,
    pub num_pending: u32,
    pub num_ops: u32,
    pub num_kv_blocks: u32,
    #[doc = " tokens per block"]
    pub block_size: u32,
    #[doc = " tokens of the longest row"]
    pub max_q_len: u32,
    #[doc = " KV length of the longest row, this step included"]
    pub max_kv_len: u32,
    #[doc = " u32 [num_tokens]"]
    pub tokens: u32,
    #[doc = " u32 [num_tokens]"]
    pub positions: u32,
    #[doc = " i64 [num_tokens]; negative: not written"]
    pub slot_mapping: u32,
    #[doc = " u32 [padded_rows + 1]"]
    pub qo_indptr: u32,
    #[doc = " u32 [padded_rows + 1]"]
    pub kv_indptr: u32,
    #[doc = " u32 [padded_rows]"]
    pub kv_last_page_len: u32,
    #[doc = " u32 [num_logits]"]
    pub logits_indices: u32,
    #[doc = " inflight_pending [num_pending]"]
    pub pending: u32,
    #[doc = " inflight_block_op [num_ops]"]
    pub ops: u32,
    #[doc = " u32 [num_kv_blocks]"]
    pub kv_indices: u32,
    #[doc = " inflight_plan of each attention group"]
    pub plans: [u32; 8usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_step"][::std::mem::size_of::<inflight_step>() - 128usize];
    ["Alignment of inflight_step"][::std::mem::align_of::<inflight_step>() - 4usize];
    ["Offset of field: inflight_step::magic"]
        [::std::mem::offset_of!(inflight_step, magic) - 0usize];
    ["Offset of field: inflight_step::total_bytes"]
        [::std::mem::offset_of!(inflight_step, total_bytes) - 4usize];
    ["Offset of field: inflight_step::step"][::std::mem::offset_of!(inflight_step, step) - 8usize];
    ["Offset of field: inflight_step::num_rows"]
        [::std::mem::offset_of!(inflight_step, num_rows) - 16usize];
    ["Offset of field: inflight_step::padded_rows"]
        [::std::mem::offset_of!(inflight_step, padded_rows) - 20usize];
    ["Offset of field: inflight_step::num_tokens"]
        [::std::mem::offset_of!(inflight_step, num_tokens) - 24usize];
    ["Offset of field: inflight_step::num_logits"]
        [::std::mem::offset_of!(inflight_step, num_logits) - 28usize];
    ["Offset of field: inflight_step::num_pending"]
        [::std::mem::offset_of!(inflight_step, num_pending) - 32usize];
    ["Offset of field: inflight_step::num_ops"]
        [::std::mem::offset_of!(inflight_step, num_ops) - 36usize];
    ["Offset of field: inflight_step::num_kv_blocks"]
        [::std::mem::offset_of!(inflight_step, num_kv_blocks) - 40usize];
    ["Offset of field: inflight_step::block_size"]
        [::std::mem::offset_of!(inflight_step, block_size) - 44usize];
    ["Offset of field: inflight_step::max_q_len"]
        [::std::mem::offset_of!(inflight_step, max_q_len) - 48usize];
    ["Offset of field: inflight_step::max_kv_len"]
        [::std::mem::offset_of!(inflight_step, max_kv_len) - 52usize];
    ["Offset of field: inflight_step::tokens"]
        [::std::mem::offset_of!(inflight_step, tokens) - 56usize];
    ["Offset of field: inflight_step::positions"]
        [::std::mem::offset_of!(inflight_step, positions) - 60usize];
    ["Offset of field: inflight_step::slot_mapping"]
        [::std::mem::offset_of!(inflight_step, slot_mapping) - 64usize];
    ["Offset of field: inflight_step::qo_indptr"]
        [::std::mem::offset_of!(inflight_step, qo_indptr) - 68usize];
    ["Offset of field: inflight_step::kv_indptr"]
        [::std::mem::offset_of!(inflight_step, kv_indptr) - 72usize];
    ["Offset of field: inflight_step::kv_last_page_len"]
        [::std::mem::offset_of!(inflight_step, kv_last_page_len) - 76usize];
    ["Offset of field: inflight_step::logits_indices"]
        [::std::mem::offset_of!(inflight_step, logits_indices) - 80usize];
    ["Offset of field: inflight_step::pending"]
        [::std::mem::offset_of!(inflight_step, pending) - 84usize];
    ["Offset of field: inflight_step::ops"][::std::mem::offset_of!(inflight_step, ops) - 88usize];
    ["Offset of field: inflight_step::kv_indices"]
        [::std::mem::offset_of!(inflight_step, kv_indices) - 92usize];
    ["Offset of field: inflight_step::plans"]
        [::std::mem::offset_of!(inflight_step, plans) - 96usize];
};
#[doc = " An input token that is not known yet: the device takes it from an earlier step."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_pending {
    #[doc = " index into `tokens`"]
    pub token: u32,
    #[doc = " That step's id is so much below this step's; at least 1. Steps that were abandoned count,\n since their ids are not given again."]
    pub steps_back: u32,
    #[doc = " index among that step's logits"]
    pub logits: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_pending"][::std::mem::size_of::<inflight_pending>() - 12usize];
    ["Alignment of inflight_pending"][::std::mem::align_of::<inflight_pending>() - 4usize];
    ["Offset of field: inflight_pending::token"]
        [::std::mem::offset_of!(inflight_pending, token) - 0usize];
    ["Offset of field: inflight_pending::steps_back"]
        [::std::mem::offset_of!(inflight_pending, steps_back) - 4usize];
    ["Offset of field: inflight_pending::logits"]
        [::std::mem::offset_of!(inflight_pending, logits) - 8usize];
};
#[doc = " Copy of a block in every layer's K and V, made before the step's kernels run."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_block_op {
    #[doc = " 0 copy, 1 swap out, 2 swap in"]
    pub kind: u32,
    #[doc = " block read: of the host pool for a swap in, else of the device pool"]
    pub src: u32,
    #[doc = " block written: of the host pool for a swap out, else of the device pool"]
    pub dst: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_block_op"][::std::mem::size_of::<inflight_block_op>() - 12usize];
    ["Alignment of inflight_block_op"][::std::mem::align_of::<inflight_block_op>() - 4usize];
    ["Offset of field: inflight_block_op::kind"]
        [::std::mem::offset_of!(inflight_block_op, kind) - 0usize];
    ["Offset of field: inflight_block_op::src"]
        [::std::mem::offset_of!(inflight_block_op, src) - 4usize];
    ["Offset of field: inflight_block_op::dst"]
        [::std::mem::offset_of!(inflight_block_op, dst) - 8usize];
};
#[doc = " Who computes what, for the layers of one attention group. Offsets count from this struct."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_plan {
    #[doc = " thread blocks with work; others of the grid return"]
    pub num_shares: u32,
    pub num_parts: u32,
    pub num_merges: u32,
    #[doc = " u32 [num_shares + 1]: block i computes parts [i]..[i + 1]"]
    pub share_indptr: u32,
    #[doc = " inflight_part [num_parts]"]
    pub parts: u32,
    #[doc = " inflight_merge [num_merges]"]
    pub merges: u32,
    #[doc = " u8: see Mask in src/kernels/attention.rs; 0 without one"]
    pub mask_bits: u32,
    #[doc = " u32 [rows + 1]"]
    pub mask_indptr: u32,
    #[doc = " u32 [rows]"]
    pub mask_widths: u32,
    pub reserved: [u32; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_plan"][::std::mem::size_of::<inflight_plan>() - 48usize];
    ["Alignment of inflight_plan"][::std::mem::align_of::<inflight_plan>() - 4usize];
    ["Offset of field: inflight_plan::num_shares"]
        [::std::mem::offset_of!(inflight_plan, num_shares) - 0usize];
    ["Offset of field: inflight_plan::num_parts"]
        [::std::mem::offset_of!(inflight_plan, num_parts) - 4usize];
    ["Offset of field: inflight_plan::num_merges"]
        [::std::mem::offset_of!(inflight_plan, num_merges) - 8usize];
    ["Offset of field: inflight_plan::share_indptr"]
        [::std::mem::offset_of!(inflight_plan, share_indptr) - 12usize];
    ["Offset of field: inflight_plan::parts"]
        [::std::mem::offset_of!(inflight_plan, parts) - 16usize];
    ["Offset of field: inflight_plan::merges"]
        [::std::mem::offset_of!(inflight_plan, merges) - 20usize];
    ["Offset of field: inflight_plan::mask_bits"]
        [::std::mem::offset_of!(inflight_plan, mask_bits) - 24usize];
    ["Offset of field: inflight_plan::mask_indptr"]
        [::std::mem::offset_of!(inflight_plan, mask_indptr) - 28usize];
    ["Offset of field: inflight_plan::mask_widths"]
        [::std::mem::offset_of!(inflight_plan, mask_widths) - 32usize];
    ["Offset of field: inflight_plan::reserved"]
        [::std::mem::offset_of!(inflight_plan, reserved) - 36usize];
};
#[doc = " Part of a tile: queries of a row over a range of keys. Query i of a row is at position\n kv_len - q_len(row) + i. Its state holds, for each query and KV head, output and log-sum-exp; 0\n and minus infinity for a query that sees none of these keys."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_part {
    pub row: u32,
    #[doc = " first KV head"]
    pub head: u32,
    #[doc = " all, or one: always one on a GPU"]
    pub num_heads: u32,
    #[doc = " first query, counted from the row's first"]
    pub q_start: u32,
    pub q_len: u32,
    #[doc = " first key of the sequence; no earlier one is read: it may be evicted"]
    pub kv_start: u32,
    #[doc = " kv_start where no key is seen"]
    pub kv_end: u32,
    #[doc = " First of its q_len * num_heads states; INFLIGHT_WHOLE where it is its tile's only part and\n writes the output itself."]
    pub partial: u32,
    #[doc = " that its states belong to; INFLIGHT_WHOLE: none"]
    pub merge: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_part"][::std::mem::size_of::<inflight_part>() - 36usize];
    ["Alignment of inflight_part"][::std::mem::align_of::<inflight_part>() - 4usize];
    ["Offset of field: inflight_part::row"][::std::mem::offset_of!(inflight_part, row) - 0usize];
    ["Offset of field: inflight_part::head"][::std::mem::offset_of!(inflight_part, head) - 4usize];
    ["Offset of field: inflight_part::num_heads"]
        [::std::mem::offset_of!(inflight_part, num_heads) - 8usize];
    ["Offset of field: inflight_part::q_start"]
        [::std::mem::offset_of!(inflight_part, q_start) - 12usize];
    ["Offset of field: inflight_part::q_len"]
        [::std::mem::offset_of!(inflight_part, q_len) - 16usize];
    ["Offset of field: inflight_part::kv_start"]
        [::std::mem::offset_of!(inflight_part, kv_start) - 20usize];
    ["Offset of field: inflight_part::kv_end"]
        [::std::mem::offset_of!(inflight_part, kv_end) - 24usize];
    ["Offset of field: inflight_part::partial"]
        [::std::mem::offset_of!(inflight_part, partial) - 28usize];
    ["Offset of field: inflight_part::merge"]
        [::std::mem::offset_of!(inflight_part, merge) - 32usize];
};
#[doc = " A tile computed in parts: the states of part p begin at partial + p * q_len * num_heads, in the\n order of their keys."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_merge {
    pub row: u32,
    pub head: u32,
    pub num_heads: u32,
    pub q_start: u32,
    pub q_len: u32,
    pub partial: u32,
    #[doc = " parts, at least 2"]
    pub count: u32,
    #[doc = " they follow one another in the plan"]
    pub first_part: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_merge"][::std::mem::size_of::<inflight_merge>() - 32usize];
    ["Alignment of inflight_merge"][::std::mem::align_of::<inflight_merge>() - 4usize];
    ["Offset of field: inflight_merge::row"][::std::mem::offset_of!(inflight_merge, row) - 0usize];
    ["Offset of field: inflight_merge::head"]
        [::std::mem::offset_of!(inflight_merge, head) - 4usize];
    ["Offset of field: inflight_merge::num_heads"]
        [::std::mem::offset_of!(inflight_merge, num_heads) - 8usize];
    ["Offset of field: inflight_merge::q_start"]
        [::std::mem::offset_of!(inflight_merge, q_start) - 12usize];
    ["Offset of field: inflight_merge::q_len"]
        [::std::mem::offset_of!(inflight_merge, q_len) - 16usize];
    ["Offset of field: inflight_merge::partial"]
        [::std::mem::offset_of!(inflight_merge, partial) - 20usize];
    ["Offset of field: inflight_merge::count"]
        [::std::mem::offset_of!(inflight_merge, count) - 24usize];
    ["Offset of field: inflight_merge::first_part"]
        [::std::mem::offset_of!(inflight_merge, first_part) - 28usize];
};
#[doc = " Prefill, decode and mixtures. Semantics: src/kernels/attention.rs.\n A state is `group` query heads of a query over some keys: for query head g of state s,\n state_o[(s * group + g) * head_dim + d], not divided by the sum, and\n state_ml[(s * group + g) * 2]: largest logit to base 2, and sum of 2^(logit - largest)."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_attention_params {
    #[doc = " struct inflight_step"]
    pub step: u64,
    #[doc = " [tokens, num_q_heads, head_dim] f16 or bf16"]
    pub q: u64,
    #[doc = " like q"]
    pub o: u64,
    #[doc = " f32 [tokens, num_q_heads], natural logarithm; or 0"]
    pub lse: u64,
    #[doc = " cache, first element of block 0"]
    pub k: u64,
    pub v: u64,
    pub q_token: i64,
    pub q_head: i64,
    pub o_token: i64,
    pub o_head: i64,
    pub k_block: i64,
    pub k_token: i64,
    pub k_head: i64,
    pub v_block: i64,
    pub v_token: i64,
    pub v_head: i64,
    #[doc = " f32, one, or one a KV head, of an e4m3 cache; else 0"]
    pub k_scale: u64,
    pub v_scale: u64,
    #[doc = " f32 [num_q_heads] or 0"]
    pub alibi_slopes: u64,
    #[doc = " f32 [num_q_heads] or 0; natural logits"]
    pub sinks: u64,
    #[doc = " f32"]
    pub state_o: u64,
    #[doc = " f32 pairs"]
    pub state_ml: u64,
    #[doc = " u32 [merges]: 0 before a launch, and after it"]
    pub arrived: u64,
    #[doc = " which of the step's plans"]
    pub plan: u32,
    pub num_q_heads: u32,
    pub num_kv_heads: u32,
    #[doc = " of the tensors: at most that of the kernel"]
    pub head_dim: u32,
    pub scale: f32,
    #[doc = " 0: none"]
    pub soft_cap: f32,
    #[doc = " INFLIGHT_NO_WINDOW: none"]
    pub window_left: u32,
    #[doc = " INFLIGHT_CAUSAL"]
    pub flags: u32,
    #[doc = " of k_scale and v_scale: 0 for one, 1 for one per head"]
    pub scale_stride: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_attention_params"]
        [::std::mem::size_of::<inflight_attention_params>() - 224usize];
    ["Alignment of inflight_attention_params"]
        [::std::mem::align_of::<inflight_attention_params>() - 8usize];
    ["Offset of field: inflight_attention_params::step"]
        [::std::mem::offset_of!(inflight_attention_params, step) - 0usize];
    ["Offset of field: inflight_attention_params::q"]
        [::std::mem::offset_of!(inflight_attention_params, q) - 8usize];
    ["Offset of field: inflight_attention_params::o"]
        [::std::mem::offset_of!(inflight_attention_params, o) - 16usize];
    ["Offset of field: inflight_attention_params::lse"]
        [::std::mem::offset_of!(inflight_attention_params, lse) - 24usize];
    ["Offset of field: inflight_attention_params::k"]
        [::std::mem::offset_of!(inflight_attention_params, k) - 32usize];
    ["Offset of field: inflight_attention_params::v"]
        [::std::mem::offset_of!(inflight_attention_params, v) - 40usize];
    ["Offset of field: inflight_attention_params::q_token"]
        [::std::mem::offset_of!(inflight_attention_params, q_token) - 48usize];
    ["Offset of field: inflight_attention_params::q_head"]
        [::std::mem::offset_of!(inflight_attention_params, q_head) - 56usize];
    ["Offset of field: inflight_attention_params::o_token"]
        [::std::mem::offset_of!(inflight_attention_params, o_token) - 64usize];
    ["Offset of field: inflight_attention_params::o_head"]
        [::std::mem::offset_of!(inflight_attention_params, o_head) - 72usize];
    ["Offset of field: inflight_attention_params::k_block"]
        [::std::mem::offset_of!(inflight_attention_params, k_block) - 80usize];
    ["Offset of field: inflight_attention_params::k_token"]
        [::std::mem::offset_of!(inflight_attention_params, k_token) - 88usize];
    ["Offset of field: inflight_attention_params::k_head"]
        [::std::mem::offset_of!(inflight_attention_params, k_head) - 96usize];
    ["Offset of field: inflight_attention_params::v_block"]
        [::std::mem::offset_of!(inflight_attention_params, v_block) - 104usize];
    ["Offset of field: inflight_attention_params::v_token"]
        [::std::mem::offset_of!(inflight_attention_params, v_token) - 112usize];
    ["Offset of field: inflight_attention_params::v_head"]
        [::std::mem::offset_of!(inflight_attention_params, v_head) - 120usize];
    ["Offset of field: inflight_attention_params::k_scale"]
        [::std::mem::offset_of!(inflight_attention_params, k_scale) - 128usize];
    ["Offset of field: inflight_attention_params::v_scale"]
        [::std::mem::offset_of!(inflight_attention_params, v_scale) - 136usize];
    ["Offset of field: inflight_attention_params::alibi_slopes"]
        [::std::mem::offset_of!(inflight_attention_params, alibi_slopes) - 144usize];
    ["Offset of field: inflight_attention_params::sinks"]
        [::std::mem::offset_of!(inflight_attention_params, sinks) - 152usize];
    ["Offset of field: inflight_attention_params::state_o"]
        [::std::mem::offset_of!(inflight_attention_params, state_o) - 160usize];
    ["Offset of field: inflight_attention_params::state_ml"]
        [::std::mem::offset_of!(inflight_attention_params, state_ml) - 168usize];
    ["Offset of field: inflight_attention_params::arrived"]
        [::std::mem::offset_of!(inflight_attention_params, arrived) - 176usize];
    ["Offset of field: inflight_attention_params::plan"]
        [::std::mem::offset_of!(inflight_attention_params, plan) - 184usize];
    ["Offset of field: inflight_attention_params::num_q_heads"]
        [::std::mem::offset_of!(inflight_attention_params, num_q_heads) - 188usize];
    ["Offset of field: inflight_attention_params::num_kv_heads"]
        [::std::mem::offset_of!(inflight_attention_params, num_kv_heads) - 192usize];
    ["Offset of field: inflight_attention_params::head_dim"]
        [::std::mem::offset_of!(inflight_attention_params, head_dim) - 196usize];
    ["Offset of field: inflight_attention_params::scale"]
        [::std::mem::offset_of!(inflight_attention_params, scale) - 200usize];
    ["Offset of field: inflight_attention_params::soft_cap"]
        [::std::mem::offset_of!(inflight_attention_params, soft_cap) - 204usize];
    ["Offset of field: inflight_attention_params::window_left"]
        [::std::mem::offset_of!(inflight_attention_params, window_left) - 208usize];
    ["Offset of field: inflight_attention_params::flags"]
        [::std::mem::offset_of!(inflight_attention_params, flags) - 212usize];
    ["Offset of field: inflight_attention_params::scale_stride"]
        [::std::mem::offset_of!(inflight_attention_params, scale_stride) - 216usize];
    ["Offset of field: inflight_attention_params::reserved"]
        [::std::mem::offset_of!(inflight_attention_params, reserved) - 220usize];
};
#[doc = " Rows of both kinds in one launch: blocks 0.. compute the shares of the prefill plan, those after\n them the shares of the decode plan, others nothing. Both sides run at once, so their states and\n counters lie apart."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_mixed_params {
    pub decode: inflight_attention_params,
    pub prefill: inflight_attention_params,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_mixed_params"][::std::mem::size_of::<inflight_mixed_params>() - 448usize];
    ["Alignment of inflight_mixed_params"]
        [::std::mem::align_of::<inflight_mixed_params>() - 8usize];
    ["Offset of field: inflight_mixed_params::decode"]
        [::std::mem::offset_of!(inflight_mixed_params, decode) - 0usize];
    ["Offset of field: inflight_mixed_params::prefill"]
        [::std::mem::offset_of!(inflight_mixed_params, prefill) - 224usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_merge_params {
    #[doc = " [tokens, heads, head_dim], type of the kernel"]
    pub o: [u64; 16usize],
    #[doc = " f32 [tokens, heads]"]
    pub lse: [u64; 16usize],
    pub out: u64,
    #[doc = " or 0"]
    pub out_lse: u64,
    pub o_token: i64,
    pub o_head: i64,
    pub out_token: i64,
    pub out_head: i64,
    pub count: u32,
    pub num_tokens: u32,
    pub num_heads: u32,
    pub head_dim: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_merge_params"][::std::mem::size_of::<inflight_merge_params>() - 320usize];
    ["Alignment of inflight_merge_params"]
        [::std::mem::align_of::<inflight_merge_params>() - 8usize];
    ["Offset of field: inflight_merge_params::o"]
        [::std::mem::offset_of!(inflight_merge_params, o) - 0usize];
    ["Offset of field: inflight_merge_params::lse"]
        [::std::mem::offset_of!(inflight_merge_params, lse) - 128usize];
    ["Offset of field: inflight_merge_params::out"]
        [::std::mem::offset_of!(inflight_merge_params, out) - 256usize];
    ["Offset of field: inflight_merge_params::out_lse"]
        [::std::mem::offset_of!(inflight_merge_params, out_lse) - 264usize];
    ["Offset of field: inflight_merge_params::o_token"]
        [::std::mem::offset_of!(inflight_merge_params, o_token) - 272usize];
    ["Offset of field: inflight_merge_params::o_head"]
        [::std::mem::offset_of!(inflight_merge_params, o_head) - 280usize];
    ["Offset of field: inflight_merge_params::out_token"]
        [::std::mem::offset_of!(inflight_merge_params, out_token) - 288usize];
    ["Offset of field: inflight_merge_params::out_head"]
        [::std::mem::offset_of!(inflight_merge_params, out_head) - 296usize];
    ["Offset of field: inflight_merge_params::count"]
        [::std::mem::offset_of!(inflight_merge_params, count) - 304usize];
    ["Offset of field: inflight_merge_params::num_tokens"]
        [::std::mem::offset_of!(inflight_merge_params, num_tokens) - 308usize];
    ["Offset of field: inflight_merge_params::num_heads"]
        [::std::mem::offset_of!(inflight_merge_params, num_heads) - 312usize];
    ["Offset of field: inflight_merge_params::head_dim"]
        [::std::mem::offset_of!(inflight_merge_params, head_dim) - 316usize];
};
#[doc = " New keys and values to their slots, rotated and quantised on the way; queries rotated in place."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_append_params {
    pub step: u64,
    #[doc = " [tokens, num_kv_heads, head_dim], type of the kernel"]
    pub k_new: u64,
    pub v_new: u64,
    #[doc = " [tokens, num_q_heads, head_dim] rotated in place, or 0"]
    pub q: u64,
    #[doc = " cache"]
    pub k: u64,
    pub v: u64,
    #[doc = " as in attention; numbers are divided by it"]
    pub k_scale: u64,
    pub v_scale: u64,
    #[doc = " f32 [max_position, rotary_dim]: cosines, then sines; or 0"]
    pub cos_sin: u64,
    pub k_new_token: i64,
    pub k_new_head: i64,
    pub v_new_token: i64,
    pub v_new_head: i64,
    pub q_token: i64,
    pub q_head: i64,
    pub k_block: i64,
    pub k_token: i64,
    pub k_head: i64,
    pub v_block: i64,
    pub v_token: i64,
    pub v_head: i64,
    pub num_q_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    #[doc = " INFLIGHT_ROPE_*"]
    pub rope: u32,
    pub rotary_dim: u32,
    #[doc = " rows of cos_sin; a later position is not rotated or written"]
    pub max_position: u32,
    pub scale_stride: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_append_params"][::std::mem::size_of::<inflight_append_params>() - 200usize];
    ["Alignment of inflight_append_params"]
        [::std::mem::align_of::<inflight_append_params>() - 8usize];
    ["Offset of field: inflight_append_params::step"]
        [::std::mem::offset_of!(inflight_append_params, step) - 0usize];
    ["Offset of field: inflight_append_params::k_new"]
        [::std::mem::offset_of!(inflight_append_params, k_new) - 8usize];
    ["Offset of field: inflight_append_params::v_new"]
        [::std::mem::offset_of!(inflight_append_params, v_new) - 16usize];
    ["Offset of field: inflight_append_params::q"]
        [::std::mem::offset_of!(inflight_append_params, q) - 24usize];
    ["Offset of field: inflight_append_params::k"]
        [::std::mem::offset_of!(inflight_append_params, k) - 32usize];
    ["Offset of field: inflight_append_params::v"]
        [::std::mem::offset_of!(inflight_append_params, v) - 40usize];
    ["Offset of field: inflight_append_params::k_scale"]
        [::std::mem::offset_of!(inflight_append_params, k_scale) - 48usize];
    ["Offset of field: inflight_append_params::v_scale"]
        [::std::mem::offset_of!(inflight_append_params, v_scale) - 56usize];
    ["Offset of field: inflight_append_params::cos_sin"]
        [::std::mem::offset_of!(inflight_append_params, cos_sin) - 64usize];
    ["Offset of field: inflight_append_params::k_new_token"]
        [::std::mem::offset_of!(inflight_append_params, k_new_token) - 72usize];
    ["Offset of field: inflight_append_params::k_new_head"]
        [::std::mem::offset_of!(inflight_append_params, k_new_head) - 80usize];
    ["Offset of field: inflight_append_params::v_new_token"]
        [::std::mem::offset_of!(inflight_append_params, v_new_token) - 88usize];
    ["Offset of field: inflight_append_params::v_new_head"]
        [::std::mem::offset_of!(inflight_append_params, v_new_head) - 96usize];
    ["Offset of field: inflight_append_params::q_token"]
        [::std::mem::offset_of!(inflight_append_params, q_token) - 104usize];
    ["Offset of field: inflight_append_params::q_head"]
        [::std::mem::offset_of!(inflight_append_params, q_head) - 112usize];
    ["Offset of field: inflight_append_params::k_block"]
        [::std::mem::offset_of!(inflight_append_params, k_block) - 120usize];
    ["Offset of field: inflight_append_params::k_token"]
        [::std::mem::offset_of!(inflight_append_params, k_token) - 128usize];
    ["Offset of field: inflight_append_params::k_head"]
        [::std::mem::offset_of!(inflight_append_params, k_head) - 136usize];
    ["Offset of field: inflight_append_params::v_block"]
        [::std::mem::offset_of!(inflight_append_params, v_block) - 144usize];
    ["Offset of field: inflight_append_params::v_token"]
        [::std::mem::offset_of!(inflight_append_params, v_token) - 152usize];
    ["Offset of field: inflight_append_params::v_head"]
        [::std::mem::offset_of!(inflight_append_params, v_head) - 160usize];
    ["Offset of field: inflight_append_params::num_q_heads"]
        [::std::mem::offset_of!(inflight_append_params, num_q_heads) - 168usize];
    ["Offset of field: inflight_append_params::num_kv_heads"]
        [::std::mem::offset_of!(inflight_append_params, num_kv_heads) - 172usize];
    ["Offset of field: inflight_append_params::head_dim"]
        [::std::mem::offset_of!(inflight_append_params, head_dim) - 176usize];
    ["Offset of field: inflight_append_params::rope"]
        [::std::mem::offset_of!(inflight_append_params, rope) - 180usize];
    ["Offset of field: inflight_append_params::rotary_dim"]
        [::std::mem::offset_of!(inflight_append_params, rotary_dim) - 184usize];
    ["Offset of field: inflight_append_params::max_position"]
        [::std::mem::offset_of!(inflight_append_params, max_position) - 188usize];
    ["Offset of field: inflight_append_params::scale_stride"]
        [::std::mem::offset_of!(inflight_append_params, scale_stride) - 192usize];
    ["Offset of field: inflight_append_params::reserved"]
        [::std::mem::offset_of!(inflight_append_params, reserved) - 196usize];
};
#[doc = " One array of blocks (K or V of a layer) on either side. Blocks of an array lie `*_block` bytes\n apart."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_copy_array {
    pub from: u64,
    pub to: u64,
    pub from_block: u64,
    pub to_block: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_copy_array"][::std::mem::size_of::<inflight_copy_array>() - 32usize];
    ["Alignment of inflight_copy_array"][::std::mem::align_of::<inflight_copy_array>() - 8usize];
    ["Offset of field: inflight_copy_array::from"]
        [::std::mem::offset_of!(inflight_copy_array, from) - 0usize];
    ["Offset of field: inflight_copy_array::to"]
        [::std::mem::offset_of!(inflight_copy_array, to) - 8usize];
    ["Offset of field: inflight_copy_array::from_block"]
        [::std::mem::offset_of!(inflight_copy_array, from_block) - 16usize];
    ["Offset of field: inflight_copy_array::to_block"]
        [::std::mem::offset_of!(inflight_copy_array, to_block) - 24usize];
};
#[doc = " Whole blocks of many arrays in one launch: copies within a device, and swaps where one side is\n page-locked host memory. No block is both read and written."]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct inflight_copy_params {
    #[doc = " inflight_copy_array [num_arrays]"]
    pub arrays: u64,
    #[doc = " u32 pairs [num_pairs]: from, to"]
    pub pairs: u64,
    #[doc = " bytes of a block that are copied: a multiple of 16, contiguous"]
    pub block_bytes: u64,
    pub num_arrays: u32,
    pub num_pairs: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of inflight_copy_params"][::std::mem::size_of::<inflight_copy_params>() - 32usize];
    ["Alignment of inflight_copy_params"][::std::mem::align_of::<inflight_copy_params>() - 8usize];
    ["Offset of field: inflight_copy_params::arrays"]
        [::std::mem::offset_of!(inflight_copy_params, arrays) - 0usize];
    ["Offset of field: inflight_copy_params::pairs"]
        [::std::mem::offset_of!(inflight_copy_params, pairs) - 8usize];
    ["Offset of field: inflight_copy_params::block_bytes"]
        [::std::mem::offset_of!(inflight_copy_params, block_bytes) - 16usize];
    ["Offset of field: inflight_copy_params::num_arrays"]
        [::std::mem::offset_of!(inflight_copy_params, num_arrays) - 24usize];
    ["Offset of field: inflight_copy_params::num_pairs"]
        [::std::mem::offset_of!(inflight_copy_params, num_pairs) - 28usize];
};
