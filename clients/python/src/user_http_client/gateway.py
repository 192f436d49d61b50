"""How a client reaches its gateway, and as whom."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Optional, Union
from urllib.parse import urlencode, urlsplit

from .errors import ClientError

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Gateway:
    """The worker server of a gateway, and what a client sends with each request."""

    url: str
    user_id: str = ""
    #: The bearer token; errors name `token_file` instead.
    token: Optional[str] = field(default=None, repr=False)
    token_file: Optional[Path] = None
    ca_file: Optional[Path] = None
    #: Seconds without a byte after which a connection counts as broken.
    timeout: float = 60
    #: Seconds without progress, retries included, after which a call gives up.
    patience: float = 300

    @classmethod
    def of(
        cls,
        url: str,
        *,
        user_id: str,
        token: Optional[str],
        token_file: Optional[PathLike],
        ca_file: Optional[PathLike],
        timeout: float,
        patience: float,
    ) -> Gateway:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ClientError(f"expected the URL of a worker server, such as https://farm.example/, not {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ClientError("expected a URL without a user and a password; give a token instead")
        if token is not None and token_file is not None:
            raise ClientError("expected a token or a file with one, not both")
        path = Path(token_file) if token_file is not None else None
        if path is not None:
            token = _read_token(path)
        elif token is not None and not _is_token(token):
            raise ClientError("a token consists of visible ASCII characters")
        gateway = cls(url, user_id, token, path, Path(ca_file) if ca_file is not None else None, timeout, patience)
        gateway.verify()  # an unusable CA file is named before anything is sent
        return gateway

    def verify(self) -> Union[ssl.SSLContext, bool]:
        """What httpx verifies the server's certificate with: own CAs, or those of httpx."""
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except OSError as error:
            raise ClientError(f"CA file {self.ca_file}: {error}") from error

    def headers(self, more: Optional[Dict[str, str]] = None) -> Dict[str, str]:
        # The identity, because a compressed answer could grow without bounds, and because ranges count its bytes.
        headers = {"Accept-Encoding": "identity", **(more or {})}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def message_url(self, uuid: str, wait: Optional[int] = None) -> str:
        query = {"bufferUUID": uuid}
        if wait is not None:
            query["wait"] = str(wait)
        return f"{self.url}?{urlencode(query)}"

    def file_url(self, path: str) -> str:
        """The URL of a path at the server. A proxy in front of the server may have removed the start of the path, which
        the server's URL still has."""
        parts = urlsplit(self.url)
        prefix = parts.path.rstrip("/")
        return f"{parts.scheme}://{parts.netloc}{path if path.startswith(prefix + '/') else prefix + path}"


def _is_token(text: str) -> bool:
    return re.fullmatch("[!-~]+", text) is not None


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise ClientError(f"token file {path}: {error}") from error
    if not _is_token(token):
        raise ClientError(f"{path} must contain one token and nothing else")
    return token
