"""Attention over paged KV, and what goes with it, on a device."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from ctypes import addressof, byref, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, ContextManager, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import _structs as c
from ._library import Closable, Handle, Numbers, call, fill, lib, np, prepared, put, u64
from ._records import BlockOp, StepLimits
from .arrays import (
    DeviceHandle,
    KVCache,
    Tensor,
    device_memory,
    dtype_of,
    floats,
    on_cpu,
    tensor_of,
)
from .enums import DeviceKind, DType, Isa, RopePairs, RopeScaling, known
from .errors import argument_error
from .scheduler import Step


class DeviceInfo(NamedTuple):
    """What a device is; of a processor `name` is the instructions that are used."""

    kind: Union[DeviceKind, int]
    name: str
    ordinal: int
    memory: int
    compute_capability: Tuple[int, int]
    multiprocessors: int
    threads: int
    isa: Union[Isa, int]
    uuid: bytes


class Device(Closable):
    """Where kernels run: `Device.cpu()` or `Device.cuda()`. What is made for it may outlive it."""

    _handle: Optional[DeviceHandle]

    def __init__(self, handle: DeviceHandle) -> None:
        self._handle = handle

    def _held(self) -> DeviceHandle:
        handle = super()._held()
        assert isinstance(handle, DeviceHandle)
        return handle

    @classmethod
    def cpu(
        cls, threads: int = 0, isa: Isa = Isa.BEST, cores: Optional[Sequence[int]] = None
    ) -> "Device":
        """The processor; `threads` 0 is one for each core that this process may use."""
        config = prepared(c.CpuConfig)
        fill(config, {"threads": threads, "isa": isa})
        pinned = Numbers(() if cores is None else cores, "cores")
        if pinned.len:
            config.cores, config.num_cores = pinned.address, pinned.len
        place = (DeviceKind.CPU, 0)
        return cls(DeviceHandle(place, lib.inflight_device_create_cpu, byref(config)))

    @classmethod
    def cuda(cls, ordinal: int = 0) -> "Device":
        """A GPU. `DeviceError` where there is none."""
        if not 0 <= ordinal < 2**32:
            raise argument_error("ordinal", f"{ordinal} is out of range")
        place = (DeviceKind.CUDA, ordinal)
        return cls(DeviceHandle(place, lib.inflight_device_create_cuda, ordinal))

    @staticmethod
    def cuda_count() -> int:
        """GPUs that the driver finds, at least 1; `DeviceError` says why there is none."""
        count = c_uint32()
        call(lib.inflight_cuda_device_count, byref(count))
        return count.value

    def info(self) -> DeviceInfo:
        """What it is."""
        struct = prepared(c.DeviceInfo)
        self._call(lib.inflight_device_get_info, byref(struct))
        return DeviceInfo(
            known(DeviceKind, struct.kind),
            struct.name.decode("utf-8", "replace"),
            struct.ordinal,
            struct.memory,
            (struct.compute_capability_major, struct.compute_capability_minor),
            struct.multiprocessors,
            struct.threads,
            known(Isa, struct.isa),
            bytes(struct.uuid),
        )


def limits_of(limits: StepLimits) -> c.StepLimits:
    """C's limits."""
    struct = prepared(c.StepLimits)
    fill(struct, vars(limits))
    return struct


class Batch:
    """The rows of a step: `inflight_batch`. Arrays may be any sequences of integers."""

    def __init__(
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        kv_indices: Any,
        kv_last_page_len: Any,
        block_size: int,
        slot_mapping: Any = None,
        positions: Any = None,
        tokens: Any = None,
    ) -> None:
        self.struct = prepared(c.Batch)
        group = prepared(c.Group)
        self._owners: List[Any] = [group]
        self._step: Optional[Step] = None
        lens = {}
        arrays = {
            "qo_indptr": (self.struct, qo_indptr),
            "positions": (self.struct, positions),
            "tokens": (self.struct, tokens),
            "kv_indptr": (group, kv_indptr),
            "kv_indices": (group, kv_indices),
            "kv_last_page_len": (group, kv_last_page_len),
            "slot_mapping": (group, slot_mapping),
        }
        for name, (struct, values) in arrays.items():
            if values is None:
                continue
            given = Numbers(values, name, "q" if name == "slot_mapping" else "I")
            self._owners.append(given)
            lens[name] = given.len
            setattr(struct, name, given.address)
        rows = lens["kv_last_page_len"]
        # The library takes these lengths on trust.
        for name in ("qo_indptr", "kv_indptr"):
            if lens[name] != rows + 1:
                raise argument_error(name, f"has {lens[name]} offsets for {rows} rows")
        num_tokens = int(qo_indptr[-1])
        for name in ("slot_mapping", "positions", "tokens"):
            if lens.get(name, num_tokens) != num_tokens:
                raise argument_error(name, f"has {lens[name]} elements for {num_tokens} tokens")
        fill(self.struct, {"num_rows": rows, "num_tokens": num_tokens, "num_groups": 1})
        fill(group, {"num_kv_blocks": lens["kv_indices"], "block_size": block_size})
        self.struct.groups = addressof(group)

    @classmethod
    def from_step(cls, step: Step) -> "Batch":
        """The rows of a scheduler's step, without copies: as valid as the step."""
        batch = cls.__new__(cls)
        batch.struct = prepared(c.Batch)
        batch._owners = []
        batch._step = step
        with step.held():
            call(lib.inflight_batch_from_step, addressof(step.view), byref(batch.struct))
        return batch

    def held(self) -> ContextManager[None]:
        """Keeps the step whose rows they are from ending; `ClosedError` where it has."""
        return nullcontext() if self._step is None else self._step.held()


