"""Decides which block of a paged KV cache holds which tokens: for stacks with a scheduler of their
own."""

from __future__ import annotations

from ctypes import POINTER, addressof, byref, c_size_t, c_uint32, c_uint64, c_void_p, cast, sizeof
from typing import Any, List, Optional, Sequence

from . import _structs as c
from ._library import Guarded, Handle, Numbers, fill, lib, np, prepared, u64
from ._records import CACHE_KEYS_ARRAYS, BlockOp, CacheKeys, CacheStats
from .errors import CapacityError
from .request import Content, Given

_OPS_AT_ONCE = 256


class Cache(Guarded):
    """Block tables, prefix cache, copy-on-write and swap. It moves no data.

    The life of a sequence: `open`, `extend` with its tokens, `lookup` what is cached, `allocate`
    with what was found, `register` what the step fills, `take_ops` and make the copies, run the
    step on `table`, `close_sequence`. One thread at a time: others wait.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: Optional[int] = None,
        num_host_blocks: Optional[int] = None,
        prefix_cache: Optional[bool] = None,
    ) -> None:
        super().__init__()
        self._ops: List[BlockOp] = []
        struct = prepared(c.CacheConfig)
        fill(
            struct,
            {
                "num_blocks": num_blocks,
                "block_size": block_size,
                "num_host_blocks": num_host_blocks,
                "prefix_cache": prefix_cache,
            },
        )
        self.block_size: int = struct.block_size
        self._handle = Handle("cache", lib.inflight_cache_create, byref(struct))

    def open(
        self,
        salt: Optional[bytes] = None,
        adapter: Optional[str] = None,
        contents: Sequence[Content] = (),
    ) -> int:
        """Starts a sequence; it shares blocks where salt, adapter and contents are the same."""
        record = CacheKeys(salt, adapter, contents)
        keys = Given(prepared(c.CacheKeys), record, CACHE_KEYS_ARRAYS)
        seq = c_uint64()
        self._call(lib.inflight_cache_open, byref(keys.struct), byref(seq))
        return seq.value

    def extend(self, seq: int, tokens: Any) -> None:
        """Says which tokens the sequence has next."""
        given = Numbers(tokens, "tokens")
        self._call(lib.inflight_cache_extend, u64(seq, "seq"), given.address, given.len)

    def lookup(self, seq: int, max_tokens: int) -> int:
        """Tokens of the longest cached prefix, of at most `max_tokens`."""
        found = c_uint64()
        self._call(
            lib.inflight_cache_lookup,
            u64(seq, "seq"),
            u64(max_tokens, "max_tokens"),
            byref(found),
        )
        return found.value

    def _blocks(
        self, function: Any, seq: int, num_tokens: int, num_cached: int, write_from: Optional[int]
    ) -> int:
        count = c_uint64()
        self._call(
            function,
            u64(seq, "seq"),
            u64(num_cached, "num_cached"),
            u64(num_cached if write_from is None else write_from, "write_from"),
            u64(num_tokens, "num_tokens"),
            byref(count),
        )
        return count.value

    def blocks_needed(
        self, seq: int, num_tokens: int, num_cached: int = 0, write_from: Optional[int] = None
    ) -> int:
        """Blocks that `allocate` would take from the free ones."""
        return self._blocks(
            lib.inflight_cache_blocks_needed, seq, num_tokens, num_cached, write_from
        )

    def allocate(
        self, seq: int, num_tokens: int, num_cached: int = 0, write_from: Optional[int] = None
    ) -> int:
        """Gives the sequence blocks for its first `num_tokens` tokens, those from `write_from` (by
        default `num_cached`) about to be written. Returns how many it took; `CapacityError` where
        there are too few."""
        return self._blocks(lib.inflight_cache_allocate, seq, num_tokens, num_cached, write_from)

    def register(self, seq: int, num_tokens: int) -> None:
        """Makes full blocks among the first `num_tokens` tokens findable for others."""
        self._call(lib.inflight_cache_register, u64(seq, "seq"), u64(num_tokens, "num_tokens"))

    def unregister(self, seq: int, num_tokens: int) -> None:
        """Takes `register` back for blocks past the first `num_tokens` tokens."""
        self._call(lib.inflight_cache_unregister, u64(seq, "seq"), u64(num_tokens, "num_tokens"))

    def table(self, seq: int) -> Any:
        """The blocks of the sequence, in the order of its tokens: a numpy array of uint32, or a
        list without numpy. A copy, which lasts."""
        blocks, count = c_void_p(), c_size_t()
        with self._lock:  # the next call may move the table
            self._call(lib.inflight_cache_table, u64(seq, "seq"), byref(blocks), byref(count))
            if not count.value:
                return np.empty(0, np.uint32) if np is not None else []
            pointer = cast(blocks, POINTER(c_uint32))
            if np is not None:
                return np.ctypeslib.as_array(pointer, (count.value,)).copy()
            return pointer[: count.value]

    def truncate(self, seq: int, num_tokens: int) -> None:
        """Shortens the sequence to its first `num_tokens` tokens."""
        self._call(lib.inflight_cache_truncate, u64(seq, "seq"), u64(num_tokens, "num_tokens"))

    def fork(self, seq: int) -> int:
        """Starts a sequence that shares all blocks of this one."""
        child = c_uint64()
        self._call(lib.inflight_cache_fork, u64(seq, "seq"), byref(child))
        return child.value

    def release(self, seq: int) -> None:
        """Frees the blocks of the sequence, which stays open."""
        self._call(lib.inflight_cache_release, u64(seq, "seq"))

    def close_sequence(self, seq: int) -> None:
        """Ends the sequence; the prefix cache may still serve its blocks."""
        self._call(lib.inflight_cache_close, u64(seq, "seq"))

    def swap_out(self, seq: int) -> None:
        """Moves the sequence to the host pool."""
        self._call(lib.inflight_cache_swap_out, u64(seq, "seq"))

    def swap_in(self, seq: int) -> None:
        """Moves the sequence back to the device pool."""
        self._call(lib.inflight_cache_swap_in, u64(seq, "seq"))

    def take_ops(self) -> List[BlockOp]:
        """Takes the copies to make before the kernels of the next step, in order."""
        buffer, count = (c.BlockOp * _OPS_AT_ONCE)(), c_size_t(_OPS_AT_ONCE)
        with self._lock:
            # Where a call fails, those before it are kept for the next.
            while count.value == _OPS_AT_ONCE:
                self._call(
                    lib.inflight_cache_take_ops,
                    addressof(buffer),
                    sizeof(c.BlockOp),
                    _OPS_AT_ONCE,
                    byref(count),
                )
                self._ops.extend(BlockOp._of(op) for op in buffer[: count.value])
            taken, self._ops = self._ops, []
            return taken

    def reset(self) -> bool:
        """Forgets all cached prefixes; False, and nothing is forgotten, while blocks are held."""
        try:
            self._call(lib.inflight_cache_reset)
        except CapacityError:
            return False
        return True

    def stats(self) -> CacheStats:
        """Counters and state."""
        struct = prepared(c.CacheStats)
        self._call(lib.inflight_cache_get_stats, byref(struct))
        return CacheStats._of(struct)

    def verify(self) -> None:
        """Checks every invariant: for tests."""
        self._call(lib.inflight_cache_verify)
