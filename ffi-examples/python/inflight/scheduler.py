"""Decides, step by step, which requests run."""

from __future__ import annotations

import atexit
import time
import weakref
from contextlib import contextmanager
from ctypes import addressof, byref, c_size_t, c_void_p, cast, sizeof
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Union

from . import _structs as c
from ._library import (
    WAKE_CALLBACK,
    Closable,
    Guarded,
    Handle,
    Numbers,
    _error,
    check,
    copied,
    fill,
    lib,
    np,
    prepared,
    u32,
    u64,
)
from ._records import (
    BlockOp,
    PendingToken,
    RequestResult,
    RequestSnapshot,
    Row,
    SchedulerConfig,
    SchedulerStats,
)
from .enums import NO_TOKEN, EventKind, Finish, known
from .errors import ClosedError, InflightError, Status, argument_error
from .request import Request, given

_schedule = lib.inflight_scheduler_schedule
_commit = lib.inflight_scheduler_commit
# Made once: a step costs two of each.
_new_view, _VIEW = c.StepView.from_buffer_copy, bytes(prepared(c.StepView))
_new_outputs, _OUTPUTS = c.OutputsView.from_buffer_copy, bytes(prepared(c.OutputsView))
_new_samples, _SAMPLES = c.Samples.from_buffer_copy, bytes(prepared(c.Samples))


if np is not None:
    _DTYPES = {
        struct: np.dtype(struct) for struct in (c.Row, c.BlockOp, c.PendingToken, c.Output, c.Event)
    }
    _PLAIN = {code: np.dtype(code) for code in "IqQB"}
_TYPECODES = {"I": 4, "q": 8, "Q": 8, "B": 1}


def _plain(octets: bytes, typecode: str) -> Any:
    """Numbers in bytes as a read-only array."""
    if np is None:
        return memoryview(octets).cast(typecode)
    return np.frombuffer(octets, _PLAIN[typecode]) if octets else np.empty(0, _PLAIN[typecode])


def structs_of(octets: bytes, count: int, struct: Any, size: int) -> Any:
    """Structs in bytes, each `size` of them: a newer library has larger ones."""
    if size == sizeof(struct):
        return (struct * count).from_buffer_copy(octets)
    return [struct.from_buffer_copy(octets, at * size) for at in range(count)]


def _structured(octets: bytes, count: int, struct: Any, size: int) -> Any:
    """The same as a structured array."""
    if not count:
        return np.empty(0, _DTYPES[struct])
    return np.ndarray((count,), _DTYPES[struct], octets, strides=(size,))


