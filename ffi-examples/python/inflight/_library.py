"""Finds and loads the library, and calls it."""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import os
import sys
import threading
import weakref
from array import array
from ctypes import (
    addressof,
    c_char,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
    string_at,
)
from operator import index
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, Type, TypeVar, Union

from . import _structs as c
from .enums import ABI_VERSION, LogLevel, known
from .errors import ClosedError, argument_error, error_of

try:
    import numpy as np
except ImportError:  # arrays of a step are memoryviews then, and kernels take DLPack
    np = None  # type: ignore[assignment]

LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_uint32, c_char_p, c_void_p)
WAKE_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p)


def _open() -> ctypes.CDLL:
    named = os.environ.get("INFLIGHT_LIBRARY")
    if named:
        return ctypes.CDLL(named)
    file = {"darwin": f"libinflight.{ABI_VERSION}.dylib", "win32": "inflight.dll"}.get(
        sys.platform, f"libinflight.so.{ABI_VERSION}"
    )
    tried = [str(Path(sys.prefix) / "lib" / file), file]
    found = ctypes.util.find_library("inflight")
    if found:
        tried.append(found)
    for candidate in tried:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise ImportError(
        f"{file} was not found: install it (scripts/install --prefix DIR) and set "
        "INFLIGHT_LIBRARY=DIR/lib/libinflight.so"
    )


def _load() -> ctypes.CDLL:
    library = _open()
    library.inflight_abi_version.restype = c_uint32
    abi = library.inflight_abi_version()
    if abi != ABI_VERSION:
        raise ImportError(f"the library has ABI version {abi}, this package needs {ABI_VERSION}")
    library.inflight_version_string.restype = c_char_p
    library.inflight_status_string.argtypes = (c_int32,)
    library.inflight_status_string.restype = c_char_p
    library.inflight_get_build_info.argtypes = (c_void_p, c_size_t)
    library.inflight_get_build_info.restype = None
    library.inflight_set_log_callback.argtypes = (LOG_CALLBACK, c_void_p, c_uint32)
    library.inflight_set_log_callback.restype = None
    for name, arguments in c.CALLS.items():
        function = getattr(library, f"inflight_{name}")
        function.argtypes = (*arguments, c_void_p)
        function.restype = c_int32
    for name in c.PREPARED:
        function = getattr(library, f"inflight_{name}_init")
        function.argtypes = (c_void_p, c_size_t)
        function.restype = None
    for name in c.FREED:
        function = getattr(library, f"inflight_{name}_free")
        function.argtypes = (c_void_p,)
        function.restype = None
    return library


lib = _load()

S = TypeVar("S", bound=ctypes.Structure)


def _template(name: str, struct: Type[ctypes.Structure]) -> bytes:
    prepared = struct()
    getattr(lib, f"inflight_{name}_init")(ctypes.byref(prepared), ctypes.sizeof(prepared))
    return bytes(prepared)


_TEMPLATES = {struct: _template(name, struct) for name, struct in c.PREPARED.items()}


def prepared(struct: Type[S]) -> S:
    """A struct as its _init makes it."""
    return struct.from_buffer_copy(_TEMPLATES[struct])


class _ErrorOfThread(threading.local):
    """Each thread has one, so that nothing is allocated for calls that succeed."""

    def __init__(self) -> None:
        self.struct = prepared(c.Error)
        self.address = addressof(self.struct)


_error = _ErrorOfThread()


def check(status: int) -> None:
    """Raises for the status that this thread's last call returned."""
    if status:
        detail = _error.struct
        message = detail.message.decode("utf-8", "replace")
        raise error_of(
            status,
            detail.field.decode("utf-8", "replace"),
            message or lib.inflight_status_string(status).decode(),
            detail.request_id if detail.has_request else None,
        )


def error_address() -> int:
    """Where this thread's calls say what went wrong."""
    return _error.address


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function whose last argument takes the error; raises what it says."""
    check(function(*arguments, _error.address))


class Handle:
    """Owns a pointer to one of the library's objects.

    Each caller holds a reference to it: so it is freed when the last of them is done, even where
    another thread closes meanwhile.
    """

    __slots__ = ("pointer", "_free", "__weakref__")

    def __init__(self, kind: str, create: Callable[..., int], *arguments: Any) -> None:
        self._free = getattr(lib, f"inflight_{kind}_free")
        self.pointer: Optional[int] = None
        out = c_void_p()
        call(create, *arguments, ctypes.byref(out))
        self.pointer = out.value

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._free(self.pointer)
            self.pointer = None


class Closable:
    """An object with a handle: a context manager whose `close` may be called twice."""

    _handle: Optional[Handle] = None

    @property
    def closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        """Frees the object. Calls afterwards raise `ClosedError`; closing it again does not."""
        self._handle = None

    def _held(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        return handle

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        handle = self._held()
        check(function(handle.pointer, *arguments, _error.address))

    def __enter__(self: Any) -> Any:
        self._held()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


_guarded: "weakref.WeakSet[Guarded]" = weakref.WeakSet()


class Guarded(Closable):
    """One that lends memory which its next call may free: a call waits for the one that is inside,
    and what copies such memory does so under the same lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # signal handlers may come back into it
        _guarded.add(self)

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        with self._lock:
            super()._call(function, *arguments)


