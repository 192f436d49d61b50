"""How deep a value is nested."""

from __future__ import annotations

from itertools import chain
from typing import Dict, Iterator, List, Set, Tuple

from ..errors import BadMessage
from .names import Name

#: The gateway's own bound. Python's `repr`, `json` and `pickle.dumps` recurse, and fail at about 1,000.
MAX_DEPTH = 256


def check(root: object) -> None:
    """Refuses a value that is nested too deeply, contains itself, or contains a function as a value."""
    heights: Dict[int, int] = {}
    path: List[Tuple[object, Iterator[object], int]] = []
    entered: Set[int] = set()
    value, height = root, 0
    while True:
        children = _children(value)
        if children is None:
            height = max(height, 0)
        elif id(value) in heights:
            height = max(height, heights[id(value)])
        elif id(value) in entered:
            raise BadMessage("pickle with a value that contains itself")
        else:
            entered.add(id(value))
            path.append((value, children, height))
            height = 0
        # To the next value: a child of the innermost open container, or of the next one that has more.
        while path:
            container, rest, before = path[-1]
            child = next(rest, path)
            if child is not path:
                value = child
                break
            path.pop()
            heights[id(container)] = height + 1
            entered.discard(id(container))
            if height >= MAX_DEPTH:
                raise BadMessage(f"pickle with values nested deeper than {MAX_DEPTH}")
            height = max(before, height + 1)
        else:
            return


def _children(value: object) -> Iterator[object] | None:
    if isinstance(value, Name):
        raise BadMessage(f"pickle uses a class (`{value.value}`) as a value")
    if isinstance(value, dict):
        return chain(value.keys(), value.values())
    return iter(value) if isinstance(value, (list, tuple, set, frozenset)) else None
