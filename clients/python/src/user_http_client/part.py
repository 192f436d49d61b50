"""Bytes that arrive: in memory or in a file, with their SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Callable, Optional

from . import answers
from .effects import Flow, Head, Send, call, read, send
from .errors import Again, ClientError, Refused, TooLarge
from .gateway import Gateway
from .retry import Patience, retrying
from .values import CHUNK

#: Called with the number of bytes that have arrived and the number of all.
Progress = Callable[[int, int], None]


class Part:
    """The first bytes of something that is downloaded. A file keeps them across crashes."""

    def __init__(self, file: BinaryIO, *, limit: Optional[int] = None, folder: Optional[Path] = None) -> None:
        self._file = file
        self._limit, self._folder = limit, folder
        self.size = 0
        self._digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(CHUNK):
            self.size += len(chunk)
            self._digest.update(chunk)

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.size = 0
        self._digest = hashlib.sha256()

    def sha256(self) -> bytes:
        return self._digest.digest()

    def sync(self) -> None:
        """Makes the bytes durable, where they are in a file."""
        self._file.flush()
        if not isinstance(self._file, io.BytesIO):
            os.fsync(self._file.fileno())

    def check_space(self, total: int) -> None:
        """Refuses what is too large for the limit, or for the disk."""
        if self._limit is not None and total > self._limit:
            raise TooLarge(f"{total} bytes are to be received, more than the limit of {self._limit}")
        if self._folder is not None:
            free = shutil.disk_usage(self._folder).free
            if total - self.size > free:
                raise TooLarge(f"{total} bytes are to be received, but {self._folder} has space for {free} more")


def receive(part: Part, end: int, total: int, patience: Patience, progress: Optional[Progress]) -> Flow[None]:
    """Appends the body of the current answer, which ends the part at `end` of `total` bytes."""
    while part.size < end:
        chunk = yield from read()
        if not chunk:
            raise Again(f"the connection closed after {part.size} of {total} bytes")
        if len(chunk) > end - part.size:
            raise Refused("the answer is longer than its headers say", 200)
        yield from call(part.append, chunk)
        patience.renew()
        if progress is not None:
            progress(part.size, total)
    # Reading to the end makes the connection available for the next request.
    if (yield from read()):
        raise Refused("the answer is longer than its headers say", 200)


def length_of(head: Head) -> int:
    length = head.length()
    if length is None:
        raise ClientError("the answer has no Content-Length")
    return length


def whole(part: Part, head: Head, patience: Patience, progress: Optional[Progress]) -> Flow[int]:
    """Replaces the part by the body of a 200. Returns its length."""
    length = length_of(head)
    yield from call(part.clear)
    part.check_space(length)
    yield from receive(part, length, length, patience, progress)
    return length


def rest(
    gateway: Gateway,
    what: str,
    url: str,
    part: Part,
    *,
    end: int,
    total: int,
    headers: dict[str, str],
    patience: Patience,
    progress: Optional[Progress],
) -> Flow[bool]:
    """Downloads up to the offset `end` of a representation of `total` bytes, and resumes a transfer that breaks.
    Returns whether the server has sent the representation whole, because it knows no ranges."""

    def attempt() -> Flow[bool]:
        if part.size > end:
            yield from call(part.clear)
        if part.size == end:
            return False
        ranged = {"Range": f"bytes={part.size}-{end - 1}", **headers}
        head = yield from send(Send("GET", url, gateway.headers(ranged)))
        if head.status == 416:
            yield from call(part.clear)
            raise Again("the server has no such range")
        yield from answers.check(gateway, head)
        if head.status != 206:
            if length_of(head) != total:
                raise Refused(f"the server sends {length_of(head)} bytes in place of {total}", head.status)
            yield from whole(part, head, patience, progress)
            return True
        if answers.content_range(head) != (part.size, end - 1, total):
            raise Refused("the server sent another range than the requested one", head.status)
        yield from receive(part, end, total, patience, progress)
        return False

    part.check_space(total)
    return (yield from retrying(what, patience, attempt))
