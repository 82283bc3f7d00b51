"""Structs of inflight.h as a caller sets or gets them, described as there.

Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Sequence, Union

from . import _structs as c
from .enums import BlockOpKind, Policy, RowFlag, known, time_of


@dataclass(frozen=True)
class Content:
    """Content behind placeholder tokens, such as an image: prompts share cached blocks only where
    it is the same.
    """

    id: Union[bytes, str, None]
    """Names the content, a digest for example."""
    start: int
    """First token position it covers."""
    len: int
    """Tokens it covers."""


CONTENT_ARRAYS = (
    ("id", "id_len", "B", None),
)


@dataclass
class Request:
    """A request to generate from a prompt. Everything it points to is copied by the call that takes
    it. What later versions ask of a request is added at its end.

    Initialise it with `inflight_request_init`, then set at least `id`, `prompt`, `prompt_len` and
    `max_tokens`.
    """

    id: int
    """Chosen by the caller, unique among requests that have not finished."""
    prompt: Any
    """Token ids, none of them `INFLIGHT_NO_TOKEN`; at least one."""
    max_tokens: int
    """Output tokens at most; at least 1. `max_model_len` caps prompt and output together."""
    stop_tokens: Any = ()
    """Token ids that end the request when sampled, each reported as the reason, none of them
    `INFLIGHT_NO_TOKEN`; may be NULL.
    """
    salt: Union[bytes, str, None] = None
    """Requests share cached blocks only with requests of the same salt; may be NULL."""
    adapter: Union[bytes, str, None] = None
    """Name of the adapter (LoRA) that the request runs with, for the same purpose; may be NULL."""
    contents: Sequence[Content] = ()
    """Contents behind placeholder tokens, for the same purpose; may be NULL."""
    client: int = 0
    """The client that the request belongs to: for policies that are fair to clients, and for the
    caller.
    """
    arrival: Optional[int] = None
    """When it came, in nanoseconds of the clock that `inflight_scheduler_schedule` is given;
    `INFLIGHT_NOW` by default.
    """
    min_tokens: int = 0
    """Outputs below which repetition does not end the request. The end of sequence is not affected:
    the sampler must not sample it too early.
    """
    eos: Optional[int] = None
    """Token id that ends the request when sampled; `INFLIGHT_NO_TOKEN` (the default) for none."""
    priority: int = 0
    """Lower runs first, under a policy that looks at it."""
    repetition_count: int = 0
    """Repetitions of a pattern at the end of the output that end the request; at least 2, with
    `repetition_max_pattern` set too, or 0 (the default) for no such rule.
    """
    repetition_min_pattern: int = 0
    """Shortest pattern looked for, in tokens; 0 reads as 1."""
    repetition_max_pattern: int = 0
    """Longest pattern looked for, in tokens: at least the shortest, where there is a rule."""
    skip_prefix_cache: bool = False
    """1 if it must not start from a cached prefix: for requests that want the logits of every
    prompt position. Its blocks serve others either way.
    """


REQUEST_ARRAYS = (
    ("prompt", "prompt_len", "I", None),
    ("stop_tokens", "num_stop_tokens", "I", None),
    ("salt", "salt_len", "B", None),
    ("adapter", "adapter_len", "B", None),
    ("contents", "num_contents", c.Content, "content_size"),
)


@dataclass(frozen=True)
class CacheKeys:
    """What, besides its tokens, decides the content of a sequence's blocks: sequences share cached
    blocks only where all of it is the same.
    """

    salt: Union[bytes, str, None] = None
    """A salt, one a tenant for example; may be NULL."""
    adapter: Union[bytes, str, None] = None
    """Name of the adapter (LoRA) that the sequence runs with; may be NULL."""
    contents: Sequence[Content] = ()
    """Contents behind placeholder tokens; may be NULL."""


CACHE_KEYS_ARRAYS = (
    ("salt", "salt_len", "B", None),
    ("adapter", "adapter_len", "B", None),
    ("contents", "num_contents", c.Content, "content_size"),
)


@dataclass(frozen=True)
class SchedulerConfig:
    """What a scheduler is made for.

    Initialise it with `inflight_scheduler_config_init`, then set at least `num_blocks`.
    """

    num_blocks: int
    """Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`. Each takes
    12 bytes of this process's memory, with `prefix_cache` at most 64.
    """
    num_host_blocks: Optional[int] = None
    """Blocks of the host pool, for `swap`, at most `INFLIGHT_MAX_COUNT`; 0 (the default) for none.
    Each takes 4 bytes.
    """
    max_waiting: Optional[int] = None
    """Requests that may wait; a submit beyond it is refused. No bound by default."""
    block_size: Optional[int] = None
    """Tokens per block; 1 to `INFLIGHT_MAX_COUNT`, as the next three. 16 by default."""
    max_num_seqs: Optional[int] = None
    """Requests that run at once. 256 by default."""
    max_num_batched_tokens: Optional[int] = None
    """Tokens computed in a step. 8192 by default."""
    max_model_len: Optional[int] = None
    """Tokens of prompt and output together, not 1; 0 (the default) for all that the blocks hold."""
    long_prefill_token_threshold: Optional[int] = None
    """Tokens that one request may compute in a step while others run or wait, at most
    `INFLIGHT_MAX_COUNT`; 0 (the default) for no such cap.
    """
    max_steps_in_flight: Optional[int] = None
    """Steps that may be scheduled before the first is committed; 1 (the default) to
    `INFLIGHT_MAX_COUNT`.
    """
    prefix_cache: Optional[bool] = None
    """1 (the default) if full blocks are kept for later requests that start with the same tokens.
    """
    chunked_prefill: Optional[bool] = None
    """1 (the default) if a prompt may be computed in several steps."""
    overlap: Optional[bool] = None
    """1 if a request may run on before its last token has returned: the device takes that token
    from its own earlier step.
    """
    swap: Optional[bool] = None
    """1 if a preempted request's blocks move to the host pool, while it has room, instead of being
    computed again.
    """
    policy: Optional[Policy] = None
    """`INFLIGHT_POLICY_*`."""
    bypass_bound: Optional[int] = None
    """Requests that may pass one that waits for memory; 0 (the default) for none, so that a large
    request is never starved by small ones.
    """
    bypass_lookahead: Optional[int] = None
    """Requests looked at behind the one that waits, in one step, where `bypass_bound` is not 0."""
    max_padded_rows: Optional[int] = None
    """The largest number of rows that batches are padded to, for CUDA graphs: 1, 2, 4, then by 8 to
    256, by 16 beyond; at most 65536. 0 (the default) for no padding.
    """
    events: Optional[bool] = None
    """1 (the default) if events are collected from the creation of the first `inflight_submitter`
    on, freed or not; the caller then takes them with `inflight_scheduler_events` after each step,
    until when they are kept, however many.
    """


SCHEDULER_CONFIG_ARRAYS = ()


@dataclass(frozen=True)
class StepLimits:
    """The largest steps that something is made for: later calls refuse larger ones. On a GPU memory
    is allocated for them once; a captured graph may be replayed with any step within them.

    Initialise it with `inflight_step_limits_init`, then set at least `max_rows`, `max_tokens`,
    `max_blocks` and `max_kv_len`.
    """

    max_rows: int
    """Rows, empty ones included: 1 to 2^30, as the next three."""
    max_tokens: int
    """Query tokens."""
    max_blocks: int
    """Entries of all block tables together."""
    max_kv_len: int
    """Keys of a row."""
    max_mask_bytes: int = 0
    """Bytes of masks, up to 2^30; 0 (the default) for steps without."""


STEP_LIMITS_ARRAYS = ()


class Row(NamedTuple):
    """One request's share of a step. In arrays `row_size` bytes from one to the next."""

    request_id: int
    """The request."""
    num_tokens: int
    """Tokens it computes, drafts included; at least 1."""
    num_computed: int
    """Tokens whose KV is there before the step: the position of its first token."""
    num_draft: int
    """Draft tokens at the end of its tokens."""
    num_output: int
    """Tokens it will have output once everything in flight has returned, this step excluded."""
    flags: RowFlag
    """`INFLIGHT_ROW_*`, or-ed."""

    @classmethod
    def _of(cls, of: c.Row) -> "Row":
        return cls(
            of.request_id,
            of.num_tokens,
            of.num_computed,
            of.num_draft,
            of.num_output,
            RowFlag(of.flags),
        )


class PendingToken(NamedTuple):
    """An input token that is not known yet, with `overlap`: the device takes it from an earlier
    step. In arrays `pending_size` bytes from one to the next.
    """

    token: int
    """Index into `tokens`."""
    steps_back: int
    """The step that samples it is `step_id - steps_back`; at least 1. Steps that were abandoned
    count, since their ids are not given again.
    """
    logits: int
    """Index among that step's logits."""

    @classmethod
    def _of(cls, of: c.PendingToken) -> "PendingToken":
        return cls(
            of.token,
            of.steps_back,
            of.logits,
        )


class BlockOp(NamedTuple):
    """A copy of a block, in every layer's K and V, that the device makes before the step's kernels.
    In arrays `block_op_size` bytes from one to the next, or what the caller passes as `op_size`.
    """

    kind: Union[BlockOpKind, int]
    """`INFLIGHT_BLOCK_*`."""
    src: int
    """Block read: of the host pool for a swap in, else of the device pool."""
    dst: int
    """Block written: of the host pool for a swap out, else of the device pool."""

    @classmethod
    def _of(cls, of: c.BlockOp) -> "BlockOp":
        return cls(
            known(BlockOpKind, of.kind),
            of.src,
            of.dst,
        )


class RequestResult(NamedTuple):
    """Counts and times of a request at its end: of an `inflight_output`, and at the end of an
    `inflight_event`, which grows with it. In arrays `result_size` bytes from one to the next.
    """

    first_scheduled_at: Optional[int]
    """The time given to the `inflight_scheduler_schedule` that first admitted it; 2^64 - 1 where it
    was not.
    """
    first_token_at: Optional[int]
    """The time given to the `inflight_scheduler_schedule` of the step that sampled its first token;
    2^64 - 1 where none has been committed.
    """
    num_prompt: int
    """Tokens of its prompt."""
    num_output: int
    """Tokens that it has output."""
    num_cached: int
    """Tokens that it found in the prefix cache when it was first admitted."""
    num_preemptions: int
    """Times it was preempted."""
    num_drafts: int
    """Draft tokens that were verified."""
    num_accepted: int
    """Draft tokens among them that were accepted."""

    @classmethod
    def _of(cls, of: c.RequestResult) -> "RequestResult":
        return cls(
            time_of(of.first_scheduled_at),
            time_of(of.first_token_at),
            of.num_prompt,
            of.num_output,
            of.num_cached,
            of.num_preemptions,
            of.num_drafts,
            of.num_accepted,
        )


class SchedulerStats(NamedTuple):
    """Counters since a scheduler was made, and its state now."""

    steps: int
    """Steps scheduled, empty ones included."""
    admissions: int
    """Admissions, those after a preemption included."""
    preemptions: int
    """Preemptions."""
    finished: int
    """Requests that finished: by themselves, or by a finish of the caller."""
    cancelled: int
    """Requests cancelled."""
    output_tokens: int
    """Tokens delivered."""
    prefix_queried_tokens: int
    """Tokens of requests that looked for a cached prefix."""
    prefix_hit_tokens: int
    """Tokens among them that were found."""
    evicted_blocks: int
    """Blocks whose known content was given up for a new one."""
    num_running: int
    """Requests that hold a slot now."""
    num_waiting: int
    """Requests that wait now."""
    num_free_blocks: int
    """Blocks of the device pool that are free now, cached ones included."""
    num_free_host_blocks: int
    """Blocks of the host pool that are free now."""

    @classmethod
    def _of(cls, of: c.SchedulerStats) -> "SchedulerStats":
        return cls(
            of.steps,
            of.admissions,
            of.preemptions,
            of.finished,
            of.cancelled,
            of.output_tokens,
            of.prefix_queried_tokens,
            of.prefix_hit_tokens,
            of.evicted_blocks,
            of.num_running,
            of.num_waiting,
            of.num_free_blocks,
            of.num_free_host_blocks,
        )


class RequestSnapshot(NamedTuple):
    """A request at this moment."""

    client: int
    """The client that it belongs to."""
    running: bool
    """1 if it is among the running requests, 0 if it waits."""
    num_prompt: int
    """Tokens of its prompt."""
    num_output: int
    """Tokens output so far."""
    num_computed: int
    """Tokens whose KV is computed or in flight."""
    num_preemptions: int
    """Times it was preempted."""
    num_cached: int
    """Tokens that it found in the prefix cache when it was first admitted."""
    num_drafts: int
    """Draft tokens that were verified."""
    num_accepted: int
    """Draft tokens among them that were accepted."""
    first_scheduled_at: Optional[int]
    """The time given to the `inflight_scheduler_schedule` that first admitted it, or 2^64 - 1."""
    first_token_at: Optional[int]
    """The time given to the `inflight_scheduler_schedule` of the step that sampled its first token,
    or 2^64 - 1.
    """

    @classmethod
    def _of(cls, of: c.RequestSnapshot) -> "RequestSnapshot":
        return cls(
            of.client,
            bool(of.running),
            of.num_prompt,
            of.num_output,
            of.num_computed,
            of.num_preemptions,
            of.num_cached,
            of.num_drafts,
            of.num_accepted,
            time_of(of.first_scheduled_at),
            time_of(of.first_token_at),
        )


class CacheStats(NamedTuple):
    """Counters since a cache manager was made, and its state now."""

    queried_tokens: int
    """Tokens of sequences that looked for a cached prefix and then allocated: all that they had
    then, as vLLM counts.
    """
    hit_tokens: int
    """Tokens among them that were found and adopted."""
    evicted_blocks: int
    """Blocks whose known content was given up for a new one."""
    num_usable_blocks: int
    """Blocks of the device pool that can be handed out at all: all but the null block."""
    num_free_blocks: int
    """Blocks of the device pool that are free now, cached ones included."""
    num_cached_blocks: int
    """Blocks of the device pool with a known content, held or free."""
    num_free_host_blocks: int
    """Blocks of the host pool that are free now."""
    num_sequences: int
    """Sequences that are open now."""

    @classmethod
    def _of(cls, of: c.CacheStats) -> "CacheStats":
        return cls(
            of.queried_tokens,
            of.hit_tokens,
            of.evicted_blocks,
            of.num_usable_blocks,
            of.num_free_blocks,
            of.num_cached_blocks,
            of.num_free_host_blocks,
            of.num_sequences,
        )
