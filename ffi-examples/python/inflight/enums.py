"""The numbers of inflight.h, and what is made of those of a newer library."""

from __future__ import annotations

from enum import IntEnum
from typing import Optional, Type, TypeVar, Union

from ._numbers import (  # noqa: F401
    ABI_VERSION,
    MAX_STATES,
    NO_TOKEN,
    NO_WINDOW,
    NOW,
    BlockOpKind,
    DeviceKind,
    DLPack,
    DType,
    EventKind,
    Finish,
    Isa,
    Layout,
    LogLevel,
    Policy,
    RopePairs,
    RopeScaling,
    RowFlag,
    Status,
)

E = TypeVar("E", bound=IntEnum)


def known(enum: Type[E], number: int) -> Union[E, int]:
    """The member; the number itself where a newer library has one that is not here."""
    try:
        return enum(number)
    except ValueError:
        return number


def time_of(nanoseconds: int) -> Optional[int]:
    """A time; None for that of nothing."""
    return None if nanoseconds == 2**64 - 1 else nanoseconds


def itemsize(dtype: DType) -> int:
    """Bytes of an element."""
    return {DType.F32: 4, DType.FP8_E4M3: 1}.get(dtype, 2)
