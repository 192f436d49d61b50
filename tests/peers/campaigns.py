"""Campaigns of random requests, from a seed. Each ends at the first unexpected answer and reports it."""

import collections
import io
import json
import pickle
import random

import requests

from hostile.attack import Attacker, hostile_bodies
from hostile.make import Case
from values import Maker, show

PICKLE = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}


def check(case, expected, got):
    """Equal in value, types and order, or the end of the campaign."""
    expected, got = show(expected), show(got)
    if expected != got:
        raise AssertionError(f"case {case}: expected {expected[:2000]}\ngot {got[:2000]}")


def must_be(status, response):
    if response.status_code != status:
        raise AssertionError(f"expected {status}, got {response.status_code}: {response.content[:2000]}")


def buffer_round_trips(worker, api, seed, cases, as_json):
    """BUFFER_MSG in, GET out, equal."""
    maker = Maker(seed, json_only=as_json)
    session = requests.Session()
    for case in range(cases):
        value = maker.value()
        uuid = f"{seed}-{case}"
        message = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": uuid, "BUFFER_MSG": value}}
        if as_json:
            data, headers = json.dumps(message), JSON
        else:
            data, headers = pickle.dumps(message, protocol=case % 6), PICKLE
        url = f"{api}/CommunicationInterface/AddBufferMsg"
        must_be(200, session.post(url, data=data, headers=headers, timeout=60))
        answer = session.get(worker, params={"bufferUUID": uuid}, timeout=60)
        must_be(200, answer)
        check(case, value, pickle.loads(answer.content))
    return cases


def frame_round_trips(worker, api, seed, cases):
    """FRAME_RENDERED in, NextMessage out, equal."""
    maker = Maker(seed, json_only=False)
    session = requests.Session()
    for case in range(cases):
        value = maker.value()
        message = {"USER_ID": f"user {case}", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": value}}
        if maker.random.random() < 0.3:
            main_data = {"DATA": value, "MORE": [value], "TYPE": "FRAME_RENDERED"}
            message = {"MAIN_DATA": main_data, "USER_ID": f"user {case}"}
        data = pickle.dumps(message, protocol=case % 6)
        must_be(200, session.post(worker, data=data, headers=PICKLE, timeout=60))
        answer = session.get(f"{api}/UserManager/NextMessage", params={"wait": 10}, timeout=60)
        must_be(200, answer)
        frame = {"TYPE": "FRAME_RENDERED", "DATA": value, "USER_ID": f"user {case}"}
        expected = {"TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": {"TYPE": "USER_MESSAGE", "DATA": frame}}
        check(case, expected, pickle.loads(answer.content))
        done = session.delete(f"{api}/UserManager/Messages/{answer.headers['message-id']}", timeout=60)
        must_be(204, done)
    return cases


class PlainUnpickler(pickle.Unpickler):
    """CPython's own unpickler, with the few names that its own pickles of plain values need."""

    BUILTINS = ("builtins", "__builtin__")
    TYPES = ("set", "frozenset", "bytearray", "bytes")

    def find_class(self, module, name):
        plain = (module in self.BUILTINS and name in self.TYPES) or (module, name) == ("_codecs", "encode")
        if not plain:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return super().find_class(module, name)


def is_plain(data):
    try:
        PlainUnpickler(io.BytesIO(data)).load()
    except Exception:  # noqa: BLE001: a garbled pickle fails in any way it likes
        return False
    return True


def mangled(rng, data):
    """A copy of the bytes with a few of them cut, changed, doubled or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.choice([1, 2, 8])]
            case 2:
                data[at:at] = rng.randbytes(rng.choice([1, 4]))
            case 3:
                data[at:at] = data[at : at + 8]
        if not data:
            return b""
    return bytes(data)


def bad_bodies(worker, api, seed, cases):
    """Garbled bodies to both servers: an answer of the contract for each, and nothing accepted that Python refuses.

    Returns how often each status was answered.
    """
    rng = random.Random(seed)
    maker = Maker(seed, json_only=True)
    session = requests.Session()
    counted = collections.Counter()
    for case in range(cases):
        value = maker.value()
        frame = {"USER_ID": "u", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": value}}
        order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "garbled", "BUFFER_MSG": value}}
        url, message = rng.choice([(worker, frame), (f"{api}/CommunicationInterface/AddBufferMsg", order)])
        if rng.random() < 0.7:
            headers, data = PICKLE, mangled(rng, pickle.dumps(message, protocol=case % 6))
        else:
            headers, data = JSON, mangled(rng, json.dumps(message).encode())
        answer = session.post(url, data=data, headers=headers, timeout=60)
        if answer.status_code not in (200, 400):
            raise AssertionError(f"case {case}: {answer.status_code} for {data!r}")
        if answer.status_code == 400 and answer.json().get("STATUS") != "FAILED":
            raise AssertionError(f"case {case}: {answer.content!r}")
        if answer.status_code == 200 and headers is PICKLE and not is_plain(data):
            raise AssertionError(f"case {case}: accepted what Python refuses: {data!r}")
        counted[str(answer.status_code)] += 1
    return dict(counted)


def changed_bodies(worker, api, seed, cases):
    """Garbled bodies to both servers: what is accepted is passed on as Python reads it.

    Returns what `Attacker.report` does.
    """
    rng = random.Random(seed)
    maker = Maker(seed, json_only=True)
    attacker = Attacker(worker, api)
    for number in range(cases):
        name, value = f"case {number} of seed {seed}", maker.value()
        kind = rng.choice(["FRAME_RENDERED", "RENDER_COMPLETED"])
        user = {"USER_ID": "u", "MAIN_DATA": {"TYPE": kind, "DATA": value}}
        order = {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "changed", "BUFFER_MSG": value}}
        call, message = rng.choice([("user", user), ("order", order)])
        form = rng.choice(["pickle", "pickle", "json"])
        body = pickle.dumps(message, protocol=number % 6) if form == "pickle" else json.dumps(message).encode()
        attacker.send(Case(name, call, form, mangled(rng, body), "reading", "either"))
    return attacker.report()


CAMPAIGNS = (buffer_round_trips, frame_round_trips, bad_bodies, changed_bodies, hostile_bodies)
ALL = {call.__name__: call for call in CAMPAIGNS}
