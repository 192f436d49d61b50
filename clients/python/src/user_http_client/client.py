"""The client for programs whose threads block."""

from __future__ import annotations

import fcntl
import time
from functools import partial
from types import TracebackType
from typing import Any, Callable, Iterator, Optional, Type, TypeVar

import httpx

from . import transport
from .cache import BlendCache
from .calls import MAX_MEMORY, Calls
from .effects import Call, Effect, Flow, Head, Lock, Read, Send, Sleep, lower_case
from .gateway import PathLike
from .message import Message
from .part import Progress
from .posting import Parcel, Receipt, post
from .sending import Sent, send_all
from .spool import Spool
from .values import FileBytes, Value

T = TypeVar("T")


class Client(Calls):
    """A worker's client of a gateway. It may be used by several threads."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.Client(**transport.options(self.gateway))

    __init__.__doc__ = Calls.__init__.__doc__

    def fetch(
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
        """Fetches the message under a UUID. The gateway delivers a message once.

        :param folder: keep the message in this folder of its own, whatever its size. After a crash, the same call goes
            on where it stopped, and returns a message that was fetched before. Without it the message is in memory
        :param wait: wait so many seconds for a message that is not there yet
        :param cache: ask for a reference in place of the .blend file, and get the file from this cache
        :param check: called with the message before it is taken. If it raises, the message stays at the gateway
        :param progress: called with the number of bytes that have arrived, and of all, for the message and its file
        :param max_bytes: refuse a message that would take more memory
        :raises NoMessage: there is no such message
        """
        return self._run(self._fetch(uuid, folder, wait, cache, check, progress, max_bytes))

    def post(self, kind: str, data: object, *, as_json: bool = False, key: Optional[str] = None) -> Receipt:
        """Posts a message for the user manager until the gateway has accepted it.

        :param kind: the `TYPE`, such as `FRAME_RENDERED`
        :param data: plain values
        :param as_json: send JSON in place of a pickle
        :param key: the idempotency key: the same message with the same key is forwarded once, also if it is posted
            again by another process. Without it, only the retries of this call have the same key
        """
        return self.post_parcel(self._pack(kind, data, as_json, key))

    def post_parcel(self, parcel: Parcel) -> Receipt:
        """Posts a message that was packed before."""
        return self._run(post(self.gateway, parcel))

    def send(self, spool: Spool, *, wait: bool = True) -> Sent:
        """Sends the messages of a spool until it is empty. After :class:`GaveUp` or :class:`Refused`, those that were
        not sent are still in the spool.

        :param wait: while another process sends, wait for its end; without it, return at once
        """
        return self._run(send_all(self.gateway, spool, wait=wait))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
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
                    step = partial(flow.send, performer.perform(effect))
                except Exception as error:
                    step = partial(flow.throw, error)
        finally:
            flow.close()
            performer.close()


class _Performer:
    """Performs the effects of one flow."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._answer: Optional[httpx.Response] = None
        self._chunks: Iterator[bytes] = iter(())

    def perform(self, effect: Effect) -> object:
        try:
            if isinstance(effect, Read):
                return next(self._chunks, b"")
            if isinstance(effect, Send):
                return self._send(effect)
        except transport.ERRORS as error:
            raise transport.failure(error) from error
        if isinstance(effect, Call):
            return effect.function()
        if isinstance(effect, Lock):
            fcntl.flock(effect.file, fcntl.LOCK_EX if effect.exclusive else fcntl.LOCK_SH)
        if isinstance(effect, Sleep):
            self.close()
            time.sleep(effect.seconds)
        return None

    def _send(self, effect: Send) -> Head:
        self.close()
        body = effect.body.chunks() if isinstance(effect.body, FileBytes) else effect.body
        request = self._http.build_request(effect.method, effect.url, headers=effect.headers, content=body)
        self._answer = self._http.send(request, stream=True)
        self._chunks = self._answer.iter_raw()
        return Head(self._answer.status_code, lower_case(self._answer.headers))

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
