"""A machine that executes the opcodes of a pickle of plain values, within a budget of memory.

It reads everything that `pickle.dumps` writes for None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set
and frozenset, at any protocol, and gives equal values. It reads large byte strings of a file by their position only.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from ..errors import BadMessage
from ..values import FileBytes, Value
from . import names, nesting
from . import opcodes as op
from .budget import DICT, DICT_ITEM, LIST, MEMO, OBJECT, SET, SET_ITEM, SLOT, Budget
from .source import Source

#: How much memory the values of a message may take, in bytes, unless the caller says otherwise.
MAX_MEMORY = 256 << 20

#: How many decimal digits an int may have (`sys.int_info.default_max_str_digits`); binary ones have no such bound.
_MAX_DIGITS = 4_300

_INT = re.compile(rb"-?(0|[1-9][0-9]{0,%d})" % (_MAX_DIGITS - 1))
_FLOAT = re.compile(rb"-?(inf|nan|[0-9]{1,400}(\.[0-9]{0,400})?(e[-+]?[0-9]{1,4})?)")
_MAX_NUMBER_LINE = _MAX_DIGITS + 10


def loads(data: bytes, *, max_memory: int = MAX_MEMORY) -> Value:
    """The value of a pickle."""
    return _Machine(Source(io.BytesIO(data), len(data)), Budget(max_memory), None, 0).run()


def load(path: Path, *, max_memory: int = MAX_MEMORY, spill: int = 1 << 20) -> Value:
    """The value of a pickle in a file. Byte strings of more than `spill` bytes stay there: see :class:`FileBytes`."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return _Machine(Source(file, size), Budget(max_memory), path, spill).run()


