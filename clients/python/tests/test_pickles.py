"""The reader of pickles gives what `pickle.loads` gives for plain values, and does nothing else."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import pickletools
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_http_client import BadMessage, FileBytes, TooLarge, loads
from user_http_client.pickles import load
from user_http_client.pickles.budget import MAX_CHOSEN_KEYS

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(1 << 3000), 1 << 3000)
    | st.floats(allow_nan=False) | st.text() | st.binary()
)  # fmt: skip
hashables = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4), max_leaves=8
)
values = st.recursive(
    scalars | st.binary().map(bytearray) | st.sets(hashables, max_size=4) | st.frozensets(hashables, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(hashables, inner, max_size=6)
    ),
    max_leaves=30,
)
protocols = st.integers(0, pickle.HIGHEST_PROTOCOL)


def same(left: Any, right: Any) -> bool:
    """Equal, with equal types at every level and dicts in the same order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, c) and same(b, d) for (a, b), (c, d) in zip(left.items(), right.items())
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(values, protocols)
def test_what_dumps_writes_comes_back_equal(value: Any, protocol: int) -> None:
    assert same(loads(pickle.dumps(value, protocol)), value)


@given(values, protocols)
@settings(max_examples=settings.default.max_examples // 4)
def test_the_pure_python_pickler_is_understood_too(value: Any, protocol: int) -> None:
    assert same(loads(pickle._dumps(value, protocol)), value)  # type: ignore[attr-defined]


@given(values, protocols)
@settings(max_examples=settings.default.max_examples // 4)
def test_a_message_in_a_file_is_the_same_as_one_in_memory(value: Any, protocol: int) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"user-http-client-test-{os.getpid()}")
    try:
        path.write_bytes(pickle.dumps(value, protocol))
        assert same(load(path), value)
    finally:
        path.unlink()


def test_a_shared_value_is_one_object() -> None:
    inner: list[Any] = [1]
    for protocol in range(6):
        first, second, pair = loads(pickle.dumps([inner, inner, (inner,)], protocol))  # type: ignore[misc]
        assert first is second is pair[0]


@pytest.mark.parametrize("protocol", range(6))
def test_special_values(protocol: int) -> None:
    value = [float("inf"), float("-inf"), -0.0, "\ud800", "\\u0041\n\r\x1a\0", b"", bytearray(), set(), frozenset(), ()]
    assert repr(loads(pickle.dumps(value, protocol))) == repr(value)
    assert str(loads(pickle.dumps(float("nan"), protocol))) == "nan"
    assert loads(pickle.dumps(1 << 200_000, max(protocol, 2))) == 1 << 200_000


def test_what_python_2_writes() -> None:
    assert loads(b"c__builtin__\nbytearray\np8\n(V\x89PNG\np9\nS'latin-1'\np10\ntp11\nRp12\n.") == b"\x89PNG"
    assert loads(b"\x80\x02}q\x00U\x03keyq\x01T\x05\x00\x00\x00valueq\x02s.") == {"key": "value"}
    assert loads(b"(S'a\\x41'\nS\"it's\"\nI00\nI01\nL12L\nI-7\ntp0\n.") == ("aA", "it's", False, True, 12, -7)


class Trap:
    """Its pickle runs a command when Python loads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_is_named_is_called(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "called"
    traps = [Trap(os.system, f"touch {file}"), Trap(open, str(file), "w"), Trap(exec, f"open({str(file)!r}, 'w')")]
    for trap in [*traps, {"DATA": traps[0]}, [traps[1]], Path("/"), ValueError("x"), Trap(getattr, "", "join"), print]:
        data = pickle.dumps(trap, protocol)
        with pytest.raises(BadMessage, match="names a class"):
            loads(data)
    assert not file.exists()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "truncated"),
        (b"\x80\x04", "truncated"),
        (b"\x80\x06N.", "protocol 6"),
        (b"N", "truncated"),
        (b".", "stack has none"),
        (b"NN.N", "after the end"),
        (b"(i__main__\nTrap\n.", "names a class"),
        (b"(ibuiltins\nset\n.", "instance"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"K\x01K\x02\x93.", "names a class"),
        (b"cbuiltins\nset\n.", "as a value"),
        (b"(lcbuiltins\nset\na.", "as a value"),
        (b"}cbuiltins\nset\nNs.", "unhashable"),
        (b"cbuiltins\nset\nN\x85R.", "arguments"),
        (b"cbuiltins\nset\n]R.", "arguments"),
        (b"c_codecs\nencode\nX\x01\0\0\0aX\4\0\0\0utf8\x86R.", "arguments"),
        (b"K\x01)R.", "not callable"),
        (b"N}b.", "instance"),
        (b"N)\x81.", "instance"),
        (b"N)}\x92.", "instance"),
        (b"(Nt o.", "opcode"),
        (b"\x82\x01.", "extension"),
        (b"Ppersid\n.", "persistent"),
        (b"NQ.", "persistent"),
        (b"\x97.", "out-of-band"),
        (b"h\x05.", "memo"),
        (b"g-1\n.", "memo"),
        (b"e.", "MARK"),
        (b"(e.", "stack has none"),
        (b"}(K\x01e.", "adds items of a list to a dict"),
        (b"](K\x01u.", "dict"),
        (b"}(K\x01u.", "without a value"),
        (b"}]Ns.", "unhashable"),
        (b"}]\x85Ns.", "unhashable"),
        (b"I1_0\n.", "decimal"),
        (b"I0x10\n.", "decimal"),
        (b"I" + b"1" * 4301 + b"\n.", "digits"),
        (b"I" + b"1" * 100_000 + b"\n.", "line of more than"),
        (b"F1e\n.", "float"),
        (b"Snone\n.", "quotes"),
        (b"X\x02\0\0\0\xff\xff.", "encoding"),
        (b"U\x01\xff.", "encoding"),
        (b"T\xff\xff\xff\xff.", "negative"),
        (b"\x8b\xff\xff\xff\xff.", "negative"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "truncated"),
        (b"\x96" + struct.pack("<Q", 1 << 63) + b".", "truncated"),
        (b"B\xff\xff\xff\xff.", "truncated"),
        (b"\x95" + struct.pack("<Q", 1 << 40) + b"N.", "frame"),
        (b"]q\0h\0a.", "contains itself"),
        (b"]q\0}q\1X\1\0\0\0ah\0sa.", "contains itself"),
        (b"\xff.", "unknown opcode"),
    ],
    ids=itertools.count(),
)
def test_a_malformed_pickle_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(BadMessage, match=text):
        loads(data)


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b"]" * depth + b"a" * (depth - 1) + b"."

    value = loads(nested(256))
    for _ in range(255):
        (value,) = value  # type: ignore[misc]
    for depth in (257, 10_000, 300_000):
        with pytest.raises(BadMessage, match="nested deeper"):
            loads(nested(depth))
    with pytest.raises(BadMessage, match="key or set item with more"):
        loads(b"})" + b"\x85" * 5_000 + b"Ns.")


def test_shared_tuples_take_no_exponential_time() -> None:
    doubling = b")" + b"2\x86" * 200
    loads(doubling + b".")
    with pytest.raises(BadMessage, match="key or set item with more"):
        loads(b"}" + doubling + b"Ns.")


def test_keys_with_chosen_hashes_are_bounded() -> None:
    modulus = (1 << 61) - 1
    keys = [number * modulus for number in range(1, MAX_CHOSEN_KEYS + 2)]
    assert loads(pickle.dumps(dict.fromkeys(keys[:2_000]))) == dict.fromkeys(keys[:2_000])
    opcodes = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in keys)
    with pytest.raises(BadMessage, match="large ints"):
        loads(b"}(" + opcodes + b"u.")
    assert len(loads(pickle.dumps(set(range(100_000))))) == 100_000  # type: ignore[arg-type]


BOMBS = {
    "sets": b"\x8f" * (1 << 20),
    "marks": b"(" * (2 << 20),
    "nones": b"N" * (2 << 20),
    "lists": b"]" * (1 << 20),
    "dicts": b"}" * (1 << 20),
    "memo": b"N" + b"\x94" * (1 << 20),
    "copies of a list": b"](" + b"N" * 10_000 + b"eq\0" + b"0cbuiltins\nset\nh\0\x85R" * 500,
    "copies of a str": b"X\0\0\1\0" + b"a" * (1 << 16) + b"q\0X\x06\0\0\0latin1q\1"
    + b"c_codecs\nencode\nh\0h\1\x86R" * 100,
    "pops": b"N0" * (2 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_pickle_takes_more_memory_than_allowed(name: str) -> None:
    data = BOMBS[name]
    limit = 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage):
            loads(data, max_memory=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * limit + (1 << 18), f"{peak} bytes"


@given(st.binary(max_size=200) | st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]
       + [b"\0", b"\1", b"a\n", b"builtins\nset\n", b"\4\0\0\0abcd"]), max_size=60).map(b"".join))  # fmt: skip
@settings(max_examples=5 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_bytes_give_a_plain_value_or_an_error(data: bytes) -> None:
    try:
        value = loads(data, max_memory=1 << 20)
    except BadMessage:
        return
    # What is accepted here, CPython loads as the same value.
    assert repr(value) == repr(pickle.loads(data))


@given(values, protocols, st.data())
def test_a_damaged_pickle_gives_a_plain_value_or_an_error(value: Any, protocol: int, draw: st.DataObject) -> None:
    data = bytearray(pickle.dumps(value, protocol))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessage):
        loads(bytes(data), max_memory=1 << 20)


def test_large_byte_strings_of_a_file_stay_there(tmp_path: Path) -> None:
    path = tmp_path / "message"
    blend = os.urandom(3 << 20)
    for protocol, kind in ((3, bytes), (4, bytes), (5, bytes), (5, bytearray)):
        path.write_bytes(pickle.dumps({"blend": kind(blend), "rest": [1, b"small"]}, protocol))
        value = load(path)
        assert isinstance(value, dict)
        assert value["rest"] == [1, b"small"]
        found = value["blend"]
        assert isinstance(found, FileBytes)
        assert len(found) == len(blend)
        assert found.read() == blend
        found.save(tmp_path / "scene")
        assert (tmp_path / "scene").read_bytes() == blend


def test_a_file_of_many_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "message"
    size = 6 << 30
    with open(path, "wb") as file:
        file.write(b"\x80\x04}\x8c\x05blend\x8e" + struct.pack("<Q", size))
        offset = file.tell()
        file.seek(size, os.SEEK_CUR)
        file.write(b"s.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load(path) == {"blend": FileBytes(path, offset, size)}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


def test_a_message_over_the_limit_is_refused_by_its_size() -> None:
    with pytest.raises(TooLarge, match="more than 1000000 bytes"):
        loads(pickle.dumps(b"x" * 2_000_000), max_memory=1_000_000)
