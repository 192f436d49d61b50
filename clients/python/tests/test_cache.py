"""A .blend file is downloaded once for all processes of a machine, and only right bytes are used."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List

import pytest
from support.gateway import Gateway
from support.proxy import Proxy
from support.stub import Answer, Request, Stub, ranged

from user_http_client import BadMessage, BlendCache, CachedFile, Client, Message

Connect = Callable[..., Any]


def content_of(message: Message) -> bytes:
    assert isinstance(message.blend, CachedFile)
    return message.blend.path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once_for_many_messages(
    gateway: Gateway, proxy: Proxy, connect: Connect, tmp_path: Path
) -> None:
    blend = os.urandom(3 << 20)
    cache = BlendCache(tmp_path / "cache")
    client = connect(proxy.url)
    for number in range(4):
        gateway.leave_blend("job", "scene.blend", blend if number == 0 else None)
        folder = tmp_path / str(number) if number % 2 else None
        with client.fetch("job", cache=cache, folder=folder) as message:
            assert content_of(message) == blend
            message.save_blend(tmp_path / "scene.blend")
            assert (tmp_path / "scene.blend").read_bytes() == blend
    assert proxy.to_client < len(blend) + (1 << 20)
    assert names(tmp_path / "cache") == [f"{hashlib.sha256(blend).hexdigest()}.blend"]
    assert gateway.buffered() == 0


FETCH = """
import sys
from user_http_client import BlendCache, Client
with Client(sys.argv[1]) as client:
    cache = BlendCache(sys.argv[3])
    with client.fetch(sys.argv[2], cache=cache, progress=lambda *at: print(*at, flush=True)) as message:
        print(message.blend.path.stat().st_size)
"""


@pytest.mark.heavy
def test_of_many_processes_one_downloads_and_the_others_wait(
    gateway: Gateway, proxy: Proxy, children: Any, tmp_path: Path
) -> None:
    blend = os.urandom(16 << 20)
    for number in range(4):
        gateway.leave_blend(f"job-{number}", "scene.blend", blend)
    started = [children.start(FETCH, proxy.url, f"job-{number}", tmp_path / "cache") for number in range(4)]
    for child in started:
        assert children.finish(child).splitlines()[-1] == str(len(blend))
    assert proxy.to_client < len(blend) + (1 << 20)


@pytest.mark.heavy
def test_a_process_that_is_killed_leaves_a_part_that_the_next_one_completes(
    gateway: Gateway, children: Any, tmp_path: Path, rng: random.Random
) -> None:
    blend = os.urandom(16 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    cache = tmp_path / "cache"
    kept = 0
    for _ in range(3):
        child = children.start(FETCH, gateway.url, "job", cache)
        target = kept + rng.randrange(len(blend) // 4)
        for line in child.stdout:
            arrived, total = map(int, line.split())
            if total == len(blend):
                assert arrived > kept, "bytes were sent again"
                if arrived > target:
                    break
        child.kill()
        child.wait()
        assert gateway.is_there("job")
        (part,) = cache.iterdir()
        assert part.suffix == ".part"
        kept = part.stat().st_size
    with Client(gateway.url).fetch("job", cache=BlendCache(cache)) as message:
        assert content_of(message) == blend
    assert [name.split(".")[1] for name in names(cache)] == ["blend"]


@pytest.mark.parametrize("damage", [b"", b"another", b"x" * (2 << 20)], ids=["empty", "short", "long"])
@pytest.mark.parametrize("kind", ["blend", "part"])
def test_a_file_with_other_bytes_is_never_used(
    damage: bytes, kind: str, gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    blend = os.urandom(1 << 20)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{hashlib.sha256(blend).hexdigest()}.{kind}").write_bytes(damage)
    gateway.leave_blend("job", "scene.blend", blend)
    with connect(gateway.url).fetch("job", cache=BlendCache(cache)) as message:
        assert content_of(message) == blend


def test_a_gateway_that_sends_other_bytes_is_not_believed(connect: Connect, tmp_path: Path) -> None:
    reference = {"SHA256": "0" * 64, "SIZE": 7, "PATH": f"/blends/{'0' * 64}"}
    message = pickle.dumps({"TYPE": "RENDER", "DATA": {"BINARY_BLEND_FILE": reference}})

    def answer(request: Request) -> Answer:
        return Answer(200, b"a scene") if request.path.startswith("/blends/") else ranged(request, message)

    with Stub(answer) as stub:
        with pytest.raises(BadMessage, match="3 times"):
            connect(stub.url).fetch("job", cache=BlendCache(tmp_path / "cache"))
        asked = [request for request in stub.requests if request.path.startswith("/blends/")]
        assert len(asked) == 3
        assert not any(request.headers.get("range", "").endswith("-") for request in stub.requests), "it was taken"
    assert names(tmp_path / "cache") == []


def test_a_message_whose_file_is_not_served_is_fetched_with_the_file_in_it(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    blend = os.urandom(2 << 20)
    gateway.leave_blend("job", "scene.blend", blend)

    class Absent(BlendCache):
        def get(self, gateway_: Any, reference: Any, progress: Any = None) -> Any:
            return super().get(gateway_, replace(reference, path="/blends/" + "1" * 64), progress)

    message = connect(gateway.url).fetch("job", cache=Absent(tmp_path / "cache"), folder=tmp_path / "job")
    assert message.blend.read() == blend
    assert gateway.buffered() == 0


def test_the_least_recently_used_files_are_evicted_but_none_in_use(
    gateway: Gateway, connect: Connect, tmp_path: Path
) -> None:
    client = connect(gateway.url)
    cache = BlendCache(tmp_path / "cache", max_bytes=2_500_000)
    blends = [os.urandom(1_000_000) for _ in range(4)]

    def use(number: int) -> Message:
        gateway.leave_blend("job", f"{number}.blend", blends[number])
        message: Message = client.fetch("job", cache=cache)
        assert content_of(message) == blends[number]
        return message

    def cached() -> list[int]:
        digests = [hashlib.sha256(blend).hexdigest() for blend in blends]
        return [number for number, digest in enumerate(digests) if (cache.folder / f"{digest}.blend").exists()]

    use(0).close()
    use(1).close()
    use(0).close()
    use(2).close()
    assert cached() == [0, 2]
    in_use = use(0)
    os.utime(in_use.blend.path, (1, 1))  # type: ignore[union-attr]
    use(3).close()
    assert cached() == [0, 3]
    in_use.close()


def test_whoever_waits_for_a_download_goes_on_when_it_ends(gateway: Gateway, connect: Connect, tmp_path: Path) -> None:
    blend = os.urandom(1 << 20)
    gateway.leave_blend("job", "scene.blend", blend)
    cache = tmp_path / "cache"
    cache.mkdir()
    part = cache / f"{hashlib.sha256(blend).hexdigest()}.part"
    holder = open(part, "wb")
    fcntl.flock(holder, fcntl.LOCK_EX)
    sizes: List[int] = []

    def end() -> None:
        sizes.append(part.stat().st_size if part.exists() else -1)
        holder.close()

    release = threading.Timer(0.5, end)
    release.start()
    with connect(gateway.url).fetch("job", cache=BlendCache(cache)) as message:
        assert content_of(message) == blend
        assert sizes == [0], "downloaded beside the process that has the lock"
