"""Pickles whose keys keep CPython busy: whatever the codec takes of them, `pickle.loads` loads in time.

Each family of attacks has an amount; the largest that the codec takes is loaded by CPython, in a process of its own,
and its processor time compared with what the length allows. Large honest dicts and sets are taken.

    codec_work.py attacks|random|honest SEED COUNT
"""
import itertools
import os
import pickle
import random
import resource
import struct
import sys
import time

import codec_peer as peer

BASE_S, PER_MIB_S = 0.5, 1.0
MODULUS = 2**61 - 1


# Opcodes

def message(data):
    return (b"\x80\x04}(\x8c\x07USER_ID\x8c\x01u\x8c\x09MAIN_DATA}(\x8c\x04TYPE\x8c\x0eFRAME_RENDERED\x8c\x04DATA"
            + data + b"uu.")


def integer(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -2**31 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def real(value):
    return b"G" + struct.pack(">d", value)


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)


def filled(kind, keys):
    """A dict or a set of keys that are opcodes."""
    if kind is set:
        return b"\x8f(" + b"".join(keys) + b"\x90"
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


# Hashes that can be chosen

def chain(bits, fill=0.66, kind=dict):
    """The hashes along the probe sequence that starts at 0 in a table of 2**bits slots, which itself comes not."""
    size = 1 << bits
    slots, seen, at = [], {0}, 0
    while len(slots) < int(size * (fill if kind is dict else fill * 0.88)):
        at = (5 * at + 1) % size
        for slot in range(at, at + 10 if kind is set and at + 9 < size else at + 1):
            if slot not in seen:
                seen.add(slot)
                slots.append(slot)
    # Something else that sits at 0 already.
    return [size, *slots]


PRIMES = 11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 2_870_177_450_012_600_261


def pair(wanted, number):
    """A tuple of two ints that has this hash, the first near `number`; and the next number."""
    inverse = [pow(prime, -1, 2**64) for prime in PRIMES[:2]]
    while True:
        number += 1
        lane = (PRIMES[2] + number * PRIMES[1]) % 2**64
        lane = (lane << 31 | lane >> 33) % 2**64 * PRIMES[0] % 2**64
        goal = (wanted - (2 ^ PRIMES[2] ^ 3527539)) * inverse[0] % 2**64
        goal = (goal >> 31 | goal << 33) % 2**64
        second = (goal - lane) * inverse[1] % 2**64
        second -= 2**64 if second >= 2**63 else 0
        if hash(second) == second and hash((number, second)) % 2**64 == wanted % 2**64:
            return (number, second), number


def tuples(hashes):
    number, made = 0, []
    for wanted in hashes:
        (first, second), number = pair(wanted, number)
        made.append(integer(first) + integer(second) + b"\x86")
    return made


def shuffled(value):
    return ((value ^ 89869747) ^ (value << 16)) * 3644798167 % 2**64


def frozensets(count):
    """Frozensets of 80 ints out of 160 that have one hash, as lists of ints."""
    swaps = [(shuffled(2 * n) ^ shuffled(2 * n + 1), 1 << n) for n in range(80)]
    kernel = []
    while swaps:
        vector, mask = swaps.pop()
        if vector == 0:
            kernel.append(mask)
            continue
        top = 1 << vector.bit_length() - 1
        swaps = [(other ^ vector, its ^ mask) if other & top else (other, its) for other, its in swaps]
    for number in range(count):
        mask = 0
        for bit, combination in enumerate(kernel):
            mask ^= combination if number >> bit & 1 else 0
        yield [2 * n + (mask >> n & 1) for n in range(80)]


# Attacks: an amount to a pickle

def repeated(keys, again, kind):
    filled_once = filled(kind, keys)
    tail = (again + b"N" if kind is dict else again, b"u" if kind is dict else b"\x90")
    return lambda amount: filled_once + b"(" + tail[0] * amount + tail[1]


