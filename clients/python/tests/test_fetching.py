"""Messages are fetched whole, once, and from where a transfer broke."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
from support.gateway import Gateway
from support.proxy import Proxy
from support.stub import Answer, Request, Stub, ranged

from user_http_client import BadMessage, Client, ClientError, FileBytes, GaveUp, NoMessage, Refused, TooLarge

Connect = Callable[..., Any]
MESSAGE = {"TYPE": "RENDER", "DATA": {"FRAMES": [1, 2], "NAME": "ä", "SCALE": 1.5, "BIG": 1 << 80, "NONE": None}}


def test_a_message_arrives_in_memory_and_is_taken(gateway: Gateway, connect: Connect) -> None:
    gateway.leave("job", MESSAGE)
    message = connect(gateway.url).fetch("job")
    assert (message.value, message.path, message.blend) == (MESSAGE, None, None)
    assert list(message.value["DATA"]) == list(MESSAGE["DATA"])
    assert gateway.buffered() == 0


@pytest.mark.parametrize("protocol", range(6))
def test_a_message_that_was_left_as_a_pickle_arrives_as_it_was(
    protocol: int, gateway: Gateway, connect: Connect
) -> None:
    value = {"TYPE": "X", "DATA": {(1, "a"): {1, 2}, "b": frozenset([b"c"]), "d": bytearray(b"e"), "f": 1 << 5000}}
    if protocol < 2:
        value["DATA"]["f"] = 1 << 500  # Python writes decimal digits, at most 4,300
    gateway.leave("job", value, protocol=protocol)
    assert connect(gateway.url).fetch("job").value == value


def test_a_message_that_is_not_there_is_waited_for(gateway: Gateway, connect: Connect) -> None:
    client = connect(gateway.url)
    with pytest.raises(NoMessage, match="No Buffer Message"):
        client.fetch("job")

    def leave() -> None:
        while gateway.api("GET", "/readyz").json()["buffer"]["waiting"] == 0:
            time.sleep(0.01)
        gateway.leave("job", MESSAGE)

    leaving = threading.Thread(target=leave)
    leaving.start()
    assert client.fetch("job", wait=60).value == MESSAGE
    leaving.join()


def test_a_message_stays_if_it_is_not_what_the_worker_wants(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    def check(value: Any) -> None:
        raise ValueError(value["TYPE"])

    gateway.leave("job", MESSAGE)
    for folder in (None, tmp_path / "job"):
        with pytest.raises(ValueError, match="RENDER"):
            connect(gateway.url).fetch("job", check=check, folder=folder)
    assert gateway.is_there("job")
    assert connect(gateway.url).fetch("job", folder=tmp_path / "job").value == MESSAGE
    assert gateway.buffered() == 0


def test_a_blend_file_of_a_message_in_a_folder_stays_on_the_disk(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    blend = os.urandom(5 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    seen: List[Tuple[int, int]] = []
    message = connect(gateway.url).fetch("job", folder=tmp_path / "job", progress=lambda *at: seen.append(at))
    assert isinstance(message.blend, FileBytes)
    message.save_blend(tmp_path / "scene.blend")
    assert (tmp_path / "scene.blend").read_bytes() == blend
    assert seen == sorted(seen)
    assert seen[-1] == (message.path.stat().st_size - 1, message.path.stat().st_size)
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["message.pickle", "message.uuid"]


def test_a_folder_is_for_one_message_and_one_process(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    client = connect(gateway.url)
    gateway.leave("job-1", MESSAGE)
    gateway.leave("job-2", MESSAGE)

    def fetch_too(_: Any) -> None:
        with pytest.raises(ClientError, match="another process fetches"):
            Client(gateway.url).fetch("job-1", folder=tmp_path)

    client.fetch("job-1", folder=tmp_path, check=fetch_too)
    assert client.fetch("job-1", folder=tmp_path).value == MESSAGE
    with pytest.raises(ClientError, match="'job-1': give 'job-2' its own"):
        client.fetch("job-2", folder=tmp_path)
    assert gateway.is_there("job-2")


@pytest.mark.heavy
def test_a_large_file_takes_little_memory(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    size = 256 << 20
    with open(gateway.blends / "scene.blend", "wb") as file:
        file.truncate(size)
    gateway.leave_blend("job", "scene.blend")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = connect(gateway.url).fetch("job", folder=tmp_path)
    assert len(message.blend) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_broken_connections_are_resumed_at_any_offset(
    gateway: Gateway, proxy: Proxy, connect: Connect, tmp_path: Path, rng: random.Random
) -> None:
    blend = rng.randbytes(8 << 20) if hasattr(rng, "randbytes") else os.urandom(8 << 20)
    client = connect(proxy.url)
    for attempt in range(3):
        gateway.leave_blend("job", "scene.blend", blend)
        proxy.cuts.extend(rng.choice([0, 1, rng.randrange(400), rng.randrange(9 << 20)]) for _ in range(4))
        before = proxy.to_client
        message = client.fetch("job", folder=tmp_path / str(attempt), wait=30)
        assert message.blend.read() == blend
        assert proxy.to_client - before < len(blend) + (1 << 20), "bytes were sent again"
        assert gateway.buffered() == 0
        proxy.cuts.clear()


def test_a_gateway_that_is_killed_and_started_again_sends_the_rest(
    gateway: Gateway, proxy: Proxy, connect: Connect, tmp_path: Path
) -> None:
    blend = os.urandom(24 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    killed = threading.Event()

    def progress(arrived: int, _: int) -> None:
        if arrived > 8 << 20 and not killed.is_set():
            killed.set()
            gateway.kill()
            gateway.start()

    message = connect(proxy.url).fetch("job", folder=tmp_path / "job", progress=progress)
    assert killed.is_set()
    assert message.blend.read() == blend
    assert proxy.to_client < len(blend) + (8 << 20)
    assert gateway.buffered() == 0


FETCH = """
import sys
from user_http_client import Client
with Client(sys.argv[1]) as client:
    message = client.fetch("job", folder=sys.argv[2], progress=lambda *at: print(*at, flush=True))
    print("taken", len(message.blend), flush=True)
