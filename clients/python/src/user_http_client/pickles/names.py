"""The few functions that `pickle.dumps` names for plain values at old protocols. They are understood, never called."""

from __future__ import annotations

from enum import Enum
from typing import List, Optional, Tuple

from .budget import SET, SET_ITEM, Budget


class Name(Enum):
    """A function that a pickle has named. It stands on the stack until REDUCE, and is never a value."""

    ENCODE = "encode"
    BYTES = "bytes"
    BYTEARRAY = "bytearray"
    SET = "set"
    FROZENSET = "frozenset"


def find(module: str, name: str) -> Optional[Name]:
    if (module, name) == ("_codecs", "encode"):
        return Name.ENCODE
    if module in ("builtins", "__builtin__") and name in ("bytes", "bytearray", "set", "frozenset"):
        return Name(name)
    return None


def result(name: Name, arguments: Tuple[object, ...], budget: Budget) -> Optional[object]:
    """What the function would return; None for arguments that `pickle.dumps` never gives it."""
    first = arguments[0] if arguments else None
    if name in (Name.SET, Name.FROZENSET):
        return _set(name, first, budget) if len(arguments) == 1 and isinstance(first, list) else None
    if name is Name.ENCODE:
        return _latin1(first, budget) if arguments[1:] == ("latin1",) else None
    if not arguments:
        return b"" if name is Name.BYTES else bytearray()
    if name is not Name.BYTEARRAY:
        return None
    if len(arguments) == 1 and isinstance(first, bytes):
        budget.charge(len(first))
        return bytearray(first)
    # Written by Python 2, and by early releases of Python 3.
    encoded = _latin1(first, budget) if arguments[1:] == ("latin-1",) else None
    return None if encoded is None else bytearray(encoded)


def _latin1(text: object, budget: Budget) -> Optional[bytes]:
    if not isinstance(text, str):
        return None
    budget.charge(len(text))
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _set(name: Name, items: List[object], budget: Budget) -> object:
    budget.charge(SET + SET_ITEM * len(items))
    for item in items:
        budget.check_key(item)
    if name is Name.SET:
        return set(items)
    made = frozenset(items)
    budget.built(made, items)
    return made
