"""Decides, step by step, which requests run."""

from __future__ import annotations

import time
from ctypes import addressof, byref, c_size_t
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import _structs as c
from ._library import (
    Closable,
    Handle,
    Numbers,
    Octets,
    _error,
    check,
    fill,
    lend,
    lend_memory,
    lib,
    np,
    prepared,
    put,
    u64,
)
from .enums import NO_TOKEN, BlockOpKind, EventKind, Finish, Policy, RowFlag
from .errors import ClosedError, Status, argument_error

_schedule = lib.inflight_scheduler_schedule
_commit = lib.inflight_scheduler_commit
# Made once: a step costs two of each.
_new_view, _VIEW = c.StepView.from_buffer_copy, bytes(prepared(c.StepView))
_new_outputs, _OUTPUTS = c.OutputsView.from_buffer_copy, bytes(prepared(c.OutputsView))


@dataclass(frozen=True)
class SchedulerConfig:
    """What a scheduler is made for: `inflight_scheduler_config`. None is the library's default."""

    num_blocks: int
    block_size: Optional[int] = None
    max_num_seqs: Optional[int] = None
    max_num_batched_tokens: Optional[int] = None
    max_model_len: Optional[int] = None
    max_waiting: Optional[int] = None
    num_host_blocks: Optional[int] = None
    long_prefill_token_threshold: Optional[int] = None
    max_steps_in_flight: Optional[int] = None
    prefix_cache: Optional[bool] = None
    chunked_prefill: Optional[bool] = None
    overlap: Optional[bool] = None
    swap: Optional[bool] = None
    policy: Optional[Policy] = None
    bypass_bound: Optional[int] = None
    bypass_lookahead: Optional[int] = None
    max_padded_rows: Optional[int] = None
    events: Optional[bool] = None


@dataclass(frozen=True)
class Content:
    """Content behind placeholder tokens, such as an image: prompts share blocks only with it."""

    id: bytes
    start: int
    len: int


@dataclass
class Request:
    """A request to generate from a prompt: `inflight_request`. Token ids may be in any sequence of
    integers; a numpy array of uint32 costs least."""

    id: int
    prompt: Any
    max_tokens: int
    min_tokens: int = 0
    eos: Optional[int] = None
    stop_tokens: Sequence[int] = ()
    priority: int = 0
    client: int = 0
    arrival: Optional[int] = None
    salt: Optional[bytes] = None
    adapter: Optional[str] = None
    contents: Sequence[Content] = ()
    repetition_count: int = 0
    repetition_min_pattern: int = 0
    repetition_max_pattern: int = 0
    skip_prefix_cache: bool = False


def contents_of(contents: Sequence[Content]) -> Tuple[Any, List[Octets]]:
    """C's array of contents, and what its elements point to."""
    owners = [Octets(content.id) for content in contents]
    structs = (c.Content * len(contents))()
    for struct, content, owner in zip(structs, contents, owners):
        struct.id, struct.id_len = owner.address, owner.len
        put(struct, "start", content.start)
        put(struct, "len", content.len)
    return structs, owners


class _CRequest:
    """A request as C sees it, and what it points to."""

    def __init__(self, request: Request) -> None:
        self.prompt = Numbers(request.prompt, "prompt")
        self.stop_tokens = Numbers(request.stop_tokens, "stop_tokens")
        self.salt = Octets(request.salt)
        self.adapter = Octets(request.adapter.encode() if request.adapter else None)
        self.contents = contents_of(request.contents)
        struct = prepared(c.Request)
        struct.prompt, struct.prompt_len = self.prompt.address, self.prompt.len
        struct.stop_tokens = self.stop_tokens.address if self.stop_tokens.len else None
        struct.num_stop_tokens = self.stop_tokens.len
        struct.salt, struct.salt_len = self.salt.address, self.salt.len
        struct.adapter, struct.adapter_len = self.adapter.address, self.adapter.len
        if request.contents:
            struct.contents = addressof(self.contents[0])
            struct.num_contents = len(request.contents)
        values: Dict[str, Any] = {
            name: getattr(request, name)
            for name in (
                "id",
                "client",
                "arrival",
                "max_tokens",
                "min_tokens",
                "eos",
                "priority",
                "repetition_count",
                "repetition_min_pattern",
                "repetition_max_pattern",
                "skip_prefix_cache",
            )
        }
        fill(struct, values)
        self.struct = struct


