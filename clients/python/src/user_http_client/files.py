"""Files that survive crashes, locks that end with the process, and names that are safe on every file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Optional

from .effects import Flow, lock
from .values import CHUNK

# Device names of Windows, with any extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[^.])(\..*)?", re.DOTALL)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file: after a crash it has its old content or the new one."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def is_named(file: BinaryIO, path: Path) -> bool:
    """Whether this is the file that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def try_lock(path: Path, mode: str) -> Optional[BinaryIO]:
    """The file, locked exclusively. None if another process has locked it, or if the name means another file now."""
    file: BinaryIO = open(path, mode)  # type: ignore[assignment]  # the mode is binary
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_named(file, path):
            return file
    file.close()
    return None


def lock_named(path: Path, mode: str, *, exclusive: bool) -> Flow[Optional[BinaryIO]]:
    """Waits for the lock of a file. None if the name means another file by then."""
    file: BinaryIO = open(path, mode)  # type: ignore[assignment]  # the mode is binary
    try:
        yield from lock(file, exclusive=exclusive)
        if is_named(file, path):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def file_sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()


def safe_name(text: str) -> str:
    """A file name for a text, different for different texts even on file systems that ignore case, and without special
    meaning in a path. A UUID is used unchanged."""
    is_name = re.fullmatch("[a-z0-9_-]([a-z0-9._-]{0,98}[a-z0-9_-])?", text)
    if is_name and not _DEVICE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
    return re.sub("[^a-z0-9_-]", "_", text[:100].lower()) + "~" + digest
