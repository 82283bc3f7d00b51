"""inflight: continuous batching as a library, over its C ABI.

`Scheduler` decides at every iteration which requests run and with how many tokens; `Cache` which
blocks hold their keys and values, for stacks with a scheduler of their own; `Attention` computes over
paged KV, on numpy arrays and whatever speaks DLPack. Each is usable alone. include/inflight.h says
all that is left out here.
"""

from ._library import build_info, set_log, version
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
    StepLimits,
    append,
    merge,
    rope_table,
)
from .cache import Cache, CacheStats
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
from .scheduler import (
    BlockOp,
    Content,
    Event,
    Output,
    Outputs,
    PendingToken,
    Request,
    RequestSnapshot,
    Row,
    Scheduler,
    SchedulerConfig,
    SchedulerStats,
    Step,
    Submitter,
)

__all__ = [name for name in dir() if not name.startswith("_")]
