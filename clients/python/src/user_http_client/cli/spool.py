"""The command `spool`."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from ..client import Client
from ..errors import ClientError, GaveUp
from ..sending import Sent
from ..spool import Spool
from . import options

log = logging.getLogger("user_http_client")

#: Seconds between looks for new messages.
_LOOK = 1.0
#: Seconds until the next attempt, while the settings are wrong.
_REFUSED_PAUSE = 30.0


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "spool",
        help="send or list the messages of a spool",
        description="Works on a spool: a folder of messages that wait until the gateway has accepted them.",
        parents=[options.connection()],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "action",
        choices=["send", "list", "retry"],
        help="send the messages, in their order; list them; put those that the gateway has refused back",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the spool")
    parser.add_argument("--watch", action="store_true", help="with send: do not end; send what comes later too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        raise ClientError(f"there is no spool {args.folder}")
    spool = Spool(args.folder)
    if args.action == "list":
        for path in spool.waiting():
            print(f"{path.name}  {path.stat().st_size} bytes  waiting")
        for refusal in spool.refusals():
            print(f"{refusal.path.name}  {refusal.path.stat().st_size} bytes  refused: {refusal.reason!r}")
    elif args.action == "retry":
        print(f"{spool.retry_refused()} messages put back")
    else:
        with options.open_client(args) as client:
            if args.watch:
                _watch(client, spool)
            _report(spool, client.send(spool))


def _report(spool: Spool, sent: Sent) -> None:
    log.info("%d messages sent", sent.accepted)
    if sent.refused:
        raise ClientError(f"the gateway refuses {len(sent.refused)} messages; they are in {spool.refused}")


def _watch(client: Client, spool: Spool) -> None:
    while True:
        pause = _LOOK
        try:
            if spool.waiting():
                log.info("%d messages sent", client.send(spool).accepted)
        except GaveUp as error:
            log.warning("%s; trying again", error)
        except ClientError as error:
            log.error("%s; trying again in %d s", error, _REFUSED_PAUSE)
            pause = _REFUSED_PAUSE
        time.sleep(pause)
