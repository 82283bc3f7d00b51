"""Arrays as kernels see them: numpy's, and whatever speaks DLPack."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import byref, c_char_p, c_int, c_void_p
from typing import Any, Dict, Optional, Tuple, Union

from . import _structs as c
from ._library import RELEASE_CALLBACK, Handle, call, fill, lib, np, u64
from .enums import DType, Layout
from .errors import argument_error

# numpy has no bfloat16 of its own: its bits are uint16, or the type of that name from ml_dtypes.
_DTYPES = {
    "float32": DType.F32,
    "float16": DType.F16,
    "uint16": DType.BF16,
    "bfloat16": DType.BF16,
    "uint8": DType.FP8_E4M3,
    "float8_e4m3fn": DType.FP8_E4M3,
}
_NAMES = {DType.F32: "f32", DType.F16: "f16", DType.BF16: "bf16", DType.FP8_E4M3: "fp8_e4m3"}
_UNVERSIONED, _VERSIONED = 0, 1
_CAPSULES = {_UNVERSIONED: b"dltensor", _VERSIONED: b"dltensor_versioned"}


def dtype_of(value: Union[DType, str]) -> DType:
    """A type by its name: "f32", "f16", "bf16", "fp8_e4m3", or as numpy spells it."""
    if isinstance(value, DType):
        return value
    for dtype, name in _NAMES.items():
        if value == name:
            return dtype
    try:
        return _DTYPES[str(value)]
    except KeyError:
        raise argument_error("dtype", f"{value!r} is no type that kernels know") from None


def _api(name: str, result: Any, *arguments: Any) -> Any:
    function = ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))
    return function


_is_valid = _api("PyCapsule_IsValid", c_int, ctypes.py_object, c_char_p)
_pointer_of = _api("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
# A destructor's capsule has no references: it is an address, for py_object would take one.
_is_valid_at = _api("PyCapsule_IsValid", c_int, c_void_p, c_char_p)
_pointer_at = _api("PyCapsule_GetPointer", c_void_p, c_void_p, c_char_p)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, c_void_p)
_new_capsule = _api("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, _DESTRUCTOR)


class _Managed(ctypes.Structure):
    """How `DLManagedTensorVersioned` begins."""

    _fields_ = [
        ("version_major", ctypes.c_uint32),
        ("version_minor", ctypes.c_uint32),
        ("manager", c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, c_void_p)),
    ]


def capsule_of(array: Any, stream: Optional[int]) -> Tuple[Any, int, int]:
    """An exporter's capsule, the address in it, and which of the two kinds it is."""
    given = {} if stream is None else {"stream": stream}
    try:
        capsule = array.__dlpack__(max_version=(1, 1), **given)
    except TypeError:  # written before versions were
        capsule = array.__dlpack__(**given)
    for kind, name in _CAPSULES.items():
        if _is_valid(capsule, name):
            return capsule, _pointer_of(capsule, name), kind
    raise argument_error("managed", "the capsule holds no tensor")


