"""Sends the messages of a spool, in their order."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import List

from .effects import Flow, call, lock
from .errors import BadMessage, Refused
from .files import try_lock
from .gateway import Gateway
from .posting import post
from .spool import Refusal, Spool

log = logging.getLogger("user_http_client")


@dataclass
class Sent:
    """What has become of the messages of a spool."""

    accepted: int = 0
    #: The messages that the gateway refuses permanently. They are in the folder `refused` of the spool.
    refused: List[Refusal] = field(default_factory=list)


def send_all(gateway: Gateway, spool: Spool, *, wait: bool) -> Flow[Sent]:
    """Sends until the spool is empty. While another process sends, waits for its end, or does nothing."""
    sent = Sent()
    sender = open(spool.sender, "ab") if wait else try_lock(spool.sender, "ab")
    if sender is None:
        return sent
    try:
        yield from lock(sender, exclusive=True)
        while paths := (yield from call(spool.waiting)):
            for path in paths:
                yield from _send(gateway, spool, path, sent)
        return sent
    finally:
        sender.close()


def _send(gateway: Gateway, spool: Spool, path: Path, sent: Sent) -> Flow[None]:
    try:
        parcel = yield from call(spool.load, path)
        yield from post(gateway, parcel)
    except BadMessage as bad:
        reason = str(bad)
    except Refused as refused:
        if not _is_final(refused):
            raise
        reason = str(refused)
    else:
        yield from call(spool.remove, path)
        sent.accepted += 1
        return
    yield from call(spool.refuse, path, reason)
    log.error("%s is set aside in %s: %s", path.name, spool.refused, reason)
    sent.refused.append(Refusal(spool.refused / path.name, reason))


def _is_final(refused: Refused) -> bool:
    """Whether the gateway refuses this message, and would take another. All else is a matter of settings: a token that
    is not valid, a wrong URL, a proxy. Then all messages wait."""
    if refused.status == 400:
        return refused.by_gateway
    return refused.status in (413, 415, 422)
