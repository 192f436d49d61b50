"""The bytes of a pickle: a cursor that never reads more than there is."""

from __future__ import annotations

from typing import BinaryIO, NoReturn

from ..errors import BadMessage

#: How long a name in a pickle may be, in bytes. The longest that is known has ten.
MAX_NAME = 200


class Source:
    """A cursor in a file whose size is known. Errors name the offset of the current opcode."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.at = 0
        self.size = size
        self.position = 0

    @property
    def left(self) -> int:
        return self.size - self.position

    def refuse(self, what: str) -> NoReturn:
        raise BadMessage(f"{what} at byte {self.at} of the pickle")

    def opcode(self) -> int:
        self.at = self.position
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        self._check(count)
        self.position += count
        taken = self._file.read(count)
        if len(taken) != count:
            self.refuse("truncated pickle")
        return taken

    def skip(self, count: int) -> int:
        """Passes over bytes without reading them. Returns their offset."""
        self._check(count)
        start = self.position
        self.position += count
        self._file.seek(self.position)
        return start

    def number(self, width: int) -> int:
        """An unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def signed(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little", signed=True)

    def line(self, limit: int) -> bytes:
        """The bytes up to the end of the line, without it."""
        line = self._file.readline(min(limit, self.left) + 1)
        if len(line) > self.left or not line.endswith(b"\n"):
            self.refuse("truncated pickle" if len(line) >= self.left else f"line of more than {limit} bytes")
        self.position += len(line)
        return line[:-1]

    def name(self) -> str:
        return self.line(MAX_NAME).decode("ascii", "replace")

    def _check(self, count: int) -> None:
        if count > self.left:
            self.refuse("truncated pickle")
