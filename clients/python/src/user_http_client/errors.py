"""What can go wrong, by who can act on it."""

from __future__ import annotations

from typing import Optional

__all__ = ["BadMessage", "ClientError", "GaveUp", "NoMessage", "Refused", "SpoolFull", "TooLarge"]


class ClientError(Exception):
    """The base class of all errors of this package."""


class Refused(ClientError):
    """The gateway has refused a request, and would refuse it again."""

    def __init__(self, text: str, status: int, *, by_gateway: bool = False) -> None:
        super().__init__(text)
        self.status = status
        #: Whether the answer has the form of the gateway's, and not that of a proxy or of another server.
        self.by_gateway = by_gateway


class NoMessage(Refused):
    """There is no message under the UUID: it has not arrived yet, or somebody has fetched it."""


class GaveUp(ClientError):
    """There was no progress for as long as the client's patience lasts. The same call may succeed later."""


class BadMessage(ClientError):
    """What the gateway has sent is no pickle of plain values, or is damaged."""


class TooLarge(BadMessage):
    """What the gateway has sent is larger than a limit that the caller has set, or than the free disk space."""


class SpoolFull(ClientError):
    """A spool has no space for another message. Nothing of the message was kept."""


class Again(ClientError):
    """One attempt has failed, and another may succeed. Callers of the package get :class:`GaveUp` instead."""

    def __init__(self, text: str, pause: Optional[float] = None) -> None:
        super().__init__(text)
        #: How many seconds the gateway asks to wait.
        self.pause = pause


class Broken(Again):
    """The connection failed. The gateway may have received the request."""
