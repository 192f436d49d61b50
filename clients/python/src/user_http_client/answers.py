"""What answers mean: success, a refusal, or a failure that may pass."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import Optional, Tuple

from . import pickles
from .effects import Flow, Head, read_start
from .errors import Again, ClientError, NoMessage, Refused
from .gateway import Gateway

#: How much of an error's body is read, and how much memory its values may take.
_MAX_ERROR = 64 << 10

_TEMPORARY = frozenset({408, 425, 429})


def check(gateway: Gateway, head: Head) -> Flow[None]:
    """Raises :class:`Again` or :class:`Refused` unless the status is one of success."""
    if 200 <= head.status < 300:
        if head.get("content-encoding") not in (None, "", "identity"):
            raise Refused("the answer is compressed, although the request forbids that", head.status)
        return
    body = yield from read_start(_MAX_ERROR)
    by_gateway, text = _error(body)
    why = f"{head.status} {text}"
    # A refused token is refused again, whatever the answer says of later.
    if head.status not in (401, 403):
        asked = retry_after(head)
        damaged = head.status == 400 and "Content-Digest" in text
        if damaged or asked is not None or head.status in _TEMPORARY or head.status >= 500:
            raise Again(why, asked)
    if head.status == 400 and text == "No Buffer Message":
        raise NoMessage(f"the gateway has no such message: {why}", 400, by_gateway=by_gateway)
    if 300 <= head.status < 400:
        why += f"; redirects are not followed (to {head.get('location')!r})"
    raise Refused(f"the gateway refused: {why}{_advice(gateway, head.status)}", head.status, by_gateway=by_gateway)


def _error(body: bytes) -> Tuple[bool, str]:
    """The text of an error, and whether it has a form of the gateway's: {"message": text} as a pickle, or {"ERROR":
    text} as JSON."""
    try:
        value = pickles.loads(body, max_memory=16 * _MAX_ERROR)
        if isinstance(value, dict) and isinstance(value.get("message"), str):
            return True, _printable(value["message"])
    except ClientError:
        pass
    try:
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(value.get("ERROR"), str):
            return value.get("STATUS") == "FAILED", _printable(value["ERROR"])
    except (ValueError, RecursionError):
        pass
    return False, _printable(body[:400].decode("utf-8", "replace"))


def _printable(text: str) -> str:
    """A text for a terminal, which must not be controlled by a server."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split())[:500])


def _advice(gateway: Gateway, status: int) -> str:
    """What to do about a refused token."""
    if status not in (401, 403):
        return ""
    if gateway.token is None:
        return "; give a token with --token-file FILE"
    token = f"the token in {gateway.token_file}" if gateway.token_file else "the token"
    if status == 401:
        return f"; {token} is not valid there: give another with --token-file FILE"
    return f"; {token} does not allow it: give another with --token-file FILE, or the token's user with --user-id ID"


def retry_after(head: Head) -> Optional[float]:
    """`Retry-After`, in seconds from now."""
    text = head.get("retry-after")
    if text is None:
        return None
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def content_range(head: Head) -> Optional[Tuple[int, int, int]]:
    """First byte, last byte and total length of a 206."""
    match = re.fullmatch("bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", head.get("content-range") or "")
    if not match:
        return None
    first, last, total = (int(number) for number in match.groups())
    return (first, last, total) if first <= last < total else None


def repr_digest(head: Head) -> Optional[bytes]:
    """The SHA-256 of the whole representation, from `Repr-Digest`."""
    match = re.search(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/=]{44}):", head.get("repr-digest") or "")
    if not match:
        return None
    try:
        return base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None


def digest_field(sha256: bytes) -> str:
    """The value of `Content-Digest`."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"
