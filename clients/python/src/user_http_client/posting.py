"""Posts messages for the user manager, so that each is forwarded once however often it is sent."""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import Optional, Union

from . import answers
from .effects import Flow, Send, read_start, send
from .errors import Again
from .gateway import Gateway
from .retry import Patience, retrying
from .values import FileBytes, check_plain

PICKLE = "application/octet-stream"
JSON = "application/json"

_MAX_RECEIPT = 4096


@dataclass(frozen=True)
class Parcel:
    """A message in the form in which it is sent. It does not change, so retries are copies of the first request."""

    kind: str
    content_type: str
    body: Union[bytes, FileBytes] = field(repr=False)
    sha256: bytes
    key: str


@dataclass(frozen=True)
class Receipt:
    """The gateway's promise that the message will reach the user manager."""

    #: When the gateway accepted the message: Unix time in seconds.
    time: float
    #: Whether the gateway had accepted the message before, with an answer that was lost.
    replayed: bool


def pack(user_id: str, kind: str, data: object, *, as_json: bool = False, key: Optional[str] = None) -> Parcel:
    """Packs a message. A message with a `key` is forwarded once, even if it is packed and posted again."""
    check_plain(data)
    content = {"USER_ID": user_id, "MAIN_DATA": {"TYPE": kind, "DATA": data}}
    body = json.dumps(content).encode() if as_json else pickle.dumps(content, protocol=4)
    digest = hashlib.sha256(body).digest()
    return Parcel(kind, JSON if as_json else PICKLE, body, digest, key or uuid.uuid4().hex)


def post(gateway: Gateway, parcel: Parcel) -> Flow[Receipt]:
    """Posts until the gateway has accepted the message."""
    patience = Patience(gateway.patience)
    return (yield from retrying(f"sending {parcel.kind}", patience, partial(_post_once, gateway, parcel)))


def _post_once(gateway: Gateway, parcel: Parcel) -> Flow[Receipt]:
    headers = gateway.headers({
        "Content-Type": parcel.content_type,
        "Content-Length": str(len(parcel.body)),
        "Content-Digest": answers.digest_field(parcel.sha256),
        "Idempotency-Key": parcel.key,
    })  # fmt: skip
    head = yield from send(Send("POST", gateway.url, headers, parcel.body))
    yield from answers.check(gateway, head)
    body = yield from read_start(_MAX_RECEIPT)
    try:
        answer = json.loads(body)
        if answer["DATA"] == "RECEIVED":
            return Receipt(float(answer["TIME"]), head.get("idempotency-replayed") == "true")
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    # Such as the login page of a hotel.
    raise Again("the answer is 200, but not the gateway's")
