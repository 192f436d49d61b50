"""The calls of a client, as flows: what the clients with and without asyncio share."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional

from .cache import BlendCache
from .effects import Flow
from .gateway import Gateway, PathLike
from .message import Message, fetch
from .part import Progress
from .pickles import MAX_MEMORY
from .posting import Parcel, pack
from .store import FolderStore, MemoryStore, Store
from .values import Value


class Calls:
    """The gateway of a client, and what can be asked of it."""

    def __init__(
        self,
        url: str,
        *,
        user_id: str = "",
        token: Optional[str] = None,
        token_file: Optional[PathLike] = None,
        ca_file: Optional[PathLike] = None,
        timeout: float = 60,
        patience: float = 300,
    ) -> None:
        """
        :param url: the worker server of the gateway, such as `https://farm.example/`
        :param user_id: the `USER_ID` of the messages that are posted
        :param token: the bearer token; `token_file` names a file that contains it and nothing else
        :param ca_file: CA certificates to trust, in PEM; without it those of httpx
        :param timeout: seconds without a byte after which a connection counts as broken
        :param patience: seconds without progress, retries included, after which a call raises `GaveUp`
        """
        self.gateway = Gateway.of(
            url,
            user_id=user_id,
            token=token,
            token_file=token_file,
            ca_file=ca_file,
            timeout=timeout,
            patience=patience,
        )

    def _fetch(
        self,
        uuid: str,
        folder: Optional[PathLike],
        wait: float,
        cache: Optional[BlendCache],
        check: Optional[Callable[[Value], object]],
        progress: Optional[Progress],
        max_bytes: int,
    ) -> Flow[Message]:
        def open_store() -> Store:
            return MemoryStore(max_bytes) if folder is None else FolderStore(Path(folder), uuid, max_memory=max_bytes)

        return fetch(self.gateway, uuid, open_store, wait=wait, cache=cache, check=check, progress=progress)

    def _pack(self, kind: str, data: object, as_json: bool, key: Optional[str]) -> Parcel:
        return pack(self.gateway.user_id, kind, data, as_json=as_json, key=key)


__all__ = ["MAX_MEMORY", "Calls"]
