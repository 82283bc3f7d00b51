"""What a caller asks for, in Python and as C sees it."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import _structs as c
from ._library import Numbers, Octets, fill, prepared, put


@dataclass(frozen=True)
class Content:
    """Content behind placeholder tokens, such as an image: prompts share blocks only with it."""

    id: bytes
    start: int
    len: int


@dataclass
class Request:
    """A request to generate from a prompt: `inflight_request`. Token ids may be in any sequence of
    integers; a numpy array of uint32 costs least."""

    id: int
    prompt: Any
    max_tokens: int
    min_tokens: int = 0
    eos: Optional[int] = None
    stop_tokens: Sequence[int] = ()
    priority: int = 0
    client: int = 0
    arrival: Optional[int] = None
    salt: Optional[bytes] = None
    adapter: Optional[str] = None
    contents: Sequence[Content] = ()
    repetition_count: int = 0
    repetition_min_pattern: int = 0
    repetition_max_pattern: int = 0
    skip_prefix_cache: bool = False


def contents_of(contents: Sequence[Content]) -> Tuple[Any, List[Octets]]:
    """C's array of contents, and what its elements point to."""
    owners = [Octets(content.id) for content in contents]
    structs = (c.Content * len(contents))()
    for struct, content, owner in zip(structs, contents, owners):
        struct.id, struct.id_len = owner.address, owner.len
        put(struct, "start", content.start)
        put(struct, "len", content.len)
    return structs, owners


class CRequest:
    """A request as C sees it, and what it points to."""

    def __init__(self, request: Request) -> None:
        self.prompt = Numbers(request.prompt, "prompt")
        self.stop_tokens = Numbers(request.stop_tokens, "stop_tokens")
        self.salt = Octets(request.salt)
        self.adapter = Octets(request.adapter.encode() if request.adapter else None)
        self.contents = contents_of(request.contents)
        struct = prepared(c.Request)
        struct.prompt, struct.prompt_len = self.prompt.address, self.prompt.len
        struct.stop_tokens = self.stop_tokens.address if self.stop_tokens.len else None
        struct.num_stop_tokens = self.stop_tokens.len
        struct.salt, struct.salt_len = self.salt.address, self.salt.len
        struct.adapter, struct.adapter_len = self.adapter.address, self.adapter.len
        if request.contents:
            struct.contents = addressof(self.contents[0])
            struct.num_contents = len(request.contents)
        values: Dict[str, Any] = {
            name: getattr(request, name)
            for name in (
                "id",
                "client",
                "arrival",
                "max_tokens",
                "min_tokens",
                "eos",
                "priority",
                "repetition_count",
                "repetition_min_pattern",
                "repetition_max_pattern",
                "skip_prefix_cache",
            )
        }
        fill(struct, values)
        self.struct = struct