"""


@pytest.mark.heavy
def test_a_fetch_that_is_killed_goes_on_where_it_stopped(
    gateway: Gateway, children: Any, tmp_path: Path, rng: random.Random
) -> None:
    blend = os.urandom(16 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    folder = tmp_path / "job"
    kept = 0
    for _ in range(4):
        child = children.start(FETCH, gateway.url, folder)
        target = kept + rng.randrange(len(blend) // 4)
        for line in child.stdout:
            if line.startswith(b"taken"):
                break
            arrived = int(line.split()[0])
            assert arrived > kept, "bytes were sent again"
            if arrived >= target:
                break
        child.kill()
        child.wait()
        if not (folder / "message.part").exists():
            break
        kept = (folder / "message.part").stat().st_size
    message = Client(gateway.url).fetch("job", folder=folder)
    assert isinstance(message.blend, FileBytes)
    assert message.blend.read() == blend
    assert gateway.buffered() == 0


@pytest.mark.parametrize("change", ["another start of the machine", "all bytes, but not verified"])
def test_a_part_that_may_have_other_bytes_is_not_used(
    change: str, gateway: Gateway, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blend = os.urandom(2 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    client = connect(gateway.url)

    class Crash(Exception):
        pass

    def crash(arrived: int, _: int) -> None:
        if arrived > 1 << 20:
            raise Crash

    with pytest.raises(Crash):
        client.fetch("job", folder=tmp_path, progress=crash)
    part = tmp_path / "message.part"
    note = json.loads((tmp_path / "message.part.json").read_bytes())
    if change.startswith("another"):
        part.write_bytes(bytes(part.stat().st_size))
        monkeypatch.setattr("user_http_client.store._boot_id", lambda: "another")
    else:
        part.write_bytes(bytes(note["version"]["length"]))
    assert client.fetch("job", folder=tmp_path).blend.read() == blend
    assert gateway.buffered() == 0


# Forks for each line, because starting Python takes long. Each call that opens, renames or removes a file, or connects,
# is a moment to be killed at.
KILLED = """
import os, signal, sys
from user_http_client import Client

