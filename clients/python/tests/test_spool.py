"""What was handed over to a spool reaches the gateway: through crashes, days offline, and beside other processes."""

from __future__ import annotations

import fcntl
import os
import random
import threading
from pathlib import Path
from typing import Any, Callable, List

import pytest
from support.gateway import Gateway
from support.proxy import Proxy
from support.stub import Answer, Request, Stub

from user_http_client import Client, GaveUp, Refused, Spool, SpoolFull

Connect = Callable[..., Any]
RECEIVED = Answer(200, b'{"DATA": "RECEIVED", "TIME": 1.0}')


def numbers(gateway: Gateway) -> List[int]:
    return [frame["DATA"]["NUMBER"] for frame in gateway.received()]


def test_what_waits_is_sent_in_order_once_the_gateway_is_there(
    gateway: Gateway, proxy: Proxy, connect: Connect, tmp_path: Path
) -> None:
    client = connect(proxy.url, patience=0.2)
    spool = Spool(tmp_path / "spool")
    proxy.is_refusing = True
    for number in range(20):
        spool.add("anna", "FRAME_RENDERED", {"NUMBER": number, "IMAGE": os.urandom(10_000)})
    with pytest.raises(GaveUp):
        client.send(spool)
    assert len(spool.waiting()) == 20
    proxy.is_refusing = False
    assert client.send(Spool(tmp_path / "spool")).accepted == 20
    assert spool.waiting() == []
    assert numbers(gateway) == list(range(20))


ADD = """
import sys
from user_http_client import Spool
spool = Spool(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    spool.add("anna", "FRAME_RENDERED", {"NUMBER": number, "IMAGE": bytes(50_000)}, key=f"frame {number}")
    print(number, flush=True)
"""

SEND = """
import sys
from user_http_client import Client, Spool
with Client(sys.argv[1], user_id="anna", patience=60) as client:
    print(client.send(Spool(sys.argv[2])).accepted)
"""


@pytest.mark.heavy
def test_no_kill_loses_what_was_handed_over_or_sends_it_twice(
    gateway: Gateway, proxy: Proxy, children: Any, tmp_path: Path, rng: random.Random
) -> None:
    spool, next_number = tmp_path / "spool", 0
    Spool(spool)
    for _ in range(6):
        adding = children.start(ADD, spool, next_number, 1_000)
        sending = children.start(SEND, proxy.url, spool)
        proxy.cuts.append(rng.randrange(2_000))
        stop = next_number + rng.randrange(1, 15)
        for line in adding.stdout:
            next_number = int(line) + 1
            if next_number >= stop:
                break
        for child in rng.sample([adding, sending], 2):
            child.kill()
            child.wait()
        # What was printed after the last line that was read, was handed over too.
        next_number = max([next_number, *(int(line) + 1 for line in adding.stdout if line.endswith(b"\n"))])
        proxy.cuts.clear()
    Client(gateway.url).send(Spool(spool))
    assert Spool(spool).waiting() == []
    received = numbers(gateway)
    # A message whose `add` was killed may have been handed over, and is then handed over again with the same key.
    assert received == sorted(received)
    assert sorted(set(received)) == received, "sent twice"
    assert set(range(next_number)) <= set(received) <= set(range(next_number + 1))
    assert not list(spool.glob("*.new")) or Spool(spool).add("anna", "TEST", 1)


