"""A folder of .blend files by their SHA-256, which all workers of a machine share: each file is downloaded once.

`SHA256.part` is locked by the process that downloads it, `SHA256.blend` by those that use it. The locks (`flock`) end
with their processes, so a crash leaves none. Whoever gets a lock checks that the name still means the locked file. A
file gets its final name only after its SHA-256 has been verified; that is verified again before each use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional, Tuple, Union

from .effects import Flow, call, lock
from .errors import BadMessage
from .files import file_sha256, is_named, lock_named, sync_folder, try_lock
from .gateway import Gateway
from .part import Part, Progress, rest
from .retry import Patience

log = logging.getLogger("user_http_client")

TRIES = 3  # how often a file with a wrong SHA-256 is fetched


@dataclass(frozen=True)
class Reference:
    """What a message has in place of its .blend file."""

    sha256: str
    size: int
    path: str

    @classmethod
    def find(cls, value: object) -> Optional[Reference]:
        """The reference at `DATA.BINARY_BLEND_FILE` of a message."""
        data = value.get("DATA") if isinstance(value, dict) else None
        blend = data.get("BINARY_BLEND_FILE") if isinstance(data, dict) else None
        if not isinstance(blend, dict):
            return None
        sha256, size, path = blend.get("SHA256"), blend.get("SIZE"), blend.get("PATH")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        if type(size) is not int or size < 0 or not isinstance(path, str) or not re.fullmatch("/[!-~]*", path):
            return None
        return cls(sha256, size, path)


class CachedFile:
    """A file in the cache. It is not evicted until it is closed."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size = path, size
        self._file = file

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Makes the file appear under another name: as a link, or on another file system as a copy."""
        Path(path).unlink(missing_ok=True)
        try:
            os.link(self.path, path)
        except OSError:
            shutil.copyfile(self.path, path)

    def close(self) -> None:
        self._file.close()


class BlendCache:
    """The cache in a folder. Its files take at most `max_bytes`: before a download, those that were used the longest
    time ago are deleted, but none in use. A file that is larger than `max_bytes` is downloaded all the same."""

    def __init__(self, folder: Union[str, os.PathLike[str]], *, max_bytes: int = 64 << 30) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def get(self, gateway: Gateway, reference: Reference, progress: Optional[Progress] = None) -> Flow[CachedFile]:
        """The file of a reference; downloads it if no process has."""
        yield from call(self.folder.mkdir, parents=True, exist_ok=True)
        for _ in range(TRIES):
            file, how = yield from self._obtain(gateway, reference, progress)
            if file is None:
                continue
            path = self._path(reference, "blend")
            try:
                if how == "fetched" or (yield from call(file_sha256, path)).hex() == reference.sha256:
                    log.info(".blend file: %s, %d bytes, %s", how, reference.size, path)
                    with contextlib.suppress(PermissionError):  # of another user
                        os.utime(path)
                    return CachedFile(path, file, reference.size)
                log.warning("%s has another SHA-256; fetching it again", path)
                if is_named(file, path):
                    path.unlink()
            except BaseException:
                file.close()
                raise
            file.close()
        raise BadMessage(f"what the gateway sends as {reference.sha256} has had another SHA-256 {TRIES} times")

    def _path(self, reference: Reference, kind: str) -> Path:
        return self.folder / f"{reference.sha256}.{kind}"

    def _obtain(
        self, gateway: Gateway, reference: Reference, progress: Optional[Progress]
    ) -> Flow[Tuple[Optional[BinaryIO], str]]:
        """The complete file, locked against eviction. None if it was downloaded with another SHA-256."""
        path, part = self._path(reference, "blend"), self._path(reference, "part")
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = yield from lock_named(path, "rb", exclusive=False)
                if file is not None:
                    return file, "cached"
                continue
            file = yield from self._lock_part(part)
            if file is None:
                continue
            try:
                if path.exists():  # another process was faster
                    part.unlink()
                elif not (yield from self._download(gateway, reference, file, part, progress)):
                    part.unlink()
                    file.close()
                    return None, "damaged"
                else:
                    part.replace(path)
                    path.chmod(0o444)
                    yield from call(sync_folder, self.folder)
                    yield from lock(file, exclusive=False)
                    # While one lock became the other, another process may have evicted it.
                    if is_named(file, path):
                        return file, "fetched"
            except BaseException:
                file.close()
                raise
            file.close()

    def _lock_part(self, part: Path) -> Flow[Optional[BinaryIO]]:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        try:
            file = try_lock(part, "r+b")
            if file is None:
                log.info("waiting for another worker that downloads %s", part.stem)
                file = yield from lock_named(part, "r+b", exclusive=True)
        except FileNotFoundError:
            return None
        return file

    def _download(
        self, gateway: Gateway, reference: Reference, file: BinaryIO, path: Path, progress: Optional[Progress]
    ) -> Flow[bool]:
        """Completes the part. Returns whether it has its SHA-256."""
        part = yield from call(Part, file, folder=self.folder)
        yield from call(self._make_room, reference.size - part.size)
        # A part of the right size may be damaged, or from a crash just before its new name.
        etag = f'"{reference.sha256}"'
        yield from rest(
            gateway,
            "fetching the .blend file",
            gateway.file_url(reference.path),
            part,
            end=reference.size,
            total=reference.size,
            headers={"If-Range": etag},
            patience=Patience(gateway.patience),
            progress=progress,
        )
        yield from call(part.sync)
        if part.sha256().hex() == reference.sha256:
            return True
        log.warning("%s has another SHA-256; fetching it again", path)
        return False

    def _make_room(self, size: int) -> None:
        """Deletes the least recently used files until there is space for so many bytes, in the cache and on the disk;
        never one that is in use."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may delete it now
                if path.suffix in (".blend", ".part"):
                    status = path.stat()
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if total + size <= self.max_bytes and size <= shutil.disk_usage(self.folder).free:
                break
            with contextlib.suppress(FileNotFoundError):
                file = try_lock(path, "rb")
                if file is not None:
                    path.unlink()
                    file.close()
                    total -= length
        if total + size > self.max_bytes:
            log.info("%s has more than %d bytes, because its files are in use", self.folder, self.max_bytes)