def batch_of(batch: Union[Batch, Step]) -> Batch:
    return Batch.from_step(batch) if isinstance(batch, Step) else batch


@dataclass
class Mask:
    """Which of the last keys each query sees: `inflight_mask`."""

    bits: bytes
    indptr: Sequence[int]
    widths: Sequence[int]


def _config(
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_dtype: Union[DType, str] = DType.F32,
    kv_dtype: Union[DType, str, None] = None,
    scale: Optional[float] = None,
    causal: bool = True,
    window_left: Optional[int] = None,
    soft_cap: Optional[float] = None,
    fixed_split: int = 0,
) -> c.AttentionConfig:
    config = prepared(c.AttentionConfig)
    fill(
        config,
        {
            "num_q_heads": num_q_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "q_dtype": dtype_of(q_dtype),
            "kv_dtype": None if kv_dtype is None else dtype_of(kv_dtype),
            "scale": None if scale is None else float(scale),
            "causal": causal,
            "window_left": window_left,
            "soft_cap": None if soft_cap is None else float(soft_cap),
            "fixed_split": fixed_split,
        },
    )
    return config


class Attention(Closable):
    """Varlen paged attention for one group of layers: prefill, chunks, decode and their mixture.

    Once a step `plan`, then `StepBuffer.upload`; then once a layer `append` and `run`. One thread
    at a time.

    `workspace` is memory of a GPU for splitting rows, of `workspace_size` bytes: an array with
    `__cuda_array_interface__`, which is kept, or an address and its bytes. Attentions that run one
    after another may share it. None is the library's own.
    """

    def __init__(
        self,
        device: Device,
        limits: StepLimits,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_dtype: Union[DType, str] = DType.F32,
        kv_dtype: Union[DType, str, None] = None,
        scale: Optional[float] = None,
        causal: bool = True,
        window_left: Optional[int] = None,
        soft_cap: Optional[float] = None,
        fixed_split: int = 0,
        workspace: Any = None,
    ) -> None:
        config = _config(
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            q_dtype=q_dtype,
            kv_dtype=kv_dtype,
            scale=scale,
            causal=causal,
            window_left=window_left,
            soft_cap=soft_cap,
            fixed_split=fixed_split,
        )
        config.workspace, config.workspace_size, self._workspace = device_memory(
            workspace, "workspace"
        )
        self.num_q_heads = num_q_heads
        self._device = device._held()
        self._handle = Handle(
            "attention",
            lib.inflight_attention_create,
            self._device.pointer,
            byref(config),
            byref(limits_of(limits)),
        )

    @staticmethod
    def workspace_size(device: Device, limits: StepLimits, **config: Any) -> int:
        """Bytes of the workspace that an `Attention` of these arguments takes; 0 on a processor."""
        size = c_uint64()
        call(
            lib.inflight_attention_workspace_size,
            device._held().pointer,
            byref(_config(**config)),
            byref(limits_of(limits)),
            byref(size),
        )
        return size.value

    def plan(self, batch: Union[Batch, Step], num_blocks: int, mask: Optional[Mask] = None) -> None:
        """Divides a step's work, for caches of at least `num_blocks` blocks."""
        batch, struct = batch_of(batch), None
        if mask is not None:
            struct = prepared(c.Mask)
            rows = batch.struct.num_rows
            indptr, widths = Numbers(mask.indptr, "indptr"), Numbers(mask.widths, "widths")
            if indptr.len != rows + 1 or widths.len != rows:
                raise argument_error("mask", f"is not of {rows} rows")
            bits = ctypes.create_string_buffer(mask.bits, max(len(mask.bits), 1))
            struct.bits, struct.num_bytes = addressof(bits), len(mask.bits)
            struct.indptr, struct.widths = indptr.address, widths.address
        with batch.held():
            self._call(
                lib.inflight_attention_plan,
                byref(batch.struct),
                u64(num_blocks, "num_blocks"),
                None if struct is None else byref(struct),
            )

    def run(
        self,
        step: "StepBuffer",
        q: Any,
        cache: KVCache,
        out: Any = None,
        lse: Any = None,
        alibi_slopes: Any = None,
        sinks: Any = None,
        stream: Optional[int] = None,
    ) -> Any:
        """A layer's attention for the step in `step`: queries `[tokens, num_q_heads, head_dim]`, to
        `out`, a new numpy array where it is None. `lse` takes the log-sum-exp of each query, f32
        `[tokens, num_q_heads]`. Returns `out`."""
        device = self._device
        out = _out_for(q, out, device)
        args = prepared(c.AttentionArgs)
        queries, q_owner = tensor_of(q, device, "q", stream=stream)
        outputs, o_owner = tensor_of(out, device, "o", write=True, stream=stream)
        args.q, args.o = addressof(queries), addressof(outputs)
        args.cache = addressof(cache.on(device))
        lse_shape, per_head = (queries.tokens, queries.heads), (self.num_q_heads,)
        args.lse, _, lse_owner = floats(lse, device, "lse", lse_shape, write=True)
        args.alibi_slopes, _, _slopes = floats(alibi_slopes, device, "alibi_slopes", per_head)
        args.sinks, _, _sinks = floats(sinks, device, "sinks", per_head)
        buffer = step._held()
        self._call(lib.inflight_attention_run, buffer.pointer, byref(args), stream)
        del q_owner, o_owner, lse_owner, _slopes, _sinks
        return out


