"""What the shells over httpx share: its settings and its errors."""

from __future__ import annotations

import ssl
from typing import Any, Dict
from urllib.parse import urlsplit

import httpx

from .errors import Broken, ClientError
from .gateway import Gateway

#: Seconds after which an idle connection is not used again. The gateway closes one after 5 s.
_KEEP_ALIVE = 2.0


def options(gateway: Gateway) -> Dict[str, Any]:
    """The arguments of httpx's clients. No redirect is followed: the token must go to no other server."""
    return {
        # Loading CA certificates takes long, and http needs none.
        "verify": urlsplit(gateway.url).scheme != "http" and gateway.verify(),
        "timeout": gateway.timeout,
        "follow_redirects": False,
        "limits": httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE),
        "headers": {"User-Agent": "user-http-client"},
    }


#: What httpx raises. Old versions let errors of TLS pass.
ERRORS = (httpx.HTTPError, ssl.SSLError)


def failure(error: Exception) -> ClientError:
    """The error of this package for one of httpx."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ClientError(f"the server's certificate is not trusted: {text}; give the farm's CA with --ca-file FILE")
    return Broken(text)
