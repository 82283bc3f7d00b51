"""The structs and calls of inflight.h. Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header."""

from __future__ import annotations

from ctypes import (
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Dict, Tuple

ERROR_FIELD_SIZE = 64
ERROR_MESSAGE_SIZE = 424
DEVICE_NAME_SIZE = 256
STATUS_STRUCT_SIZE = 108


class BuildInfo(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("cuda_driver", c_uint32),
        ("cuda_kernels", c_uint32),
        ("cuda_architectures", c_char_p),
        ("target", c_char_p),
        ("cuda_toolkit", c_uint32),
        ("cuda_driver_needed", c_uint32),
    ]


class Error(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("request_id", c_uint64),
        ("code", c_int32),
        ("has_request", c_uint32),
        ("field", c_char * ERROR_FIELD_SIZE),
        ("message", c_char * ERROR_MESSAGE_SIZE),
    ]


class Content(Structure):
    _fields_ = [
        ("id", c_void_p),
        ("id_len", c_size_t),
        ("start", c_uint32),
        ("len", c_uint32),
    ]


class Request(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("id", c_uint64),
        ("prompt", c_void_p),
        ("prompt_len", c_size_t),
        ("stop_tokens", c_void_p),
        ("num_stop_tokens", c_size_t),
        ("salt", c_void_p),
        ("salt_len", c_size_t),
        ("adapter", c_void_p),
        ("adapter_len", c_size_t),
        ("contents", c_void_p),
        ("num_contents", c_size_t),
        ("content_size", c_size_t),
        ("client", c_uint64),
        ("arrival", c_uint64),
        ("max_tokens", c_uint32),
        ("min_tokens", c_uint32),
        ("eos", c_uint32),
        ("priority", c_int32),
        ("repetition_count", c_uint32),
        ("repetition_min_pattern", c_uint32),
        ("repetition_max_pattern", c_uint32),
        ("skip_prefix_cache", c_uint32),
    ]


class SchedulerConfig(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("num_blocks", c_uint64),
        ("num_host_blocks", c_uint64),
        ("max_waiting", c_uint64),
        ("block_size", c_uint32),
        ("max_num_seqs", c_uint32),
        ("max_num_batched_tokens", c_uint32),
        ("max_model_len", c_uint32),
        ("long_prefill_token_threshold", c_uint32),
        ("max_steps_in_flight", c_uint32),
        ("prefix_cache", c_uint32),
        ("chunked_prefill", c_uint32),
        ("overlap", c_uint32),
        ("swap", c_uint32),
        ("policy", c_uint32),
        ("bypass_bound", c_uint32),
        ("bypass_lookahead", c_uint32),
        ("max_padded_rows", c_uint32),
        ("events", c_uint32),
        ("reserved", c_uint32),
    ]


class RequestResult(Structure):
    _fields_ = [
        ("first_scheduled_at", c_uint64),
        ("first_token_at", c_uint64),
        ("num_prompt", c_uint32),
        ("num_output", c_uint32),
        ("num_cached", c_uint32),
        ("num_preemptions", c_uint32),
        ("num_drafts", c_uint32),
        ("num_accepted", c_uint32),
    ]


class Row(Structure):
    _fields_ = [
        ("request_id", c_uint64),
        ("num_tokens", c_uint32),
        ("num_computed", c_uint32),
        ("num_draft", c_uint32),
        ("num_output", c_uint32),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class Group(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("kv_indptr", c_void_p),
        ("kv_indices", c_void_p),
        ("kv_last_page_len", c_void_p),
        ("slot_mapping", c_void_p),
        ("num_kv_blocks", c_uint32),
        ("block_size", c_uint32),
    ]


class PendingToken(Structure):
    _fields_ = [
        ("token", c_uint32),
        ("steps_back", c_uint32),
        ("logits", c_uint32),
    ]


class BlockOp(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("src", c_uint32),
        ("dst", c_uint32),
    ]


class StepView(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("step_id", c_uint64),
        ("rows", c_void_p),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("qo_indptr", c_void_p),
        ("groups", c_void_p),
        ("logits_indices", c_void_p),
        ("pending", c_void_p),
        ("block_ops", c_void_p),
        ("preempted", c_void_p),
        ("packed", c_void_p),
        ("packed_size", c_size_t),
        ("num_rows", c_uint32),
        ("num_padded_rows", c_uint32),
        ("num_tokens", c_uint32),
        ("num_sampling", c_uint32),
        ("num_logits", c_uint32),
        ("num_groups", c_uint32),
        ("num_pending", c_uint32),
        ("num_block_ops", c_uint32),
        ("num_preempted", c_uint32),
        ("row_size", c_uint32),
        ("pending_size", c_uint32),
        ("block_op_size", c_uint32),
        ("max_q_len", c_uint32),
        ("max_kv_len", c_uint32),
        ("num_running", c_uint32),
        ("num_waiting", c_uint32),
        ("num_free_blocks", c_uint32),
        ("reserved", c_uint32),
    ]


class Samples(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("tokens", c_void_p),
        ("num_tokens", c_size_t),
        ("indptr", c_void_p),
        ("indptr_len", c_size_t),
    ]


class Output(Structure):
    _fields_ = [
        ("request_id", c_uint64),
        ("first_token", c_uint32),
        ("num_tokens", c_uint32),
        ("finish", c_uint32),
        ("stop_token", c_uint32),
        ("result", c_uint32),
        ("reserved", c_uint32),
    ]


class OutputsView(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("step_id", c_uint64),
        ("outputs", c_void_p),
        ("tokens", c_void_p),
        ("released", c_void_p),
        ("results", c_void_p),
        ("num_outputs", c_uint32),
        ("num_tokens", c_uint32),
        ("num_released", c_uint32),
        ("num_results", c_uint32),
        ("num_free_blocks", c_uint32),
        ("output_size", c_uint32),
        ("result_size", c_uint32),
        ("reserved", c_uint32),
    ]


class Event(Structure):
    _fields_ = [
        ("request_id", c_uint64),
        ("client", c_uint64),
        ("step_id", c_uint64),
        ("kind", c_uint32),
        ("status", c_int32),
        ("finish", c_uint32),
        ("stop_token", c_uint32),
        ("reserved", c_uint64 * 2),
        ("result", RequestResult),
    ]


class SchedulerStats(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("steps", c_uint64),
        ("admissions", c_uint64),
        ("preemptions", c_uint64),
        ("finished", c_uint64),
        ("cancelled", c_uint64),
        ("output_tokens", c_uint64),
        ("prefix_queried_tokens", c_uint64),
        ("prefix_hit_tokens", c_uint64),
        ("evicted_blocks", c_uint64),
        ("num_running", c_uint64),
        ("num_waiting", c_uint64),
        ("num_free_blocks", c_uint64),
        ("num_free_host_blocks", c_uint64),
    ]


class RequestSnapshot(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("client", c_uint64),
        ("running", c_uint32),
        ("num_prompt", c_uint32),
        ("num_output", c_uint32),
        ("num_computed", c_uint32),
        ("num_preemptions", c_uint32),
        ("num_cached", c_uint32),
        ("num_drafts", c_uint32),
        ("num_accepted", c_uint32),
        ("first_scheduled_at", c_uint64),
        ("first_token_at", c_uint64),
    ]


class CacheConfig(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("num_blocks", c_uint64),
        ("num_host_blocks", c_uint64),
        ("block_size", c_uint32),
        ("prefix_cache", c_uint32),
    ]


class CacheStats(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("queried_tokens", c_uint64),
        ("hit_tokens", c_uint64),
        ("evicted_blocks", c_uint64),
        ("num_usable_blocks", c_uint64),
        ("num_free_blocks", c_uint64),
        ("num_cached_blocks", c_uint64),
        ("num_free_host_blocks", c_uint64),
        ("num_sequences", c_uint64),
    ]


class CacheKeys(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("salt", c_void_p),
        ("salt_len", c_size_t),
        ("adapter", c_void_p),
        ("adapter_len", c_size_t),
        ("contents", c_void_p),
        ("num_contents", c_size_t),
        ("content_size", c_size_t),
    ]


class CpuConfig(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("cores", c_void_p),
        ("num_cores", c_size_t),
        ("threads", c_uint32),
        ("isa", c_uint32),
    ]


class DeviceInfo(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("memory", c_uint64),
        ("name", c_char * DEVICE_NAME_SIZE),
        ("uuid", c_uint8 * 16),
        ("kind", c_uint32),
        ("ordinal", c_uint32),
        ("compute_capability_major", c_uint32),
        ("compute_capability_minor", c_uint32),
        ("multiprocessors", c_uint32),
        ("threads", c_uint32),
        ("isa", c_uint32),
        ("reserved", c_uint32),
    ]


class Tensor(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("data", c_void_p),
        ("tokens", c_uint64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
        ("heads", c_uint32),
        ("head_dim", c_uint32),
        ("dtype", c_uint32),
        ("reserved", c_uint32),
    ]


class KVArray(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("scales", c_void_p),
        ("block_stride", c_int64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
        ("scale_block_stride", c_int64),
        ("scale_token_stride", c_int64),
        ("scale_head_stride", c_int64),
        ("dtype", c_uint32),
        ("head_dim", c_uint32),
        ("scale_dtype", c_uint32),
        ("scale_elements", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class KVCache(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("num_blocks", c_uint64),
        ("block_size", c_uint32),
        ("num_heads", c_uint32),
        ("k", KVArray),
        ("v", KVArray),
    ]


class Batch(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("qo_indptr", c_void_p),
        ("positions", c_void_p),
        ("tokens", c_void_p),
        ("groups", c_void_p),
        ("packed", c_void_p),
        ("packed_size", c_size_t),
        ("num_rows", c_uint32),
        ("num_tokens", c_uint32),
        ("num_groups", c_uint32),
        ("reserved", c_uint32),
    ]


class Mask(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("bits", c_void_p),
        ("num_bytes", c_size_t),
        ("indptr", c_void_p),
        ("widths", c_void_p),
    ]


class AttentionConfig(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("num_q_heads", c_uint32),
        ("num_kv_heads", c_uint32),
        ("head_dim", c_uint32),
        ("q_dtype", c_uint32),
        ("kv_dtype", c_uint32),
        ("scale", c_float),
        ("causal", c_uint32),
        ("window_left", c_uint32),
        ("soft_cap", c_float),
        ("fixed_split", c_uint32),
        ("workspace", c_void_p),
        ("workspace_size", c_uint64),
    ]


class StepLimits(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("max_rows", c_uint32),
        ("max_tokens", c_uint32),
        ("max_blocks", c_uint32),
        ("max_kv_len", c_uint32),
        ("max_mask_bytes", c_uint32),
        ("reserved", c_uint32),
    ]


class AttentionArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("q", c_void_p),
        ("o", c_void_p),
        ("cache", c_void_p),
        ("lse", c_void_p),
        ("alibi_slopes", c_void_p),
        ("sinks", c_void_p),
    ]


class Rope(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("cos_sin", c_void_p),
        ("q", c_void_p),
        ("max_position", c_uint32),
        ("rotary_dim", c_uint32),
        ("pairs", c_uint32),
        ("reserved", c_uint32),
    ]


class RopeConfig(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("rotary_dim", c_uint32),
        ("theta", c_float),
        ("scaling", c_uint32),
        ("factor", c_float),
        ("original_max_position", c_uint32),
        ("beta_fast", c_float),
        ("beta_slow", c_float),
        ("attention_factor", c_float),
        ("mscale", c_float),
        ("mscale_all_dim", c_float),
        ("low_freq_factor", c_float),
        ("high_freq_factor", c_float),
        ("truncate", c_uint32),
        ("reserved", c_uint32),
    ]


class AppendArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("k", c_void_p),
        ("v", c_void_p),
        ("cache", c_void_p),
        ("rope", c_void_p),
    ]


class MergeState(Structure):
    _fields_ = [
        ("o", c_void_p),
        ("lse", c_void_p),
    ]


class MergeArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("states", c_void_p),
        ("num_states", c_size_t),
        ("state_size", c_size_t),
        ("o", c_void_p),
        ("lse", c_void_p),
    ]


# Arguments of the functions that return a status, but the last, which is the error.
CALLS: Dict[str, Tuple[Any, ...]] = {
    "scheduler_create": (c_void_p, c_void_p),
    "scheduler_submit": (c_void_p, c_void_p),
    "scheduler_cancel": (c_void_p, c_uint64),
    "scheduler_finish": (c_void_p, c_uint64, c_uint32, c_void_p, c_size_t),
    "scheduler_set_wake": (c_void_p, c_void_p, c_void_p),
    "scheduler_set_draft": (c_void_p, c_uint64, c_void_p, c_size_t),
    "scheduler_schedule": (c_void_p, c_uint64, c_void_p),
    "scheduler_commit": (c_void_p, c_uint64, c_void_p, c_void_p),
    "scheduler_abandon": (c_void_p, c_uint64),
    "scheduler_events": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "scheduler_get_stats": (c_void_p, c_void_p),
    "scheduler_get_request": (c_void_p, c_uint64, c_void_p),
    "scheduler_verify": (c_void_p,),
    "scheduler_reset_prefix_cache": (c_void_p,),
    "submitter_create": (c_void_p, c_void_p),
    "submitter_submit": (c_void_p, c_void_p),
    "submitter_cancel": (c_void_p, c_uint64),
    "submitter_finish": (c_void_p, c_uint64, c_uint32),
    "cache_create": (c_void_p, c_void_p),
    "cache_take_ops": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "cache_reset": (c_void_p,),
    "cache_get_stats": (c_void_p, c_void_p),
    "cache_verify": (c_void_p,),
    "cache_open": (c_void_p, c_void_p, c_void_p),
    "cache_extend": (c_void_p, c_uint64, c_void_p, c_size_t),
    "cache_lookup": (c_void_p, c_uint64, c_uint64, c_void_p),
    "cache_blocks_needed": (c_void_p, c_uint64, c_uint64, c_uint64, c_uint64, c_void_p),
    "cache_allocate": (c_void_p, c_uint64, c_uint64, c_uint64, c_uint64, c_void_p),
    "cache_register": (c_void_p, c_uint64, c_uint64),
    "cache_unregister": (c_void_p, c_uint64, c_uint64),
    "cache_table": (c_void_p, c_uint64, c_void_p, c_void_p),
    "cache_truncate": (c_void_p, c_uint64, c_uint64),
    "cache_fork": (c_void_p, c_uint64, c_void_p),
    "cache_release": (c_void_p, c_uint64),
    "cache_close": (c_void_p, c_uint64),
    "cache_swap_out": (c_void_p, c_uint64),
    "cache_swap_in": (c_void_p, c_uint64),
    "device_create_cpu": (c_void_p, c_void_p),
    "cuda_device_count": (c_void_p,),
    "device_create_cuda": (c_uint32, c_void_p),
    "device_get_info": (c_void_p, c_void_p),
    "device_check_pointer": (c_void_p, c_void_p),
    "tensor_set_contiguous": (c_void_p, c_uint32, c_void_p, c_uint64, c_uint32, c_uint32),
    "kv_cache_set_contiguous": (c_void_p, c_uint32, c_uint32, c_void_p, c_void_p, c_uint64, c_uint32, c_uint32, c_uint32),
    "batch_from_step": (c_void_p, c_void_p),
    "attention_create": (c_void_p, c_void_p, c_void_p, c_void_p),
    "attention_workspace_size": (c_void_p, c_void_p, c_void_p, c_void_p),
    "step_buffer_create": (c_void_p, c_void_p, c_void_p, c_size_t, c_void_p),
    "step_buffer_upload": (c_void_p, c_void_p, c_void_p),
    "attention_plan": (c_void_p, c_void_p, c_uint64, c_void_p),
    "attention_run": (c_void_p, c_void_p, c_void_p, c_void_p),
    "rope_table": (c_void_p, c_uint32, c_void_p, c_size_t),
    "append": (c_void_p, c_void_p, c_void_p),
    "merge": (c_void_p, c_void_p, c_void_p),
    "block_mover_create": (c_void_p, c_void_p, c_void_p, c_size_t, c_void_p),
    "block_mover_run": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "tensor_from_dlpack": (c_void_p, c_void_p, c_uint32, c_uint32, c_void_p),
    "kv_cache_from_dlpack": (c_void_p, c_void_p, c_void_p, c_uint32, c_uint32, c_void_p),
    "tensor_to_dlpack": (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, c_void_p),
}
# Structs that an _init of their own prepares.
PREPARED: Dict[str, Any] = {
    "error": Error,
    "request": Request,
    "scheduler_config": SchedulerConfig,
    "group": Group,
    "step_view": StepView,
    "samples": Samples,
    "outputs_view": OutputsView,
    "scheduler_stats": SchedulerStats,
    "request_snapshot": RequestSnapshot,
    "cache_config": CacheConfig,
    "cache_stats": CacheStats,
    "cache_keys": CacheKeys,
    "cpu_config": CpuConfig,
    "device_info": DeviceInfo,
    "tensor": Tensor,
    "kv_cache": KVCache,
    "batch": Batch,
    "mask": Mask,
    "attention_config": AttentionConfig,
    "step_limits": StepLimits,
    "attention_args": AttentionArgs,
    "rope": Rope,
    "rope_config": RopeConfig,
    "append_args": AppendArgs,
    "merge_args": MergeArgs,
}
FREED = (
    "scheduler",
    "submitter",
    "cache",
    "device",
    "attention",
    "step_buffer",
    "block_mover",
)