def _out_for(like: Any, out: Any, device: DeviceHandle) -> Any:
    if out is None:
        array = like.array if isinstance(like, Tensor) else like
        if not on_cpu(device) or np is None or not isinstance(array, np.ndarray):
            raise argument_error("o", "is needed where the queries are no numpy array")
        out = np.empty(array.shape, array.dtype)
    return out


class StepBuffer(Closable):
    """A step's arrays and plans, where kernels find them. One thread at a time."""

    def __init__(
        self, device: Device, limits: StepLimits, attentions: Sequence[Attention] = ()
    ) -> None:
        handles = [attention._held() for attention in attentions]
        pointers = (c_void_p * max(len(handles), 1))(*(handle.pointer for handle in handles))
        self._device = device._held()
        self._handle = Handle(
            "step_buffer",
            lib.inflight_step_buffer_create,
            self._device.pointer,
            byref(limits_of(limits)),
            pointers if handles else None,
            len(handles),
        )

    def upload(self, batch: Union[Batch, Step], stream: Optional[int] = None) -> None:
        """Takes a step: its arrays, and the plans that the attentions made of it last."""
        batch = batch_of(batch)
        with batch.held():
            self._call(lib.inflight_step_buffer_upload, byref(batch.struct), stream)


def rope_table(
    max_position: int,
    rotary_dim: int,
    theta: float = 10000.0,
    scaling: RopeScaling = RopeScaling.NONE,
    **more: Any,
) -> Any:
    """The table that rotations read, f32 `[max_position, rotary_dim]`; `more` are the other fields
    of `inflight_rope_config`."""
    config = prepared(c.RopeConfig)
    fill(config, {"rotary_dim": rotary_dim, "theta": float(theta), "scaling": scaling})
    kinds = {field[0]: field[1] for field in c.RopeConfig._fields_}
    for name, value in more.items():
        if name not in kinds:
            raise TypeError(f"rope_table() has no argument {name!r}")
        put(config, name, float(value) if kinds[name] is ctypes.c_float else value)
    if not 0 <= max_position < 2**32:
        raise argument_error("max_position", f"{max_position} is out of range")
    table = np.empty((max_position, rotary_dim), np.float32)
    address = table.__array_interface__["data"][0]
    call(lib.inflight_rope_table, byref(config), max_position, address, table.size)
    return table


@dataclass
class Rope:
    """Rotation of new keys before they are stored, and of queries `q` in place."""

    cos_sin: Any
    q: Any = None
    pairs: RopePairs = RopePairs.HALF
    max_position: Optional[int] = None
    rotary_dim: Optional[int] = None


