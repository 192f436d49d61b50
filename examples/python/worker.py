#!/usr/bin/env python3
"""A render worker: fetches one message, renders its frames with Blender, posts each frame, and finally posts that the
job is complete. Needs Python 3.8 or later and `requests`.

A .blend file is downloaded once, into a folder that all workers of this machine share, and used from there.

The server delivers a message once: with its last byte. A message that refers to its .blend file is therefore first
read without that byte, and taken only when the .blend file is here. If something fails after that, give the same
--work-dir again to continue with the fetched message.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests

CHUNK = 256 * 1024
LOG_TAIL_LINES = 20
TEMPORARY = {408, 429, 500, 502, 503, 504}
MAX_WAIT = 60  # the server's limit
POLL = 1  # seconds between requests to a server that does not know `wait`
TRIES = 3  # how often a file with a wrong digest, or a message that is replaced meanwhile, is fetched again
REFERENCE = {"Prefer": "blend-reference"}
STOP = b"."  # the opcode at the end of every pickle


# Device names of Windows, with any extension.
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[^.])(\..*)?", re.DOTALL)


class Failure(Exception):
    """An error whose text is shown to the user."""


class Refused(Failure):
    """The server's final refusal."""

    def __init__(self, text, status):
        super().__init__(text)
        self.status = status


class Again(Exception):
    """An attempt failed; another may succeed, after `pause` seconds if the server asks for a pause."""

    def __init__(self, text, pause=None):
        super().__init__(text)
        self.pause = pause


def say(text):
    print(text, file=sys.stderr, flush=True)


def file_name(text):
    """A file name for a text, different for different texts even on file systems that ignore case, and without special
    meaning in a path. A UUID is used unchanged."""
    is_name = re.fullmatch("[a-z0-9_-]([a-z0-9._-]{0,98}[a-z0-9_-])?", text)
    if is_name and not DEVICE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
    return re.sub("[^a-z0-9_-]", "_", text[:100].lower()) + "~" + digest


class Patience:
    """Pauses between attempts. Gives up after `limit` seconds without progress."""

    def __init__(self, limit):
        self.limit = limit
        self.renew()

    def renew(self):
        self.since, self.pause = time.monotonic(), 0.5

    def wait(self, why, asked=None):
        pause = self.pause if asked is None else asked
        self.pause = min(self.pause * 2, 30)
        if time.monotonic() - self.since + pause > self.limit:
            raise Failure(f"gave up: {why}")
        say(f"{why}; trying again in {pause} s")
        time.sleep(pause)


class Bearer(requests.auth.AuthBase):
    """Sends the token of a file. It is an `auth`, so that a .netrc does not override it."""

    def __init__(self, path):
        self.token = path.read_text().strip()
        if not re.fullmatch("[!-~]+", self.token):
            raise Failure(f"{path} must contain one token and nothing else")

    def __call__(self, request):
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def ask(args, method, url=None, **more):
    """Sends one request. Follows no redirect: the token must go to no other server."""
    try:
        return requests.request(method, url or args.server, timeout=args.timeout, auth=args.auth, allow_redirects=False,
                                verify=str(args.ca_file) if args.ca_file else True, **more)
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise
        raise Failure(f"the server's certificate is not trusted: {error}; "
                      "give the farm's CA with --ca-file FILE") from error


def retry(args, what, attempt):
    """Repeats attempts, with pauses, until one is final."""
    patience = Patience(args.patience)
    while True:
        try:
            return attempt(patience)
        except Again as error:
            patience.wait(f"{what}: {error}", error.pause)
        except requests.RequestException as error:
            patience.wait(f"{what}: {error}")


def check(args, answer):
    """Raises `Again` or `Refused` unless the status is one of success. A refused token will be refused again."""
    status = answer.status_code
    if 200 <= status < 300:
        return
    asked = answer.headers.get("Retry-After")
    why = f"{status} {error_text(answer)}"
    if status not in (401, 403) and (asked is not None or status in TEMPORARY):
        raise Again(why, int(asked) if asked and asked.isdigit() else None)
    raise Refused(f"the server refused: {why}{advice(args, answer)}", status)


