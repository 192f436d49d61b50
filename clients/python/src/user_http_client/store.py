"""Where a fetched message is kept: in memory, or in a folder that survives crashes.

A folder has these files:

- `message.part` and `message.part.json`: what has arrived of a version of the message, and which version it is
- `message.pickle`: the whole message
- `message.untaken`: its version, until the gateway has removed the message because its last byte was fetched
- `message.uuid`: its UUID
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Optional, Union

from . import pickles
from .errors import ClientError
from .files import sync_folder, write_durably
from .part import Part
from .values import CHUNK, Value


@dataclass(frozen=True)
class Version:
    """A version of a message at the gateway."""

    etag: str
    length: int
    #: SHA-256 in hexadecimal digits, where the gateway gives it.
    sha256: Optional[str] = None
    #: Whether the gateway has removed the message with the bytes that it sends: it knows no ranges.
    taken: bool = False


@dataclass(frozen=True)
class PartNote:
    """What `message.part` is."""

    version: Version
    #: What identifies the time since the machine's start. The part is not synced while it grows, so after a failure of
    #: the machine its bytes may be others; after one of the process they are there.
    boot: Optional[str]
    is_complete: bool = False

    def write(self, path: Path) -> None:
        write_durably(path, json.dumps(asdict(self)).encode())


class MemoryStore:
    """Keeps a message in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._file = io.BytesIO()
        self._untaken: Optional[Version] = None
        self.is_complete = False
        self.path: Optional[Path] = None

    def begin(self, version: Version) -> Part:
        self._file = io.BytesIO()
        return Part(self._file, limit=self._limit)

    def complete(self, version: Version) -> None:
        self.is_complete = True
        self._untaken = None if version.taken else version

    def untaken(self) -> Optional[Version]:
        return self._untaken

    def taken(self) -> None:
        self._untaken = None

    def discard(self) -> None:
        self.is_complete = False
        self._untaken = None

    def value(self) -> Value:
        return pickles.loads(self._file.getvalue(), max_memory=2 * self._limit)

    def close(self) -> None:
        pass


class FolderStore:
    """Keeps a message in a folder of its own."""

    def __init__(self, folder: Path, uuid: str, *, max_memory: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        # The lock ends with the process.
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._claim(uuid)
        except BaseException:
            os.close(self._lock)
            raise
        self._max_memory = max_memory
        self.path = self.folder / "message.pickle"
        self._part = self.folder / "message.part"
        self._part_note = self.folder / "message.part.json"
        self._untaken = self.folder / "message.untaken"
        self._open: Optional[BinaryIO] = None
        self._finish_interrupted()

    def _claim(self, uuid: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"another process fetches a message into {self.folder}") from None
        note = self.folder / "message.uuid"
        if not note.exists():
            write_durably(note, uuid.encode(errors="surrogatepass"))
        found = note.read_bytes().decode(errors="surrogatepass")
        if found != uuid:
            raise ClientError(f"{self.folder} is the folder of the message {found!r}: give {uuid!r} its own")

    @property
    def is_complete(self) -> bool:
        return self.path.exists()

    def _finish_interrupted(self) -> None:
        """A crash may have come between the durable, verified bytes and their new name."""
        note = _read_part_note(self._part_note)
        if note is not None and note.is_complete and self._part.exists():
            self._rename(note.version)

    def begin(self, version: Version) -> Part:
        """The bytes of this version that an earlier run has received; none of another version."""
        self._close_part()
        note = PartNote(version, _boot_id())
        if version.taken or note.boot is None or _read_part_note(self._part_note) != note:
            self._part.unlink(missing_ok=True)
            note.write(self._part_note)
        self._open = open(self._part, "r+b" if self._part.exists() else "w+b")
        return Part(self._open, folder=self.folder)

    def complete(self, version: Version) -> None:
        """The part is synced, and its bytes are all there and verified."""
        self._close_part()
        PartNote(version, _boot_id(), is_complete=True).write(self._part_note)
        self._rename(version)

    def _rename(self, version: Version) -> None:
        # An older message goes first: a crash must not leave it with the note of the new one.
        self.path.unlink(missing_ok=True)
        if version.taken:
            self._untaken.unlink(missing_ok=True)
        else:
            write_durably(self._untaken, json.dumps(asdict(version)).encode())
        self._part.replace(self.path)
        sync_folder(self.folder)
        self._part_note.unlink(missing_ok=True)

    def untaken(self) -> Optional[Version]:
        return _read_note(self._untaken)

    def taken(self) -> None:
        self._untaken.unlink(missing_ok=True)
        sync_folder(self.folder)

    def discard(self) -> None:
        # The note last: without it, the message would count as taken.
        self.path.unlink(missing_ok=True)
        sync_folder(self.folder)
        self._untaken.unlink(missing_ok=True)

    def value(self) -> Value:
        return pickles.load(self.path, max_memory=self._max_memory, spill=CHUNK)

    def _close_part(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def close(self) -> None:
        """Ends the use of the folder by this process."""
        self._close_part()
        os.close(self._lock)


Store = Union[MemoryStore, FolderStore]


def _boot_id() -> Optional[str]:
    """None where the system does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _read_part_note(path: Path) -> Optional[PartNote]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        note = json.loads(path.read_bytes())
        return PartNote(Version(**note["version"]), note["boot"], note["is_complete"])
    return None


def _read_note(path: Path) -> Optional[Version]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return Version(**json.loads(path.read_bytes()))
    return None