class Row(NamedTuple):
    """One request's share of a step, for where there is no numpy."""

    request_id: int
    num_tokens: int
    num_computed: int
    num_draft: int
    num_output: int
    flags: RowFlag


class BlockOp(NamedTuple):
    """A copy of a block that the device makes before anything else."""

    kind: BlockOpKind
    src: int
    dst: int


class PendingToken(NamedTuple):
    """An input token that a step in flight samples."""

    token: int
    steps_back: int
    logits: int


if np is not None:
    _DTYPES = {
        struct: np.dtype(struct) for struct in (c.Row, c.BlockOp, c.PendingToken, c.Output, c.Event)
    }
    _PLAIN = {code: np.dtype(code) for code in "IqQB"}
_TYPECODES = {"I": 4, "q": 8, "Q": 8, "B": 1}


class Step:
    """One iteration: which requests compute how many tokens, as a ragged batch.

    Arrays are views of the library's memory, read-only, without copies: numpy arrays, or
    memoryviews where numpy is not installed. They end with `commit` and `abandon`: asking the step
    for one afterwards raises `ClosedError`, and a view that is kept shows whatever is there, so
    `numpy.array(view)` makes what lasts. Without numpy a kept memoryview raises, too.
    """

    __slots__ = ("_scheduler", "_handle", "view", "_ended", "_arrays")

    def __init__(self, scheduler: "Scheduler", handle: Handle, view: c.StepView) -> None:
        self._scheduler = scheduler
        self._handle = handle
        self.view = view
        self._ended = False
        self._arrays: Optional[Dict[str, Any]] = None

    @property
    def ended(self) -> bool:
        """Whether it was committed or abandoned, or its scheduler closed."""
        return self._ended or self._scheduler._handle is not self._handle

    def _array(self, name: str, count: int, typecode: str) -> Any:
        if self.ended:
            raise ClosedError(f"step {self.id} has ended: its {name} are gone")
        arrays = self._arrays
        if arrays is None:
            arrays = self._arrays = {}
        array = arrays.get(name)
        if array is None:
            address = getattr(self.view, name)
            if np is not None:
                array = self._part(address, count, _PLAIN[typecode])
            else:
                array = lend_memory(address, count, typecode, _TYPECODES[typecode])
            arrays[name] = array
        return array

    def _part(self, address: int, count: int, dtype: Any) -> Any:
        # Most arrays lie in the packed one: a part of that costs a fifth of an array of its own.
        arrays, view = self._arrays, self.view
        assert arrays is not None
        packed = arrays.get("packed")
        if packed is None:
            packed = lend(self._handle, view.packed, view.packed_size, _PLAIN["B"])
            arrays["packed"] = packed
        offset = (address or 0) - view.packed
        if 0 <= offset and offset + count * dtype.itemsize <= view.packed_size:
            return np.ndarray((count,), dtype, packed, offset)
        return lend(self._handle, address, count, dtype)

    def _structs(self, name: str, count: int, struct: Any) -> Any:
        if self.ended:
            raise ClosedError(f"step {self.id} has ended: its {name} are gone")
        address = getattr(self.view, name)
        if np is not None:
            return lend(self._handle, address, count, _DTYPES[struct])
        return (struct * count).from_address(address) if count else ()

    def _end(self) -> None:
        self._ended = True
        if np is None and self._arrays is not None:
            for array in self._arrays.values():
                array.release()
        self._arrays = None

    @property
    def rows(self) -> Any:
        """Rows, `[num_rows]`: a structured array whose fields are those of `Row`. Without numpy a
        list of `Row`, which lasts."""
        rows = self._structs("rows", self.view.num_rows, c.Row)
        if np is not None:
            return rows
        return [
            Row(
                r.request_id,
                r.num_tokens,
                r.num_computed,
                r.num_draft,
                r.num_output,
                RowFlag(r.flags),
            )
            for r in rows
        ]

    @property
    def tokens(self) -> Any:
        """Input tokens, row by row, `[num_tokens]`."""
        return self._array("tokens", self.view.num_tokens, "I")

    @property
    def positions(self) -> Any:
        """Position of each token in its sequence, `[num_tokens]`."""
        return self._array("positions", self.view.num_tokens, "I")

    @property
    def slot_mapping(self) -> Any:
        """Where each token's KV is written, `block * block_size + offset`, `[num_tokens]`."""
        return self._array("slot_mapping", self.view.num_tokens, "q")

    @property
    def qo_indptr(self) -> Any:
        """Row r owns tokens `qo_indptr[r]:qo_indptr[r + 1]`, `[num_padded_rows + 1]`."""
        return self._array("qo_indptr", self.view.num_padded_rows + 1, "I")

    @property
    def kv_indptr(self) -> Any:
        """Row r reads `kv_indices[kv_indptr[r]:kv_indptr[r + 1]]`, `[num_padded_rows + 1]`."""
        return self._array("kv_indptr", self.view.num_padded_rows + 1, "I")

    @property
    def kv_indices(self) -> Any:
        """Block tables of the rows, one after the other, `[num_kv_blocks]`."""
        return self._array("kv_indices", self.view.num_kv_blocks, "I")

    @property
    def kv_last_page_len(self) -> Any:
        """Tokens in each row's last block, this step's included, `[num_padded_rows]`."""
        return self._array("kv_last_page_len", self.view.num_padded_rows, "I")

    @property
    def logits_indices(self) -> Any:
        """Tokens whose logits are needed, `[num_logits]`."""
        return self._array("logits_indices", self.view.num_logits, "I")

    @property
    def preempted(self) -> Any:
        """Requests that had to give way and wait again, `[num_preempted]`."""
        return self._array("preempted", self.view.num_preempted, "Q")

    @property
    def packed(self) -> Any:
        """All arrays in one buffer, header first, as kernels read it."""
        return self._array("packed", self.view.packed_size, "B")

    @property
    def pending(self) -> List[PendingToken]:
        """Input tokens that a step in flight samples; `tokens` has `NO_TOKEN` there."""
        count = self.view.num_pending
        if count == 0 and not self.ended:
            return []
        return [
            (
                PendingToken(int(p["token"]), int(p["steps_back"]), int(p["logits"]))
                if np is not None
                else PendingToken(p.token, p.steps_back, p.logits)
            )
            for p in self._structs("pending", count, c.PendingToken)
        ]

    @property
    def block_ops(self) -> List[BlockOp]:
        """Copies to make first, in order. They last."""
        count = self.view.num_block_ops
        if count == 0 and not self.ended:
            return []
        return [
            (
                BlockOp(BlockOpKind(int(o["kind"])), int(o["src"]), int(o["dst"]))
                if np is not None
                else BlockOp(BlockOpKind(o.kind), o.src, o.dst)
            )
            for o in self._structs("block_ops", count, c.BlockOp)
        ]

    id = property(lambda self: self.view.step_id, doc="Names the step.")
    num_rows = property(lambda self: self.view.num_rows, doc="Rows; 0 where nothing runs.")
    num_padded_rows = property(lambda self: self.view.num_padded_rows, doc="With empty rows.")
    num_tokens = property(lambda self: self.view.num_tokens, doc="Tokens.")
    num_sampling = property(lambda self: self.view.num_sampling, doc="Rows that sample.")
    num_logits = property(lambda self: self.view.num_logits, doc="Logits that are needed.")
    block_size = property(lambda self: self.view.block_size, doc="Tokens a block.")
    max_q_len = property(lambda self: self.view.max_q_len, doc="Most tokens of a row.")
    max_kv_len = property(lambda self: self.view.max_kv_len, doc="Most keys of a row.")
    num_running = property(lambda self: self.view.num_running, doc="Requests with a slot.")
    num_waiting = property(lambda self: self.view.num_waiting, doc="Requests that wait.")
    num_free_blocks = property(lambda self: self.view.num_free_blocks, doc="Blocks free.")

    def commit(self, tokens: Any = (), indptr: Any = None) -> "Outputs":
        """Takes the tokens that the rows sampled, in their order, and says what each request got.

        One token for each row that samples; with drafts row i of them has
        `tokens[indptr[i]:indptr[i + 1]]`. Steps are committed oldest first. After an error the step
        is still in flight, unless it was not before.
        """
        return self._scheduler._commit(self, tokens, indptr)

    def abandon(self) -> None:
        """Undoes the step, newest first: its tokens are computed again."""
        self._scheduler._abandon(self)


