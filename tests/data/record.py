#!/usr/bin/env python3
"""Records a data directory of a release, and the manifest that tests compare it with.

    tests/data/record.py PROGRAM tests/data/version-X.Y.Z

If the folder does not exist, PROGRAM fills a new data directory, and is killed. In both cases it then serves a copy,
and what it answers becomes `manifest.json`. Needs nothing but Python's standard library.
"""

import hashlib
import json
import os
import pathlib
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

JSON = {"Content-Type": "application/json"}
PICKLE = {"Content-Type": "application/octet-stream"}
# More than 1 MiB: the body is kept in a file of its own.
LARGE = 1_100_000
BLEND = b"BLENDER-v300 a small scene"

SENT = {
    "text": {"TYPE": "RENDER", "FRAMES": [1, 2, 3], "NAME": "größe ✓"},
    "types": {"none": None, "true": True, "float": 0.1, "int": 10**30, "nested": {"list": [[], {}]}},
    "large": {"DATA": "x" * LARGE},
    "replaced": {"ROUND": 2},
    "blend": {"DATA": {"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": "scene.blend"}},
}
GONE = ["fetched", "never-there"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, program, data):
        self.home = tempfile.TemporaryDirectory()
        self.http, self.api = (f"127.0.0.1:{free_port()}" for _ in range(2))
        blends = pathlib.Path(self.home.name, "blends")
        blends.mkdir()
        (blends / "scene.blend").write_bytes(BLEND)
        command = [os.path.abspath(program), "--data-dir", os.path.abspath(data), "--blend-root", str(blends)]
        command += ["--buffer-ttl", "36500d", "--http-bind", self.http, "--api-bind", self.api]
        self.process = subprocess.Popen(command, cwd=self.home.name)
        deadline = time.monotonic() + 60
        while self.ask(self.api, "/readyz")[0] != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("the server does not start")
            time.sleep(0.05)

    def ask(self, address, path, body=None, headers={}, method=None):
        request = urllib.request.Request(f"http://{address}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()
        except OSError:
            return 0, {}, b""

    def must(self, status, *args, **kwargs):
        answer = self.ask(*args, **kwargs)
        assert answer[0] == status, answer
        return answer

    def leave(self, uuid, message):
        order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": uuid, "BUFFER_MSG": message}}
        self.must(200, self.api, "/CommunicationInterface/AddBufferMsg", json.dumps(order).encode(), JSON)

    def post(self, kind, data, **headers):
        message = {"USER_ID": "worker", "MAIN_DATA": {"TYPE": kind, "DATA": data}}
        self.must(200, self.http, "/", pickle.dumps(message), PICKLE | headers)

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(60)


def fill(server):
    server.leave("fetched", {"ROUND": 0})
    server.must(200, server.http, "/?bufferUUID=fetched")
    server.leave("replaced", {"ROUND": 1})
    for uuid, message in SENT.items():
        server.leave(uuid, message)
    server.post("FRAME_RENDERED", {"FRAME": 0})
    _, headers, _ = server.must(200, server.api, "/UserManager/NextMessage")
    server.must(204, server.api, "/UserManager/Messages/" + headers["Message-Id"], method="DELETE")
    for frame in range(1, 4):
        server.post("FRAME_RENDERED", {"FRAME": frame, "IMAGE": bytes([frame]) * 100})
    server.post("FRAME_RENDERED", {"FRAME": 4, "IMAGE": bytes(LARGE)}, **{"Idempotency-Key": "four"})
    server.post("RENDER_COMPLETED", {"FRAMES": 4})
    # The record of a removal is on the disk a moment after the answer; this is behind it.
    server.leave("last", {"LAST": True})


def record(program, folder):
    with tempfile.TemporaryDirectory() as data:
        server = Server(program, data)
        fill(server)
        server.end(signal.SIGKILL)
        folder.mkdir(parents=True)
        for path in sorted(pathlib.Path(data).rglob("*")):
            # what a start makes anew: the reserve of random bytes, and the lock
            if not path.is_file() or path.name in ("RESERVE", "LOCK"):
                continue
            content = path.read_bytes()
            if path.suffix == ".log":
                content = content.rstrip(b"\0") + bytes(256)
            target = folder / path.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def manifest(program, folder):
    found = {"buffer": {}, "gone": [], "outbox": [], "blend": BLEND.decode()}
    with tempfile.TemporaryDirectory() as data:
        shutil.copytree(folder, data, dirs_exist_ok=True)
        server = Server(program, data)
        uuids = [*SENT, "last", *GONE] + [f"job-{number}" for number in range(6)]
        for uuid in uuids:
            status, _, body = server.ask(server.http, f"/?bufferUUID={uuid}")
            if status != 200:
                found["gone"].append(uuid)
                continue
            found["buffer"][uuid] = hashlib.sha256(body).hexdigest()
            print(uuid, str(pickle.loads(body))[:200])
        while True:
            status, headers, body = server.ask(server.api, "/UserManager/NextMessage?lease=600")
            if status == 204:
                break
            digest = hashlib.sha256(body).hexdigest()
            found["outbox"].append({"id": headers["Message-Id"], "type": headers["Content-Type"], "sha256": digest})
            print(headers["Message-Id"], body[:100])
        server.end(signal.SIGTERM)
    (folder / "manifest.json").write_text(json.dumps(found, indent=1) + "\n")


program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
if not folder.exists():
    record(program, folder)
manifest(program, folder)
