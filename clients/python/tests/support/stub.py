"""A server that answers what a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Optional, Union


@dataclass
class Request:
    method: str
    path: str
    headers: Dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    body: Union[bytes, Iterable[bytes]] = b""
    headers: Dict[str, str] = field(default_factory=dict)


class Stub:
    """Answers each request over a connection of its own. None hangs up; an iterable body is sent without a length,
    unless the headers have one."""

    def __init__(self, answer: Callable[[Request], Optional[Answer]]) -> None:
        self._answer = answer
        self.requests: List[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            reader = connection.makefile("rb")
            words = reader.readline().decode().split(" ")
            if len(words) < 2:
                return
            headers = {}
            while line := reader.readline().decode("latin-1").strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", "0")))
            request = Request(words[0], words[1], headers, body)
            self.requests.append(request)
            answer = self._answer(request)
            if answer is None:
                return
            lines = [f"HTTP/1.1 {answer.status} Status", "Connection: close"]
            if isinstance(answer.body, bytes):
                lines.append(f"Content-Length: {len(answer.body)}")
            lines += [f"{name}: {value}" for name, value in answer.headers.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            for chunk in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                connection.sendall(chunk)

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ranged(request: Request, message: bytes, headers: Optional[Dict[str, str]] = None) -> Answer:
    """Answers as a server with ranges does."""
    more = {"ETag": '"1"', **(headers or {})}
    asked = request.headers.get("range")
    if asked is None:
        return Answer(200, message, more)
    first, _, last = asked[len("bytes=") :].partition("-")
    start, end = int(first), min(int(last) + 1 if last else len(message), len(message))
    more["Content-Range"] = f"bytes {start}-{end - 1}/{len(message)}"
    return Answer(206, message[start:end], more)
