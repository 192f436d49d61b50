"""A message is posted until the gateway has accepted it, and forwarded once."""

from __future__ import annotations

import datetime
import email.utils
import random
import subprocess
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, List, Optional

import httpx
import pytest
from support.gateway import Gateway
from support.proxy import Proxy
from support.stub import Answer, Request, Stub

from user_http_client import ClientError, GaveUp, Refused
from user_http_client import retry as retry_module

Connect = Callable[..., Any]
RECEIVED = Answer(200, b'{"DATA": "RECEIVED", "TIME": 12.5}')
FAILED = b'{"STATUS": "FAILED", "ERROR": "no such thing"}'


def test_a_frame_and_the_end_of_a_job_reach_the_user_manager(gateway: Gateway, connect: Connect) -> None:
    client = connect(gateway.url)
    frame = {"FRAME_NUMBER": 1, "IMAGE": bytes(range(256)) * 4000, "TAGS": {1, 2}, "SIZE": (3, 4)}
    receipt = client.post("FRAME_RENDERED", frame)
    assert abs(receipt.time - time.time()) < 3600
    assert receipt.replayed is False
    client.post("RENDER_COMPLETED", {"FRAMES": [1]}, as_json=True)
    first, second = gateway.received()
    assert (first["TYPE"], first["USER_ID"], first["DATA"]) == ("FRAME_RENDERED", "anna", frame)
    assert (second["TYPE"], second["USER_ID"], second["DATA"]) == ("RENDER_COMPLETED", "anna", {"FRAMES": [1]})


def test_a_lost_answer_or_request_makes_no_second_frame(
    gateway: Gateway, proxy: Proxy, connect: Connect, rng: random.Random
) -> None:
    image = bytes(1_000_000)
    for number in range(8):
        client = connect(proxy.url)
        cuts = proxy.cuts if number % 2 else proxy.request_cuts
        cuts.append(rng.choice([0, 1, rng.randrange(200), rng.randrange(1_000_000)]))
        client.post("FRAME_RENDERED", {"NUMBER": number, "IMAGE": image})
        proxy.cuts.clear()
        proxy.request_cuts.clear()
    assert [frame["DATA"]["NUMBER"] for frame in gateway.received()] == list(range(8))


def test_the_same_key_in_another_process_is_forwarded_once(gateway: Gateway, connect: Connect) -> None:
    replayed = [connect(gateway.url).post("FRAME_RENDERED", [1], key="frame 1").replayed for _ in range(2)]
    assert replayed == [False, True]
    assert len(gateway.received()) == 1
    with pytest.raises(Refused) as refused:
        connect(gateway.url).post("FRAME_RENDERED", [2], key="frame 1")
    assert refused.value.status == 422


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 411, 413, 415, 422, 431, 302])
def test_a_refusal_that_is_final_is_not_repeated(status: int, connect: Connect) -> None:
    headers = {"Retry-After": "1"} if status in (401, 403) else {}
    with Stub(lambda _: Answer(status, FAILED, headers)) as stub:
        with pytest.raises(Refused, match="no such thing") as refused:
            connect(stub.url).post("TEST", 1)
        assert (refused.value.status, len(stub.requests)) == (status, 1)


def test_a_server_cannot_control_the_terminal(connect: Connect) -> None:
    body = b'{"STATUS": "FAILED", "ERROR": "a\\u001b[2Jb' + b"x" * 9999 + b'"}'
    for text in (body, b"\x1b[2J\r\n"):
        with Stub(lambda _: Answer(404, text)) as stub:  # noqa: B023
            with pytest.raises(Refused) as refused:
                connect(stub.url).post("TEST", 1)
            assert str(refused.value).isprintable()
            assert len(str(refused.value)) < 700


