"""Arrays as kernels see them: numpy's, and whatever speaks DLPack."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_uint8, c_void_p
from typing import Any, Optional, Tuple, Union

from . import _structs as c
from ._library import Handle, after_fork, call, fill, lib, np, prepared, u64
from .enums import DeviceKind, DType, Layout, itemsize
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
Place = Tuple[DeviceKind, int]
_CPU: Place = (DeviceKind.CPU, 0)
_UNVERSIONED, _VERSIONED = 0, 1
_FLOAT32 = "<f4" if sys.byteorder == "little" else ">f4"
# What DLPack calls the types that numpy lacks, and where a managed tensor has that.
_CODES = {DType.BF16: 4, DType.FP8_E4M3: 10}
_CODE_AT = {_UNVERSIONED: 20, _VERSIONED: 52}
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


class DeviceHandle(Handle):
    """A device's handle, and where the arrays of its kernels lie: kind and ordinal."""

    __slots__ = ("place",)

    def __init__(self, place: Place, create: Any, *arguments: Any) -> None:
        super().__init__("device", create, *arguments)
        self.place = place


def on_cpu(device: DeviceHandle) -> bool:
    return device.place[0] == DeviceKind.CPU


def _api(name: str, result: Any, *arguments: Any) -> Any:
    function = ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))
    return function


