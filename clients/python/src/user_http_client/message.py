"""A fetched message, with its .blend file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Callable, Optional, Type, Union

from .cache import BlendCache, CachedFile, Reference
from .effects import Flow, call
from .errors import ClientError, Refused
from .fetching import TRIES, Fetch
from .gateway import Gateway
from .part import Progress
from .store import Store
from .values import FileBytes, Value

log = logging.getLogger("user_http_client")


class Message:
    """A message that was taken from the gateway. Close it when its .blend file is not needed any more."""

    def __init__(self, uuid: str, value: Value, path: Optional[Path], cached: Optional[CachedFile]) -> None:
        self.uuid = uuid
        #: The message: plain values, with :class:`FileBytes` for byte strings of more than 1 MiB in a file.
        self.value = value
        #: The file with the pickle; None if the message is in memory.
        self.path = path
        #: The .blend file in the cache, if the message refers to one.
        self.cached = cached

    @property
    def blend(self) -> Union[bytes, FileBytes, CachedFile, None]:
        """The .blend file: its bytes, or a file."""
        if self.cached is not None:
            return self.cached
        data = self.value.get("DATA") if isinstance(self.value, dict) else None
        blend = data.get("BINARY_BLEND_FILE") if isinstance(data, dict) else None
        return blend if isinstance(blend, (bytes, FileBytes)) else None

    def save_blend(self, path: Union[str, os.PathLike[str]]) -> None:
        """Makes the .blend file appear under this name."""
        blend = self.blend
        if blend is None:
            raise ClientError("the message contains no .blend file: its DATA.BINARY_BLEND_FILE is not bytes")
        if isinstance(blend, bytes):
            Path(path).write_bytes(blend)
        else:
            blend.save(path)

    def close(self) -> None:
        """Lets the cache evict the .blend file."""
        if self.cached is not None:
            self.cached.close()

    def __enter__(self) -> Message:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


def fetch(
    gateway: Gateway,
    uuid: str,
    open_store: Callable[[], Store],
    *,
    wait: float,
    cache: Optional[BlendCache],
    check: Optional[Callable[[Value], object]],
    progress: Optional[Progress],
) -> Flow[Message]:
    """Fetches a message, and takes it once the message and its .blend file are here."""
    store = yield from call(open_store)
    try:
        for _ in range(TRIES):
            attempt = Fetch(gateway, uuid, store, prefer=cache is not None, wait=wait, progress=progress)
            kept = store.is_complete
            if kept:
                log.info("using the message fetched before: %s", store.path)
            else:
                yield from attempt.receive()
            value = yield from call(store.value)
            if check is not None:
                check(value)
            cached = None
            reference = Reference.find(value)
            if reference is not None and cache is not None:
                try:
                    cached = yield from cache.get(gateway, reference, progress)
                except Refused as refused:
                    log.warning("%s; fetching the message with the file in it", refused)
                    attempt = Fetch(gateway, uuid, store, prefer=False, wait=0, progress=progress)
                    yield from attempt.receive()
                    value = yield from call(store.value)
                    kept = False
            if (yield from _take(attempt, cached, kept=kept)):
                return Message(uuid, value, store.path, cached)
            log.warning("the message has been replaced; fetching the new one")
        raise ClientError("the message was replaced each time it was fetched")
    finally:
        store.close()


def _take(attempt: Fetch, cached: Optional[CachedFile], *, kept: bool) -> Flow[bool]:
    taken = False
    try:
        taken = yield from attempt.take(kept=kept)
    finally:
        if not taken and cached is not None:
            cached.close()
    return taken