def advice(args, answer):
    """What to do about a refused token."""
    if answer.status_code not in (401, 403):
        return ""
    if not args.token_file:
        return "; give a token with --token-file FILE"
    if answer.status_code == 401:
        return f"; the token in {args.token_file} is not valid there: give another with --token-file FILE"
    return (f"; the token in {args.token_file} does not allow it: give another with --token-file FILE, "
            "or the token's user with --user-id ID")


def error_text(answer):
    """The text of an error: {"message": text} as a pickle, {"ERROR": text}, or any body if the answer is a proxy's."""
    for load, key in ((pickle.loads, "message"), (json.loads, "ERROR")):
        with contextlib.suppress(Exception):
            return load(answer.content)[key]
    return answer.text[:200].strip()


def receive(answer, part, patience):
    """Writes the body of an answer to a file, at its end if the answer is a range."""
    have = part.stat().st_size if answer.status_code == 206 else 0
    if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        raise Failure("the server sent another range than the requested one")
    if "Content-Length" not in answer.headers:
        raise Failure("the answer has no Content-Length")
    total = have + int(answer.headers["Content-Length"])
    with open(part, "ab" if have else "wb") as file, contextlib.suppress(requests.RequestException):
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
            have += len(chunk)
            patience.renew()
    if have < total:
        raise Again(f"the connection closed after {have} of {total} bytes")


def download(args, what, part, etag=None, url=None, params=None, headers=None):
    """Downloads into a file. Resumes a broken transfer, and one of an earlier run if the ETag is known."""
    def attempt(patience):
        nonlocal etag
        have = part.stat().st_size if part.exists() else 0
        resume = {"Range": f"bytes={have}-", "If-Range": etag} if have and etag else {}
        with ask(args, "GET", url, params=params, stream=True,
                 headers={"Accept-Encoding": "identity", **(headers or {}), **resume}) as answer:
            if answer.status_code == 416:
                part.unlink()
                raise Again("the server has no such range")
            check(args, answer)
            etag = answer.headers.get("ETag")
            receive(answer, part, patience)

    retry(args, what, attempt)


class Message:
    """The message of a UUID in a file, and beside it the note `untaken`: its length and version, until it is taken."""

    def __init__(self, args, folder):
        self.args, self.params, self.prefer = args, {"bufferUUID": args.uuid}, {} if args.no_cache else REFERENCE
        self.file, self.part, self.untaken = (folder / f"message.{kind}" for kind in ("pickle", "part", "untaken"))

    def fetch(self):
        """Fetches the message. One that refers to its .blend file is not taken yet. Returns whether it was here."""
        if self.file.exists():
            say(f"using the message fetched before: {self.file}")
            return True
        self.part.unlink(missing_ok=True)
        version = self.look()
        if not self.file.exists() and not (version and self.read(*version)):
            self.download(self.prefer)
        return False

    def download(self, headers):
        download(self.args, "fetching", self.part, params=self.params, headers=headers)
        self.keep()

    def keep(self):
        self.part.replace(self.file)
        say(f"fetched {self.file.stat().st_size} bytes")

    def look(self):
        """Waits for the message and asks for its first byte, which delivers nothing. Returns the version and length of
        a message that refers to its .blend file. A server that does not know ranges sends the whole message."""
        deadline = time.monotonic() + self.args.wait

        def attempt(patience):
            asked = time.monotonic()
            wait = max(int(min(deadline - asked, MAX_WAIT, self.args.timeout / 2)), 0)
            with ask(self.args, "GET", params={**self.params, "wait": wait}, stream=True,
                     headers={"Accept-Encoding": "identity", "Range": "bytes=0-0", **self.prefer}) as answer:
                try:
                    check(self.args, answer)
                except Refused as refused:
                    if not is_absent(refused) or time.monotonic() >= deadline:
                        raise
                    patience.renew()
                    is_early = time.monotonic() - asked < max(wait, 1)
                    raise Again("no message yet", POLL if is_early else 0) from None
                if answer.status_code != 206:
                    receive(answer, self.part, patience)
                    return self.keep()
                etag, length = answer.headers.get("ETag", "W/"), int(answer.headers["Content-Range"].split("/")[1])
                is_reference = answer.headers.get("Preference-Applied") == "blend-reference"
                return (etag, length) if is_reference and not etag.startswith("W/") and length > 1 else None

        return retry(self.args, "fetching", attempt)

    def read(self, etag, length):
        """Reads all but the last byte. Returns False if there is another message now."""
        def attempt(_):
            body = self.bytes(etag, 0, length - 2)
            if len(body) < length - 1:
                raise Again("the connection closed")
            return body

        try:
            self.part.write_bytes(retry(self.args, "fetching", attempt) + STOP)
        except Refused as refused:
            if refused.status != 412:
                raise
            return False
        # The note first: without it, the message would count as taken.
        self.untaken.write_text(f"{length}\n{etag}")
        self.part.replace(self.file)
        return True

    def take(self, kept):
        """Takes a message that `fetch` has only looked at. Returns False, and removes the file, if another message is
        in its place now. `kept`: an earlier run may have taken it."""
        if not self.untaken.exists():
            return True
        length, etag = self.untaken.read_text().split("\n")
        lost = kept  # whether the server may have handed over the last byte, and the answer was lost

        def attempt(_):
            nonlocal lost
            try:
                self.bytes(etag, int(length) - 1, "")
            except requests.RequestException:
                lost = True
                raise

        try:
            retry(self.args, "taking the message", attempt)
        except Refused as refused:
            if not (is_absent(refused) and lost):
                if is_absent(refused) or refused.status == 412:
                    self.file.unlink()
                    self.untaken.unlink()
                if refused.status == 412:
                    return False
                raise
        self.untaken.unlink()
        return True

    def bytes(self, etag, first, last):
        """A range of this version of the message."""
        with ask(self.args, "GET", params=self.params,
                 headers={"Accept-Encoding": "identity", "Range": f"bytes={first}-{last}", "If-Match": etag,
                          "If-Range": etag, **self.prefer}) as answer:
            check(self.args, answer)
            return answer.content[:last + 1 if last else 1]


