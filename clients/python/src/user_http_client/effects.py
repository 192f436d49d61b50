"""What the protocol asks of the program around it.

The protocol of this package is written once, as generators that do no input or output over the network: a flow yields
an effect, and is sent its outcome. `client.py` performs effects with threads that block, `aio.py` with asyncio.

A flow cleans up in `finally` blocks, which must not yield: the answer that is open belongs to the performer, who
closes it at the next `Send` or `Sleep`, and at the end of the flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Callable, Dict, Generator, Mapping, Optional, TypeVar, Union

from .values import FileBytes

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Sends a request, and waits for the head of the answer: a :class:`Head`."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Union[bytes, FileBytes] = field(default=b"", repr=False)


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer; the names are in lower case."""

    status: int
    headers: Mapping[str, str]

    def get(self, name: str) -> Optional[str]:
        return self.headers.get(name)

    def length(self) -> Optional[int]:
        """`Content-Length`."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True)
class Read:
    """Reads more of the answer's body, as it came over the connection: `bytes`, empty at the end."""


@dataclass(frozen=True)
class Sleep:
    """Waits."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """Calls a function that may block on the disk, and returns what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Lock:
    """Waits for the lock of a file (`flock`), which ends when the file is closed."""

    file: BinaryIO
    exclusive: bool


Effect = Union[Send, Read, Sleep, Call, Lock]
Flow = Generator[Effect, Any, T]


def send(request: Send) -> Flow[Head]:
    head: Head = yield request
    return head


def read() -> Flow[bytes]:
    chunk: bytes = yield Read()
    return chunk


def read_start(limit: int) -> Flow[bytes]:
    """The body of an answer that is read whole, but no more than `limit` bytes of it."""
    body = b""
    while len(body) < limit:
        chunk = yield from read()
        if not chunk:
            break
        body += chunk
    return body[:limit]


def sleep(seconds: float) -> Flow[None]:
    yield Sleep(seconds)


def call(function: Callable[..., T], *args: Any, **options: Any) -> Flow[T]:
    result: T = yield Call(partial(function, *args, **options))
    return result


def lock(file: BinaryIO, *, exclusive: bool) -> Flow[None]:
    yield Lock(file, exclusive)


def lower_case(headers: Any) -> Dict[str, str]:
    """The headers of httpx by their names in lower case; repeated ones are joined by commas."""
    return {name.lower(): headers[name] for name in headers}
