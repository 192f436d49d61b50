"""Pickles of a hostile shape: nested, shared, inside themselves, hashed; floods of the memo."""

import struct

from hostile.wire import RECURSION, text

MERSENNE = 2**61 - 1


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"j" + struct.pack("<I", number)


def long(number):
    """An int as LONG1."""
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def nested(depth):
    """Containers in one another, by the container's name."""
    return {
        "lists": b"]" * depth + b"a" * (depth - 1),
        "lists by MARK": b"(" * depth + b"l" * depth,
        "dicts": b"}" + b"K\x01}" * (depth - 1) + b"s" * (depth - 1),
        "dicts by MARK": b"(K\x01" * depth + b"N" + b"d" * depth,
        "tuples of one": b"N" + b"\x85" * depth,
        "tuples by MARK": b"(" * depth + b"t" * depth,
        "frozensets": b"(" * depth + b"\x91" * depth,
        "a set of frozensets": b"\x8f(" + b"(" * (depth - 1) + b"\x91" * (depth - 1) + b"\x90",
        "a key of tuples": b"}N" + b"\x85" * (depth - 1) + b"Ns",
        "lists in tuples in dicts": b"}K\x01](" * (depth // 3) + b"N" + b"tas" * (depth // 3),
        "lists filled from the outside": b"]" + put(0) + b"".join(
            get(n - 1) + b"]" + put(n) + b"a0" for n in range(1, depth)),
        "sets by call": b"(" + b"cbuiltins\nfrozenset\n](" * depth + b"e\x85R" * depth + b"t",
    }


def doubled(levels):
    """Containers of which each holds the one before it twice, by the container's name."""
    levels_of = range(levels)
    return {
        "lists": b"]" + b"".join(put(n) + b"0](" + get(n) + get(n) + b"e" for n in levels_of),
        "dicts": b"}" + b"".join(put(n) + b"0}(K\x00" + get(n) + b"K\x01" + get(n) + b"u" for n in levels_of),
        "dicts of str": b"}" + b"".join(
            put(n) + b"0}(" + text("a") + get(n) + text("b") + get(n) + b"u" for n in levels_of),
        "tuples": b"N" + b"2\x86" * levels,
        "lists of a long str": text("x" * 10_000) + b"".join(put(n) + b"0](" + get(n) * 8 + b"e" for n in levels_of),
    }


def shapes():
    for depth in (190, 1_000, 10_000, 100_000, 1_000_000):
        for name, data in nested(depth).items():
            if depth == 1_000_000 and name in ("sets by call", "lists filled from the outside"):
                continue
            yield f"{depth} {name}", data, RECURSION, "accepted" if depth == 190 else "refused"
    for levels in (8, 26, 60, 190):
        for name, data in doubled(levels).items():
            attacks = f"memory and time of readers that unfold 2^{levels} values"
            yield f"{levels} doubled {name}", data, attacks, "accepted"
    for levels in (26, 60):
        tuples = b"N" + b"2\x86" * levels
        yield f"{levels} doubled tuples as a key", b"}" + tuples + b"Ns", "hashing, which follows sharing", "refused"
        yield f"{levels} doubled tuples in a set", b"\x8f(" + tuples + b"\x90", "hashing", "refused"
        yield f"{levels} doubled tuples in a frozenset", b"(" + tuples + b"\x91", "hashing", "refused"


def memo():
    gap = "a table as long as the largest memo number"
    for number in (2**31 - 1, 2**31, 2**32 - 1, 2**24):
        yield f"LONG_BINPUT {number}", b"N" + put(number), gap, "refused"
        yield f"PUT {number}", b"Np%d\n" % number, gap, "refused"
    for number in (2**63 - 1, 2**63, 2**64, -1, -(2**63)):
        yield f"PUT {number}", b"Np%d\n" % number, gap, "refused"
    yield "PUT of a million digits", b"Np" + b"9" * 1_000_000 + b"\n", "reading a memo number", "refused"
    yield "PUT of zeros and a 7", b"Np" + b"0" * 1_000 + b"7\n", "reading a memo number", "either"
    yield "LONG_BINPUT 65,000", b"]" + put(65_000) + b"0" + get(65_000), gap, "accepted"
    yield "gaps upon gaps", b"N" + b"".join(put(n * 60_000) for n in range(100)), gap, "refused"
    yield "MEMOIZE after a gap", b"]" + put(60_000) + b"\x94]\x9400h\x01", "where MEMOIZE counts from", "accepted"
    yield "MEMOIZE over what was put", b"]" + put(1) + b"}\x94Ns0h\x01", "where MEMOIZE counts from", "either"
    yield "a million MEMOIZEs", b"N" + b"\x94" * 1_000_000, "the memo", "refused"
    yield "100,000 MEMOIZEs of lists", b"(" + b"]\x94" * 100_000 + b"l", "the memo", "accepted"
    yield "a million PUTs of one number", b"N" + b"q\x00" * 1_000_000, "the memo", "accepted"


def inside_themselves():
    of = "readers that walk without end"
    yield "a list in itself", b"]q\x00h\x00a", of, "accepted"
    yield "a dict in itself", b"}q\x00K\x01h\x00s", of, "accepted"
    yield "a list in a tuple in itself", b"]q\x00h\x00\x85a", of, "accepted"
    yield "two lists in each other", b"]q\x00]q\x01h\x00aa", of, "accepted"
    yield "1,000 times a list in itself", b"]q\x00(" + b"h\x00" * 1_000 + b"e", of, "accepted"
    yield "a set in itself", b"\x8fq\x00(h\x00\x90", of, "refused"
    yield "a dict as its own key", b"}q\x00h\x00Ns", of, "refused"
    yield "a tuple of a dict as the dict's key", b"}q\x00h\x00\x85Ns", of, "refused"
    yield "a tuple of a list that holds it as a key", b"}]q\x00h\x00\x85q\x01ah\x01Ns", of, "refused"
    yield "a list in itself made a set", b"cbuiltins\nset\n]q\x00h\x00a\x85R", of, "refused"
    yield "a list cut by its own items", b"]q\x00(h\x00h\x00h\x00eh\x00a", of, "accepted"


def ring(count, order):
    """Lists of which each holds the next and the last holds the first, all in one list in that order."""
    made = b"".join(b"]" + put(n) + b"0" for n in range(count))
    filled = b"".join(get(n) + get((n + 1) % count) + b"a0" for n in range(count))
    return made + filled + b"](" + b"".join(map(get, order)) + b"e"


def rings():
    for count in (190, 300, 1_500, 100_000):
        expected = "accepted" if count == 190 else "refused"
        for name, order in {"the first": [0], "the last": [count - 1], "all": range(count),
                            "all, the last first": reversed(range(count))}.items():
            yield f"a ring of {count} lists, by {name}", ring(count, order), RECURSION, expected
    parents = b"".join(b"](" + get(0) + b"}" + text("parent") + get(0) + b"se" for _ in range(20_000))
    yield "20,000 children of one parent", b"]" + put(0) + b"(" + parents + b"e", RECURSION, "accepted"
    chain = b"".join(b"}" + put(n) + text("parent") + get(n - 1) + b"s" + text("child") for n in range(1, 190))
    yield "190 generations", b"}" + put(0) + text("child") + chain + b"N" + b"s" * 190, RECURSION, "accepted"


def hashed():
    cannot = "keys that cannot be hashed"
    for name, data in {"a list": b"]", "a dict": b"}", "a set": b"\x8f", "a bytearray": b"\x96" + bytes(8),
                       "a list in a tuple": b"]\x85", "a list in tuples": b"]\x85\x85\x85",
                       "a dict in a pair": b"N}\x86", "a set by call": b"cbuiltins\nset\n]\x85R"}.items():
        yield f"{name} as a key", b"}" + data + b"Ns", cannot, "refused"
        yield f"{name} as a key by DICT", b"(" + data + b"Nd", cannot, "refused"
        yield f"{name} in a set", b"\x8f(" + data + b"\x90", cannot, "refused"
        yield f"{name} in a frozenset", b"(" + data + b"\x91", cannot, "refused"
        yield f"{name} in a set by call", b"cbuiltins\nset\n]" + data + b"a\x85R", cannot, "refused"
    same = "how repeated keys are recognised"
    yield "one key 100,000 times", b"}(" + b"K\x01N" * 100_000 + b"u", same, "either"
    yield "1, True and 1.0 as keys", b"}(K\x01N\x88NG\x3f\xf0\0\0\0\0\0\0Nu", same, "either"
    yield "0, -0.0 and False in a set", b"\x8f(K\x00G\x80\0\0\0\0\0\0\0\x89\x90", same, "either"
    yield "'a' encoded four times differently", b"}(" + text("a") + b"NVa\nNS'a'\nNS'\\x61'\nNu", same, "either"
    yield "1,000 NaNs as keys", b"}(" + b"G\x7f\xf8\0\0\0\0\0\0N" * 1_000 + b"u", same, "accepted"
    for mib, expected in ((1, "accepted"), (5, "refused")):
        data = struct.pack("<i", mib << 20) + b"\x01" * (mib << 20)
        yield f"an int of {mib} MiB as a key", b"}\x8b" + data + b"Ns", "hashing of long ints", expected
    cost = "time of the peer: all keys have one hash"
    for count in (40, 20_000, 100_000):
        expected = "accepted" if count == 40 else "refused"
        ints = [long(n * MERSENNE) for n in range(1, count + 1)]
        yield f"{count} ints of one hash as keys", b"}(" + b"N".join(ints) + b"Nu", cost, expected
        yield f"{count} ints of one hash in a set", b"\x8f(" + b"".join(ints) + b"\x90", cost, expected
        yield f"{count} ints of one hash in a set by call", (
            b"cbuiltins\nset\n](" + b"".join(ints) + b"e\x85R"), cost, expected
        pairs = [n + b"K\x01\x86" for n in ints]
        yield f"{count} tuples of one hash as keys", b"}(" + b"N".join(pairs) + b"Nu", cost, expected


def values():
    """Opcodes that push what pretends to be one value: a name, the opcodes, what is attacked, what is expected."""
    for part in (shapes, rings, memo, inside_themselves, hashed):
        yield from part()
