"""The numbers of inflight.h. Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header."""

from __future__ import annotations

from enum import IntEnum, IntFlag

ABI_VERSION = 1
NO_TOKEN = 2**32 - 1
NOW = 2**64 - 1
NO_WINDOW = 2**32 - 1
MAX_STATES = 16


class Status(IntEnum):
    """What a call came to. 1xx: mend the call; 2xx: later; 3xx: the device; 9xx: a bug."""

    OK = 0
    INVALID_ARGUMENT = 100
    DUPLICATE_REQUEST = 101
    UNKNOWN_REQUEST = 102
    PROMPT_TOO_LONG = 103
    NEVER_FITS = 104
    UNKNOWN_STEP = 105
    STEP_OUT_OF_ORDER = 106
    OUTPUT_MISMATCH = 107
    STRUCT_SIZE = 108
    IN_USE = 109
    CLOSED = 110
    FORKED = 111
    QUEUE_FULL = 200
    OUT_OF_BLOCKS = 201
    TOO_MANY_STEPS_IN_FLIGHT = 202
    STALLED = 203
    OUT_OF_MEMORY = 204
    DEVICE = 300
    CUDA = 301
    OUT_OF_DEVICE_MEMORY = 302
    NO_CUDA = 303
    NO_KERNEL_IMAGE = 304
    UNSUPPORTED = 305
    CORRUPT = 900
    PANIC = 901
    POISONED = 902


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
    """What a row does."""

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


class Layout(IntEnum):
    """Order of a cache's dimensions."""

    NHD = 1
    HND = 2


class RopePairs(IntEnum):
    """What is rotated together."""

    HALF = 1
    INTERLEAVED = 2


class RopeScaling(IntEnum):
    """How frequencies are stretched."""

    NONE = 0
    LINEAR = 1
    NTK = 2
    DYNAMIC_NTK = 3
    YARN = 4
    LLAMA3 = 5


class DLPack(IntEnum):
    """What a capsule holds."""

    UNVERSIONED = 0
    VERSIONED = 1
