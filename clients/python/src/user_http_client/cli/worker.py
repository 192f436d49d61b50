"""A render worker: fetches one message, renders its frames with Blender, posts each frame, and finally posts that the
job is complete.

The message is a dict whose `TYPE` is `RENDER`, and whose `DATA` has `FRAMES` (a list of ints), or `START_FRAME` and
`END_FRAME` (both included), and `BINARY_BLEND_FILE`.

The gateway delivers a message once. If something fails after that, run the same command with the same --work-dir
again: it continues with the message that was fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, List, Optional, Set

from ..cache import BlendCache
from ..client import Client
from ..errors import ClientError, GaveUp
from ..files import file_sha256, safe_name
from ..message import Message
from ..posting import Parcel, pack
from ..spool import Spool
from ..values import Value
from . import blender, options

log = logging.getLogger("user_http_client")

#: Blender's limit.
_MAX_FRAME = 1_048_574


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "worker",
        help="render one message with Blender",
        description=__doc__,
        parents=[options.connection(), options.cache()],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("uuid", help="UUID of the message")
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="directory for the files of messages; without it a temporary one, removed at the end",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=30,
        metavar="SECONDS",
        help="wait so long for a message that is not there yet",
    )
    parser.add_argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="keep what is to be posted in this folder until the gateway has accepted it: rendering goes on while "
        "the gateway is away",
    )
    parser.add_argument("--blender", default="blender", metavar="PATH", help="Blender executable")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="post frame_0001.png and so on from this directory instead of rendering",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    with options.open_client(args) as client, ExitStack() as stack:
        if args.work_dir:
            folder = Path(args.work_dir, safe_name(args.uuid))
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="render-worker-")))
        if not args.images:
            blender.check(args.blender)
        folder = folder.resolve()
        message = client.fetch(args.uuid, folder=folder, wait=args.wait, cache=_cache(args, folder), check=read_frames)
        with message:
            _work(args, Outgoing(args, client, message), message, folder)


def _cache(args: argparse.Namespace, folder: Path) -> Optional[BlendCache]:
    if args.no_cache:
        return None
    shared = args.cache_dir or options.shared_cache_folder()
    if shared is None:
        log.warning("no folder for .blend files that other workers can use: choose one with --cache-dir DIR")
    return BlendCache(shared or folder / "cache", max_bytes=args.cache_size)


def _work(args: argparse.Namespace, outgoing: Outgoing, message: Message, folder: Path) -> None:
    frames = read_frames(message.value)
    scene = folder / "scene.blend"
    if not args.images:
        message.save_blend(scene)
    for number, frame in enumerate(frames, 1):
        if args.images:
            image = Path(args.images, f"frame_{frame:04}.png")
        else:
            image = blender.render(args.blender, scene, folder, frame)
        data = {"FRAME_NUMBER": frame, "IMAGE": image.read_bytes(), "FILE_NAME": image.name, "JOB": args.uuid}
        done = outgoing.put("FRAME_RENDERED", data)
        log.info("frame %d %s, %d bytes (%d of %d)", frame, done, len(data["IMAGE"]), number, len(frames))
    outgoing.put("RENDER_COMPLETED", {"JOB": args.uuid, "FRAMES": frames}, as_json=True)
    outgoing.finish()
    log.info("completed")


class Outgoing:
    """Posts at once, or over a spool.

    The idempotency key includes the digest of the message that the job came in: another job under the same UUID has
    other keys, and the same job in another run has the same ones.
    """

    def __init__(self, args: argparse.Namespace, client: Client, message: Message) -> None:
        self._client, self._user_id = client, args.user_id
        self._spool = Spool(args.spool) if args.spool else None
        # The names of this job's messages in the spool.
        self._own: Set[str] = set()
        self._impatient = argparse.Namespace(**{**vars(args), "patience": 0})
        assert message.path is not None, "the message is in a folder"
        self._job = file_sha256(message.path)

    def put(self, kind: str, data: object, *, as_json: bool = False) -> str:
        """Posts a message, or hands it over to the spool. Returns what was done."""
        packed = pack(self._user_id, kind, data, as_json=as_json)
        key = hashlib.sha256(self._job + packed.sha256).hexdigest()
        parcel = Parcel(kind, packed.content_type, packed.body, packed.sha256, key)
        if self._spool is None:
            self._client.post_parcel(parcel)
            return "posted"
        self._own.add(self._spool.add_parcel(parcel).name)
        try:
            with options.open_client(self._impatient) as client:
                client.send(self._spool, wait=False)
        except ClientError as error:
            log.warning("%s; kept in %s", error, self._spool.folder)
            return "kept"
        return "posted"

    def finish(self) -> None:
        """Waits until everything is posted."""
        if self._spool is None:
            return
        try:
            self._client.send(self._spool)
        except ClientError as error:
            left = len(self._spool.waiting())
            raise GaveUp(
                f"{error}; {left} messages are in {self._spool.folder}: send them with "
                f"`user-http-client spool send {self._spool.folder}`"
            ) from error
        refused = [refusal for refusal in self._spool.refusals() if refusal.path.name in self._own]
        if refused:
            raise ClientError(f"{refused[0].reason}; {len(refused)} messages are set aside in {self._spool.refused}")


def read_frames(message: Value) -> List[int]:
    """The frames of a render job. Raises `ClientError` for any other message."""
    try:
        if not isinstance(message, dict) or message.get("TYPE") != "RENDER":
            found = message.get("TYPE") if isinstance(message, dict) else type(message).__name__
            raise ClientError(f"the message is not a render job: its TYPE is {found!r}")
        data = message["DATA"]
        frames = data["FRAMES"] if "FRAMES" in data else range(data["START_FRAME"], data["END_FRAME"] + 1)
        if len(frames) > _MAX_FRAME + 1:
            raise ValueError(f"{len(frames)} frames")
        numbers = [int(frame) for frame in frames]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ClientError(f"the message is not a render job: {error!r}") from error
    if not numbers:
        raise ClientError("the render job has no frames")
    if not all(0 <= frame <= _MAX_FRAME for frame in numbers):
        raise ClientError(f"the render job has frames other than 0 to {_MAX_FRAME}")
    return numbers
