"""The values that messages consist of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Set, Tuple, Union

from .errors import BadMessage

__all__ = ["CHUNK", "FileBytes", "Value", "check_plain"]

#: How many bytes are copied or hashed at once.
CHUNK = 1 << 20


@dataclass(frozen=True)
class FileBytes:
    """A byte string that is a part of a file, because it is too large for memory."""

    path: Path
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in parts of at most 1 MiB."""
        left = self.size
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, CHUNK))
                if not chunk:
                    raise BadMessage(f"{self.path} is shorter than it was")
                left -= len(chunk)
                yield chunk

    def read(self) -> bytes:
        """All bytes, in memory."""
        return b"".join(self.chunks())

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Copies the bytes into a file of their own."""
        with open(path, "wb") as file:
            for chunk in self.chunks():
                file.write(chunk)


#: A plain value. Type checkers cannot express the recursion for Python 3.9, so containers hold `Any`.
Value = Union[
    None, bool, int, float, str, bytes, bytearray, FileBytes,
    List[Any], Tuple[Any, ...], Dict[Any, Any], Set[Any], FrozenSet[Any],
]  # fmt: skip

_SCALARS = frozenset({type(None), bool, int, float, str, bytes, bytearray})
_COLLECTIONS = frozenset({list, tuple, set, frozenset})


def check_plain(value: object) -> None:
    """Raises `TypeError` for a value that the gateway would refuse, such as an instance of a class."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind in _SCALARS:
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict) and kind is dict:
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)) and kind in _COLLECTIONS:
            pending.extend(item)
        else:
            raise TypeError(
                f"the gateway takes None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set and "
                f"frozenset, but no {kind.__module__}.{kind.__qualname__}"
            )
