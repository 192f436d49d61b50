"""What a pickle may cost: memory, and the time that dicts and sets take to insert their keys."""

from __future__ import annotations

from typing import Dict, List, NoReturn

from ..errors import BadMessage, TooLarge
from ..values import FileBytes

#: How many values one key may contain, when each is counted as often as hashing visits it. Shared tuples in tuples
#: would otherwise take exponential time, and deep ones overflow the C stack.
MAX_KEY_VALUES = 1_000

#: How many keys of all dicts and items of all sets may be of the kinds whose hashes a sender can choose: floats, large
#: ints, tuples and frozensets. If all have the same hash, so many take about half a second. The hashes of str and bytes
#: are secret, and those of small ints differ enough.
MAX_CHOSEN_KEYS = 8_192

#: Ints below this have hashes that collide in few positions of a table.
_SMALL_INT = 1 << 32

#: The bytes of an int that are hashed in the time of another value.
_INT_BITS_PER_VALUE = 160

#: Bytes of memory, for CPython 3.9 to 3.13.
SLOT, OBJECT, LIST, DICT, SET, DICT_ITEM, SET_ITEM, MEMO = 9, 32, 72, 72, 224, 130, 90, 110


class Budget:
    """What is left. Nothing is given back, so the number of opcodes is bounded too."""

    def __init__(self, memory: int) -> None:
        self._memory = self.left = memory
        self._chosen_keys = 0
        # By the id of a tuple or frozenset: how many values its hash visits; 0 if it is unhashable.
        self._hashed: Dict[int, int] = {}
        self._alive: List[object] = []

    def charge(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise TooLarge(f"the values of the message take more than {self._memory} bytes of memory")

    def built(self, value: object, items: List[object]) -> None:
        """Notes a new tuple or frozenset."""
        sizes = [self._hash_size(item) for item in items]
        total = min(sum(sizes) + 1, MAX_KEY_VALUES + 1)
        self.charge(2 * MEMO)
        self._hashed[id(value)] = total if all(sizes) else 0
        self._alive.append(value)

    def check_key(self, key: object) -> None:
        """Refuses a key that is unhashable, or takes too long to hash."""
        size = self._hash_size(key)
        if not size:
            kind = type(key).__name__ if not isinstance(key, FileBytes) else "byte string of more than 1 MiB"
            _refuse(f"unhashable dict key or set item ({kind})")
        if size > MAX_KEY_VALUES:
            _refuse(f"dict key or set item with more than {MAX_KEY_VALUES} values")
        if isinstance(key, (float, tuple, frozenset)) or (isinstance(key, int) and abs(key) >= _SMALL_INT):
            self._chosen_keys += 1
            if self._chosen_keys > MAX_CHOSEN_KEYS:
                _refuse(f"more than {MAX_CHOSEN_KEYS} dict keys and set items that are floats, large ints or tuples")

    def _hash_size(self, value: object) -> int:
        if isinstance(value, (tuple, frozenset)):
            return self._hashed.get(id(value), 1)
        if isinstance(value, int):
            return 1 + value.bit_length() // _INT_BITS_PER_VALUE
        return 1 if value is None or isinstance(value, (str, bytes, float)) else 0


def _refuse(what: str) -> NoReturn:
    raise BadMessage(f"pickle with {what}")