class Step:
    """One iteration: which requests compute how many tokens, as a ragged batch.

    Arrays are read-only copies: numpy arrays, or memoryviews where numpy is not installed. They
    last, and each is made when it is first asked for, which raises `ClosedError` from `commit` and
    `abandon` on. Nothing else is copied: `Attention.plan` and `StepBuffer.upload` read the
    library's own.
    """

    __slots__ = (
        "_scheduler",
        "_handle",
        "view",
        "_ended",
        "_arrays",
        "_block_size",
        "_num_kv_blocks",
    )

    def __init__(self, scheduler: "Scheduler", handle: Handle, view: c.StepView) -> None:
        self._scheduler = scheduler
        self._handle = handle
        self.view = view
        self._ended = False
        self._arrays: Dict[str, Any] = {}
        group = self._group()
        self._block_size: int = group.block_size
        self._num_kv_blocks: int = group.num_kv_blocks

    @property
    def ended(self) -> bool:
        """Whether it was committed or abandoned, or its scheduler closed."""
        return self._ended or self._scheduler._handle is not self._handle

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the step from ending while its memory is read."""
        with self._scheduler._lock:
            self._check("arrays")
            yield

    def _check(self, name: str) -> None:
        if self.ended:
            raise ClosedError(f"step {self.id} has ended: its {name} are gone")

    def _copied(self, name: str, count: int, itemsize: int) -> bytes:
        with self._scheduler._lock:
            self._check(name)
            of = self.view if hasattr(self.view, name) else self._group()
            return copied(getattr(of, name), count, itemsize)

    def _group(self) -> c.Group:
        """What the layers have of the cache: all of them the same."""
        return c.Group.from_address(self.view.groups)

    def _array(self, name: str, count: int, typecode: str) -> Any:
        self._check(name)
        array = self._arrays.get(name)
        if array is None:
            array = _plain(self._copied(name, count, _TYPECODES[typecode]), typecode)
            self._arrays[name] = array
        return array

    def _end(self) -> None:
        self._ended = True
        self._arrays = {}

    @property
    def rows(self) -> Any:
        """Rows, `[num_rows]`: a structured array whose fields are those of `Row`. Without numpy a
        list of `Row`."""
        count, size = self.view.num_rows, self.view.row_size
        octets = self._copied("rows", count, size)
        if np is not None:
            return _structured(octets, count, c.Row, size)
        return [Row._of(row) for row in structs_of(octets, count, c.Row, size)]

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
        self._check("kv_indices")
        return self._array("kv_indices", self._num_kv_blocks, "I")

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

    def _records(self, name: str, count: int, struct: Any, size: int, record: Any) -> Any:
        octets = self._copied(name, count, size)
        return [record._of(of) for of in structs_of(octets, count, struct, size)]

    @property
    def pending(self) -> List[PendingToken]:
        """Input tokens that a step in flight samples; `tokens` has `NO_TOKEN` there."""
        view = self.view
        count, size = view.num_pending, view.pending_size
        return self._records("pending", count, c.PendingToken, size, PendingToken)

    @property
    def block_ops(self) -> List[BlockOp]:
        """Copies to make first, in order."""
        view = self.view
        count, size = view.num_block_ops, view.block_op_size
        return self._records("block_ops", count, c.BlockOp, size, BlockOp)

    id = property(lambda self: self.view.step_id, doc="Names the step.")
    num_rows = property(lambda self: self.view.num_rows, doc="Rows; 0 where nothing runs.")
    num_padded_rows = property(lambda self: self.view.num_padded_rows, doc="With empty rows.")
    num_tokens = property(lambda self: self.view.num_tokens, doc="Tokens.")
    num_sampling = property(lambda self: self.view.num_sampling, doc="Rows that sample.")
    num_logits = property(lambda self: self.view.num_logits, doc="Logits that are needed.")
    block_size = property(lambda self: self._block_size, doc="Tokens a block.")
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
    finish: Union[Finish, int]
    stop_token: Optional[int]
    result: Optional[RequestResult]
    """With its last tokens, what it has come to."""


class Outputs:
    """What a commit delivers: a collection of `Output`. Its arrays are copies, which last; asking
    for one after the scheduler's next schedule, commit or abandon raises `ClosedError`."""

    __slots__ = ("_scheduler", "_handle", "_calls", "view")

    def __init__(self, scheduler: "Scheduler", handle: Handle, view: c.OutputsView) -> None:
        self._scheduler = scheduler
        self._handle = handle
        self._calls = scheduler._calls
        self.view = view

    def _copied(self, name: str, count: int, itemsize: int) -> bytes:
        owner = self._scheduler
        with owner._lock:
            if owner._calls != self._calls or owner._handle is not self._handle:
                raise ClosedError(
                    "the outputs ended with the next step or commit of their scheduler"
                )
            return copied(getattr(self.view, name), count, itemsize)

    def _array(self, name: str, count: int, typecode: str) -> Any:
        return _plain(self._copied(name, count, _TYPECODES[typecode]), typecode)

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
        `num_tokens`, `finish`, `stop_token`, `result` (where it finished, an index into
        `results`)."""
        size = self.view.output_size
        octets = self._copied("outputs", len(self), size)
        return _structured(octets, len(self), c.Output, size)

    @property
    def results(self) -> List[RequestResult]:
        """What the requests that finished have come to, in the order of their outputs."""
        count, size = self.view.num_results, self.view.result_size
        octets = self._copied("results", count, size)
        structs = structs_of(octets, count, c.RequestResult, size)
        return [RequestResult._of(result) for result in structs]

    def __iter__(self) -> Iterator[Output]:
        with self._scheduler._lock:  # all of the same commit
            tokens = self.tokens.tolist()
            results = self.results
            size = self.view.output_size
            octets = self._copied("outputs", len(self), size)
        structs = structs_of(octets, len(self), c.Output, size)
        return iter(
            [
                Output(
                    o.request_id,
                    tokens[o.first_token : o.first_token + o.num_tokens],
                    known(Finish, o.finish),
                    None if o.stop_token == NO_TOKEN else o.stop_token,
                    results[o.result] if o.finish else None,
                )
                for o in structs
            ]
        )


class Event(NamedTuple):
    """Something that happened to a request. Fields that its kind does not have are None. Ignore
    kinds that are plain numbers: a newer library has them."""

    kind: Union[EventKind, int]
    request_id: int
    client: int  # the request's own: tells requests of one id apart
    step_id: Optional[int]
    status: Union[Status, int, None]
    finish: Union[Finish, int]
    stop_token: Optional[int]
    result: Optional[RequestResult]
    """What the request has come to, where it finished or was cancelled."""


_ENDS = (EventKind.FINISHED, EventKind.CANCELLED)
_EVENTS_AT_ONCE = 64


_wakes: "weakref.WeakSet[Scheduler]" = weakref.WeakSet()


@atexit.register
def _silence() -> None:
    """No thread may call into an interpreter that ends."""
    for scheduler in list(_wakes):
        try:
            scheduler.set_wake(None)
        except (ClosedError, InflightError):
            pass


class Scheduler(Guarded):
    """`schedule` a step, run it on a device, `commit` it. One thread at a time: others wait, and
    better submit and cancel through `submitter()`."""

    def __init__(self, config: Union[SchedulerConfig, int, None] = None, **values: Any) -> None:
        """Takes a `SchedulerConfig`, or its fields: `Scheduler(num_blocks=1024)`."""
        if not isinstance(config, SchedulerConfig):
            if config is not None:
                values["num_blocks"] = config
            config = SchedulerConfig(**values)
        super().__init__()
        struct = prepared(c.SchedulerConfig)
        fill(struct, vars(config))
        self.config = config
        self._handle = Handle("scheduler", lib.inflight_scheduler_create, byref(struct))
        self._events: List[Event] = []
        self._calls = 0  # that end the outputs before
        self._wake: Any = None

    def submit(self, request: Request) -> None:
        """Queues a request. Everything of it is copied."""
        passed = given(request)
        self._call(lib.inflight_scheduler_submit, byref(passed.struct))

    def cancel(self, request_id: int) -> None:
        """Ends a request wherever it is. There is no event."""
        self._call(lib.inflight_scheduler_cancel, u64(request_id, "request_id"))

    def finish(self, request_id: int, keep_tokens: int) -> RequestResult:
        """Ends a request after its first `keep_tokens` output tokens, or after all that were
        delivered where those are fewer: for a stop string, for example. There is no event."""
        struct = c.RequestResult()
        self._call(
            lib.inflight_scheduler_finish,
            u64(request_id, "request_id"),
            u32(keep_tokens, "keep_tokens"),
            byref(struct),
            sizeof(struct),
        )
        return RequestResult._of(struct)

    def set_wake(self, wake: Optional[Callable[[], None]]) -> None:
        """Has `wake` called, on the thread that submits, when there is something to schedule again;
        None for no calls. It must return soon and must not use this scheduler or its submitters, nor
        be what alone refers to them: `threading.Event().set` is what most need."""
        if wake is not None and not callable(wake):
            raise argument_error("wake", f"{wake!r} cannot be called")
        entry = WAKE_CALLBACK(lambda _: wake()) if wake is not None else WAKE_CALLBACK()
        with self._lock:
            self._wake = (self._wake, entry)  # both live until it is known which is set
            self._call(lib.inflight_scheduler_set_wake, cast(entry, c_void_p), None)
            self._wake = entry  # the one before is not running any more
            _wakes.add(self)

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
        with self._lock:
            self._calls += 1
            status = _schedule(handle.pointer, now, addressof(view), _error.address)
        if status:
            check(status)
        return Step(self, handle, view)

    def _commit(self, step: Step, tokens: Any, indptr: Any) -> Outputs:
        handle = self._held()
        given = Numbers(tokens, "samples.tokens")
        samples = _new_samples(_SAMPLES)
        samples.tokens = given.address
        samples.num_tokens = given.len
        if indptr is not None:
            offsets = Numbers(indptr, "samples.indptr")
            if not offsets.len:
                raise argument_error("samples.indptr", "has no offsets")
            samples.indptr = offsets.address
            samples.indptr_len = offsets.len
        view = _new_outputs(_OUTPUTS)
        with self._lock:
            self._calls += 1
            status = _commit(
                handle.pointer,
                step.view.step_id,
                addressof(samples),
                addressof(view),
                _error.address,
            )
            if status:
                check(status)
            step._end()
            return Outputs(self, handle, view)

    def _abandon(self, step: Step) -> None:
        with self._lock:
            self._calls += 1
            self._call(lib.inflight_scheduler_abandon, step.id)
            step._end()

    def events(self) -> List[Event]:
        """Takes what happened since the last call; nothing is collected before the first submitter."""
        buffer, count = (c.Event * _EVENTS_AT_ONCE)(), c_size_t(_EVENTS_AT_ONCE)
        with self._lock:
            # Where a call fails, those before it are kept for the next.
            while count.value == _EVENTS_AT_ONCE:
                self._call(
                    lib.inflight_scheduler_events,
                    addressof(buffer),
                    sizeof(c.Event),
                    _EVENTS_AT_ONCE,
                    byref(count),
                )
                told = [
                    Event(
                        known(EventKind, e.kind),
                        e.request_id,
                        e.client,
                        None if e.step_id == 2**64 - 1 else e.step_id,
                        known(Status, e.status) if e.status else None,
                        known(Finish, e.finish),
                        None if e.stop_token == NO_TOKEN else e.stop_token,
                        RequestResult._of(e.result) if e.kind in _ENDS else None,
                    )
                    for e in buffer[: count.value]
                ]
                self._events.extend(told)
            taken, self._events = self._events, []
            return taken

    def stats(self) -> SchedulerStats:
        """Counters and state."""
        struct = prepared(c.SchedulerStats)
        self._call(lib.inflight_scheduler_get_stats, byref(struct))
        return SchedulerStats._of(struct)

    def request(self, request_id: int) -> RequestSnapshot:
        """A request at this moment."""
        struct = prepared(c.RequestSnapshot)
        self._call(lib.inflight_scheduler_get_request, u64(request_id, "request_id"), byref(struct))
        return RequestSnapshot._of(struct)

    def verify(self) -> None:
        """Checks every invariant: for tests."""
        self._call(lib.inflight_scheduler_verify)

    def reset_prefix_cache(self) -> None:
        """Forgets cached prefixes; `CapacityError` while a request holds KV, on the device or
        swapped out."""
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
        passed = given(request)
        self._call(lib.inflight_submitter_submit, byref(passed.struct))

    def cancel(self, request_id: int) -> None:
        """Asks for the end of a request; one that has ended already is no error."""
        self._call(lib.inflight_submitter_cancel, u64(request_id, "request_id"))

    def finish(self, request_id: int, keep_tokens: int) -> None:
        """Asks for the end of a request after its first `keep_tokens` output tokens, as
        `Scheduler.finish` does; one that has ended already is not an error."""
        self._call(
            lib.inflight_submitter_finish,
            u64(request_id, "request_id"),
            u32(keep_tokens, "keep_tokens"),
        )
