"""Sends hostile bodies to a running server, and holds it to the contract for each."""

import collections
import time

import requests

from hostile import make
from hostile.judge import has_lone_surrogate, read, read_as_peer, same
from hostile.wire import RECURSION

TYPES = {"pickle": "application/octet-stream", "json": "application/json"}
STATUS = {"accepted": (200,), "refused": (400,), "either": (200, 400), "too large": (413,)}
# Below this many seconds, the request itself dominates.
TIMED = 256 << 10


class Attacker:
    """One connection to each server, and what came of all bodies so far."""

    def __init__(self, worker, api):
        self.session = requests.Session()
        self.worker, self.api = worker, api
        self.counted = collections.Counter()
        self.slowest = []

    def send(self, case):
        """Posts one body and checks the answer, and what is passed on of it."""
        url = self.worker if case.call == "user" else f"{self.api}/CommunicationInterface/AddBufferMsg"
        start = time.perf_counter()
        answer = self.session.post(url, data=case.body, headers={"content-type": TYPES[case.form]}, timeout=60)
        took = time.perf_counter() - start
        status = answer.status_code
        self.counted[str(status)] += 1
        if len(case.body) >= TIMED:
            self.slowest.append((took * 1000 / (len(case.body) / (1 << 20)), status, case.name))
        shown = f"{case.name}: {case.body[:300]!r}, answered {status}: {answer.content[:300]!r}"
        assert status in STATUS[case.expected], f"expected {case.expected}, {shown}"
        if status != 200:
            json = answer.json()
            assert json["STATUS"] == "FAILED" and json["ERROR"].strip() and len(answer.content) < 2_000, shown
            return
        try:
            message = read(case.form, case.body)
        except Exception as error:
            raise AssertionError(f"taken although Python refuses it ({error!r}), {shown}") from error
        assert not has_lone_surrogate(case.form, case.body), f"half a pair taken, {shown}"
        if case.call == "order":
            self.check_order(case, message, shown)
        elif message["MAIN_DATA"]["TYPE"] in ("FRAME_RENDERED", "RENDER_COMPLETED"):
            self.check_forwarded(case, message, shown)

    def check_order(self, case, message, shown):
        answer = self.session.get(self.worker, params={"bufferUUID": message["DATA"]["BUFFER_UUID"]}, timeout=60)
        assert answer.status_code == 200, f"{answer.status_code} to GET, {shown}"
        got = read_as_peer("pickle", answer.content)
        assert same(got, message["DATA"]["BUFFER_MSG"]), f"not what was sent, {shown}"
        self.check_passed_on(case, got, answer.content, shown)

    def check_forwarded(self, case, message, shown):
        answer = self.session.get(f"{self.api}/UserManager/NextMessage", params={"wait": 10}, timeout=60)
        assert answer.status_code == 200, f"{answer.status_code} to NextMessage, {shown}"
        as_json = answer.headers["content-type"] == TYPES["json"]
        got = read_as_peer("json" if as_json else "pickle", answer.content)
        main_data = message["MAIN_DATA"]
        kind, data = main_data["TYPE"], main_data["DATA"]
        inner = {"TYPE": kind, "DATA": data}
        if kind == "RENDER_COMPLETED":
            inner["MESSAGE"] = data
        inner["USER_ID"] = message["USER_ID"]
        expected = {"TYPE": "MESSAGE_FOR_USER_MANAGER", "DATA": {"TYPE": "USER_MESSAGE", "DATA": inner}}
        assert same(got, expected, as_json), f"not what was sent, {shown}"
        self.check_passed_on(case, got, answer.content, shown)
        done = self.session.delete(f"{self.api}/UserManager/Messages/{answer.headers['message-id']}", timeout=60)
        assert done.status_code == 204, f"{done.status_code} to DELETE, {shown}"

    def check_passed_on(self, case, got, passed_on, shown):
        assert not (case.never and case.never in passed_on), f"passed on what nobody reads, {shown}"
        # Writing out shared values may not exceed the codec's own bound.
        assert len(passed_on) < (40 << 20) + 20 * len(case.body), f"grown to {len(passed_on)} bytes, {shown}"
        if case.attacks == RECURSION:
            repr(got)

    def report(self):
        """How often each status was answered, and the slowest bodies, in ms for each MiB."""
        report = {"answered": dict(self.counted)}
        for status in (200, 400):
            slowest = sorted((of[0], of[2]) for of in self.slowest if of[1] == status)[-6:]
            report[f"slowest of {status}"] = [f"{each:.0f} ms/MiB: {name}" for each, name in reversed(slowest)]
        return report


def hostile_bodies(worker, api, part, parts):
    """Every `parts`-th case of the corpus, from number `part` on."""
    attacker = Attacker(worker, api)
    for number, case in enumerate(make.cases()):
        if number % parts == part:
            attacker.send(case)
    return attacker.report()