def is_absent(refused):
    return refused.status == 400 and "No Buffer Message" in str(refused)


class Cache:
    """A folder of .blend files, by their SHA-256. Workers on one machine share it: each file is downloaded once.

    A lock ends with the process that holds it. SHA256.part is locked by the worker that downloads it, SHA256.blend by
    the workers that use it. Whoever gets a lock checks that the name still means the locked file."""

    def __init__(self, args, folder):
        self.args, self.folder = args, args.cache_dir or cache_folder(folder)

    def get(self, reference):
        """The path of the file that a message refers to. It is not evicted while the returned file is open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest, size = reference["SHA256"], reference["SIZE"]
        path, part = (self.folder / f"{digest}.{kind}" for kind in ("blend", "part"))
        for _ in range(TRIES):
            file, how = self.lock(path, part, reference)
            if sha256(path).hexdigest() == digest:
                say(f".blend file: {how}, {size} bytes, {path}")
                with contextlib.suppress(PermissionError):  # of another user
                    os.utime(path)
                return path, file
            say(f"{path} has another digest; fetching it again")
            if is_named(file, path):
                path.unlink()
            file.close()
        raise Failure(f"what the server sends as {digest} has had another SHA-256 {TRIES} times")

    def lock(self, path, part, reference):
        """Locks the complete file against eviction; downloads it first if no worker has."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = lock(path, "rb", fcntl.LOCK_SH)
                if file:
                    return file, "cached"
                continue
            file = lock(part, "ab", fcntl.LOCK_EX)
            if not file:
                continue
            if path.exists():  # another worker was faster
                part.unlink()
                file.close()
                continue
            have, size = part.stat().st_size, reference["SIZE"]
            self.make_room(size - have)
            if have != size:
                download(self.args, "fetching the .blend file", part, f'"{reference["SHA256"]}"',
                         address(self.args.server, reference["PATH"]))
            part.replace(path)
            path.chmod(0o444)
            fcntl.flock(file, fcntl.LOCK_SH)
            # While one lock became the other, another worker may have evicted it.
            if is_named(file, path):
                return file, "fetched"

    def make_room(self, size):
        """Deletes the least recently used files until there is space for so many bytes; never one that is in use."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another worker may delete it now
                if path.suffix in (".blend", ".part"):
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if total + size <= self.args.cache_size:
                break
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                with lock(path, "rb", fcntl.LOCK_EX | fcntl.LOCK_NB) or contextlib.nullcontext() as file:
                    if file:
                        path.unlink()
                        total -= length


def lock(path, mode, kind):
    """The file, locked; None if the name means another by then."""
    file = open(path, mode)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if kind & fcntl.LOCK_NB:
            file.close()
            raise
        say(f"waiting for another worker that downloads {path.stem}")
        fcntl.flock(file, kind)
    if is_named(file, path):
        return file
    file.close()


def is_named(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest


def cache_folder(folder):
    """The folder that is shared, or, where there is none that can be written to, the job's own."""
    users = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.environ.get("HOME", ""), ".cache")
    for shared in [user / "render-worker" for user in users if user.is_absolute()][:1]:
        with contextlib.suppress(OSError):
            shared.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=shared).close()
            return shared
    say("no folder for .blend files that other workers can use: choose one with --cache-dir DIR")
    return folder / "cache"