def append(
    step: StepBuffer,
    k: Any,
    v: Any,
    cache: KVCache,
    rope: Optional[Rope] = None,
    stream: Optional[int] = None,
) -> None:
    """Writes a layer's new keys and values, `[tokens, num_kv_heads, head_dim]`, to the slots of the
    step, rotated and quantised on the way where asked."""
    args = prepared(c.AppendArgs)
    keys, k_owner = tensor_of(k, step._device, "k", stream=stream)
    values, v_owner = tensor_of(v, step._device, "v", stream=stream)
    args.k, args.v = addressof(keys), addressof(values)
    args.cache = addressof(cache.on(step._device))
    owners: List[Any] = [keys, values, k_owner, v_owner]
    if rope is not None:
        struct = prepared(c.Rope)
        struct.cos_sin, shape, table = floats(rope.cos_sin, step._device, "cos_sin")
        # An address says nothing about its size; an array does.
        sizes = (rope.max_position, rope.rotary_dim) if table is None else shape
        if len(sizes) != 2 or None in sizes:
            raise argument_error("cos_sin", "is not [max_position, rotary_dim]")
        fill(struct, {"max_position": sizes[0], "rotary_dim": sizes[1], "pairs": rope.pairs})
        if rope.q is not None:
            queries, owner = tensor_of(rope.q, step._device, "q", write=True, stream=stream)
            struct.q = addressof(queries)
            owners += [queries, owner]
        args.rope = addressof(struct)
        owners += [struct, table]
    step._call(lib.inflight_append, byref(args), stream)


def merge(
    device: Device,
    states: Sequence[Tuple[Any, Any]],
    out: Any = None,
    lse: Any = None,
    stream: Optional[int] = None,
) -> Any:
    """Merges the attention of the same queries over disjoint keys, pairs of outputs and LSE, into
    that over all of them. Returns `out`, a new array like the first where it is None."""
    handle = device._held()
    if not states:
        raise argument_error("states", "are none")
    out = _out_for(states[0][0], out, handle)
    structs = (c.MergeState * len(states))()
    owners: List[Any] = []
    for struct, (o, o_lse) in zip(structs, states):
        part, owner = tensor_of(o, handle, "states", stream=stream)
        struct.o = addressof(part)
        shape = (part.tokens, part.heads)
        struct.lse, _, lse_owner = floats(o_lse, handle, "states", shape)
        owners += [part, owner, lse_owner]
    args = prepared(c.MergeArgs)
    args.states, args.num_states = addressof(structs), len(states)
    args.state_size = ctypes.sizeof(c.MergeState)
    merged, owner = tensor_of(out, handle, "o", write=True, stream=stream)
    args.o = addressof(merged)
    lse_shape = (merged.tokens, merged.heads)
    args.lse, _, lse_owner = floats(lse, handle, "lse", lse_shape, write=True)
    owners += [owner, lse_owner]
    call(lib.inflight_merge, handle.pointer, byref(args), stream)
    return out


class BlockMover(Closable):
    """Carries out block operations on every layer's K and V."""

    def __init__(
        self,
        device: Device,
        device_caches: Sequence[KVCache],
        host_caches: Optional[Sequence[KVCache]] = None,
    ) -> None:
        device_caches = tuple(device_caches)
        host_caches = None if host_caches is None else tuple(host_caches)
        if host_caches is not None and len(host_caches) != len(device_caches):
            raise argument_error("host_caches", "are not as many as device_caches")
        self._caches = (device_caches, host_caches)  # the library uses their memory
        handle = device._held()
        layers = (c.KVCache * len(device_caches))(
            *(cache.on(handle, "device_caches") for cache in device_caches)
        )
        hosts = None
        if host_caches is not None:
            hosts = (c.KVCache * len(host_caches))(*(cache.struct for cache in host_caches))
        self._handle = Handle(
            "block_mover",
            lib.inflight_block_mover_create,
            handle.pointer,
            layers,
            hosts,
            len(layers),
        )

    def run(self, ops: Sequence[BlockOp], stream: Optional[int] = None) -> None:
        """Carries out operations, with the result of doing so in order."""
        structs: Any = (c.BlockOp * max(len(ops), 1))()
        for struct, (kind, src, dst) in zip(structs, ops):
            fill(struct, {"kind": kind, "src": src, "dst": dst})
        size = ctypes.sizeof(c.BlockOp)
        self._call(lib.inflight_block_mover_run, structs, size, len(ops), stream)
