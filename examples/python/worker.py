#!/usr/bin/env python3
"""A render worker: fetches one message, renders its frames with Blender, posts each frame, and finally posts that the
job is complete. Needs Python 3.8 or later and `requests`.

The server delivers a message once. If something fails after that, give the same --work-dir again to continue with the
fetched message.
"""

import argparse
import hashlib
import pickle
import re
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

CHUNK = 256 * 1024
LOG_TAIL_LINES = 20
TEMPORARY = {408, 429, 500, 502, 503, 504}


# Device names of Windows, with any extension.
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[^.])(\..*)?", re.DOTALL)


class Failure(Exception):
    """An error whose text is shown to the user."""


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

    def wait(self, why, answer=None):
        asked = answer.headers.get("Retry-After", "") if answer is not None else ""
        pause = int(asked) if asked.isdigit() else self.pause
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


def ask(args, method, **more):
    """Sends one request. Follows no redirect: the token must go to no other server."""
    try:
        return requests.request(method, args.server, timeout=args.timeout, auth=args.auth, allow_redirects=False,
                                verify=str(args.ca_file) if args.ca_file else True, **more)
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise
        raise Failure(f"the server's certificate is not trusted: {error}; "
                      "give the farm's CA with --ca-file FILE") from error


def is_temporary(answer):
    """Whether a retry may succeed. A refused token will be refused again."""
    if answer.status_code in (401, 403):
        return False
    return "Retry-After" in answer.headers or answer.status_code in TEMPORARY


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


def fetch(args, target):
    """Fetches the message into a file. Resumes a broken transfer."""
    if target.exists():
        return say(f"using the message fetched before: {target}")
    part, etag, patience = target.with_suffix(".part"), None, Patience(args.patience)
    part.unlink(missing_ok=True)
    while True:
        have = part.stat().st_size if part.exists() else 0
        resume = {"Range": f"bytes={have}-", "If-Range": etag} if have and etag else {}
        try:
            with ask(args, "GET", params={"bufferUUID": args.uuid}, stream=True,
                     headers={"Accept-Encoding": "identity", **resume}) as answer:
                if answer.status_code not in (200, 206):
                    why = refusal(answer)
                    if not is_temporary(answer):
                        raise Failure(f"the server refused: {why}{advice(args, answer)}")
                    patience.wait(why, answer)
                    continue
                if answer.status_code == 200:
                    have = 0
                elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise Failure("the server sent another range than the requested one")
                etag = answer.headers.get("ETag")
                total = have + int(answer.headers["Content-Length"])
                with open(part, "ab" if have else "wb") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        have += len(chunk)
                        patience.renew()
            if have == total:
                break
            patience.wait(f"the connection closed after {have} of {total} bytes")
        except requests.RequestException as error:
            patience.wait(f"fetching: {error}")
    part.rename(target)
    say(f"fetched {total} bytes")


def refusal(answer):
    """The text of an error: {"message": text} as a pickle, or any body if the answer is a proxy's."""
    try:
        text = pickle.loads(answer.content)["message"]
    except Exception:
        text = answer.text[:200]
    return f"{answer.status_code} {text}"


def read_job(message):
    """The frames to render, and the .blend file's bytes. pickle.load is safe only with a trusted server."""
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


def check_blender(blender):
    """A message is delivered once, so a worker must know that it can render before it fetches."""
    try:
        subprocess.run([blender, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"no Blender: {error}; install it (on Debian, apt-get install blender), "
                      "or give --blender PATH or --images DIR") from error


def render(blender, scene, folder, frame):
    image, log = folder / f"frame_{frame:04}.png", folder / f"frame_{frame:04}.log"
    image.unlink(missing_ok=True)
    with open(log, "wb") as output:
        done = subprocess.run(
            [blender, "--background", "--disable-autoexec", scene, "--render-output", folder / "frame_####",
             "--render-format", "PNG", "--use-extension", "1", "--render-frame", str(frame)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode or not image.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise Failure(f"frame {frame}: Blender exited with {done.returncode}; the end of {log}:\n{tail}")
    return image


def post(args, kind, data, as_pickle):
    message = {"USER_ID": args.user_id, "MAIN_DATA": {"TYPE": kind, "DATA": data}}
    if as_pickle:
        body = {"data": pickle.dumps(message), "headers": {"Content-Type": "application/octet-stream"}}
    else:
        body = {"json": message}
    patience = Patience(args.patience)
    while True:
        try:
            answer = ask(args, "POST", **body)
        except requests.RequestException as error:
            patience.wait(f"sending {kind}: {error}")
            continue
        if answer.status_code == 200:
            return
        why = f"sending {kind}: {answer.status_code} {answer.text[:200].strip()}"
        if not is_temporary(answer):
            raise Failure(f"{why}: refused{advice(args, answer)}")
        patience.wait(why, answer)


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
    message = folder / "message.pickle"
    fetch(args, message)
    frames, blend = read_job(message)
    scene = folder / "scene.blend"
    if not args.images:
        if not isinstance(blend, bytes):
            raise Failure("the message contains no .blend file: its DATA.BINARY_BLEND_FILE is not bytes")
        scene.write_bytes(blend)
    del blend
    for number, frame in enumerate(frames, 1):
        image = args.images / f"frame_{frame:04}.png" if args.images else render(args.blender, scene, folder, frame)
        data = {"FRAME_NUMBER": frame, "IMAGE": image.read_bytes(), "FILE_NAME": image.name, "JOB": args.uuid}
        post(args, "FRAME_RENDERED", data, as_pickle=True)
        say(f"frame {frame} posted, {len(data['IMAGE'])} bytes ({number} of {len(frames)})")
    post(args, "RENDER_COMPLETED", {"JOB": args.uuid, "FRAMES": frames}, as_pickle=False)
    say("completed")


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
