"""Pickles that import, call, build or refer to what is outside; opcodes on a wrong stack."""

from hostile.wire import text

USER = b"}(" + text("USER_ID") + text("u") + text("MAIN_DATA") + b"}(" + text("TYPE") + text("TEST") + b"uu"
EVIL = {
    "GLOBAL": b"cos\nsystem\n",
    "GLOBAL of Python 2": b"c__builtin__\neval\n",
    "GLOBAL of an attribute": b"cbuiltins\nset.__init__.__globals__\n",
    "GLOBAL without a name": b"cos\n\n",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93",
    "STACK_GLOBAL of names from the memo": text("os") + b"q\xf0" + text("system") + b"q\xf100h\xf0h\xf1\x93",
    "REDUCE": b"cos\nsystem\n(" + text("true") + b"tR",
    "REDUCE of the allowed with other arguments": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "REDUCE of another codec": b"c_codecs\nencode\n" + text("x") + text("zlib") + b"\x86R",
    "REDUCE of no callable": b"]]\x85R",
    "INST": b"(" + text("true") + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text("true") + b"o",
    "OBJ of the allowed": b"(cbuiltins\nset\n]o",
    "NEWOBJ": b"cos\nPathLike\n)\x81",
    "NEWOBJ of the allowed": b"cbuiltins\nset\n)\x81",
    "NEWOBJ_EX": b"cos\nPathLike\n)}\x92",
    "NEWOBJ_EX of the allowed": b"cbuiltins\nset\n)}\x92",
    "BUILD of a dict": b"}}" + text("x") + b"Nsb",
    "BUILD of a callable": b"cbuiltins\nset\n}" + text("x") + b"Nsb",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "EXT4, negative": b"\x84\xff\xff\xff\xff",
    "PERSID": b"Pid\n",
    "BINPERSID": b"NQ",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"B\x01\x00\x00\x00x\x98",
    "a callable as a value": b"cbuiltins\nset\n",
}

WRONG_STACK = {
    "POP on nothing": b"0000000000000000",
    "POP of a MARK that is not there": b"1111",
    "TUPLE without MARK": b"ttttt",
    "TUPLE3 across a MARK": b"(\x87",
    "APPEND on nothing": b"aaaaa",
    "APPEND across a MARK": b"](Na",
    "APPENDS without a list": b"(NNe",
    "APPEND to a tuple": b")Na",
    "APPEND to None": b"NNa",
    "SETITEM on a list": b"]NNs",
    "SETITEMS of an odd number": b"}(Nu",
    "DICT of an odd number": b"(NNNd",
    "ADDITEMS to a frozenset": b"(\x91(N\x90",
    "ADDITEMS to a list": b"](N\x90",
    "SETITEMS on a set": b"\x8f(NNu",
    "DUP across a MARK": b"(2",
    "MEMOIZE of a MARK": b"(\x94",
    "PUT of a MARK": b"(p0\n",
    "GET of nothing": b"g7\n",
    "BINGET of nothing": b"h\xff",
    "LONG_BINGET of nothing": b"j\xff\xff\xff\xff",
    "GET of a negative number": b"Nq\x00g-0\n",
    "STACK_GLOBAL of ints": b"K\x01K\x01\x93",
    "STACK_GLOBAL of one str": text("set") + b"\x93",
    "REDUCE of one value": b"(NR",
    "a MARK left on the stack": b"(N",
    "a value more on the stack": b"NN",
    "an opcode that does not exist": b"\xff",
    "an opcode of Python 2 that does not exist": b"\x00",
    "protocol 6": b"\x80\x06N",
    "protocol 255": b"\x80\xffN",
}

FLOODS = {
    "a million values dropped": (b"N0" * 1_000_000 + b"N", "the loop over opcodes", "accepted"),
    "a million duplicates": (b"(N" + b"2" * 1_000_000 + b"1N", "the stack", "accepted"),
    "five million duplicates": (b"(N" + b"2" * 5_000_000 + b"1N", "the stack", "refused"),
    "five million marks": (b"(" * 5_000_000 + b"N", "the marks", "refused"),
    "a million marks taken back": (b"(1" * 1_000_000 + b"N", "the marks", "accepted"),
    "a million PROTOs": (b"\x80\x04" * 1_000_000 + b"N", "the loop over opcodes", "accepted"),
    "100,000 empty frames": ((b"\x95" + bytes(8)) * 100_000 + b"N", "the edits", "either"),
    "a million fetches": (b"Nq\x00(" + b"h\x00" * 1_000_000 + b"1", "the stack", "accepted"),
    "200,000 items that are one": (b"](" + b"N" * 200_000 + b"e", "the containers", "accepted"),
    "five million items that are one": (b"](" + b"N" * 5_000_000 + b"e", "the containers", "refused"),
    "200,000 empty tuples": (b"](" + b")" * 200_000 + b"e", "the values", "accepted"),
    "five million empty tuples": (b"](" + b")" * 5_000_000 + b"e", "the values", "refused"),
    "100,000 callables": (b"cbuiltins\nset\n0" * 100_000 + b"N", "the values", "accepted"),
    "30,000 sets by call": (b"](" + b"cbuiltins\nset\n]\x85R" * 30_000 + b"e", "the values", "accepted"),
    "a line of four million bytes": (b"V" + b"x" * 4_000_000 + b"\n", "lines", "accepted"),
    "a million lines without quotes": (b"S\n" * 1_000_000, "lines", "refused"),
    "a list copied into 4,000 sets": (
        b"](" + b"".join(b"K%c" % n for n in range(256)) + b"eq\x00" + b"cbuiltins\nset\nq\x010"
        + b"(" + b"h\x01h\x00\x85R" * 4_000 + b"1",
        "what a call makes of a shared argument", "accepted"),
    "a list copied into 40,000 sets": (
        b"](" + b"".join(b"K%c" % n for n in range(256)) + b"eq\x00" + b"cbuiltins\nset\nq\x010"
        + b"(" + b"h\x01h\x00\x85R" * 40_000 + b"1",
        "what a call makes of a shared argument", "refused"),
}


