"""A folder of messages that wait until the gateway has accepted them, through crashes and days offline.

Each message is a file, `NUMBER-KEY.message`: a line of JSON with what the request's headers need, and the body. The
numbers give the order. A file gets its name after it is durable, and is deleted after the gateway's 200. Messages that
the gateway refuses permanently are moved into the folder `refused`, each with its reason in a file `….reason`.

Processes may share the folder. `lock` is locked while a message gets its number, `sender` by the process that sends,
and each file that is being written by its writer. The locks (`flock`) end with their processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Iterator, List, Optional, Union

from .errors import BadMessage, SpoolFull
from .files import sync_folder, try_lock, write_durably
from .posting import Parcel, pack
from .values import FileBytes

_SUFFIX = ".message"
_MAX_HEADER = 4096


@dataclass(frozen=True)
class Refusal:
    """A message that the gateway refuses permanently."""

    path: Path
    reason: str


class Spool:
    """The messages in a folder. They take at most `max_bytes`, refused ones included."""

    def __init__(self, folder: Union[str, os.PathLike[str]], *, max_bytes: int = 16 << 30) -> None:
        self.folder = Path(folder)
        self.refused = self.folder / "refused"
        #: The file whose lock a process needs to send.
        self.sender = self.folder / "sender"
        self.max_bytes = max_bytes
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refused.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self.folder)
        with contextlib.suppress(PermissionError):  # of a parent that is made durable by somebody else
            sync_folder(self.folder.resolve().parent)

    def add(self, user_id: str, kind: str, data: object, *, as_json: bool = False, key: Optional[str] = None) -> Path:
        """Keeps a message. When this returns, the message is on stable storage, and will be sent."""
        return self.add_parcel(pack(user_id, kind, data, as_json=as_json, key=key))

    def add_parcel(self, parcel: Parcel) -> Path:
        header = {
            "type": parcel.kind,
            "content_type": parcel.content_type,
            "sha256": parcel.sha256.hex(),
            "key": parcel.key,
            "size": len(parcel.body),
        }
        line = json.dumps(header).encode() + b"\n"
        if len(line) > _MAX_HEADER:
            raise ValueError("the type or the key of the message is too long")
        self._check_space(len(line) + len(parcel.body))
        new, file = self._new_file()
        try:
            with file:
                file.write(line)
                for chunk in parcel.body.chunks() if isinstance(parcel.body, FileBytes) else [parcel.body]:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                return self._name(new, parcel)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _new_file(self) -> tuple[Path, BinaryIO]:
        while True:
            new = self.folder / f"{uuid.uuid4().hex}.new"
            file = open(new, "xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have taken it for one that a crash has left.
            if new.exists():
                return new, file
            file.close()

    def _name(self, new: Path, parcel: Parcel) -> Path:
        """Gives a file its place in the order."""
        with self._locked("lock"):
            self._check_space(0)
            self._remove_unfinished()
            last = max((_number(path) for path in self.waiting()), default=0)
            # The time makes numbers unique even after the spool was empty.
            number = max(last + 1, time.time_ns())
            name = hashlib.sha256(parcel.key.encode()).hexdigest()[:16]
            path = self.folder / f"{number:020}-{name}{_SUFFIX}"
            new.replace(path)
            sync_folder(self.folder)
        return path

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remove_unfinished(self) -> None:
        """Deletes what crashes have left of messages that were never handed over."""
        for path in self.folder.glob("*.new"):
            with contextlib.suppress(FileNotFoundError):
                file = try_lock(path, "rb")
                if file is not None:
                    path.unlink()
                    file.close()

    def _check_space(self, more: int) -> None:
        used = self.size() + more
        if used > self.max_bytes:
            raise SpoolFull(f"the spool {self.folder} would have {used} bytes, more than its limit of {self.max_bytes}")

    def size(self) -> int:
        """The bytes of all files, refused ones and unfinished ones included."""
        total = 0
        for folder in (self.folder, self.refused):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size if path.is_file() else 0
        return total

    def waiting(self) -> List[Path]:
        """The messages that are to be sent, in their order."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def load(self, path: Path) -> Parcel:
        """Reads and verifies a message. Raises :class:`BadMessage` if the disk has damaged it."""
        try:
            with open(path, "rb") as file:
                line = file.readline(_MAX_HEADER)
                size = os.fstat(file.fileno()).st_size - len(line)
            header = json.loads(line)
            body = FileBytes(path, len(line), size)
            sha256 = bytes.fromhex(header["sha256"])
            parcel = Parcel(header["type"], header["content_type"], body, sha256, header["key"])
            digest = hashlib.sha256()
            for chunk in body.chunks():
                digest.update(chunk)
        except (ValueError, KeyError, TypeError) as error:
            raise BadMessage(f"{path} is damaged: {error!r}") from error
        if size != header["size"] or digest.digest() != sha256:
            raise BadMessage(f"{path} is damaged: its body has another size or SHA-256")
        return parcel

    def remove(self, path: Path) -> None:
        """Deletes a message that the gateway has accepted."""
        path.unlink()
        sync_folder(self.folder)

    def refuse(self, path: Path, reason: str) -> None:
        """Sets a message aside."""
        write_durably(self.refused / f"{path.stem}.reason", reason.encode(errors="replace"))
        path.replace(self.refused / path.name)
        sync_folder(self.refused)
        sync_folder(self.folder)

    def refusals(self) -> List[Refusal]:
        """The messages that were set aside."""
        found = []
        for path in sorted(self.refused.glob(f"*{_SUFFIX}")):
            reason = path.with_suffix(".reason")
            text = reason.read_text(encoding="utf-8", errors="replace") if reason.exists() else ""
            found.append(Refusal(path, text))
        return found

    def retry_refused(self) -> int:
        """Puts the messages that were set aside back where they were in the order. Returns their number."""
        refusals = self.refusals()
        with self._locked("lock"):
            for refusal in refusals:
                refusal.path.replace(self.folder / refusal.path.name)
                refusal.path.with_suffix(".reason").unlink(missing_ok=True)
            sync_folder(self.folder)
            sync_folder(self.refused)
        return len(refusals)


def _number(path: Path) -> int:
    digits = path.name.split("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
