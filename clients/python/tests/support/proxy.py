"""A TCP proxy that cuts connections at given offsets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import Deque, List, Optional


class Proxy:
    """Forwards to a port of this machine. Each connection is cut after the next number of `cuts`, counted over the
    bytes to the client; those that come when there are none live on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.cuts: Deque[int] = deque()
        # The same, counted over the bytes to the gateway.
        self.request_cuts: Deque[int] = deque()
        self.to_client = 0
        self.to_server = 0
        self.connections = 0
        self.is_refusing = False
        self._open: List[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.is_refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._open += [client, server]
            cut = self.cuts.popleft() if self.cuts else None
            request_cut = self.request_cuts.popleft() if self.request_cuts else None
            for source, target, left, is_answer in ((server, client, cut, True), (client, server, request_cut, False)):
                thread = threading.Thread(target=self._copy, args=(source, target, left, is_answer), daemon=True)
                thread.start()

    def _copy(self, source: socket.socket, target: socket.socket, left: Optional[int], is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                data = source.recv(64 << 10 if left is None else min(left, 64 << 10))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                if left is not None:
                    left -= len(data)
                if is_answer:
                    self.to_client += len(data)
                else:
                    self.to_server += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
