"""The command line."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib import metadata
from typing import Optional, Sequence

from ..errors import ClientError
from . import fetch, post, spool, worker


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Runs a command. Exits with 0 after success, 1 after a failure, 2 for wrong arguments."""
    args = _parser().parse_args(arguments)
    # Only this package's log: httpx would write each request.
    log = logging.getLogger("user_http_client")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    try:
        args.run(args)
    except (ClientError, OSError, TypeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="user-http-client", description="Client of the HTTP gateway of a Blender render farm."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (worker, fetch, post, spool):
        module.add_to(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("user-http-client")
    except metadata.PackageNotFoundError:
        return "not installed"
