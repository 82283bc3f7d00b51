"""What a caller asks for, as C sees it."""

from __future__ import annotations

import ctypes
from typing import Any, Tuple

from . import _structs as c
from ._library import Numbers, Octets, fill, prepared
from ._records import CONTENT_ARRAYS, REQUEST_ARRAYS, Content, Request

__all__ = ["Content", "Given", "Request", "given"]


class Given:
    """A record in a struct of C's, and what that points to."""

    def __init__(
        self, struct: ctypes.Structure, record: Any, arrays: Tuple[Tuple[Any, ...], ...]
    ) -> None:
        self.struct = struct
        values = dict(vars(record))
        self._owners = [
            self._point(name, length, element, size, values.pop(name))
            for name, length, element, size in arrays
        ]
        fill(struct, values)

    def _point(self, name: str, length: str, element: Any, size: Any, values: Any) -> Any:
        if element is c.Content:
            array: Any = Contents(values)
        else:
            array = Octets(values) if element == "B" else Numbers(values, name)
        if array.len:
            setattr(self.struct, name, array.address)
            setattr(self.struct, length, array.len)
            if size is not None:
                setattr(self.struct, size, ctypes.sizeof(element))
        return array


class Contents:
    """An array of contents as C sees it."""

    def __init__(self, contents: Any) -> None:
        structs = (c.Content * len(contents))()
        self._owners = [
            structs,
            *(Given(struct, of, CONTENT_ARRAYS) for struct, of in zip(structs, contents)),
        ]
        self.address, self.len = ctypes.addressof(structs), len(contents)


def given(request: Request) -> Given:
    """A request as C sees it."""
    return Given(prepared(c.Request), request, REQUEST_ARRAYS)
