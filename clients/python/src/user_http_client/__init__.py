"""Client of the HTTP gateway of a Blender render farm.

A worker fetches messages, with .blend files of any size, and posts frames; see :class:`Client` and, for asyncio,
:class:`AsyncClient`.
"""

from .aio import AsyncClient
from .cache import BlendCache, CachedFile
from .client import Client
from .errors import BadMessage, ClientError, GaveUp, NoMessage, Refused, SpoolFull, TooLarge
from .message import Message
from .pickles import loads
from .posting import Receipt
from .sending import Sent
from .spool import Refusal, Spool
from .values import FileBytes, Value

__all__ = [
    "AsyncClient",
    "BadMessage",
    "BlendCache",
    "CachedFile",
    "Client",
    "ClientError",
    "FileBytes",
    "GaveUp",
    "Message",
    "NoMessage",
    "Receipt",
    "Refusal",
    "Refused",
    "Sent",
    "Spool",
    "SpoolFull",
    "TooLarge",
    "Value",
    "loads",
]