def unicode_window(bits):
    """In CPython 3.11 and later the first int among strs makes the table twice as large as it would be."""
    size = 1 << bits
    names = [text(b"%d" % number) for number in range(size // 3 + 3)]
    ints = [integer(value) for value in chain(bits + 1)[:size // 3 - 20]]
    return repeated(names + ints, b"K\x00", dict)


def equal_objects(make, use):
    """Two equal objects that are not the same; one is the key, the other asks for it."""
    first = make + put(1) + b"0" + make + put(2) + b"0"
    return lambda amount: b"](" + first + use(get(1), get(2), amount) + b"e"


def asked(first, second, amount):
    return b"}(" + first + b"N" + (second + b"N") * amount + b"u"


def long_numbers(make):
    """A tuple of long ints, or of the floats that are equal to them."""
    return b"(" + b"".join(make(2**1000 + (n << 970)) for n in range(1_000)) + b"t"


def scattered(tuples, size, of):
    """Tuples of floats in an order unrelated to their addresses in memory, kept under the numbers after these."""
    order = list(range(of))
    random.Random(0).shuffle(order)
    floats = b"".join(real(1.1 * n) + b"\x94" for n in range(of))
    for number in range(tuples):
        floats += b"(" + b"".join(map(get, order[number * size % of:][:size])) + b"t\x94"
    return floats


def scattered_equal(size):
    """Two such tuples that are equal, without a float in common."""
    order = list(range(size))
    random.Random(0).shuffle(order)
    floats = b"".join(real(1.1 * n) + b"\x94" for n in range(size)) * 2
    return floats + b"".join(b"(" + b"".join(get(first + n) for n in order) + b"t\x94" for first in (0, size))


def nested_pairs(levels):
    return b"N" + b"2\x86" * levels


def attacks():
    for kind, sizes in ((dict, (9, 14)), (set, (9, 13))):
        for bits in sizes:
            slots = chain(bits, kind=kind)
            yield f"{kind.__name__} chain {bits}", repeated(map(integer, slots), b"K\x00", kind)
        bits = {dict: 11, set: 11}[kind]
        slots = chain(bits, kind=kind)
        yield f"{kind.__name__} float chain", repeated([real(float(slot)) for slot in slots], b"K\x00", kind)
        yield f"{kind.__name__} large int chain", repeated(
            [integer(slot + 3 * MODULUS) for slot in slots], integer(5 * MODULUS), kind)
        yield f"{kind.__name__} float among ints of its length", repeated(
            [integer(2**1000 + n * MODULUS) for n in range(1, 400)], real(2.0**1000), kind)
        yield f"{kind.__name__} negative chain", repeated(
            [integer(slot - (1 << 59)) for slot in slots], integer(-(1 << 59)), kind)
        yield f"{kind.__name__} tuple chain", repeated(tuples(slots), b"K\x00", kind)
        yield f"{kind.__name__} chain asked for by chance", repeated(
            [*map(integer, slots), text(b"chance") + put(1) + b"K\x01\x86" + put(2)], get(2), kind)
        strs = [text(b"%d" % number) for number in range(2_000)]
        yield (f"{kind.__name__} chain and strs",
               lambda amount, slots=slots, kind=kind, strs=strs: filled(kind, [*map(integer, slots), *strs[:amount]]))
        yield (f"{kind.__name__} ints of one hash",
               lambda amount, kind=kind: filled(kind, [integer(n * MODULUS) for n in range(1, amount + 1)]))
        same = tuples([7] * 4_000)
        yield (f"{kind.__name__} tuples of one hash", lambda amount, kind=kind, same=same: filled(kind, same[:amount]))
        spelled = [b"".join(items) + b"t" for items in
                   itertools.product(*[[text(b"a"), b"C\x01a"]] * 12)]
        yield (f"{kind.__name__} strs and bytes of one hash",
               lambda amount, kind=kind, spelled=spelled: filled(kind, [b"(" + key for key in spelled[:amount]]))
        frozen = [b"(" + b"".join(b"K" + bytes([item]) for item in items) + b"\x91" for items in frozensets(3_000)]
        yield (f"{kind.__name__} frozensets of one hash",
               lambda amount, kind=kind, frozen=frozen: filled(kind, frozen[:amount]))
        yield (f"{kind.__name__} multiples of 2**50",
               lambda amount, kind=kind: filled(kind, [integer(n << 50) for n in range(min(amount, 2_000))] * 20))
    for bits in (10, 14):
        yield f"strs before ints {bits}", unicode_window(bits)
    large = 300_000
    yield "long str", equal_objects(text(b"a" * large), asked)
    yield "long bytes", equal_objects(b"B" + struct.pack("<I", large) + b"a" * large, asked)
    yield "long ints and floats", lambda amount: (
        b"](" + long_numbers(integer) + put(1) + b"0" + long_numbers(lambda value: real(float(value))) + put(2) + b"0"
        + asked(get(1), get(2), amount) + b"e")
    all_over = scattered(4, 50_000, 200_000)
    yield "tuples all over memory", lambda amount: (
        b"](" + all_over + b"}(" + b"".join(get(200_000 + n % 4) + b"N" for n in range(amount)) + b"ue")
    equal = scattered_equal(60_000)
    yield "equal tuples all over memory", lambda amount: (
        b"](" + equal + asked(get(120_000), get(120_001), amount) + b"e")
    yield "long int", equal_objects(b"\x8b" + struct.pack("<I", large) + b"a" * large, asked)
    yield "tuples that share", equal_objects(nested_pairs(14), asked)
    slots = chain(11, kind=set)
    slow = b"(" + b"".join(map(integer, slots)) + b"K\x00" * 100 + b"\x91"
    yield "slow frozensets", equal_objects(slow, asked)
    yield "slow frozensets in a tuple", equal_objects(slow + b"K\x01\x86", asked)
    yield "large tuple", lambda amount: (
        b"](" + b"(" + b"K\x01" * 20_000 + b"t" + put(1) + asked(get(1), get(1), amount) + b"e"
    )
    yield "many small dicts of a tuple", lambda amount: (
        b"](" + b"(" + b"K\x01" * 200 + b"t" + put(1) + (b"}" + get(1) + b"Ns") * amount + b"e")
    yield "empty sets", lambda amount: b"](" + b"\x8f" * amount + b"e"
    yield "empty frozensets", lambda amount: b"](" + b"(\x91" * amount + b"e"
    yield "sets of one list", lambda amount: (
        b"](cbuiltins\nset\n" + put(1) + b"0](" + b"".join(map(integer, chain(11, kind=set))) + b"e\x85" + put(2) + b"0"
        + (get(1) + get(2) + b"R") * amount + b"e")
    yield "lists", lambda amount: b"](" + b"]" * amount + b"e"
    yield "dicts of one", lambda amount: b"](" + b"}NNs" * amount + b"e"
    yield "NaNs", lambda amount: filled(dict, [real(float("nan"))] * amount)


def at_random(r):
    """Keys in regular patterns, as dict or set, some of them many times."""
    kind = r.choice([dict, set])
    bits = r.randrange(3, 16)
    keys = []
    for _ in range(r.randrange(1, 4)):
        choice, count = r.randrange(5), r.randrange(1, 4_000)
        step = r.choice([1, 1 << r.randrange(61), r.randrange(1, 1 << 40), MODULUS])
        start = r.randrange(-(1 << 40), 1 << 40)
        regular = [start + step * n for n in range(count)]
        hashes = regular if choice < 3 else chain(bits, r.random() * 0.66, kind)[:count]
        make = r.choice([integer, integer, real, None])
        if make is None:
            keys += tuples([value % 2**64 for value in hashes[:500]])
        else:
            keys += [make(float(value) if make is real else value) for value in hashes]
    if r.random() < 0.5:
        r.shuffle(keys)
    again = r.choice([b"K\x00", r.choice(keys), integer(1 << bits)])
    return f"{kind.__name__} at random", repeated(keys, again, kind)


# The judge

def processor_time(body, allowed):
    """How long `pickle.loads` takes, in a process that is ended when it takes far too long."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        limit = int(3 * allowed) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        start = time.process_time()
        pickle.loads(body)
        os.write(writing, struct.pack("<d", time.process_time() - start))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return struct.unpack("<d", result)[0] if result else float("inf")


def taken(body):
    outcome, texts = peer.ask("U", "P", body)
    assert outcome in "PE", outcome
    return texts[1] if outcome == "P" else None


def largest(make, most):
    """A large amount that is taken, while not much more is, and what it makes."""
    low, high, body, passed = 0, 100, None, None
    while high <= most and (got := taken(message(make(high)))) is not None:
        low, body, passed = high, message(make(high)), got
        high *= 20
    for _ in range(2):
        middle = (low + min(high, most)) // 2
        if (got := taken(message(make(middle)))) is not None:
            low, body, passed = middle, message(make(middle)), got
        else:
            high = middle
    return low, body, passed


def judge(found, most):
    worst = []
    for name, make in found:
        amount, body, passed = largest(make, most)
        if body is None:
            worst.append((0.0, name, 0, 0, 0))
            continue
        mib = len(body) / 2**20
        allowed = BASE_S + PER_MIB_S * mib
        spent = processor_time(passed, allowed)
        worst.append((spent / allowed, name, amount, mib, spent))
        if spent > allowed:
            return f"{name}: {amount} of it, {mib:.2f} MiB, take {spent:.2f} s of {allowed:.2f} s", False
    worst.sort(reverse=True)
    lines = [f"{share:5.0%} of the time allowed: {name}, {amount} of it, {mib:.2f} MiB, {spent:.3f} s"
             for share, name, amount, mib, spent in worst]
    return "\n".join([f"{len(worst)} kinds of keys", *lines]), True


def honest():
    many = range(100_000)
    r = random.Random(1)
    keys = {
        "* 2**40": [n << 40 for n in many], "ints": many, "* 2**20": [n << 20 for n in many],
        "frame numbers * 1024": [1024 * n for n in many], "* 2**56": [n << 56 for n in many],
        "negative": [-n for n in many],
        "random": [r.getrandbits(64) for _ in many], "large": [2**100 + n for n in many],
        "microseconds": [1_700_000_000_000_000 + 40_000 * n for n in many],
        "floats": [n / 24 for n in many], "halves": [n / 2 for n in many], "random floats": [r.random() for _ in many],
        "tuples": [(n % 317, n // 317) for n in many], "tuples of strs": [("frame", n) for n in many],
        "nested": [((n, None), (True, n / 2)) for n in many], "frozensets": [frozenset([n, n + 1]) for n in many],
        "frozensets of strs": [frozenset(["a", n]) for n in many], "strs": [f"frame_{n:06}" for n in many],
        "bytes": [b"%d" % n for n in many], "mixed": [n if n % 2 else str(n) for n in many],
        "strs, then ints": [*map(str, many[::2]), *many[::2]],
    }
    for number, (name, made) in enumerate(keys.items()):
        yield (f"dict of {name}", dict.fromkeys(made, 1), 4) if number % 2 else (f"set of {name}", set(made), 4)
    yield "bytes at protocol 2", dict.fromkeys(keys["bytes"]), 2
    yield "set at protocol 2", set(many), 2
    key = tuple(range(12))
    yield "a tuple in many dicts", [{key: n} for n in range(20_000)], 4
    yield "sets in a dict", {n: {n, n + 1} for n in range(50_000)}, 4
    yield "one dict many times", [{"frame": n, "done": True, 1: 2} for n in range(30_000)], 4


def judge_honest():
    count = 0
    for name, value, protocol in honest():
        body = pickle.dumps({"USER_ID": "u", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": value}}, protocol)
        outcome, texts = peer.ask("U", "P", body)
        if outcome != "P":
            return f"{name} is refused: {texts[0].decode()}", False
        count += 1
    return f"{count} large dicts and sets are taken", True


def main(choice, seed, count):
    if choice == "honest":
        return judge_honest()
    r = random.Random(seed)
    found = attacks() if choice == "attacks" else (at_random(r) for _ in range(count))
    return judge(found, 100_000 if choice == "attacks" else 20_000)


if __name__ == "__main__":
    peer.end(*main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