def address(server, path):
    """The URL of a file at the server. A proxy in front of the server may have removed the start of the path, which
    the server's URL still has."""
    server = urlsplit(server)
    prefix = server.path.rstrip("/")
    return f"{server.scheme}://{server.netloc}{path if path.startswith(prefix + '/') else prefix + path}"


def is_reference(blend):
    """Whether this is a reference that a server has put in place of the .blend file."""
    return (isinstance(blend, dict) and re.fullmatch("[0-9a-f]{64}", str(blend.get("SHA256")))
            and isinstance(blend.get("SIZE"), int) and str(blend.get("PATH")).startswith("/"))


def read_job(message):
    """The frames to render, and the .blend file's bytes or a reference to it. pickle.load is safe only with a trusted
    server."""
    with open(message, "rb") as file:
        job = pickle.load(file)
    try:
        if job["TYPE"] != "RENDER":
            raise Failure(f"the message is not a render job: its TYPE is {job['TYPE']!r}")
        data = job["DATA"]
        frames = data["FRAMES"] if "FRAMES" in data else range(data["START_FRAME"], data["END_FRAME"] + 1)
        frames = [int(frame) for frame in frames]
    except (KeyError, TypeError, ValueError) as error:
        raise Failure(f"the message is not a render job: {error!r}") from error
    if not frames:
        raise Failure("the render job has no frames")
    return frames, data.get("BINARY_BLEND_FILE")


def fetch(args, folder):
    """The message's file, its frames, the .blend file's bytes or path, and the open file that keeps it in the cache."""
    message = Message(args, folder)
    for _ in range(TRIES):
        kept = message.fetch()
        frames, blend = read_job(message.file)
        if not is_reference(blend):
            return message.file, frames, blend, None
        try:
            path, in_use = Cache(args, folder).get(blend)
        except Refused as refused:
            say(f"{refused}; fetching the message with the file in it")
            message.download({})
            message.untaken.unlink(missing_ok=True)
            continue
        if message.take(kept):
            return message.file, frames, path, in_use
        say("the message has been replaced; fetching the new one")
    raise Failure("the message was replaced each time it was fetched")


def save(blend, scene):
    """Makes the .blend file appear under this name: as a link to the cache, or, on another file system, as a copy."""
    scene.unlink(missing_ok=True)
    if isinstance(blend, bytes):
        scene.write_bytes(blend)
    elif isinstance(blend, Path):
        try:
            os.link(blend, scene)
        except OSError:
            shutil.copy(blend, scene)
    else:
        raise Failure("the message contains no .blend file: its DATA.BINARY_BLEND_FILE is not bytes")


