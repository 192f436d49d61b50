"""Repeats attempts, with growing pauses, as long as there is hope."""

from __future__ import annotations

import logging
import random
import time
from typing import Callable, Optional, TypeVar

from .effects import Flow, sleep
from .errors import Again, GaveUp

T = TypeVar("T")

log = logging.getLogger("user_http_client")

FIRST_PAUSE = 0.5
MAX_PAUSE = 30.0

#: How much longer a pause may be than the gateway asks for, so that many workers do not come back at once.
_SPREAD = 0.1


class Patience:
    """The pauses between attempts. Gives up after `limit` seconds without progress."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.renew()

    def renew(self) -> None:
        """There was progress."""
        self.since, self.pause = time.monotonic(), FIRST_PAUSE

    def next_pause(self, why: str, asked: Optional[float]) -> float:
        """How long to wait. If the gateway asks for no pause, half of it is random."""
        if asked is None:
            pause = random.uniform(self.pause / 2, self.pause)
            self.pause = min(self.pause * 2, MAX_PAUSE)
        else:
            pause = max(asked, FIRST_PAUSE) * random.uniform(1, 1 + _SPREAD)
        if time.monotonic() - self.since + pause > self.limit:
            raise GaveUp(f"gave up: {why}")
        return pause


def retrying(what: str, patience: Patience, attempt: Callable[[], Flow[T]]) -> Flow[T]:
    """Repeats an attempt until it is final."""
    while True:
        try:
            return (yield from attempt())
        except Again as again:
            why, asked = f"{what}: {again}", again.pause
        pause = patience.next_pause(why, asked)
        log.warning("%s; trying again in %.1f s", why, pause)
        yield from sleep(pause)
