"""The command `fetch`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from ..cache import BlendCache
from ..errors import ClientError
from ..values import FileBytes, Value
from . import options


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "fetch",
        help="fetch one message",
        description="Fetches one message and prints it as JSON, with the length and SHA-256 of byte strings in place "
        "of their bytes. The gateway delivers a message once.",
        parents=[options.connection(), options.cache()],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("uuid", help="UUID of the message")
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="keep the message in this folder of its own; a broken download is resumed there",
    )
    parser.add_argument("--blend", type=Path, metavar="FILE", help="save the .blend file as FILE")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="wait so long for the message")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if args.blend and not args.dir:
        raise ClientError("--blend needs --dir, because a .blend file may be too large for memory")
    cache = None
    if args.blend and not args.no_cache:
        folder = args.cache_dir or options.shared_cache_folder() or args.dir / "cache"
        cache = BlendCache(folder, max_bytes=args.cache_size)
    with options.open_client(args) as client:
        progress = _Progress() if sys.stderr.isatty() else None
        with client.fetch(args.uuid, folder=args.dir, wait=args.wait, cache=cache, progress=progress) as message:
            if args.blend:
                message.save_blend(args.blend)
            print(json.dumps(printable(message.value), indent=2))


class _Progress:
    """Prints the percentage."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, arrived: int, total: int) -> None:
        percent = 100 * arrived // total
        if percent != self._shown:
            self._shown = percent
            end = "\n" if arrived == total else "\r"
            print(f"{percent} % of {total} bytes", end=end, file=sys.stderr, flush=True)


def printable(value: Value) -> Any:
    """A value for people, in JSON."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [printable(item) for item in value]
    if isinstance(value, (bytes, bytearray, FileBytes)):
        digest = hashlib.sha256()
        for chunk in value.chunks() if isinstance(value, FileBytes) else [value]:
            digest.update(chunk)
        return {"BYTES": len(value), "SHA256": digest.hexdigest()}
    return value