def put(struct: ctypes.Structure, name: str, value: Any) -> None:
    """Sets a field to a number that it can hold: ctypes would cut it."""
    try:
        setattr(struct, name, value if isinstance(value, float) else index(value))
    except TypeError:
        raise argument_error(name, f"is {value!r}") from None
    if not isinstance(value, float) and getattr(struct, name) != value:
        raise argument_error(name, f"{value} is out of range")


def fill(struct: ctypes.Structure, values: Dict[str, Any]) -> None:
    """Sets the fields that are not None."""
    for name, value in values.items():
        if value is not None:
            put(struct, name, value)


def u64(value: int, name: str) -> int:
    """A number that 64 bits without a sign hold."""
    return _unsigned(value, name, 64)


def u32(value: int, name: str) -> int:
    """A number that 32 bits without a sign hold."""
    return _unsigned(value, name, 32)


def _unsigned(value: int, name: str, bits: int) -> int:
    value = index(value)
    if not 0 <= value < 2**bits:
        raise argument_error(name, f"{value} is out of range")
    return value


_NUMPY_TYPES = {code: np.dtype(code) for code in "IqQ"} if np is not None else {}


class Numbers:
    """A sequence of integers as C sees it: `address` is valid while the object lives."""

    __slots__ = ("address", "len", "_owner")

    def __init__(self, values: Any, name: str, typecode: str = "I") -> None:
        # Arrays of the right type are lent as they are; nothing runs once a number but in C.
        if np is not None and isinstance(values, np.ndarray):
            wanted = _NUMPY_TYPES[typecode]
            if values.dtype is wanted and values.ndim == 1:
                try:  # a third of the time that numpy's own ways to the address take
                    self._owner: Any = c_char.from_buffer(values)  # type: ignore[arg-type]
                    self.address = addressof(self._owner)
                    self.len = len(values)
                    return
                except (TypeError, ValueError, BufferError):
                    pass  # read-only, with gaps, or empty
            if values.ndim != 1:
                raise argument_error(name, f"has {values.ndim} dimensions, not 1")
            if values.dtype != wanted:
                if values.dtype.kind not in "iu" and len(values):
                    raise argument_error(name, f"is of {values.dtype}")
                info = np.iinfo(wanted)
                if len(values) and (values.min() < info.min or values.max() > info.max):
                    raise argument_error(name, "holds a number that is out of range")
                values = values.astype(wanted)
            values = np.ascontiguousarray(values)
            self._owner = values
            self.len = len(values)
            self.address = values.__array_interface__["data"][0]
            return
        if not (isinstance(values, array) and values.typecode == typecode):
            try:
                # Of bytes an array would take the memory, not the numbers.
                octets = isinstance(values, (bytes, bytearray))
                values = array(typecode, list(values) if octets else values)
            except (OverflowError, TypeError) as cause:
                raise argument_error(name, str(cause)) from None
        self._owner = memoryview(values)  # while it is there the array cannot grow, and so not move
        self.address, self.len = values.buffer_info()


class Octets:
    """Bytes, or a text's, as C sees them; None and "" are NULL and 0."""

    __slots__ = ("address", "len", "_owner")

    def __init__(self, value: Union[bytes, str, None]) -> None:
        value = value.encode() if isinstance(value, str) else value
        self._owner = ctypes.create_string_buffer(value, len(value)) if value else None
        self.address = None if self._owner is None else addressof(self._owner)
        self.len = len(value) if value else 0


def copied(address: Optional[int], count: int, itemsize: int) -> bytes:
    """The library's memory as bytes of Python's, which last."""
    return string_at(address, count * itemsize) if count and address else b""


def version() -> str:
    """Version of the library, "0.1.0"."""
    return str(lib.inflight_version_string().decode())


def build_info() -> Dict[str, Any]:
    """How the library was built: whether for CUDA, its kernels' architectures, their toolkit and the
    driver that they need (12040 is CUDA 12.4), the target."""
    info = c.BuildInfo()
    lib.inflight_get_build_info(ctypes.byref(info), ctypes.sizeof(info))
    return {
        "cuda_driver": bool(info.cuda_driver),
        "cuda_kernels": bool(info.cuda_kernels),
        "cuda_architectures": info.cuda_architectures.decode(),
        "target": info.target.decode(),
        "cuda_toolkit": info.cuda_toolkit,
        "cuda_driver_needed": info.cuda_driver_needed,
    }


_log: Any = LOG_CALLBACK()
_log_lock = threading.Lock()


def set_log(
    callback: Optional[Callable[[Union[LogLevel, int], str], None]],
    level: LogLevel = LogLevel.WARNING,
) -> None:
    """Has lines of the library's log given to `callback`, on any thread; None for none. Not to be
    called from inside a callback."""
    global _log

    def line(level: int, message: bytes, _: Any) -> None:
        assert callback is not None
        callback(known(LogLevel, level), message.decode("utf-8", "replace"))

    entry = LOG_CALLBACK(line) if callback else LOG_CALLBACK()
    with _log_lock:
        lib.inflight_set_log_callback(entry, None, level)
        _log = entry  # the one before is not running any more


# The library's threads outlive the interpreter.
atexit.register(set_log, None)


def after_fork(forked: Callable[[], None]) -> None:
    """Has `forked` called in children of this process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forked)


def _new_locks() -> None:
    """A lock that a thread of the parent holds would never be free. What it guards is the parent's:
    the library refuses calls with it."""
    global _log_lock
    _log_lock = threading.Lock()
    for guarded in list(_guarded):
        guarded._lock = threading.RLock()


after_fork(_new_locks)
