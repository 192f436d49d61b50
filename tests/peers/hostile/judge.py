"""CPython's own reading of a body, without importing anything; and equality that no sharing makes slow."""

import contextlib
import io
import json
import pickle
import struct
import sys

PLAIN = {"_codecs": ["encode"]} | dict.fromkeys(["builtins", "__builtin__"], ["set", "frozenset", "bytes", "bytearray"])
LIMIT = sys.int_info.default_max_str_digits


class Careful(pickle.Unpickler):
    """CPython's C unpickler; refuses every name but those that `pickle.dumps` needs for plain values."""

    def find_class(self, module, name):
        if name not in PLAIN.get(module, []):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


@contextlib.contextmanager
def as_peers_are():
    """With the bound for an int's decimal digits that CPython starts with."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(LIMIT)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def read(form, body):
    """What a body says: the contract takes ints of any size."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return Careful(io.BytesIO(body)).load() if form == "pickle" else json.loads(body)
    finally:
        sys.set_int_max_str_digits(before)


def read_as_peer(form, body):
    """What a peer makes of a body that was passed on to it."""
    with as_peers_are():
        return Careful(io.BytesIO(body)).load() if form == "pickle" else json.loads(body)


def scalar(value):
    if type(value) is float:
        return struct.pack("<d", value) if value == value else b"nan"
    return value


def same(a, b, as_json=False):
    """Whether two values are equal in types, order and contents; a tuple is a list where `as_json` is set.

    Two containers that are compared a second time count as equal: if they differ, the first comparison finds that.
    """
    met, todo = set(), [(a, b)]
    while todo:
        a, b = todo.pop()
        kinds = [list if as_json and type(x) is tuple else type(x) for x in (a, b)]
        if kinds[0] is not kinds[1]:
            return False
        if kinds[0] not in (list, tuple, dict, set, frozenset):
            if scalar(a) != scalar(b):
                return False
            continue
        if (id(a), id(b)) in met:
            continue
        met.add((id(a), id(b)))
        if len(a) != len(b):
            return False
        if kinds[0] is dict:
            todo += zip(a, b)
            todo += zip(a.values(), b.values())
        elif kinds[0] in (set, frozenset):
            # The order differs, and an equal item of the other set may have another type.
            others = {item: item for item in b}
            if any(item == item and item not in others for item in a):
                return False
            todo += [(item, others[item]) for item in a if item == item and item in others]
        else:
            todo += zip(a, b)
    return True


def has_lone_surrogate(form, body):
    """Whether a str in a JSON text holds half a surrogate pair, be it in what a repeated key has replaced."""
    if form == "pickle":
        return False
    todo = [json.loads(body, object_pairs_hook=lambda pairs: list(map(list, pairs)), parse_int=len)]
    while todo:
        value = todo.pop()
        if type(value) is list:
            todo += value
        elif type(value) is str and any(0xD800 <= ord(char) < 0xE000 for char in value):
            return True
    return False
