"""The command `post`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict

from ..errors import ClientError
from ..posting import pack
from ..spool import Spool
from . import options


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "post",
        help="post one message for the user manager",
        description="Posts one message for the user manager, and returns when the gateway has accepted it.",
        parents=[options.connection()],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("type", help="TYPE of the message, such as FRAME_RENDERED")
    parser.add_argument("--data", type=json.loads, metavar="JSON", help="DATA of the message")
    parser.add_argument(
        "--file",
        type=_key_and_path,
        action="append",
        default=[],
        metavar="KEY=FILE",
        help="add the bytes of a file to DATA under this key, such as IMAGE=frame_0001.png; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="send JSON in place of a pickle")
    parser.add_argument("--key", help="idempotency key: the same message with the same key is forwarded once")
    parser.add_argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="only hand the message over to this spool; `spool send` sends it",
    )
    parser.set_defaults(run=run)


def _key_and_path(text: str) -> tuple[str, Path]:
    key, separator, path = text.partition("=")
    if not separator or not key or not path:
        raise argparse.ArgumentTypeError(f"expected KEY=FILE, not {text!r}")
    return key, Path(path)


def run(args: argparse.Namespace) -> None:
    data = args.data
    if args.file:
        files: Dict[str, bytes] = {key: path.read_bytes() for key, path in args.file}
        if not isinstance(data, dict) and data is not None:
            raise ClientError("--file needs a JSON object as --data, or none")
        data = {**(data or {}), **files}
    if args.json and args.file:
        raise ClientError("JSON cannot hold the bytes of --file: leave out --json")
    parcel = pack(args.user_id, args.type, data, as_json=args.json, key=args.key)
    if args.spool:
        print(Spool(args.spool).add_parcel(parcel))
        return
    with options.open_client(args) as client:
        receipt = client.post_parcel(parcel)
        print(f"accepted at {receipt.time:.3f}{', as before' if receipt.replayed else ''}")