def fetch_and_die(moment, folder):
    left = moment
    def event(name, _):
        nonlocal left
        if name in ("open", "os.rename", "os.remove", "socket.connect"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    client = Client(sys.argv[1])
    sys.addaudithook(event)
    client.fetch("job", folder=folder)

for line in sys.stdin:
    moment, folder = line.split()
    child = os.fork()
    if child == 0:
        fetch_and_die(int(moment), folder)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.heavy
def test_no_kill_around_the_last_byte_loses_the_message(gateway: Gateway, children: Any, tmp_path: Path) -> None:
    child = children.start(KILLED, gateway.url)
    for moment in range(1, 60):
        gateway.leave("job", {**MESSAGE, "MOMENT": moment})
        folder = tmp_path / str(moment)
        child.stdin.write(f"{moment} {folder}\n".encode())
        child.stdin.flush()
        status = int(child.stdout.readline())
        assert status in (0, signal.SIGKILL)
        message = Client(gateway.url).fetch("job", folder=folder)
        assert message.value == {**MESSAGE, "MOMENT": moment}
        assert gateway.buffered() == 0
        if status == 0:
            break
    else:
        pytest.fail("the fetch has more moments than were tried")
    assert moment > 10


def test_a_replaced_message_is_fetched_in_its_new_version(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    gateway.leave_blend("job", "scene.blend", os.urandom(4 << 20))
    new = os.urandom(2 << 20)
    replaced = []

    def progress(arrived: int, _: int) -> None:
        if not replaced and arrived > 1 << 20:
            replaced.append(arrived)
            gateway.leave_blend("other", "new.blend", new)

    def check(_: Any) -> None:
        if len(replaced) == 1:
            replaced.append(0)
            gateway.leave_blend("job", "new.blend", new)

    message = connect(gateway.url).fetch("job", folder=tmp_path / "job", progress=progress, check=check)
    assert message.blend.read() == new
    assert not gateway.is_there("job")


def test_a_damaged_message_is_fetched_again_before_it_is_taken(connect: Connect) -> None:
    good = pickle.dumps(MESSAGE)
    bad = good.replace(b"RENDER", b"REMDER")
    digest = {"Repr-Digest": _digest(good)}
    seen: List[str] = []

    def answer(request: Request) -> Answer:
        seen.append(request.headers["range"])
        return ranged(request, bad if len(seen) == 2 else good, digest)

    with Stub(answer) as stub:
        assert connect(stub.url).fetch("job").value == MESSAGE
    whole = f"bytes=0-{len(good) - 2}"
    assert seen == ["bytes=0-0", whole, whole, f"bytes={len(good) - 1}-"]

    with Stub(lambda request: ranged(request, bad, digest)) as stub:
        with pytest.raises(BadMessage, match="SHA-256"):
            connect(stub.url).fetch("job")
        assert all(not request.headers["range"].endswith("-") for request in stub.requests)


def _digest(data: bytes) -> str:
    return f"sha-512=:AA==:, sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def endless(chunk: bytes) -> Any:
    while True:
        yield chunk


HOSTILE = {
    "no length": (lambda _: Answer(200, endless(b"x" * 65536)), ClientError, "Content-Length"),
    "a huge length": (
        lambda _: Answer(200, endless(b"N" * 65536), {"Content-Length": str(1 << 60)}), TooLarge, "bytes"),
    "a huge range": (
        lambda _: Answer(206, b"x", {"Content-Range": f"bytes 0-0/{1 << 60}", "ETag": '"1"'}), TooLarge, "bytes"),
    "compressed": (
        lambda _: Answer(200, b"x" * 100, {"Content-Encoding": "gzip"}), Refused, "compressed"),
    "an endless error": (lambda _: Answer(404, endless(b"x" * 65536)), Refused, "404"),
    "a redirect": (lambda _: Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), Refused, "redirects"),
    "a class": (
        lambda request: ranged(request, b"cos\nsystem\n(S'false'\ntR."), BadMessage, "names a class"),
    "a pickle bomb": (
        lambda request: ranged(request, b"(" * (4 << 20) + b"N."), BadMessage, "memory"),
    "deep nesting": (
        lambda request: ranged(request, b"]" * 100_000 + b"a" * 99_999 + b"."), BadMessage, "nested deeper"),
    "another range": (
        lambda request: Answer(206, b"xx", {"Content-Range": "bytes 5-6/9", "ETag": '"1"'})
        if request.headers["range"] != "bytes=0-0" else ranged(request, b"x" * 9), Refused, "another range"),
    "no version": (
        lambda _: Answer(206, b"x", {"Content-Range": "bytes 0-0/9", "ETag": 'W/"1"'}), Refused, "ETag"),
    "a chunked body that is too long": (
        lambda request: ranged(request, b"x" * 9) if request.headers["range"] == "bytes=0-0" else
        Answer(206, [b"5\r\nxxxxx\r\n", b"9\r\nxxxxxxxxx\r\n"],
               {"Content-Range": "bytes 0-7/9", "ETag": '"1"', "Transfer-Encoding": "chunked"}), Refused, "longer"),
    "garbage": (lambda request: ranged(request, os.urandom(5000)), BadMessage, "pickle"),
}  # fmt: skip


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_refused_with_the_reason(name: str, where: str, connect: Connect, tmp_path: Path) -> None:
    answer, error, text = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tmp_path / "job" if where == "folder" else None
    with Stub(answer) as stub:
        client = connect(stub.url, patience=5)
        with pytest.raises(error, match=text):
            client.fetch("job", folder=folder, max_bytes=16 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert not any("=8-" in request.headers["range"] for request in stub.requests), "it was taken"


def test_a_gateway_that_is_away_is_given_up_after_the_patience(connect: Connect, proxy: Proxy) -> None:
    proxy.is_refusing = True
    with pytest.raises(GaveUp, match="gave up: fetching"):
        connect(proxy.url, patience=1).fetch("job")
    assert proxy.connections >= 2


def test_two_clients_share_messages_so_that_each_arrives_once(gateway: Gateway, connect: Connect) -> None:
    clients = [connect(gateway.url) for _ in range(2)]
    for number in range(10):
        gateway.leave(f"job-{number}", MESSAGE)
    found = []
    for number in range(10):
        for client in clients:
            with contextlib.suppress(NoMessage):
                found.append(client.fetch(f"job-{number}").uuid)
    assert found == [f"job-{number}" for number in range(10)]