class Pauses:
    """Records pauses, and does not wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: List[float] = []

        def sleep(seconds: float) -> Any:
            self.taken.append(seconds)
            return iter(())

        monkeypatch.setattr(retry_module, "sleep", sleep)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 522])
def test_a_failure_that_may_pass_is_repeated_with_the_same_bytes(
    status: int, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = Pauses(monkeypatch)
    answers: List[Optional[Answer]] = [Answer(status, FAILED), None, Answer(status, b""), RECEIVED]
    with Stub(lambda _: answers.pop(0)) as stub:
        assert connect(stub.url).post("TEST", {"A": 1}).time == 12.5
        bodies = {(r.body, r.headers["idempotency-key"], r.headers["content-digest"]) for r in stub.requests}
        assert (len(stub.requests), len(bodies)) == (4, 1)
    assert all(0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(pauses.taken))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_pause_is_what_the_gateway_asks_for(form: str, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = Pauses(monkeypatch)
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=20)
    asked = "20" if form == "seconds" else email.utils.format_datetime(later, usegmt=True)
    answers = [Answer(503, FAILED, {"Retry-After": asked}), RECEIVED]
    with Stub(lambda _: answers.pop(0)) as stub:
        connect(stub.url).post("TEST", 1)
    assert len(pauses.taken) == 1
    assert 10 <= pauses.taken[0] <= 22


def test_a_pause_beyond_the_patience_is_given_up_at_once(connect: Connect) -> None:
    with Stub(lambda _: Answer(503, FAILED, {"Retry-After": "3600"})) as stub:
        with pytest.raises(GaveUp, match="503 no such thing"):
            connect(stub.url).post("TEST", 1)
        assert len(stub.requests) == 1


def test_pauses_differ_between_clients_and_stay_below_their_bound() -> None:
    patience = [retry_module.Patience(1e9) for _ in range(50)]
    assert len({waiting.next_pause("", None) for waiting in patience}) > 40
    pauses = [patience[0].next_pause("", None) for _ in range(30)]
    assert retry_module.MAX_PAUSE / 2 <= max(pauses) <= retry_module.MAX_PAUSE
    assert patience[1].next_pause("", 0.0) >= retry_module.FIRST_PAUSE, "Retry-After: 0 is no busy loop"


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"", b'{"DATA": "OTHER", "TIME": 1}', b"[]", b"[" * 9999], ids=range(5)
)
def test_a_200_of_another_server_is_no_promise(body: bytes, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    Pauses(monkeypatch)
    answers = [Answer(200, body), RECEIVED]
    with Stub(lambda _: answers.pop(0)) as stub:
        connect(stub.url).post("TEST", 1)
        assert len(stub.requests) == 2


def test_a_body_that_is_damaged_on_its_way_is_sent_again(
    gateway: Gateway, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pauses(monkeypatch)

    def damage_first(request: Request) -> Answer:
        body = request.body.replace(b"pixels", b"pixelz") if len(stub.requests) == 1 else request.body
        headers = {name: request.headers[name] for name in ("content-type", "content-digest", "idempotency-key")}
        answer = httpx.post(gateway.url, content=body, headers=headers, trust_env=False, timeout=60)
        return Answer(answer.status_code, answer.content)

    with Stub(damage_first) as stub:
        connect(stub.url).post("FRAME_RENDERED", b"pixels")
        assert len(stub.requests) == 2
    assert [frame["DATA"] for frame in gateway.received()] == [b"pixels"]


def test_values_that_the_gateway_would_refuse_are_not_sent(connect: Connect) -> None:
    recursive: List[Any] = [1]
    recursive.append(recursive)
    with Stub(lambda _: RECEIVED) as stub:
        client = connect(stub.url)
        for value in (datetime.date(2020, 1, 1), [OrderedDict()], {"a": {1: object()}}, Path("/"), {(Path("/"), 1): 2}):
            with pytest.raises(TypeError, match="the gateway takes"):
                client.post("TEST", value)
        assert stub.requests == []


def make_certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def test_tls_with_an_own_ca_and_a_token_that_is_bound_to_a_user(connect: Connect, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    token = "token-0123456789-0123456789"
    (tmp_path / "tokens").write_text(f"{token} anna\n")
    (tmp_path / "token").write_text(f"\n {token}\n")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    tls = ["--http-tls-cert", cert, "--http-tls-key", key, "--worker-token-file", str(tmp_path / "tokens")]
    gateway = Gateway(tmp_path / "gateway", *tls)
    gateway.start()
    try:
        url = f"https://127.0.0.1:{gateway.port}/"
        client = connect(url, ca_file=cert, token_file=tmp_path / "token")
        assert token not in repr(client.gateway if hasattr(client, "gateway") else client)
        client.post("FRAME_RENDERED", [1])
        gateway.leave_blend("job", "scene.blend", b"a scene")
        assert connect(url, ca_file=cert, token=token).fetch("job").blend == b"a scene"
        assert len(gateway.received()) == 1
        for spelling in (url, url.replace("https", "HTTPS")):
            with pytest.raises(ClientError, match=r"not trusted.*--ca-file"):
                connect(spelling, token=token).post("TEST", 1)
        for options, status in (({}, 401), ({"token": "wrong"}, 401), ({"token": token, "user_id": "berta"}, 403)):
            with pytest.raises(Refused, match="--token-file FILE") as refused:
                connect(url, ca_file=cert, **options).post("FRAME_RENDERED", bytes(3 << 20))
            assert refused.value.status == status
            assert token not in str(refused.value)
    finally:
        gateway.kill()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "ftp://x/"}, "URL of a worker server"),
        ({"url": "127.0.0.1:10000"}, "URL of a worker server"),
        ({"url": "http://anna:secret@x/"}, "without a user"),
        ({"token": "two words"}, "visible ASCII"),
        ({"token": "a", "token_file": "b"}, "not both"),
        ({"token_file": "/nowhere/token"}, "/nowhere/token"),
        ({"ca_file": "/nowhere/ca"}, "/nowhere/ca"),
        ({"ca_file": __file__}, "test_posting.py"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_is_sent(options: Any, text: str, connect: Connect) -> None:
    with pytest.raises(ClientError, match=text) as error:
        connect(**{"url": "http://127.0.0.1:1/", **options})
    assert "secret" not in str(error.value)
