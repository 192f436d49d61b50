"""The gateway as a child process, and the farm's services beside it."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, List, Optional

import httpx

ROOT = Path(__file__).parents[4]

# No connection is used twice, because a gateway may have been killed meanwhile.
HTTP = httpx.Client(timeout=60, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


def binary() -> Path:
    path = Path(os.environ.get("USER_HTTP_SERVER", ROOT / "target/debug/user-http-server"))
    assert path.exists(), f"no gateway in {path}: build it, or name another in USER_HTTP_SERVER"
    return path


class Gateway:
    """A gateway in a folder. After a kill it can be started again, on the same port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.blends = folder / "blends"
        self.blends.mkdir(parents=True)
        self.port = self.api_port = 0
        self._log: List[str] = []
        self._process: Optional[subprocess.Popen[str]] = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        flags = ["--http-bind", f"127.0.0.1:{self.port}", "--api-bind", f"127.0.0.1:{self.api_port}"]
        flags += ["--data-dir", str(self.folder / "data"), "--blend-root", str(self.blends), *self.arguments]
        environment = {key: value for key, value in os.environ.items() if key != "USER_HTTP_SERVER"}
        environment["RUST_LOG"] = "info"
        self._process = subprocess.Popen(
            [str(binary()), *flags], stderr=subprocess.PIPE, env=environment, text=True, cwd=self.folder
        )
        self._log = []
        threading.Thread(target=self._read_log, args=(self._process,), daemon=True).start()
        deadline = time.monotonic() + 60
        while not (ports := re.findall(r"listening on \w+://127.0.0.1:(\d+)", "".join(self._log)))[1:]:
            assert self._process.poll() is None, "".join(self._log)
            assert time.monotonic() < deadline, "".join(self._log)
            time.sleep(0.01)
        self.port, self.api_port = map(int, ports[:2])

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._log.append(line)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def api(self, method: str, path: str, **more: Any) -> httpx.Response:
        return HTTP.request(method, f"http://127.0.0.1:{self.api_port}{path}", **more)

    def leave(self, uuid: str, message: object, *, protocol: Optional[int] = None) -> None:
        """Leaves a message, as JSON or as a pickle."""
        order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": uuid, "BUFFER_MSG": message}}
        content = json.dumps(order).encode() if protocol is None else pickle.dumps(order, protocol)
        kind = "application/json" if protocol is None else "application/octet-stream"
        path = "/CommunicationInterface/AddBufferMsg"
        answer = self.api("POST", path, content=content, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text

    def leave_blend(self, uuid: str, name: str, content: Optional[bytes] = None) -> None:
        """Leaves a render job for a .blend file, and writes the file."""
        if content is not None:
            (self.blends / name).write_bytes(content)
        data = {"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "BINARY_BLEND_FILE": name, "FRAMES": [1, 2]}
        self.leave(uuid, {"TYPE": "RENDER", "DATA": data})

    def is_there(self, uuid: str) -> bool:
        head = HTTP.head(self.url, params={"bufferUUID": uuid})
        return head.status_code == 200

    def buffered(self) -> int:
        return int(self.api("GET", "/readyz").json()["buffer"]["messages"])

    def received(self) -> List[Any]:
        """Takes all messages for the user manager: their `DATA`, in order."""
        found = []
        while True:
            answer = self.api("GET", "/UserManager/NextMessage")
            if answer.status_code == 204:
                return found
            is_pickle = answer.headers["content-type"] == "application/octet-stream"
            value = pickle.loads(answer.content) if is_pickle else answer.json()
            found.append(value["DATA"]["DATA"])
            assert self.api("DELETE", f"/UserManager/Messages/{answer.headers['message-id']}").status_code == 204
