"""The gateway, a proxy and a hostile server that the tests use."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from hypothesis import settings
from support.gateway import Gateway
from support.proxy import Proxy
from support.shells import SHELLS

# A short run, for all Pythons of a machine but one: the client for asyncio, and fewer examples.
BRIEF = "TEST_BRIEF" in os.environ

# A slow machine is no failure, and examples are the same in each run.
examples = 20 if BRIEF else 100
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=examples, database=None)
settings.load_profile("tests")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    server = Gateway(tmp_path / "gateway")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[Proxy]:
    between = Proxy(gateway.port)
    yield between
    between.close()


@pytest.fixture(params=["asyncio"] if BRIEF else SHELLS)
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients: each test runs with both kinds."""
    made: List[Any] = []

    def connect_to(url: str, **options: Any) -> Any:
        made.append(SHELLS[request.param](url, **{"user_id": "anna", "patience": 60, **options}))
        return made[-1]

    yield connect_to
    for client in made:
        client.close()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(os.environ.get("TEST_SEED", "1"))


SOURCE = Path(__file__).parents[1] / "src"


class Children:
    """Processes of the client, killed at the end of the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: List[subprocess.Popen[bytes]] = []

    def start(self, code: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Runs Python code, which reads its arguments from `sys.argv[1:]`."""
        return self._run([sys.executable, "-c", code, *map(str, arguments)])

    def command(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Runs `user-http-client`."""
        return self._run([sys.executable, "-m", "user_http_client", *map(str, arguments)])

    def _run(self, command: List[str]) -> subprocess.Popen[bytes]:
        environment: Dict[str, Any] = {**os.environ, "XDG_CACHE_HOME": str(self._folder / "home-cache")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._running.append(child)
        return child

    def finish(self, child: subprocess.Popen[bytes]) -> str:
        """Waits for the success of a process. Returns what it has printed."""
        stdout, stderr = child.communicate(timeout=120)
        assert child.returncode == 0, (child.args, child.returncode, stderr.decode())
        return stdout.decode()

    def kill(self) -> None:
        for child in self._running:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.communicate()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(tmp_path)
    yield started
    started.kill()


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(fact: Callable[[], object], what: str = "", seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.005)

    return wait
