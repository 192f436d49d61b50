"""Options that several commands have, and what they mean."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Optional

from ..client import Client


def connection() -> argparse.ArgumentParser:
    """The options of every command that speaks with a gateway."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("connection")
    group.add_argument("--server", default="http://127.0.0.1:10000", metavar="URL", help="worker server")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file that contains only the bearer token to send"
    )
    group.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="CA certificates to trust for https, in PEM; without it those of httpx",
    )
    group.add_argument("--user-id", default="example-worker", metavar="ID", help="user ID of this worker")
    group.add_argument(
        "--timeout",
        type=float,
        default=60,
        metavar="SECONDS",
        help="treat a connection as broken if it transfers nothing for this long",
    )
    group.add_argument(
        "--patience",
        type=float,
        default=300,
        metavar="SECONDS",
        help="give up on a request, retries included, that makes no progress for this long",
    )
    return parser


def cache() -> argparse.ArgumentParser:
    """The options of commands that fetch .blend files."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("cache of .blend files")
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder for .blend files, shared by the workers of a machine; without it render-worker in "
        "$XDG_CACHE_HOME or ~/.cache",
    )
    group.add_argument(
        "--cache-size",
        type=size,
        default="64GiB",
        metavar="SIZE",
        help="size of that folder: the least recently used files are deleted, but none in use",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="ask for messages with the .blend file in them, and do not keep it",
    )
    return parser


def open_client(args: argparse.Namespace) -> Client:
    options: Any = {name: getattr(args, name) for name in ("user_id", "token_file", "ca_file", "timeout", "patience")}
    return Client(args.server, **options)


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15}) ?(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a size such as 64GiB, not {text!r}")
    return int(match[1]) << 10 * " KMGT".index((match[2] or " ").upper())


def shared_cache_folder() -> Optional[Path]:
    """The folder that the workers of a user share. None if it cannot be written to."""
    users = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.environ.get("HOME", ""), ".cache")
    for user in users:
        if not user.is_absolute():
            continue
        folder = user / "render-worker"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            return None
        return folder
    return None
