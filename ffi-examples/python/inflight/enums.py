"""The constants of inflight.h."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Type, TypeVar, Union

ABI_VERSION = 0
NO_TOKEN = 2**32 - 1
NOW = 2**64 - 1
NO_WINDOW = 2**32 - 1
MAX_STATES = 16

E = TypeVar("E", bound=IntEnum)


def known(enum: Type[E], number: int) -> Union[E, int]:
    """The member; the number itself where a newer library has one that is not here."""
    try:
        return enum(number)
    except ValueError:
        return number



class LogLevel(IntEnum):
    """How much a line of the log matters."""

    ERROR = 1
    WARNING = 2
    INFO = 3


class Policy(IntEnum):
    """Who runs, and who gives way."""

    CONTINUOUS = 0
    STATIC = 1
    PRIORITY = 2
    NO_EVICT = 3
    MAX_UTILIZATION = 4
    ORCA = 5


class RowFlag(IntFlag):
    """What a row of a step does."""

    SAMPLES = 1
    DECODES = 2
    ADMITTED = 4


class BlockOpKind(IntEnum):
    """Between which pools a block is copied."""

    COPY = 0
    SWAP_OUT = 1
    SWAP_IN = 2


class Finish(IntEnum):
    """Why a request ended; NONE where it goes on."""

    NONE = 0
    EOS = 1
    STOP_TOKEN = 2
    LENGTH = 3
    REPETITION = 4
    STOPPED = 5


class EventKind(IntEnum):
    """What happened to a request."""

    REFUSED = 1
    FINISHED = 2
    CANCELLED = 3
    PREEMPTED = 4


class DeviceKind(IntEnum):
    """What kernels run on."""

    CPU = 1
    CUDA = 2


class Isa(IntEnum):
    """Instructions of a processor."""

    BEST = 0
    AVX512_BF16 = 1
    AVX512 = 2
    AVX2 = 3
    NEON = 4
    PORTABLE = 5
    PORTABLE_BF16 = 6


class DType(IntEnum):
    """Type of an element."""

    F32 = 1
    F16 = 2
    BF16 = 3
    FP8_E4M3 = 4

    @property
    def itemsize(self) -> int:
        return {DType.F32: 4, DType.FP8_E4M3: 1}.get(self, 2)


class Layout(IntEnum):
    """Order of a cache's dimensions: blocks, then tokens and heads, or heads and tokens."""

    NHD = 1
    HND = 2


class RopePairs(IntEnum):
    """Which elements of a head are rotated together."""

    HALF = 1
    INTERLEAVED = 2


class RopeScaling(IntEnum):
    """How frequencies are stretched for long contexts."""

    NONE = 0
    LINEAR = 1
    NTK = 2
    DYNAMIC_NTK = 3
    YARN = 4
    LLAMA3 = 5