def values():
    """Opcodes that push what pretends to be one value: a name, the opcodes, what is attacked, what is expected."""
    for name, data in EVIL.items():
        attacks = "imports, calls and references to what is outside"
        yield name, data, attacks, "refused"
        yield f"{name}, 100 lists deep", b"]" * 100 + data + b"a" * 100, attacks, "refused"
        yield f"{name} as a key", b"}" + data + b"Ns", attacks, "refused"
        yield f"{name} in a set", b"\x8f(" + data + b"\x90", attacks, "refused"
        if name != "a callable as a value":
            yield f"{name}, dropped again", data + b"0N", attacks, "refused"
            yield f"{name}, kept in the memo alone", data + b"q\xfe0N", attacks, "refused"
    for name, data in WRONG_STACK.items():
        lenient = name in ("a MARK left on the stack",)
        yield name, data, "the machine's stack", "either" if lenient else "refused"
    for name, (data, attacks, expected) in FLOODS.items():
        yield name, data, attacks, expected


def bodies():
    """Whole bodies: a name, the format, the bytes, what is attacked, what is expected."""
    for name, data in EVIL.items():
        attacks = "imports, calls and references in the envelope's own positions"
        yield f"{name} as the body", "pickle", b"\x80\x04" + data + b".", attacks, "refused"
        yield f"{name} before the body", "pickle", b"\x80\x04" + data + USER + b".", attacks, (
            "either" if name == "a callable as a value" else "refused")
        user_id = b"}(" + text("USER_ID") + data + text("MAIN_DATA") + b"}" + text("TYPE") + text("TEST") + b"su."
        yield f"{name} as USER_ID", "pickle", user_id, attacks, "refused"
        kind = b"}(" + text("USER_ID") + text("u") + text("MAIN_DATA") + b"}" + text("TYPE") + data + b"su."
        yield f"{name} as TYPE", "pickle", kind, attacks, "refused"
        main_data = b"}(" + text("USER_ID") + text("u") + text("MAIN_DATA") + data + b"u."
        yield f"{name} as MAIN_DATA", "pickle", main_data, attacks, "refused"
        order = b"}(" + text("TYPE") + text("ADD_BUFFER_MSG") + text("DATA") + data + b"u."
        yield f"{name} as an order's DATA", "pickle", order, attacks, "refused"
    surrogate = b"X\x03\x00\x00\x00\xed\xa0\x80"
    main_data = text("MAIN_DATA") + b"}(" + text("TYPE") + text("FRAME_RENDERED") + text("DATA") + b"Nu"
    yield "half a pair in USER_ID", "pickle", b"}(" + text("USER_ID") + surrogate + main_data + b"u.", "names", "either"
    yield "USER_ID of a MiB", "pickle", b"}(" + text("USER_ID") + text("u" * (1 << 20)) + main_data + b"u.", (
        "names"), "either"
    for name, uuid in {"half a pair": surrogate, "nothing": text(""), "4,097 bytes": text("u" * 4_097),
                       "a MiB": text("u" * (1 << 20)), "bytes": b"C\x01u", "a list": b"]"}.items():
        order = text("DATA") + b"}(" + text("BUFFER_UUID") + uuid + text("BUFFER_MSG") + b"Nu"
        body = b"}(" + text("TYPE") + text("ADD_BUFFER_MSG") + order + b"u."
        yield f"{name} as BUFFER_UUID", "pickle", body, "names", "refused"
    for name, body in {
        "an empty body": b"", "STOP alone": b".", "a MARK and STOP": b"(.", "PROTO alone": b"\x80", "None": b"N.",
        "many values": b"NNNN.", "no STOP": USER, "a MARK over the body": b"(" + USER + b"1.", "a list": b"](e.",
        "HTTP": b"GET / HTTP/1.1\r\n\r\n", "JSON": b'{"USER_ID": "u", "MAIN_DATA": {"TYPE": "TEST"}}',
        "gzip": b"\x1f\x8b\x08" + bytes(20), "zeros": bytes(1 << 20), "0xFF": b"\xff" * (1 << 20),
        "half a frame": b"\x80\x04\x95\x20\x00\x00\x00\x00\x00\x00\x00" + USER[:10],
        "the body inside itself": b"}q\x00(" + text("USER_ID") + b"h\x00" + text("MAIN_DATA") + b"h\x00u.",
    }.items():
        yield name, "pickle", body, "what is no message", "refused"
