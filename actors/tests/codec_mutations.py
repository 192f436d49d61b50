"""Valid messages in every protocol and in JSON, cut at every byte or changed at random: CPython judges what is taken.

Messages that the codec refuses and CPython would accept are counted by the codec's reason, and listed at the end.

    codec_mutations.py cut|change SEED COUNT
"""
import collections
import contextlib
import io
import json
import pickle
import random
import re
import resource
import sys
import traceback

import codec_peer as peer

# CPython allocates what a length or a memo number says.
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

SHARED = ["shared", {"k": (1, 2.5)}]
PLAIN = {"list": [1, -70_000, 2**40, 1.5, None, True], "é": "日本😀\n", "": {"a": {"b": []}},
         "same": [SHARED, SHARED]}
RICH = PLAIN | {"bytes": (b"", b"\x00\xff'\n", b"x" * 300), "array": bytearray(b"ab"), "set": {1, "x", (2, b"y")},
                "frozen": frozenset([frozenset([1]), 2.5]), 7: 10**30, (1, "t"): float("inf"), None: "\ud800"}
CYCLE = ["cycle"]
CYCLE.append({"back": CYCLE})


def messages():
    """Valid messages, as call, format and body."""
    blend = {"TYPE": "RENDER", "DATA": {"META_DATA": "EXTRACT_BLEND_FILE_FROM_PATH", "n": [1, "x"],
                                       "BINARY_BLEND_FILE": "/farm/é.blend"}}
    users = [("FRAME_RENDERED", RICH), ("RENDER_COMPLETED", PLAIN), ("RENDER_COMPLETED", RICH),
             ("FRAME_RENDERED", CYCLE)]
    made = [("U", {"USER_ID": "worker-1", "MAIN_DATA": {"TYPE": kind, "DATA": data}}) for kind, data in users]
    made += [("C", {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "id", "BUFFER_MSG": data}})
             for data in (RICH, blend)]
    for call, message in made:
        for protocol in range(6):
            yield call, "P", pickle.dumps(message, protocol)
        yield call, "P", pickle._dumps(message, 4)
    for call, message in made:
        try:
            text = json.dumps(message)
        except (TypeError, ValueError):
            continue
        yield call, "J", text.encode()
        yield call, "J", json.dumps(message, ensure_ascii=False, indent=1).encode()
        yield call, "J", text.encode("utf-16")


def change_length(r, body):
    """Changes a number where a length, a memo number or a protocol may be."""
    width = r.choice([1, 1, 2, 4, 8])
    at = r.randrange(max(1, len(body) - width))
    number = int.from_bytes(body[at:at + width], "little")
    number = r.choice([number + r.choice([-2, -1, 1, 2]), 0, 2**(8 * width) - 1, 2**(8 * width - 1), number << 8,
                       len(body) - at, 2**31])
    body[at:at + width] = (number % 2**(8 * width)).to_bytes(width, "little")


def change(r, body, others):
    body = bytearray(body)
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        at = r.randrange(len(body))
        end = min(len(body), at + r.choice([1, 1, 2, 4, 8, 30]))
        choice = r.randrange(7)
        if choice == 0:
            body[at] ^= 1 << r.randrange(8)
        elif choice == 1:
            del body[at:end]
        elif choice == 2:
            body[at:at] = r.randbytes(r.choice([1, 1, 2, 4]))
        elif choice == 3:
            body[at:at] = body[at:end]
        elif choice == 4:
            # From a random offset of one to a random offset of another.
            other = r.choice(others)
            body[at:] = other[r.randrange(len(other)):]
        elif choice == 5:
            # Replaces a few bytes by as many of another.
            other = r.choice(others)
            start = r.randrange(len(other))
            body[at:end] = other[start:start + end - at]
        else:
            change_length(r, body)
        if not body:
            break
    return bytes(body)


class Judge:
    def __init__(self):
        self.taken = self.all = 0
        self.stricter = collections.Counter()
        self.examples = {}

    def check(self, call, form, body):
        self.all += 1
        if peer.judge(call, form, body, False):
            self.taken += 1
        elif form == "P":
            self.compare_refusal(call, form, body)

    def compare_refusal(self, call, form, body):
        """Counts a refusal where CPython, importing nothing, reads a message that the contract describes."""
        try:
            # CPython prints an error of its own there where a bytearray is cut short.
            with contextlib.redirect_stderr(io.StringIO()):
                message = peer.careful_loads(body)
            taken = peer.well_formed(call, message)
        except Exception:  # noqa: BLE001: whatever a changed pickle makes CPython raise
            return
        if taken:
            _, texts = peer.ask(call, form, body)
            reason, _, at = texts[0].decode().partition(" at byte ")
            at = int(at.replace(",", "") or 0)
            reason = re.sub(r"\d[\d,]*", "N", reason)
            self.stricter[reason] += 1
            self.examples.setdefault(reason, body[max(0, at - 40):at + 40])

    def report(self):
        lines = [f"{self.taken} of {self.all} taken; refused although CPython reads them: {self.stricter.total()}"]
        for reason, count in self.stricter.most_common():
            lines.append(f"{count:6} {reason}; such as in the middle of {self.examples[reason]!r}")
        return "\n".join(lines)


def cut():
    for call, form, body in messages():
        for length in range(len(body)):
            yield call, form, body[:length]


def changed(r, count):
    made = list(messages())
    for _ in range(count):
        call, form, body = r.choice(made)
        yield call, form, change(r, body, [other for _, of, other in made if of == form])


def main(choice, seed, count):
    judge = Judge()
    r = random.Random(seed)
    for number, (call, form, body) in enumerate(cut() if choice == "cut" else changed(r, count)):
        try:
            judge.check(call, form, body)
        except BaseException:
            what = f"{choice}, case {number} of seed {seed}, {call}{form}"
            return f"{what}\n{traceback.format_exc()[-3000:]}\n{body[:3000]!r}", False
    return judge.report(), True


if __name__ == "__main__":
    peer.end(*main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