class Output(NamedTuple):
    """What a commit delivers of one request."""

    request_id: int
    tokens: List[int]
    finish: Finish
    stop_token: Optional[int]


class Outputs:
    """What a commit delivers: a sequence of `Output`. Its arrays are views, valid until the
    scheduler's next schedule, commit or abandon; asking for one later raises `ClosedError`."""

    __slots__ = ("_scheduler", "_handle", "_calls", "view")

    def __init__(self, scheduler: "Scheduler", handle: Handle, view: c.OutputsView) -> None:
        self._scheduler = scheduler
        self._handle = handle
        self._calls = scheduler._calls
        self.view = view

    def _array(self, name: str, count: int, typecode: str) -> Any:
        owner = self._scheduler
        if owner._calls != self._calls or owner._handle is not self._handle:
            raise ClosedError("the outputs ended with the next step or commit of their scheduler")
        address = getattr(self.view, name)
        if np is not None:
            return lend(self._handle, address, count, _PLAIN[typecode])
        return lend_memory(address, count, typecode, _TYPECODES[typecode])

    def __len__(self) -> int:
        return self.view.num_outputs

    @property
    def step_id(self) -> int:
        return self.view.step_id

    @property
    def num_free_blocks(self) -> int:
        return self.view.num_free_blocks

    @property
    def tokens(self) -> Any:
        """All tokens, `[num_tokens]`."""
        return self._array("tokens", self.view.num_tokens, "I")

    @property
    def released(self) -> Any:
        """Requests that gave back their slot and blocks."""
        return self._array("released", self.view.num_released, "Q")

    @property
    def records(self) -> Any:
        """The outputs as a structured array (with numpy): `request_id`, `first_token`,
        `num_tokens`, `finish`, `stop_token`."""
        self._array("outputs", 0, "I")
        return lend(self._handle, self.view.outputs, len(self), _DTYPES[c.Output])

    def __iter__(self) -> Iterator[Output]:
        tokens = self.tokens.tolist()
        count = len(self)
        if not count:
            return iter(())
        structs = (c.Output * count).from_address(self.view.outputs)
        return iter(
            [
                Output(
                    o.request_id,
                    tokens[o.first_token : o.first_token + o.num_tokens],
                    Finish(o.finish),
                    None if o.stop_token == NO_TOKEN else o.stop_token,
                )
                for o in structs
            ]
        )