class Tensor:
    """An array with the type that it has for kernels, `dtype`; it speaks DLPack, so that
    `torch.from_dlpack(Tensor(bits, "bf16"))` sees numpy's uint16 as bfloat16 without a copy."""

    def __init__(self, array: Any, dtype: Union[DType, str, None] = None) -> None:
        self.array = array
        self.dtype = dtype_of(dtype if dtype is not None else array.dtype.name)
        if self.dtype.itemsize != array.dtype.itemsize:
            raise argument_error("dtype", f"{array.dtype} has another size than {self.dtype.name}")

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (1, 0)

    def __dlpack__(
        self,
        *,
        stream: Optional[int] = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        if max_version is None or max_version[0] < 1:
            raise BufferError("only versioned tensors are exported: pass max_version=(1, 0)")
        if dl_device not in (None, (1, 0)) or copy:
            raise BufferError("the tensor is neither moved nor copied")
        struct, owner = tensor_of(self, None, "tensor")
        return export(_cpu(), struct, owner, not self.array.flags.writeable)


def _struct_of_numpy(array: Any, dtype: DType, name: str) -> c.Tensor:
    if array.ndim != 3:
        raise argument_error(name, f"has {array.ndim} dimensions, not [tokens, heads, head_dim]")
    tokens, heads, head_dim = array.shape
    token, head, element = array.strides
    size = array.dtype.itemsize
    if head_dim > 1 and element != size:
        raise argument_error(name, "the elements of a head are not contiguous")
    struct = c.Tensor()
    struct.data = array.__array_interface__["data"][0]
    struct.token_stride, struct.head_stride = token // size, head // size
    fill(struct, {"tokens": tokens, "heads": heads, "head_dim": head_dim, "dtype": dtype})
    return struct


def tensor_of(
    array: Any, device: Optional[Handle], name: str, write: bool = False, stream: Any = None
) -> Tuple[c.Tensor, Any]:
    """C's view of a numpy array, a `Tensor` or anything with `__dlpack__`; and what has to live as
    long as it is used."""
    if isinstance(array, Tensor):
        dtype: Optional[DType] = array.dtype
        array = array.array
    else:
        dtype = None
    if np is not None and isinstance(array, np.ndarray):
        if write and not array.flags.writeable:
            raise argument_error(name, "is read-only")
        return _struct_of_numpy(array, dtype or dtype_of(array.dtype.name), name), array
    if not hasattr(array, "__dlpack__"):
        raise argument_error(name, f"{type(array).__name__} is no array")
    capsule, address, kind = capsule_of(array, stream)
    struct = c.Tensor()
    assert device is not None
    call(lib.inflight_tensor_from_dlpack, device.pointer, address, kind, int(write), byref(struct))
    return struct, (array, capsule)


def floats(
    array: Any, name: str, shape: Optional[Tuple[int, ...]] = None, write: bool = False
) -> Tuple[Any, Any]:
    """The address of contiguous f32: of a numpy array of this shape; of one with
    `__cuda_array_interface__`; or an address itself, for other devices."""
    if array is None or isinstance(array, int):
        return array, None
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return interface["data"][0], array
    if np is None or not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise argument_error(name, "is no float32 array")
    if not array.flags.c_contiguous:
        raise argument_error(name, "is not contiguous")
    if write and not array.flags.writeable:
        raise argument_error(name, "is read-only")
    if shape is not None and array.shape != shape:
        raise argument_error(name, f"has shape {array.shape}, not {shape}")
    return array.__array_interface__["data"][0], array


def device_memory(array: Any, name: str) -> Tuple[Optional[int], int, Any]:
    """Address and bytes of a GPU's memory, and what has to live as long as it is used: of a
    contiguous array with `__cuda_array_interface__`, or as a pair."""
    if array is None:
        return None, 0, None
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        if interface.get("strides") is not None:
            raise argument_error(name, "is not contiguous")
        size = int(interface["typestr"][2:])
        for dimension in interface["shape"]:
            size *= dimension
        return interface["data"][0], size, array
    if isinstance(array, tuple) and len(array) == 2:
        address, size = (u64(number, name) for number in array)
        return address, size, None
    raise argument_error(name, f"{type(array).__name__} is no memory of a GPU")


def _cache_of_numpy(k: Any, v: Any, layout: Layout) -> c.KVCache:
    struct = c.KVCache()
    for array, name in ((k, "k"), (v, "v")):
        if array.ndim != 4:
            raise argument_error(name, f"has {array.ndim} dimensions, not 4")
        if array.shape != k.shape or array.dtype != k.dtype:
            raise argument_error(name, "has another shape or type than k")
        if not array.flags.writeable:
            raise argument_error(name, "is read-only")
        size = array.dtype.itemsize
        block, token, head, element = (stride // size for stride in array.strides)
        if layout == Layout.HND:
            token, head = head, token
        if element != 1 and array.shape[3] > 1:
            raise argument_error(name, "the elements of a head are not contiguous")
        setattr(struct, name, array.__array_interface__["data"][0])
        fill(
            struct,
            {
                f"{name}_block_stride": block,
                f"{name}_token_stride": token,
                f"{name}_head_stride": head,
            },
        )
    blocks, tokens, heads, head_dim = k.shape
    if layout == Layout.HND:
        tokens, heads = heads, tokens
    fill(
        struct,
        {
            "num_blocks": blocks,
            "block_size": tokens,
            "num_heads": heads,
            "head_dim": head_dim,
            "dtype": dtype_of(k.dtype.name),
        },
    )
    return struct


class KVCache:
    """A layer's K and V in arrays of the caller's, with any strides: slices of one do as well.

    `layout` names the order of their dimensions: NHD is `[num_blocks, block_size, num_heads,
    head_dim]`, HND has heads before tokens. The scales are those of an fp8 cache: f32, one, or
    one a head.
    """

    def __init__(
        self,
        k: Any,
        v: Any,
        layout: Layout = Layout.NHD,
        k_scales: Any = None,
        v_scales: Any = None,
        device: Any = None,
    ) -> None:
        self._owners: Any = [k, v, k_scales, v_scales]
        if np is not None and isinstance(k, np.ndarray) and isinstance(v, np.ndarray):
            self.struct = _cache_of_numpy(k, v, layout)
        else:
            given = device._held() if device is not None else _cpu()
            k_capsule, k_at, kind = capsule_of(k, None)
            v_capsule, v_at, v_kind = capsule_of(v, None)
            self._owners += [k_capsule, v_capsule]
            if kind != v_kind:
                raise argument_error("v", "is exported in another way than k")
            self.struct = c.KVCache()
            call(
                lib.inflight_kv_cache_from_dlpack,
                given.pointer,
                k_at,
                v_at,
                kind,
                layout,
                byref(self.struct),
            )
        if k_scales is not None or v_scales is not None:
            self.struct.k_scales = floats(k_scales, "k_scales")[0]
            self.struct.v_scales = floats(v_scales, "v_scales")[0]
            self.struct.num_scales = len(k_scales)
            if len(v_scales) != len(k_scales):
                raise argument_error("v_scales", "are not as many as k_scales")


_exports: Dict[int, Any] = {}
_tickets = itertools.count(1)


@RELEASE_CALLBACK
def _release(ticket: int) -> None:
    _exports.pop(ticket, None)


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    # Who takes the tensor renames the capsule, and calls the deleter itself.
    if _is_valid_at(capsule, _CAPSULES[_VERSIONED]):
        address = _pointer_at(capsule, _CAPSULES[_VERSIONED])
        _Managed.from_address(address).deleter(address)


def export(device: Handle, struct: c.Tensor, owner: Any, read_only: bool) -> Any:
    """A DLPack capsule of a tensor; `owner` lives until its consumer is done."""
    ticket = next(_tickets)
    _exports[ticket] = owner
    managed = c_void_p()
    try:
        call(
            lib.inflight_tensor_to_dlpack,
            device.pointer,
            byref(struct),
            int(read_only),
            _release,
            ticket,
            byref(managed),
        )
    except BaseException:
        del _exports[ticket]
        raise
    assert managed.value is not None
    return _new_capsule(managed.value, _CAPSULES[_VERSIONED], _destroy)


_device: Optional[Handle] = None


def _cpu() -> Handle:
    """A device for looking at arrays: no kernel runs on it."""
    global _device
    if _device is None:
        config = c.CpuConfig()
        lib.inflight_cpu_config_init(byref(config), ctypes.sizeof(config))
        config.threads = 1
        _device = Handle("device", lib.inflight_device_create_cpu, byref(config))
    return _device