_is_valid = _api("PyCapsule_IsValid", c_int, ctypes.py_object, c_char_p)
_pointer_of = _api("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)


def capsule_of(
    array: Any, stream: Optional[int], max_version: Optional[Tuple[int, int]] = (1, 1)
) -> Tuple[Any, int, int]:
    """An exporter's capsule, the address in it, and which of the two kinds it is."""
    # DLPack numbers CUDA's default stream 1.
    given = {} if stream is None else {"stream": stream or 1}
    try:
        capsule = array.__dlpack__(max_version=max_version, **given)
    except TypeError:  # written before versions were
        capsule = array.__dlpack__(**given)
    for kind, name in _CAPSULES.items():
        if _is_valid(capsule, name):
            return capsule, _pointer_of(capsule, name), kind
    raise argument_error("managed", "the capsule holds no tensor")


class Tensor:
    """A numpy array with the type that it has for kernels, `dtype`; it speaks DLPack, so that
    `torch.from_dlpack(Tensor(bits, "bf16"))` sees numpy's uint16 as bfloat16 without a copy."""

    def __init__(self, array: Any, dtype: Union[DType, str, None] = None) -> None:
        if np is None or not isinstance(array, np.ndarray):
            raise argument_error("array", f"{type(array).__name__} is no numpy array")
        self.array = array
        self.dtype = dtype_of(dtype if dtype is not None else array.dtype.name)
        if itemsize(self.dtype) != array.dtype.itemsize:
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
        if dl_device not in (None, (1, 0)) or copy:
            raise BufferError("the tensor is neither moved nor copied")
        # The capsule is numpy's: it may be freed while an exception is on its way, where nothing
        # written in Python may run. numpy knows no bfloat16: its type is put right.
        code = _CODES.get(self.dtype)
        array = self.array.view(f"{'f' if code is None else 'u'}{itemsize(self.dtype)}")
        capsule, address, kind = capsule_of(array, None, max_version)
        if code is not None:
            c_uint8.from_address(address + _CODE_AT[kind]).value = code
        return capsule


def _strides(array: Any, name: str) -> Tuple[int, ...]:
    """Of a numpy array that kernels can read, in elements."""
    size = array.dtype.itemsize
    if not array.dtype.isnative:
        raise argument_error(name, "has the bytes of its elements in the other order")
    if array.size and (not array.flags.aligned or any(stride % size for stride in array.strides)):
        raise argument_error(name, "has elements that are not aligned")
    return tuple(stride // size for stride in array.strides)


def _struct_of_numpy(array: Any, dtype: DType, name: str) -> c.Tensor:
    if array.ndim != 3:
        raise argument_error(name, f"has {array.ndim} dimensions, not [tokens, heads, head_dim]")
    tokens, heads, head_dim = array.shape
    token, head, element = _strides(array, name)
    if head_dim > 1 and element != 1:
        raise argument_error(name, "the elements of a head are not contiguous")
    struct = prepared(c.Tensor)
    struct.data = array.__array_interface__["data"][0]
    struct.token_stride, struct.head_stride = token, head
    fill(struct, {"tokens": tokens, "heads": heads, "head_dim": head_dim, "dtype": dtype})
    return struct


def tensor_of(
    array: Any, device: DeviceHandle, name: str, write: bool = False, stream: Any = None
) -> Tuple[c.Tensor, Any]:
    """C's view of a numpy array, a `Tensor` or anything with `__dlpack__`; and what has to live as
    long as it is used."""
    if isinstance(array, Tensor):
        dtype: Optional[DType] = array.dtype
        array = array.array
    else:
        dtype = None
    if np is not None and isinstance(array, np.ndarray):
        if not on_cpu(device):
            raise argument_error(name, "is in numpy's memory, which a GPU cannot use")
        if write and not array.flags.writeable:
            raise argument_error(name, "is read-only")
        return _struct_of_numpy(array, dtype or dtype_of(array.dtype.name), name), array
    if not hasattr(array, "__dlpack__"):
        raise argument_error(name, f"{type(array).__name__} is no array")
    capsule, address, kind = capsule_of(array, stream)
    struct = prepared(c.Tensor)
    call(lib.inflight_tensor_from_dlpack, device.pointer, address, kind, int(write), byref(struct))
    return struct, (array, capsule)


def floats(
    array: Any,
    device: DeviceHandle,
    name: str,
    shape: Optional[Tuple[int, ...]] = None,
    write: bool = False,
) -> Tuple[Any, Tuple[int, ...], Any]:
    """Address, shape and owner of contiguous f32 where the device can use it: a numpy array on a
    processor, on a GPU one with `__cuda_array_interface__`. An address is taken as it is; it has
    no shape, `()`."""
    if array is None or isinstance(array, int):
        return array, (), None
    if on_cpu(device):
        if np is None or not isinstance(array, np.ndarray):
            raise argument_error(name, f"{type(array).__name__} is no numpy array")
        interface = array.__array_interface__
    else:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise argument_error(name, f"{type(array).__name__} is no array of a GPU")
    if interface["typestr"] != _FLOAT32:
        raise argument_error(name, "is no float32 array")
    address, read_only = interface["data"]
    given = tuple(interface["shape"])
    if not _contiguous(given, interface.get("strides")):
        raise argument_error(name, "is not contiguous")
    if on_cpu(device) and not array.flags.aligned:
        raise argument_error(name, "has elements that are not aligned")
    if write and read_only:
        raise argument_error(name, "is read-only")
    if shape is not None and given != shape:
        raise argument_error(name, f"has shape {given}, not {shape}")
    return address, given, array


def _contiguous(shape: Tuple[int, ...], strides: Optional[Tuple[int, ...]]) -> bool:
    """Whether strides, in bytes, are those of an array of f32 without gaps."""
    expected = 4
    for size, stride in zip(reversed(shape), reversed(strides or ())):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


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
    struct = prepared(c.KVCache)
    for array, name in ((k, "k"), (v, "v")):
        if array.ndim != 4:
            raise argument_error(name, f"has {array.ndim} dimensions, not 4")
        if array.shape != k.shape or array.dtype != k.dtype:
            raise argument_error(name, "has another shape or type than k")
        if not array.flags.writeable:
            raise argument_error(name, "is read-only")
        block, token, head, element = _strides(array, name)
        if layout == Layout.HND:
            token, head = head, token
        if element != 1 and array.shape[3] > 1:
            raise argument_error(name, "the elements of a head are not contiguous")
        side = getattr(struct, name)
        side.data = array.__array_interface__["data"][0]
        fill(
            side,
            {
                "block_stride": block,
                "token_stride": token,
                "head_stride": head,
                "dtype": dtype_of(array.dtype.name),
                "head_dim": array.shape[3],
            },
        )
    blocks, tokens, heads, _ = k.shape
    if layout == Layout.HND:
        tokens, heads = heads, tokens
    fill(struct, {"num_blocks": blocks, "block_size": tokens, "num_heads": heads})
    return struct


class KVCache:
    """A layer's K and V in arrays of the caller's, with any strides: slices of one do as well.

    `layout` names the order of their dimensions: NHD is `[num_blocks, block_size, num_heads,
    head_dim]`, HND has heads before tokens. The scales are those of an fp8 cache: f32, one, or
    one a head; `num_scales` says how many where they are given as addresses. `device` is where
    the arrays lie, a processor by default.
    """

    def __init__(
        self,
        k: Any,
        v: Any,
        layout: Layout = Layout.NHD,
        k_scales: Any = None,
        v_scales: Any = None,
        device: Any = None,
        num_scales: Optional[int] = None,
    ) -> None:
        self._owners: Any = [k, v, k_scales, v_scales]
        given: DeviceHandle = device._held() if device is not None else _cpu()
        if np is not None and isinstance(k, np.ndarray) and isinstance(v, np.ndarray):
            given = _cpu()
            self.struct = _cache_of_numpy(k, v, layout)
        else:
            k_capsule, k_at, kind = capsule_of(k, None)
            v_capsule, v_at, v_kind = capsule_of(v, None)
            self._owners += [k_capsule, v_capsule]
            if kind != v_kind:
                raise argument_error("v", "is exported in another way than k")
            self.struct = prepared(c.KVCache)
            call(
                lib.inflight_kv_cache_from_dlpack,
                given.pointer,
                k_at,
                v_at,
                kind,
                layout,
                byref(self.struct),
            )
        self._place = given.place
        if k_scales is not None or v_scales is not None:
            if k_scales is None or v_scales is None:
                name = "k_scales" if k_scales is None else "v_scales"
                raise argument_error(name, "are needed where the other's are given")
            if num_scales is None:
                if isinstance(k_scales, int):
                    raise argument_error("num_scales", "is needed where scales are addresses")
                num_scales = len(k_scales)
            if num_scales not in (1, self.struct.num_heads):
                heads = self.struct.num_heads
                raise argument_error("num_scales", f"is {num_scales}, for {heads} heads")
            for name, scales in (("k", k_scales), ("v", v_scales)):
                side = getattr(self.struct, name)
                side.scales = floats(scales, given, f"{name}_scales", (num_scales,))[0]
                fill(side, {"scale_head_stride": int(num_scales > 1)})

    def on(self, device: DeviceHandle, name: str = "cache") -> c.KVCache:
        """C's cache, for kernels of this device."""
        if self._place != device.place:
            raise argument_error(name, "is not in the memory of this device")
        return self.struct


_device: Optional[DeviceHandle] = None


def _cpu() -> DeviceHandle:
    """A device for looking at arrays: no kernel runs on it."""
    global _device
    if _device is None:
        config = c.CpuConfig()
        lib.inflight_cpu_config_init(byref(config), ctypes.sizeof(config))
        config.threads = 1
        _device = DeviceHandle(_CPU, lib.inflight_device_create_cpu, byref(config))
    return _device


def _forget_device() -> None:
    global _device
    _device = None


after_fork(_forget_device)