class _Machine:
    """Stack, marks and memo, as CPython's unpickler has them."""

    def __init__(self, source: Source, budget: Budget, path: Optional[Path], spill: int) -> None:
        self.source = source
        self.budget = budget
        self.path, self.spill = path, spill
        self.stack: List[Any] = []
        # The length of the stack at each open MARK.
        self.marks: List[int] = []
        self.memo: Dict[int, Any] = {}

    def run(self) -> Value:
        try:
            value: Value = self._execute()
            nesting.check(value)
        except RecursionError:
            # Equal keys are compared recursively.
            raise BadMessage("pickle with dict keys or set items that are nested too deeply") from None
        return value

    def _execute(self) -> Any:
        source, charge = self.source, self.budget.charge
        while True:
            opcode = source.opcode()
            charge(1)
            if opcode == op.STOP:
                break
            execute = _OPCODES.get(opcode)
            if execute is None:
                source.refuse(f"unknown opcode 0x{opcode:02x}")
            execute(self)
        value = self.pop()
        if source.left:
            source.refuse(f"{source.left} bytes after the end")
        return value

    # The stack.

    def push(self, value: Any, cost: int = 0) -> None:
        self.budget.charge(SLOT + cost)
        self.stack.append(value)

    def push_bytes(self, size: int, *, mutable: bool = False) -> None:
        """Reads a byte string, or only its position if it is large and in a file."""
        if self.path is not None and size > self.spill:
            self.push(FileBytes(self.path, self.source.skip(size), size), 3 * OBJECT)
            return
        if size <= self.source.left:
            self.budget.charge(size * (2 if mutable else 1))
        taken = self.source.take(size)
        self.push(bytearray(taken) if mutable else taken, 2 * OBJECT)

    def push_str(self, size: int) -> None:
        if size <= self.source.left:
            self.budget.charge(size)
        self.decoded(lambda: self.source.take(size).decode("utf-8", "surrogatepass"))

    def decoded(self, decode: Callable[[], str]) -> None:
        try:
            text = decode()
        except (UnicodeError, ValueError):
            self.source.refuse("str in an invalid encoding")
        self.push(text, sys.getsizeof(text))

    def push_int(self, value: int) -> None:
        self.push(value, OBJECT)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.source.refuse("opcode needs a value, but the stack has none")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_mark(self) -> List[Any]:
        """The values above the last MARK, removed with it."""
        if not self.marks:
            self.source.refuse("opcode needs a MARK, but the stack has none")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_values(self, count: int) -> List[Any]:
        return [self.pop() for _ in range(count)][::-1]

    # Containers.

    def push_tuple(self, values: List[Any]) -> None:
        made = tuple(values)
        if made:
            self.budget.built(made, values)
        self.push(made, 2 * OBJECT + SLOT * len(made))

    def push_list(self, values: List[Any]) -> None:
        self.push(values, LIST + SLOT * len(values))

    def append(self, values: List[Any]) -> None:
        target = self.container(list)
        self.budget.charge(SLOT * len(values))
        target.extend(values)

    def add_items(self, values: List[Any], target: Any) -> None:
        """Adds to a set."""
        self.budget.charge(SET_ITEM * len(values))
        for value in values:
            self.budget.check_key(value)
            target.add(value)

    def set_items(self, values: List[Any], target: Any) -> None:
        """Adds keys and values, in turn, to a dict."""
        if len(values) % 2:
            self.source.refuse("dict key without a value")
        self.budget.charge(DICT_ITEM * (len(values) // 2))
        for key, value in zip(values[::2], values[1::2]):
            self.budget.check_key(key)
            target[key] = value

    def push_dict(self, values: List[Any]) -> None:
        made: Dict[Any, Any] = {}
        self.set_items(values, made)
        self.push(made, DICT)

    def push_frozenset(self, values: List[Any]) -> None:
        self.budget.charge(SET_ITEM * len(values))
        for value in values:
            self.budget.check_key(value)
        made = frozenset(values)
        self.budget.built(made, values)
        self.push(made, SET)

    def container(self, kind: type) -> Any:
        target = self.top()
        if type(target) is not kind:
            self.source.refuse(f"opcode adds items of a {kind.__name__} to a {type(target).__name__}")
        return target

    # Opcodes with text.

    def text_int(self, *, suffix: bool) -> None:
        line = self.source.line(_MAX_NUMBER_LINE)
        if not suffix and line in (b"00", b"01"):
            self.push(line == b"01")
            return
        if suffix and line.endswith(b"L"):
            line = line[:-1]
        if not _INT.fullmatch(line):
            self.source.refuse(f"int that is not written in decimal, or has more than {_MAX_DIGITS} digits")
        self.push(int(line), OBJECT + len(line))

    def text_float(self) -> None:
        line = self.source.line(_MAX_NUMBER_LINE)
        if not _FLOAT.fullmatch(line):
            self.source.refuse("float that is not written in decimal")
        self.push(float(line), OBJECT)

    def text_line(self) -> bytes:
        line = self.source.line(self.budget.left)
        self.budget.charge(len(line))
        return line

    def raw_unicode(self) -> None:
        line = self.text_line()
        self.decoded(lambda: line.decode("raw-unicode-escape"))

    def quoted(self) -> None:
        """A str of Python 2, as its `repr`. As with `pickle.loads`, it must be ASCII."""
        line = self.text_line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            self.source.refuse("string without quotes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            self.decoded(lambda: codecs.escape_decode(line[1:-1])[0].decode("ascii"))

    def python_2_str(self, size: int) -> None:
        if size < 0:
            self.source.refuse("negative length")
        if size <= self.source.left:
            self.budget.charge(size)
        self.decoded(lambda: self.source.take(size).decode("ascii"))

    def long(self, size: int) -> None:
        if size < 0:
            self.source.refuse("negative length")
        if size <= self.source.left:
            self.budget.charge(2 * size)
        self.push(int.from_bytes(self.source.take(size), "little", signed=True), OBJECT)

    # The memo.

    def memoize(self, number: int) -> None:
        self.budget.charge(MEMO)
        self.memo[number] = self.top()

    def recall(self, number: int) -> None:
        if number not in self.memo:
            self.source.refuse(f"unknown memo number {number}")
        self.push(self.memo[number])

    def memo_number(self) -> int:
        line = self.source.line(20)
        if not re.fullmatch(rb"[0-9]{1,19}", line):
            self.source.refuse("memo number that is not written in decimal")
        return int(line)

    def pop_or_mark(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def mark(self) -> None:
        self.budget.charge(4 * SLOT)
        self.marks.append(len(self.stack))

    # Names.

    def push_name(self, module: object, name: object) -> None:
        known = names.find(module, name) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            self.source.refuse(f"pickle names a class ({f'{module!s:.100}.{name!s:.100}'!a})")
        self.push(known)

    def stack_global(self) -> None:
        module, name = self.pop_values(2)
        self.push_name(module, name)

    def reduce(self) -> None:
        name, arguments = self.pop_values(2)
        if not isinstance(name, names.Name):
            self.source.refuse(f"pickle calls a {type(name).__name__}, which is not callable,")
        made = names.result(name, arguments, self.budget) if isinstance(arguments, tuple) else None
        if made is None:
            self.source.refuse(f"pickle calls `{name.value}` with arguments that `pickle.dumps` never gives it")
        self.push(made, 2 * OBJECT)

    def instance(self) -> None:
        self.push_name(self.source.name(), self.source.name())
        self.source.refuse("pickle makes an instance of a class")

    def proto(self) -> None:
        protocol = self.source.number(1)
        if protocol > 5:
            self.source.refuse(f"pickle of protocol {protocol} (0 to 5 are supported)")

    def frame(self) -> None:
        if self.source.number(8) > self.source.left:
            self.source.refuse("truncated pickle: it ends within the frame")


def _refusal(what: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.source.refuse(what)


_INSTANCE = _refusal("pickle makes an instance of a class, not a plain value,")
_EXTENSION = _refusal("pickle names a class by an extension code")
_PERSISTENT = _refusal("pickle refers to an external object by a persistent id")
_OUT_OF_BAND = _refusal("pickle refers to an out-of-band buffer")

_OPCODES: Dict[int, Callable[[_Machine], None]] = {
    op.PROTO: _Machine.proto,
    op.FRAME: _Machine.frame,
    op.NONE: lambda m: m.push(None),
    op.NEWTRUE: lambda m: m.push(True),
    op.NEWFALSE: lambda m: m.push(False),
    op.BININT: lambda m: m.push_int(m.source.signed(4)),
    op.BININT1: lambda m: m.push_int(m.source.number(1)),
    op.BININT2: lambda m: m.push_int(m.source.number(2)),
    op.LONG1: lambda m: m.long(m.source.number(1)),
    op.LONG4: lambda m: m.long(m.source.signed(4)),
    op.INT: lambda m: m.text_int(suffix=False),
    op.LONG: lambda m: m.text_int(suffix=True),
    op.FLOAT: _Machine.text_float,
    op.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.source.take(8))[0], OBJECT),
    op.SHORT_BINUNICODE: lambda m: m.push_str(m.source.number(1)),
    op.BINUNICODE: lambda m: m.push_str(m.source.number(4)),
    op.BINUNICODE8: lambda m: m.push_str(m.source.number(8)),
    op.UNICODE: _Machine.raw_unicode,
    op.STRING: _Machine.quoted,
    op.SHORT_BINSTRING: lambda m: m.python_2_str(m.source.number(1)),
    op.BINSTRING: lambda m: m.python_2_str(m.source.signed(4)),
    op.SHORT_BINBYTES: lambda m: m.push_bytes(m.source.number(1)),
    op.BINBYTES: lambda m: m.push_bytes(m.source.number(4)),
    op.BINBYTES8: lambda m: m.push_bytes(m.source.number(8)),
    op.BYTEARRAY8: lambda m: m.push_bytes(m.source.number(8), mutable=True),
    op.EMPTY_LIST: lambda m: m.push_list([]),
    op.LIST: lambda m: m.push_list(m.pop_mark()),
    op.APPEND: lambda m: m.append([m.pop()]),
    op.APPENDS: lambda m: m.append(m.pop_mark()),
    op.EMPTY_TUPLE: lambda m: m.push_tuple([]),
    op.TUPLE: lambda m: m.push_tuple(m.pop_mark()),
    op.TUPLE1: lambda m: m.push_tuple(m.pop_values(1)),
    op.TUPLE2: lambda m: m.push_tuple(m.pop_values(2)),
    op.TUPLE3: lambda m: m.push_tuple(m.pop_values(3)),
    op.EMPTY_DICT: lambda m: m.push_dict([]),
    op.DICT: lambda m: m.push_dict(m.pop_mark()),
    op.SETITEM: lambda m: m.set_items(m.pop_values(2), m.container(dict)),
    op.SETITEMS: lambda m: m.set_items(m.pop_mark(), m.container(dict)),
    op.EMPTY_SET: lambda m: m.push(set(), SET),
    op.ADDITEMS: lambda m: m.add_items(m.pop_mark(), m.container(set)),
    op.FROZENSET: lambda m: m.push_frozenset(m.pop_mark()),
    op.MARK: _Machine.mark,
    op.POP: _Machine.pop_or_mark,
    op.POP_MARK: lambda m: m.pop_mark().clear(),
    op.DUP: lambda m: m.push(m.top()),
    op.PUT: lambda m: m.memoize(m.memo_number()),
    op.BINPUT: lambda m: m.memoize(m.source.number(1)),
    op.LONG_BINPUT: lambda m: m.memoize(m.source.number(4)),
    op.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    op.GET: lambda m: m.recall(m.memo_number()),
    op.BINGET: lambda m: m.recall(m.source.number(1)),
    op.LONG_BINGET: lambda m: m.recall(m.source.number(4)),
    op.GLOBAL: lambda m: m.push_name(m.source.name(), m.source.name()),
    op.STACK_GLOBAL: _Machine.stack_global,
    op.REDUCE: _Machine.reduce,
    op.INST: _Machine.instance,
    op.EXT1: _EXTENSION,
    op.EXT2: _EXTENSION,
    op.EXT4: _EXTENSION,
    op.OBJ: _INSTANCE,
    op.NEWOBJ: _INSTANCE,
    op.NEWOBJ_EX: _INSTANCE,
    op.BUILD: _INSTANCE,
    op.PERSID: _PERSISTENT,
    op.BINPERSID: _PERSISTENT,
    op.NEXT_BUFFER: _OUT_OF_BAND,
    op.READONLY_BUFFER: _OUT_OF_BAND,
}
