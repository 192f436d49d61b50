"""Fetches a message so that no crash loses it.

The gateway removes a message when it has sent the last byte. So the message is first received without that byte, which
is `.` in every pickle, then checked and made durable, and only then taken with its last byte.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Optional

from . import answers
from .effects import Flow, Head, Send, call, read_start, send, sleep
from .errors import Again, BadMessage, Broken, ClientError, NoMessage, Refused
from .gateway import Gateway
from .part import Part, Progress, length_of, rest, whole
from .retry import Patience, retrying
from .store import Store, Version

log = logging.getLogger("user_http_client")

STOP = b"."  # the opcode at the end of every pickle
MAX_WAIT = 60  # the gateway's limit of `wait`, in seconds
POLL = 1  # seconds between requests to a server that does not know `wait`
TRIES = 3  # how often a message that is damaged, or replaced meanwhile, is fetched again

REFERENCE = {"Prefer": "blend-reference"}


class Fetch:
    """One message, on its way into a store."""

    def __init__(
        self,
        gateway: Gateway,
        uuid: str,
        store: Store,
        *,
        prefer: bool,
        wait: float,
        progress: Optional[Progress] = None,
    ) -> None:
        self.gateway, self.uuid, self.store = gateway, uuid, store
        self.prefer, self.wait, self.progress = REFERENCE if prefer else {}, wait, progress
        self.patience = Patience(gateway.patience)

    def receive(self) -> Flow[None]:
        """Receives the message into the store, complete but not taken."""
        for _ in range(TRIES):
            version = yield from self._look()
            if version is None or (yield from self._read(version)):
                log.info("fetched the message %s", self.uuid)
                return
        raise ClientError("the message was replaced each time it was fetched")

    def _look(self) -> Flow[Optional[Version]]:
        """Waits for the message and asks for its first byte, which takes nothing. None if the server knows no ranges:
        then it has sent the whole message."""
        deadline = time.monotonic() + self.wait
        while True:
            asked = time.monotonic()
            wait = max(int(min(deadline - asked, MAX_WAIT, self.gateway.timeout / 2)), 0)
            try:
                return (yield from retrying("fetching", self.patience, partial(self._look_once, wait)))
            except NoMessage:
                if time.monotonic() >= deadline:
                    raise
            self.patience.renew()
            # A server that does not know `wait` answers at once.
            early = time.monotonic() - asked < max(wait, POLL)
            if early:
                yield from sleep(min(POLL, max(deadline - time.monotonic(), 0)))

    def _look_once(self, wait: int) -> Flow[Optional[Version]]:
        url = self.gateway.message_url(self.uuid, wait or None)
        head = yield from send(Send("GET", url, self.gateway.headers({"Range": "bytes=0-0", **self.prefer})))
        yield from answers.check(self.gateway, head)
        version = _version(head)
        if head.status == 206:
            if version is None:
                raise Refused("the answer has no Content-Range or no strong ETag", 206)
            yield from read_start(2)  # to the end, so that the connection can be used again
            return version
        yield from self._receive_whole(head)
        return None

    def _receive_whole(self, head: Head) -> Flow[None]:
        digest = answers.repr_digest(head)
        version = Version("", length_of(head), digest.hex() if digest else None, taken=True)
        part = yield from call(self.store.begin, version)
        yield from whole(part, head, self.patience, self.progress)
        if version.sha256 not in (None, part.sha256().hex()):
            raise BadMessage("the message has been damaged on its way: it has another SHA-256")
        yield from call(part.sync)
        yield from call(self.store.complete, version)

    def _read(self, version: Version) -> Flow[bool]:
        """Receives all but the last byte. Returns False if there is another message now."""
        part = yield from call(self.store.begin, version)
        for _ in range(TRIES):
            try:
                is_whole = yield from self._rest(part, version)
            except Refused as refused:
                if refused.status != 412:
                    raise
                return False
            if not is_whole:
                yield from call(part.append, STOP)
            if version.sha256 in (None, part.sha256().hex()):
                taken = Version(version.etag, version.length, version.sha256, taken=is_whole)
                yield from call(part.sync)
                yield from call(self.store.complete, taken)
                return True
            yield from call(part.clear)
            log.warning("the message has another SHA-256 than the gateway says; fetching it again")
        raise BadMessage(f"the message had another SHA-256 than the gateway says, {TRIES} times")

    def _rest(self, part: Part, version: Version) -> Flow[bool]:
        return rest(
            self.gateway,
            "fetching",
            self.gateway.message_url(self.uuid),
            part,
            end=version.length - 1,
            total=version.length,
            headers={"If-Range": version.etag, "If-Match": version.etag, **self.prefer},
            patience=self.patience,
            progress=self.progress,
        )

    def take(self, *, kept: bool) -> Flow[bool]:
        """Takes the message that the store has. Returns False, and discards it, if another message is in its place
        now. `kept`: an earlier run of the program may have taken it."""
        version = yield from call(self.store.untaken)
        if version is None:
            return True
        lost = False  # whether the gateway may have sent the last byte, and the answer was lost

        def attempt() -> Flow[None]:
            nonlocal lost
            try:
                yield from self._take_once(version)
            except Broken:
                lost = True
                raise

        try:
            yield from retrying("taking the message", Patience(self.gateway.patience), attempt)
        except Refused as refused:
            absent = isinstance(refused, NoMessage)
            # Without an answer, the message counts as taken: it is better worked on twice than never.
            if not ((absent and (lost or kept)) or (refused.status == 412 and lost)):
                if absent or refused.status == 412:
                    yield from call(self.store.discard)
                if refused.status == 412:
                    return False
                raise
        yield from call(self.store.taken)
        return True

    def _take_once(self, version: Version) -> Flow[None]:
        ranged = {"Range": f"bytes={version.length - 1}-", "If-Match": version.etag, "If-Range": version.etag}
        url = self.gateway.message_url(self.uuid)
        head = yield from send(Send("GET", url, self.gateway.headers({**ranged, **self.prefer})))
        yield from answers.check(self.gateway, head)
        if not (yield from read_start(2)):
            raise Again("the connection closed before the last byte")


def _version(head: Head) -> Optional[Version]:
    """What a 206 says of the message. A weak ETag names no exact bytes."""
    found, etag, digest = answers.content_range(head), head.get("etag"), answers.repr_digest(head)
    if found is None or etag is None or not etag.startswith('"'):
        return None
    return Version(etag, found[2], digest.hex() if digest else None)
