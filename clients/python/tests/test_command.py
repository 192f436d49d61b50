"""The command `user-http-client`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway
from support.proxy import Proxy

from user_http_client.cli import blender
from user_http_client.cli.command import main
from user_http_client.cli.worker import read_frames
from user_http_client.errors import ClientError

# Stands for Blender: its picture is the SHA-256 of the .blend file.
BLENDER = """#!/bin/sh
if [ "$1" = --version ]; then echo 'Blender 4.0'; exit; fi
sha256sum "$3" >"$(dirname "$3")/rendering_$(printf %04d "${11}").png"
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def failed(*arguments: object) -> str | int | None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    code = exit_.value.code
    return code if isinstance(code, (str, int)) else None


def test_fetch_prints_the_message_and_saves_the_blend_file(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = os.urandom(2 << 20)
    for flag in ([], ["--no-cache"]):
        gateway.leave_blend("job", "scene.blend", blend)
        folder, scene = tmp_path / f"job{len(flag)}", tmp_path / f"scene{len(flag)}"
        run("fetch", "job", "--server", gateway.url, "--dir", folder, "--blend", scene, *flag)
        assert scene.read_bytes() == blend
        printed = json.loads(capsys.readouterr().out)
        expected = {"BYTES": len(blend), "SHA256": hashlib.sha256(blend).hexdigest()}
        if flag:
            assert printed["DATA"]["BINARY_BLEND_FILE"] == expected
        else:
            assert printed["DATA"]["BINARY_BLEND_FILE"]["SHA256"] == expected["SHA256"]
    assert "No Buffer Message" in str(failed("fetch", "job", "--server", gateway.url))
    assert "--dir" in str(failed("fetch", "job", "--server", gateway.url, "--blend", "x"))


def test_post_and_spool(gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, spool = tmp_path / "image.png", tmp_path / "spool"
    image.write_bytes(b"pixels")
    connection = ("--server", gateway.url, "--user-id", "anna")
    frame = ("post", "FRAME_RENDERED", "--data", '{"FRAME_NUMBER": 1}', "--file", f"IMAGE={image}", "--key", "1")
    run(*frame, *connection)
    run(*frame, *connection)
    run(*frame[:-1], "2", *connection, "--spool", spool)
    run("spool", "list", spool)
    run("spool", "send", spool, *connection)
    out = capsys.readouterr().out
    assert "as before" in out
    assert "waiting" in out
    data = {"FRAME_NUMBER": 1, "IMAGE": b"pixels"}
    assert [found["DATA"] for found in gateway.received()] == [data, data]
    run("post", "TEST", "--data", "3", "--key", "2", *connection, "--spool", spool)
    assert "refuses 1 messages" in str(failed("spool", "send", spool, *connection))
    run("spool", "list", spool)
    run("spool", "retry", spool)
    out = capsys.readouterr().out
    assert "refused: " in out
    assert "1 messages put back" in out
    assert "no spool" in str(failed("spool", "list", tmp_path / "nothing"))


def test_wrong_arguments_exit_with_2(tmp_path: Path) -> None:
    for arguments in ([], ["fetch"], ["post", "X", "--file", "x"], ["worker", "job", "--cache-size", "big"], ["dance"]):
        assert failed(*arguments) == 2
    assert "--json" in str(failed("post", "X", "--json", "--file", f"A={__file__}"))


def job(gateway: Gateway, tmp_path: Path) -> list[object]:
    blender = tmp_path / "blender"
    blender.write_text(BLENDER)
    blender.chmod(0o755)
    gateway.leave_blend("job", "scene.blend", b"a scene")
    return ["worker", "job", "--user-id", "anna", "--blender", blender, "--work-dir", tmp_path / "work"]


def test_the_worker_renders_a_job(gateway: Gateway, tmp_path: Path) -> None:
    run(*job(gateway, tmp_path), "--server", gateway.url)
    first, second, end = gateway.received()
    assert [frame["DATA"]["FRAME_NUMBER"] for frame in (first, second)] == [1, 2]
    assert first["DATA"]["IMAGE"].split()[0].decode() == hashlib.sha256(b"a scene").hexdigest()
    assert (end["TYPE"], end["DATA"]) == ("RENDER_COMPLETED", {"JOB": "job", "FRAMES": [1, 2]})


def test_the_worker_with_a_spool_renders_on_while_the_gateway_is_away(
    gateway: Gateway, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    arguments = [*job(gateway, tmp_path), "--server", proxy.url, "--spool", spool, "--patience", "0.5"]
    render = "user_http_client.cli.blender.render"
    real = blender.render

    def go_away(*given: Any) -> Path:
        proxy.is_refusing = True
        return real(*given)

    monkeypatch.setattr(render, go_away)
    # Connections of before are not refused, so each request makes a new one.
    monkeypatch.setattr("user_http_client.transport._KEEP_ALIVE", 0)
    assert "3 messages are in" in str(failed(*arguments))
    assert gateway.received() == []
    proxy.is_refusing = False
    run("spool", "send", spool, "--server", proxy.url)
    assert [found["TYPE"] for found in gateway.received()] == ["FRAME_RENDERED", "FRAME_RENDERED", "RENDER_COMPLETED"]
    # The same job again has the same keys.
    monkeypatch.setattr(render, real)
    run(*arguments)
    assert gateway.received() == []


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (None, "NoneType"),
        ({"TYPE": "OTHER"}, "OTHER"),
        ({"TYPE": "RENDER"}, "DATA"),
        ({"TYPE": "RENDER", "DATA": {"FRAMES": []}}, "no frames"),
        ({"TYPE": "RENDER", "DATA": {"FRAMES": ["x"]}}, "not a render job"),
        ({"TYPE": "RENDER", "DATA": {"FRAMES": [-1]}}, "frames other than"),
        ({"TYPE": "RENDER", "DATA": {"START_FRAME": 0, "END_FRAME": 1 << 70}}, "not a render job"),
        ({"TYPE": "RENDER", "DATA": {"START_FRAME": 0, "END_FRAME": 1 << 40}}, "not a render job"),
    ],
)
def test_a_message_that_is_no_render_job_stays_at_the_gateway(
    message: Any, text: str, gateway: Gateway, tmp_path: Path
) -> None:
    with pytest.raises(ClientError, match=text):
        read_frames(message)
    gateway.leave("job", message)
    assert text in str(failed("worker", "job", "--images", tmp_path, "--server", gateway.url, "--work-dir", tmp_path))
    assert gateway.is_there("job")


def test_frames_of_a_range() -> None:
    assert read_frames({"TYPE": "RENDER", "DATA": {"START_FRAME": 3, "END_FRAME": 5}}) == [3, 4, 5]