def check_blender(blender):
    """A message is delivered once, so a worker must know that it can render before it fetches."""
    try:
        subprocess.run([blender, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"no Blender: {error}; install it (on Debian, apt-get install blender), "
                      "or give --blender PATH or --images DIR") from error


def render(blender, scene, folder, frame):
    """Renders one frame; an image of an earlier run is used again. It has its final name only when it is complete."""
    image, log = folder / f"frame_{frame:04}.png", folder / f"frame_{frame:04}.log"
    if image.exists():
        return image
    rendered = folder / f"rendering_{frame:04}.png"
    rendered.unlink(missing_ok=True)
    with open(log, "wb") as output:
        done = subprocess.run(
            [blender, "--background", "--disable-autoexec", scene, "--render-output", folder / "rendering_####",
             "--render-format", "PNG", "--use-extension", "1", "--render-frame", str(frame)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode or not rendered.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise Failure(f"frame {frame}: Blender exited with {done.returncode}; the end of {log}:\n{tail}")
    return rendered.replace(image)


def post(args, message, kind, data, as_pickle):
    """Posts until the server has received it. Every attempt has the same key, so that it is forwarded once, even if an
    answer is lost. The key includes the digest of the message that the job came in, so that another job under the same
    UUID has other keys."""
    content = {"USER_ID": args.user_id, "MAIN_DATA": {"TYPE": kind, "DATA": data}}
    body = pickle.dumps(content) if as_pickle else json.dumps(content).encode()
    digest = hashlib.sha256(body).digest()
    headers = {
        "Content-Type": "application/octet-stream" if as_pickle else "application/json",
        "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        "Idempotency-Key": hashlib.sha256(message + digest).hexdigest(),
    }

    def attempt(_):
        answer = ask(args, "POST", data=body, headers=headers)
        # Something has damaged the body on its way.
        if answer.status_code == 400 and "Content-Digest" in answer.text:
            raise Again(f"400 {error_text(answer)}")
        check(args, answer)

    retry(args, f"sending {kind}", attempt)


def check_ca_file(path):
    """requests reports an unusable file only at the first request."""
    try:
        if path:
            ssl.create_default_context(cafile=path)
    except OSError as error:
        raise Failure(f"--ca-file {path}: {error}") from error


def work(args, folder):
    if not args.images:
        check_blender(args.blender)
    message, frames, blend, in_use = fetch(args, folder)
    scene = folder / "scene.blend"
    if not args.images:
        save(blend, scene)
    del blend
    message = sha256(message).digest()
    for number, frame in enumerate(frames, 1):
        image = args.images / f"frame_{frame:04}.png" if args.images else render(args.blender, scene, folder, frame)
        data = {"FRAME_NUMBER": frame, "IMAGE": image.read_bytes(), "FILE_NAME": image.name, "JOB": args.uuid}
        post(args, message, "FRAME_RENDERED", data, as_pickle=True)
        say(f"frame {frame} posted, {len(data['IMAGE'])} bytes ({number} of {len(frames)})")
    post(args, message, "RENDER_COMPLETED", {"JOB": args.uuid, "FRAMES": frames}, as_pickle=False)
    say("completed")
    if in_use:
        in_use.close()


def size(text):
    match = re.fullmatch(r"(\d+) ?(?:([KMGT])i?B?)?", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError("expected a size such as 64GiB")
    return int(match[1]) << 10 * " KMGT".index((match[2] or " ").upper())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("uuid", help="UUID of the message")
    parser.add_argument("--server", default="http://127.0.0.1:10000", metavar="URL", help="worker server")
    parser.add_argument("--token-file", type=Path, metavar="FILE",
                        help="file that contains only the bearer token to send")
    parser.add_argument("--ca-file", type=Path, metavar="FILE",
                        help="CA certificates to trust for https, in PEM; without it those of requests")
    parser.add_argument("--user-id", default="example-worker", metavar="ID", help="user ID of this worker")
    parser.add_argument("--work-dir", type=Path, metavar="DIR",
                        help="directory for the files of messages; without it a temporary one, removed at the end")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR",
                        help="folder for .blend files, shared by the workers of a machine; without it render-worker in "
                        "$XDG_CACHE_HOME or ~/.cache")
    parser.add_argument("--cache-size", type=size, default="64GiB", metavar="SIZE",
                        help="size of that folder: the least recently used files are deleted, but none in use")
    parser.add_argument("--no-cache", action="store_true",
                        help="ask for messages with the .blend file in them, and do not keep it")
    parser.add_argument("--wait", type=float, default=30, metavar="SECONDS",
                        help="wait so long for a message that is not there yet")
    parser.add_argument("--blender", default="blender", metavar="PATH", help="Blender executable")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="post frame_0001.png and so on from this directory instead of rendering")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS",
                        help="treat a connection as broken if it transfers nothing for this long")
    parser.add_argument("--patience", type=float, default=300, metavar="SECONDS",
                        help="give up on a request, retries included, that makes no progress for this long")
    args = parser.parse_args()
    try:
        args.auth = Bearer(args.token_file) if args.token_file else None
        check_ca_file(args.ca_file)
        if args.work_dir:
            folder = args.work_dir / file_name(args.uuid)
            folder.mkdir(parents=True, exist_ok=True)
            work(args, folder.resolve())
        else:
            with tempfile.TemporaryDirectory(prefix="render-worker-") as folder:
                work(args, Path(folder))
    except (Failure, OSError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