class Event(NamedTuple):
    """Something that happened to a request. Fields that its kind does not have are None."""

    kind: EventKind
    request_id: int
    step_id: Optional[int]
    status: Union[Status, int, None]
    finish: Finish
    stop_token: Optional[int]


class SchedulerStats(NamedTuple):
    """Counters since the scheduler was made, and its state now."""

    steps: int
    admissions: int
    preemptions: int
    finished: int
    cancelled: int
    output_tokens: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    evicted_blocks: int
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_free_host_blocks: int


class RequestSnapshot(NamedTuple):
    """A request at this moment."""

    client: int
    running: bool
    num_prompt: int
    num_output: int
    num_computed: int
    num_preemptions: int


_EVENTS_AT_ONCE = 1024


def _status(number: int) -> Union[Status, int, None]:
    try:
        return Status(number) if number else None
    except ValueError:
        return number


class Scheduler(Closable):
    """`schedule` a step, run it on a device, `commit` it. One thread at a time; other threads
    submit and cancel through `submitter()`."""

    def __init__(self, config: Union[SchedulerConfig, int, None] = None, **values: Any) -> None:
        """Takes a `SchedulerConfig`, or its fields: `Scheduler(num_blocks=1024)`."""
        if not isinstance(config, SchedulerConfig):
            if config is not None:
                values["num_blocks"] = config
            config = SchedulerConfig(**values)
        struct = prepared(c.SchedulerConfig)
        fill(struct, vars(config))
        self.config = config
        self._handle = Handle("scheduler", lib.inflight_scheduler_create, byref(struct))
        # What commits write to and read from, at addresses that stay.
        self._samples = prepared(c.Samples)
        self._samples_at = addressof(self._samples)
        self._events: Any = None
        self._calls = 0  # that end the outputs before

    def submit(self, request: Request) -> None:
        """Queues a request. Everything of it is copied."""
        given = _CRequest(request)
        self._call(lib.inflight_scheduler_submit, byref(given.struct))

    def cancel(self, request_id: int) -> None:
        """Ends a request wherever it is. There is no event."""
        self._call(lib.inflight_scheduler_cancel, u64(request_id, "request_id"))

    def set_draft(self, request_id: int, draft: Any) -> None:
        """Draft tokens, to be verified when the request samples next; none takes them back."""
        given = Numbers(draft, "draft")
        self._call(
            lib.inflight_scheduler_set_draft,
            u64(request_id, "request_id"),
            given.address if given.len else None,
            given.len,
        )

    def schedule(self, now: Optional[int] = None) -> Step:
        """The next step at time `now`, in nanoseconds; that of `time.monotonic_ns` by default.

        A step without rows is committed or abandoned as any other.
        """
        handle = self._held()
        if now is None:
            now = time.monotonic_ns()
        elif not 0 <= now < 2**64:
            raise argument_error("now", f"{now} is out of range")
        view = _new_view(_VIEW)
        self._calls += 1
        status = _schedule(handle.pointer, now, addressof(view), _error.address)
        if status:
            check(status)
        return Step(self, handle, view)

    def _commit(self, step: Step, tokens: Any, indptr: Any) -> Outputs:
        handle = self._held()
        given = Numbers(tokens, "samples.tokens")
        samples = self._samples
        samples.tokens = given.address
        samples.num_tokens = given.len
        if indptr is not None:
            offsets = Numbers(indptr, "samples.indptr")
            if not offsets.len:
                raise argument_error("samples.indptr", "has no offsets")
            samples.indptr = offsets.address
            samples.indptr_len = offsets.len
        view = _new_outputs(_OUTPUTS)
        self._calls += 1
        status = _commit(
            handle.pointer, step.view.step_id, self._samples_at, addressof(view), _error.address
        )
        if indptr is not None:
            samples.indptr = None
            samples.indptr_len = 0
        if status:
            check(status)
        step._end()
        return Outputs(self, handle, view)

    def _abandon(self, step: Step) -> None:
        self._calls += 1
        self._call(lib.inflight_scheduler_abandon, step.id)
        step._end()

    def events(self) -> List[Event]:
        """Takes what happened since the last call."""
        if self._events is None:
            self._events = (c.Event * _EVENTS_AT_ONCE)()
        buffer, count, taken = self._events, c_size_t(), []
        while True:
            self._call(
                lib.inflight_scheduler_events, addressof(buffer), _EVENTS_AT_ONCE, byref(count)
            )
            for e in buffer[: count.value]:
                taken.append(
                    Event(
                        EventKind(e.kind),
                        e.request_id,
                        None if e.step_id == 2**64 - 1 else e.step_id,
                        _status(e.status),
                        Finish(e.finish),
                        None if e.stop_token == NO_TOKEN else e.stop_token,
                    )
                )
            if count.value < _EVENTS_AT_ONCE:
                return taken

    def stats(self) -> SchedulerStats:
        """Counters and state."""
        struct = prepared(c.SchedulerStats)
        self._call(lib.inflight_scheduler_get_stats, byref(struct))
        return SchedulerStats(*(getattr(struct, name) for name in SchedulerStats._fields))

    def request(self, request_id: int) -> RequestSnapshot:
        """A request at this moment."""
        struct = prepared(c.RequestSnapshot)
        self._call(lib.inflight_scheduler_get_request, u64(request_id, "request_id"), byref(struct))
        values = {name: getattr(struct, name) for name in RequestSnapshot._fields}
        values["running"] = bool(values["running"])
        return RequestSnapshot(**values)

    def verify(self) -> None:
        """Checks every invariant: for tests."""
        self._call(lib.inflight_scheduler_verify)

    def reset_prefix_cache(self) -> None:
        """Forgets cached prefixes; `CapacityError` while any block is held."""
        self._call(lib.inflight_scheduler_reset_prefix_cache)

    def submitter(self) -> "Submitter":
        """Hands requests to this scheduler from other threads."""
        return Submitter(self)


class Submitter(Closable):
    """Submits and cancels from any number of threads at the same time. What became of it is told by
    `Scheduler.events`. It may outlive its scheduler, and refuses everything then."""

    def __init__(self, scheduler: Scheduler) -> None:
        owner = scheduler._held()
        self._handle = Handle("submitter", lib.inflight_submitter_create, owner.pointer)

    def submit(self, request: Request) -> None:
        """Hands over a request. Everything of it is copied."""
        given = _CRequest(request)
        self._call(lib.inflight_submitter_submit, byref(given.struct))

    def cancel(self, request_id: int) -> None:
        """Asks for the end of a request; one that has ended already is no error."""
        self._call(lib.inflight_submitter_cancel, u64(request_id, "request_id"))