def test_a_gateway_that_is_killed_under_a_sender_gets_everything_once(
    gateway: Gateway, connect: Connect, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(30):
        spool.add("anna", "FRAME_RENDERED", {"NUMBER": number, "IMAGE": bytes(100_000)})
    client = connect(gateway.url)
    sent: List[Any] = []
    sender = threading.Thread(target=lambda: sent.append(client.send(spool)))
    sender.start()
    for left in (22, 10):
        eventually(lambda: len(spool.waiting()) < left, "messages are sent")  # noqa: B023
        gateway.kill()
        gateway.start()
    sender.join(timeout=120)
    assert sent[0].accepted == 30
    assert numbers(gateway) == list(range(30))


@pytest.mark.heavy
def test_several_processes_add_and_send_over_one_folder(gateway: Gateway, children: Any, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    adding = [children.start(ADD, spool, 100 * number, 100 * number + 25) for number in range(3)]
    sending = [children.start(SEND, gateway.url, spool) for _ in range(2)]
    for child in [*adding, *sending]:
        children.finish(child)
    children.finish(children.start(SEND, gateway.url, spool))
    received = numbers(gateway)
    assert sorted(received) == [100 * number + at for number in range(3) for at in range(25)]
    for number in range(3):
        own = [found for found in received if found // 100 == number]
        assert own == sorted(own), "the order of a process"


def test_what_the_gateway_refuses_permanently_is_set_aside_and_can_be_sent_again(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.add("anna", "FRAME_RENDERED", {"NUMBER": 1}, key="same")
    spool.add("anna", "FRAME_RENDERED", {"NUMBER": 2}, key="same")
    spool.add("anna", "FRAME_RENDERED", {"NUMBER": 3})
    sent = connect(gateway.url).send(spool)
    assert (sent.accepted, len(sent.refused)) == (2, 1)
    (refusal,) = Spool(tmp_path / "spool").refusals()
    assert "422" in refusal.reason
    assert refusal.path.exists()
    assert numbers(gateway) == [1, 3]
    assert spool.retry_refused() == 1
    assert (len(spool.waiting()), spool.refusals()) == (1, [])
    assert list(spool.refused.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "body", "is_set_aside"),
    [
        (400, b'{"STATUS": "FAILED", "ERROR": "USER_ID is missing"}', True),
        (400, b"<html>a proxy's</html>", False),
        (401, b'{"STATUS": "FAILED", "ERROR": "no token"}', False),
        (403, b'{"STATUS": "FAILED", "ERROR": "another user"}', False),
        (404, b"", False),
        (302, b"", False),
        (413, b"<html>a proxy's</html>", True),
        (415, b"", True),
        (422, b"", True),
    ],
)
def test_only_what_concerns_the_message_sets_it_aside(
    status: int, body: bytes, is_set_aside: bool, connect: Connect, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.add("anna", "TEST", 1)
    spool.add("anna", "TEST", 2)
    with Stub(lambda _: Answer(status, body) if len(stub.requests) == 1 else RECEIVED) as stub:
        client = connect(stub.url)
        if is_set_aside:
            assert client.send(spool).accepted == 1
            assert (len(spool.waiting()), len(spool.refusals())) == (0, 1)
        else:
            with pytest.raises(Refused):
                client.send(spool)
            assert (len(spool.waiting()), len(spool.refusals()), len(stub.requests)) == (2, 0, 1)


def test_what_the_disk_has_damaged_is_set_aside_and_the_rest_is_sent(connect: Connect, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    paths = [spool.add("anna", "FRAME_RENDERED", bytes(1000)) for _ in range(6)]
    for path, damage in zip(paths, (b"", b"x", path_bytes(paths[2])[:-1], path_bytes(paths[3])[:-1] + b"x", b"[]\n")):
        path.write_bytes(damage)
    with Stub(lambda _: RECEIVED) as stub:
        sent = connect(stub.url).send(spool)
        assert (sent.accepted, len(sent.refused), len(stub.requests)) == (1, 5, 1)
    assert all("damaged" in refusal.reason for refusal in spool.refusals())


def path_bytes(path: Path) -> bytes:
    return path.read_bytes()


def test_every_attempt_and_every_process_has_the_same_key(connect: Connect, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(2):
        spool.add("anna", "TEST", number)
    seen: List[Request] = []

    def answer(request: Request) -> Any:
        seen.append(request)
        return RECEIVED if len(seen) > 3 else None

    with Stub(answer) as stub:
        for _ in range(3):
            with pytest.raises(GaveUp):
                connect(stub.url, patience=0).send(Spool(tmp_path / "spool"))
        connect(stub.url).send(spool)
    first = {(request.headers["idempotency-key"], request.body) for request in seen[:4]}
    assert len(first) == 1
    assert len({request.headers["idempotency-key"] for request in seen}) == 2


def test_whoever_does_not_wait_leaves_the_sending_to_another_process(connect: Connect, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.add("anna", "TEST", 1)
    with Stub(lambda _: RECEIVED) as stub, open(spool.sender, "ab") as sender:
        fcntl.flock(sender, fcntl.LOCK_EX)
        assert connect(stub.url).send(spool, wait=False).accepted == 0
        release = threading.Timer(0.2, sender.close)
        release.start()
        assert connect(stub.url).send(spool).accepted == 1
        release.join()


def test_a_full_spool_takes_nothing_more_and_says_so(connect: Connect, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=250_000)
    for _ in range(2):
        spool.add("anna", "TEST", bytes(100_000))
    with pytest.raises(SpoolFull, match="limit of 250000"):
        spool.add("anna", "TEST", bytes(100_000))
    assert len(spool.waiting()) == 2
    assert not list(spool.folder.glob("*.new"))
    with Stub(lambda _: RECEIVED) as stub:
        connect(stub.url).send(spool)
    spool.add("anna", "TEST", bytes(100_000))


def test_an_unfinished_file_of_a_crash_is_removed_but_none_that_is_being_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    (spool.folder / "crashed.new").write_bytes(b"half")
    new, file = spool._new_file()
    spool.add("anna", "TEST", 1)
    assert not (spool.folder / "crashed.new").exists()
    assert new.exists()
    file.close()
    spool.add("anna", "TEST", 1)
    assert not new.exists()


def test_a_message_is_on_stable_storage_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool")
    events: List[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append("folder" if os.path.isdir(target) else "file")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        events.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    spool.add("anna", "TEST", 1)
    assert events == ["file", "name", "folder"]


def test_the_order_survives_an_empty_spool_and_a_clock_that_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    first = spool.add("anna", "TEST", 1)
    monkeypatch.setattr("time.time_ns", lambda: 5)
    second = spool.add("anna", "TEST", 2)
    assert spool.waiting() == [first, second]
