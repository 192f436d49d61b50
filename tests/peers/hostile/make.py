"""All hostile bodies: what each attacks, and what has to become of it.

    python3 tests/peers/hostile/make.py [PART OF A NAME]

lists them.
"""

import dataclasses
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from hostile import json_texts, pickle_opcodes, pickle_scalars, pickle_shapes
from hostile.wire import SLOTS, in_json, in_pickle

LARGE = 256 << 10


@dataclasses.dataclass
class Case:
    """A body for POST / (`call` is "user") or AddBufferMsg ("order")."""

    name: str
    call: str
    form: str
    body: bytes
    attacks: str
    expected: str
    # Must not be forwarded.
    never: bytes = b""


def call_of(slot):
    return "order" if slot == "BUFFER_MSG" else "user"


def slots(data):
    """Where a value is put: a large one only where most is done with it."""
    return SLOTS if len(data) < LARGE else ("RENDER_COMPLETED", "BUFFER_MSG")


def cases():
    """Every case, made one after the other: some are of many MiB."""
    for module in (pickle_opcodes, pickle_shapes, pickle_scalars):
        for name, data, attacks, expected in module.values():
            for slot in slots(data):
                yield Case(f"{name} in {slot}", call_of(slot), "pickle", in_pickle(slot, data), attacks, expected)
    for name, data, attacks, expected in json_texts.values():
        for slot in slots(data):
            yield Case(f"{name} in {slot}", call_of(slot), "json", in_json(slot, data), attacks, expected)
    for name, form, body, attacks, expected in [*pickle_opcodes.bodies(), *json_texts.bodies()]:
        for call in ("user", "order"):
            yield Case(f"{name} as a whole {call}", call, form, body, attacks, expected)
    for slot in SLOTS:
        for name, after in [("an import", b"cos\nsystem\n"), ("a second pickle", b"\x80\x04N."),
                            ("a MiB of zeros", bytes(1 << 20))]:
            body = in_pickle(slot, b"N") + b"HERE" + after
            yield Case(f"{name} after STOP in {slot}", call_of(slot), "pickle", body,
                       "passing on what CPython does not read", "accepted", b"HERE")
    for form in ("pickle", "json"):
        yield Case(f"17 MiB of {form}", "user", form, bytes(17 << 20), "the limit for bodies", "too large")


if __name__ == "__main__":
    for case in cases():
        if " ".join(sys.argv[1:]) in case.name:
            print(f"{case.expected:9} {len(case.body):10} bytes  {case.name}: {case.attacks}")
