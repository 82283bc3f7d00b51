"""inflight: continuous batching as a library, over its C ABI.

`Scheduler` decides at every iteration which requests run and with how many tokens; `Cache` which
blocks hold their keys and values, for stacks with a scheduler of their own; `Attention` computes
over paged KV, on numpy arrays and whatever speaks DLPack. Each is usable alone. include/inflight.h
says all that is left out here.
"""

from ._library import build_info, set_log, version
from ._records import (
    BlockOp,
    CacheStats,
    PendingToken,
    RequestResult,
    RequestSnapshot,
    Row,
    SchedulerConfig,
    SchedulerStats,
    StepLimits,
)
from .arrays import KVCache, Tensor
from .attention import (
    Attention,
    Batch,
    BlockMover,
    Device,
    DeviceInfo,
    Mask,
    Rope,
    StepBuffer,
    append,
    merge,
    rope_table,
)
from .cache import Cache
from .enums import (
    NO_TOKEN,
    BlockOpKind,
    DeviceKind,
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
)
from .errors import (
    ArgumentError,
    CapacityError,
    ClosedError,
    DeviceError,
    InflightError,
    InternalError,
    Status,
)
from .request import Content, Request
from .scheduler import Event, Output, Outputs, Scheduler, Step, Submitter

__all__ = [
    "ArgumentError",
    "Attention",
    "Batch",
    "BlockMover",
    "BlockOp",
    "BlockOpKind",
    "Cache",
    "CacheStats",
    "CapacityError",
    "ClosedError",
    "Content",
    "DType",
    "Device",
    "DeviceError",
    "DeviceInfo",
    "DeviceKind",
    "Event",
    "EventKind",
    "Finish",
    "InflightError",
    "InternalError",
    "Isa",
    "KVCache",
    "Layout",
    "LogLevel",
    "Mask",
    "NO_TOKEN",
    "Output",
    "Outputs",
    "PendingToken",
    "Policy",
    "Request",
    "RequestResult",
    "RequestSnapshot",
    "Rope",
    "RopePairs",
    "RopeScaling",
    "Row",
    "RowFlag",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "Status",
    "Step",
    "StepBuffer",
    "StepLimits",
    "Submitter",
    "Tensor",
    "append",
    "build_info",
    "merge",
    "rope_table",
    "set_log",
    "version",
]
