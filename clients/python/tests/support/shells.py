"""Runs a test with both clients: the one that blocks and the one for asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

from user_http_client import AsyncClient, Client


class Blocking:
    """An `AsyncClient` whose calls wait for their end, on an event loop of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._wait(self._make(url, options))

    async def _make(self, url: str, options: Any) -> AsyncClient:
        return AsyncClient(url, **options)

    def _wait(self, call: Any) -> Any:
        return self._loop.run_until_complete(call)

    def fetch(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.fetch(*arguments, **options))

    def post(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.post(*arguments, **options))

    def send(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.send(*arguments, **options))

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.close()


SHELLS = {"sync": Client, "asyncio": Blocking}
