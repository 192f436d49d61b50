"""The client for asyncio."""

from __future__ import annotations

import asyncio
import fcntl
from functools import partial
from types import TracebackType
from typing import Any, AsyncIterator, Callable, Optional, Type, TypeVar

import httpx

from . import transport
from .cache import BlendCache
from .calls import MAX_MEMORY, Calls
from .client import Client
from .effects import Call, Effect, Flow, Head, Lock, Read, Send, Sleep, lower_case
from .gateway import PathLike
from .message import Message
from .part import Progress
from .posting import Parcel, Receipt, post
from .sending import Sent, send_all
from .spool import Spool
from .values import FileBytes, Value

T = TypeVar("T")

# Seconds between attempts to lock a file, because waiting for a lock would block the event loop.
_FIRST_TRY, _MAX_TRY = 0.02, 0.5


class AsyncClient(Calls):
    """A worker's client of a gateway, for one event loop. Its calls are those of :class:`Client`; the disk is read and
    written by other threads."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.AsyncClient(**transport.options(self.gateway))

    __init__.__doc__ = Calls.__init__.__doc__

    async def fetch(
        self,
        uuid: str,
        *,
        folder: Optional[PathLike] = None,
        wait: float = 0,
        cache: Optional[BlendCache] = None,
        check: Optional[Callable[[Value], object]] = None,
        progress: Optional[Progress] = None,
        max_bytes: int = MAX_MEMORY,
    ) -> Message:
        return await self._run(self._fetch(uuid, folder, wait, cache, check, progress, max_bytes))

    async def post(self, kind: str, data: object, *, as_json: bool = False, key: Optional[str] = None) -> Receipt:
        return await self.post_parcel(self._pack(kind, data, as_json, key))

    async def post_parcel(self, parcel: Parcel) -> Receipt:
        """Posts a message that was packed before."""
        return await self._run(post(self.gateway, parcel))

    async def send(self, spool: Spool, *, wait: bool = True) -> Sent:
        return await self._run(send_all(self.gateway, spool, wait=wait))

    fetch.__doc__, post.__doc__, send.__doc__ = Client.fetch.__doc__, Client.post.__doc__, Client.send.__doc__

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        performer = _Performer(self._http)
        step: Callable[[], Effect] = partial(next, flow)
        try:
            while True:
                try:
                    effect = step()
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                try:
                    step = partial(flow.send, await performer.perform(effect))
                except Exception as error:
                    step = partial(flow.throw, error)
        finally:
            flow.close()
            await performer.close()


class _Performer:
    """Performs the effects of one flow."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._answer: Optional[httpx.Response] = None
        self._chunks: Optional[AsyncIterator[bytes]] = None

    async def perform(self, effect: Effect) -> object:
        try:
            if isinstance(effect, Read):
                return await self._read()
            if isinstance(effect, Send):
                return await self._send(effect)
        except transport.ERRORS as error:
            raise transport.failure(error) from error
        if isinstance(effect, Call):
            return await _in_thread(effect.function)
        if isinstance(effect, Lock):
            await _lock(effect)
        if isinstance(effect, Sleep):
            await self.close()
            await asyncio.sleep(effect.seconds)
        return None

    async def _send(self, effect: Send) -> Head:
        await self.close()
        body = _chunks(effect.body) if isinstance(effect.body, FileBytes) else effect.body
        request = self._http.build_request(effect.method, effect.url, headers=effect.headers, content=body)
        self._answer = await self._http.send(request, stream=True)
        self._chunks = self._answer.aiter_raw()
        return Head(self._answer.status_code, lower_case(self._answer.headers))

    async def _read(self) -> bytes:
        try:
            return await self._chunks.__anext__() if self._chunks is not None else b""
        except StopAsyncIteration:
            return b""

    async def close(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            await answer.aclose()


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Calls a function that may block. A cancellation waits for its end: the flow then closes the function's files."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


async def _lock(effect: Lock) -> None:
    kind = (fcntl.LOCK_EX if effect.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    pause = _FIRST_TRY
    while True:
        try:
            fcntl.flock(effect.file, kind)
        except BlockingIOError:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_TRY)
        else:
            return


async def _chunks(body: FileBytes) -> AsyncIterator[bytes]:
    chunks = body.chunks()
    while chunk := await _in_thread(partial(next, chunks, b"")):
        yield chunk
