"""CPython as the judge of the codec: makes messages, and checks what was made of them.

Three kinds of them: as picklers and `json` write them, which must be accepted; these with random bytes changed; and
pickles of opcodes in an order that no pickler writes. Whatever is taken, CPython must take with the same values.

Speaks over stdin and stdout. A request is a call ("U": of a worker, "C": of the communication interface), a format
("J", "P"), and the body behind its length; the answer is an outcome and texts behind their lengths. "D" ends the run.

    codec_peer.py SEED VALID MUTATED ASSEMBLED
"""
import contextlib
import io
import json
import math
import pickle
import pickletools
import random
import struct
import sys
import traceback
import unicodedata

LIMIT = sys.get_int_max_str_digits()
sys.set_int_max_str_digits(0)
PROTOCOLS = range(6)
sys.setrecursionlimit(20_000)


# Over the pipes

def ask(call, form, body):
    sys.stdout.buffer.write(call.encode() + form.encode() + struct.pack("<I", len(body)) + body)
    sys.stdout.buffer.flush()
    outcome, count = struct.unpack("<cB", sys.stdin.buffer.read(2))
    texts = []
    for _ in range(count):
        (length,) = struct.unpack("<I", sys.stdin.buffer.read(4))
        texts.append(sys.stdin.buffer.read(length))
    return outcome.decode(), texts


# Values

PLAIN = ["", "a", "TYPE", "DATA", "é", "日本", "😀", "\\u0041", "\\", "a\nb\r\x00\x1a", "'\"", "x" * 300,
         "\x7f\x80\xff"]
BYTES = [b"", b"a", b"\x00\xff\n'\\", bytes(range(256)), b"x" * 5000, b"y" * 70_000]
INTS = [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -2**31, -2**31 - 1, 2**63, -2**63, 2**64, 10**400,
        10**4299, -10**4300 + 1, 10**4300, -7 * 10**19_999, 2**2039, 2**2040, -2**2039]
FLOATS = [0.0, -0.0, 1.0, -1.5, 1e16, 1e22, 1e-7, 5e-324, 1.7976931348623157e308, 0.1, math.pi, 123456789.125]


def scalar(r, rich, hashable=False):
    pick = r.randrange(12)
    if pick == 0:
        return None
    if pick == 1:
        return r.random() < 0.5
    if pick in (2, 3):
        return r.choice(INTS) if r.random() < 0.3 else r.randrange(-2**r.randrange(1, 70), 2**r.randrange(1, 70))
    if pick == 4:
        return r.choice(FLOATS) if r.random() < 0.5 else struct.unpack("<d", r.randbytes(8))[0]
    if pick == 5 and rich:
        return r.choice([math.nan, math.inf, -math.inf])
    if pick in (6, 7) and rich:
        content = r.choice(BYTES) if r.random() < 0.5 else r.randbytes(r.randrange(600))
        return content if hashable or pick == 6 else bytearray(content)
    if pick == 8 and rich and r.random() < 0.2:
        return r.choice(["\ud800", "a\udfff", "\ud83d\ude00"])
    if r.random() < 0.5:
        return r.choice(PLAIN)
    return "".join(chr(r.choice([r.randrange(32, 127), r.randrange(0xD800), r.randrange(0xE000, 0x110000)]))
                   for _ in range(r.randrange(12)))


def value(r, depth, rich, pool, hashable=False):
    if depth == 0 or r.random() < 0.3:
        return scalar(r, rich, hashable)
    if pool and not hashable and r.random() < 0.15:
        return r.choice(pool)
    size = r.choice([0, 1, 1, 2, 3, 4, 8])
    items = [value(r, depth - 1, rich, pool, hashable) for _ in range(size)]
    kind = r.randrange(3) if hashable else r.randrange(8)
    if hashable:
        return [tuple(items), frozenset(items), scalar(r, rich, True)][kind]
    if kind in (0, 1):
        made = items
    elif kind == 2:
        made = tuple(items)
    elif kind == 3 and rich:
        make = r.choice([set, frozenset])
        made = make(value(r, min(depth - 1, 2), rich, pool, True) for _ in range(size))
    else:
        any_key = rich and r.random() < 0.3
        made = {value(r, 1, rich, pool, True) if any_key else r.choice(PLAIN) + str(r.randrange(99)): item
                for item in items}
    pool.append(made)
    return made


def tie(r, pool):
    """Puts containers into one another, so that cycles come about."""
    for _ in range(r.randrange(1, 4)):
        holder = r.choice(pool) if pool else None
        if isinstance(holder, list):
            holder.append(r.choice(pool))
        elif isinstance(holder, dict):
            holder["cycle"] = r.choice(pool)


def nested(r, depth):
    made = scalar(r, False)
    for _ in range(depth):
        made = r.choice([lambda: [made], lambda: (made,), lambda: {"k": made}, lambda: [1, made, 2]])()
    return made


# Picklers

class Forgetful(pickle._Pickler):
    """Keeps only some values in the memo."""
    def memoize(self, obj):
        if self.random.random() < 0.5 and id(obj) not in self.memo:
            super().memoize(obj)


def dumps(r, message, cyclic):
    protocol = r.choice(PROTOCOLS)
    choice = r.randrange(5 if cyclic else 7)
    imports = r.random() < 0.8
    if choice in (0, 1):
        return pickle.dumps(message, protocol, fix_imports=imports)
    if choice == 2:
        return pickle._dumps(message, protocol, fix_imports=imports)
    if choice in (3, 4):
        return pickletools.optimize(r.choice([pickle.dumps, pickle._dumps])(message, protocol))
    out = io.BytesIO()
    if choice == 5:
        pickler = pickle.Pickler(out, protocol)
        pickler.fast = True
    else:
        pickler = Forgetful(out, protocol)
        pickler.random = r
    try:
        pickler.dump(message)
    except KeyError:
        # CPython's own `fast` mode trips over what is both nested deeply and shared.
        return pickle.dumps(message, protocol)
    return out.getvalue()


class Careful(pickle.Unpickler):
    def find_class(self, module, name):
        known = {"_codecs": ["encode"]} | dict.fromkeys(
            ["builtins", "__builtin__"], ["set", "frozenset", "bytes", "bytearray"])
        if name not in known.get(module, []):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def careful_loads(body):
    return Careful(io.BytesIO(body)).load()


# Equality

def frozen(x):
    """What identifies a hashable value exactly."""
    if type(x) is tuple:
        return ("tuple", [frozen(item) for item in x])
    if type(x) is frozenset:
        return ("frozenset", sorted((frozen(item) for item in x), key=repr))
    if type(x) is float:
        return ("float", struct.pack("<d", x) if x == x else b"nan")
    return (type(x).__name__, x)


def same(a, b, sharing, seen=None):
    """Whether two values are equal to the type and the order of keys, and share alike what they share."""
    seen = {} if seen is None else seen
    if type(a) is not type(b):
        return False
    if sharing and type(a) in (list, dict, tuple, set, bytearray):
        if id(a) in seen:
            return seen[id(a)] == id(b)
        seen[id(a)] = id(b)
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(same(x, y, sharing, seen) for x, y in zip(a, b))
    if type(a) is dict:
        return len(a) == len(b) and all(
            frozen(k) == frozen(m) and same(x, y, sharing, seen) for (k, x), (m, y) in zip(a.items(), b.items()))
    if type(a) in (set, frozenset):
        return sorted((frozen(x) for x in a), key=repr) == sorted((frozen(x) for x in b), key=repr)
    return frozen(a) == frozen(b)


def json_form(x, path=()):
    """The value as JSON gives it back, or ValueError."""
    if x is None or type(x) is bool:
        return x
    if type(x) is int:
        with as_peers_are():
            str(x)
        return x
    if type(x) is float:
        if not math.isfinite(x):
            raise ValueError
        return x
    if type(x) is str:
        x.encode()
        return x
    if type(x) in (list, tuple, dict):
        if id(x) in path:
            raise ValueError
        path += (id(x),)
        if type(x) is not dict:
            return [json_form(item, path) for item in x]
        if not all(type(key) is str for key in x):
            raise ValueError
        return {json_form(key, path): json_form(item, path) for key, item in x.items()}
    raise ValueError


# Checks

@contextlib.contextmanager
def as_peers_are():
    """With the setting that CPython starts with, which limits the digits of an int."""
    sys.set_int_max_str_digits(LIMIT)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(0)


def load_all(body):
    """The value as both unpicklers see it."""
    with as_peers_are():
        first, second = pickle.loads(body), pickle._loads(body)
    assert same(first, second, True), "the two unpicklers disagree"
    return first


def check_user(message, outcome, texts, valid):
    main = message["MAIN_DATA"]
    kind = main["TYPE"]
    if kind == "TEST":
        assert outcome == "T", outcome
        shown = texts[1].decode()
        assert len(texts[1]) <= 1024 and not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in shown), shown
        return
    if kind not in ("FRAME_RENDERED", "RENDER_COMPLETED"):
        assert outcome == "O" and texts[1].decode() == kind.encode(errors="replace").decode()[:1024], texts
        return
    data, user = main["DATA"], message["USER_ID"]
    expected = {"TYPE": kind, "DATA": data, "USER_ID": user}
    want = "P"
    if kind == "RENDER_COMPLETED":
        expected = {"TYPE": kind, "DATA": data, "MESSAGE": data, "USER_ID": user}
        try:
            plain = json_form(data)
            expected = {"TYPE": kind, "DATA": plain, "MESSAGE": plain, "USER_ID": json_form(user)}
            want = "J"
        except ValueError:
            pass
    if outcome == "P" and want == "J" and not valid:
        # What a repeated key's later value has replaced has its say in the choice of the form.
        expected, want = {"TYPE": kind, "DATA": data, "MESSAGE": data, "USER_ID": user}, "P"
    assert outcome == want, (outcome, want, texts[0][:200])
    body = texts[1]
    with as_peers_are():
        got = load_all(body) if want == "P" else json.loads(body)
    assert list(got) == ["TYPE", "DATA"] and got["TYPE"] == "MESSAGE_FOR_USER_MANAGER", got
    got = got["DATA"]
    assert list(got) == ["TYPE", "DATA"] and got["TYPE"] == "USER_MESSAGE", got
    got = got["DATA"]
    assert same(got, expected, want == "P"), "not the value that was sent"
    if kind == "RENDER_COMPLETED" and want == "P":
        assert got["DATA"] is got["MESSAGE"], "not the same object"


def check_interface(message, outcome, texts):
    assert outcome == "B", (outcome, texts)
    uuid, pickled, offset, path = texts
    expected = message["DATA"]["BUFFER_MSG"]
    assert uuid.decode() == message["DATA"]["BUFFER_UUID"]
    data = expected.get("DATA") if type(expected) is dict else None
    if type(data) is dict and data.get("META_DATA") == "EXTRACT_BLEND_FILE_FROM_PATH":
        asked = data.get("BINARY_BLEND_FILE")
        usable = type(asked) is str and asked and not has_surrogates(asked)
        assert path == (b"+" + asked.encode() if usable else b"-"), (path, asked)
        if usable:
            at = int(offset)
            file = b"BLENDER" * 100
            pickled = pickled[:at] + b"B" + struct.pack("<I", len(file)) + file + pickled[at:]
            data["BINARY_BLEND_FILE"] = file
    else:
        assert path == b"", path
    assert same(load_all(pickled), expected, True), "not the value that was sent"


# Messages

def user_message(r, data):
    kind = r.choice(["FRAME_RENDERED"] * 4 + ["RENDER_COMPLETED"] * 4 + ["TEST", "other"])
    user = r.choice(["worker-1", "", "é😀", "u" * 300, "user\n\x1b"])
    main = [("TYPE", kind), ("DATA", data)]
    message = [("USER_ID", user), ("MAIN_DATA", None)]
    if r.random() < 0.3:
        main.append(("extra", scalar(r, False)))
        message.append(("extra", data))
    r.shuffle(main)
    r.shuffle(message)
    return {key: dict(main) if key == "MAIN_DATA" else item for key, item in message}


def interface_message(r, data):
    message = data
    if r.random() < 0.5:
        inner = [("META_DATA", r.choice(["EXTRACT_BLEND_FILE_FROM_PATH"] * 4 + ["other", 1])), ("more", data),
                 ("BINARY_BLEND_FILE", r.choice(["/farm/a.blend", "é.blend"] * 4 + ["", "a\0b", 5, None]))]
        if r.random() < 0.1:
            inner.pop()
        r.shuffle(inner)
        inner = dict(inner)
        message = {"TYPE": "RENDER", "DATA": inner, "same": inner if r.random() < 0.3 else 1}
    uuid = r.choice(["id", "é" * 2048, "x" * 300])
    return {"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": uuid, "BUFFER_MSG": message}}


def json_body(r, message):
    body = json.dumps(message, ensure_ascii=r.random() < 0.5, indent=r.choice([None, None, 1]))
    if r.random() < 0.2:
        body = body.replace('"TYPE": ', '"TYPE": 0, "TYP\\u0045": ', 1)
    encoding = r.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le",
                                         "utf-32-be"])
    return body.encode(encoding)


def make(r):
    """A message, as call, format and body."""
    form = r.choice("JPPP")
    rich = form == "P" and r.random() < 0.6
    pool = []
    data = nested(r, r.randrange(150, 201)) if r.random() < 0.04 else value(r, r.randrange(6), rich, pool)
    cyclic = form == "P" and r.random() < 0.15
    if cyclic:
        tie(r, pool)
    if form == "J" and r.random() < 0.1:
        data = [data, r.choice([math.nan, math.inf, -math.inf])]
    call = r.choice("UUUC")
    message = user_message(r, data) if call == "U" else interface_message(r, data)
    return call, form, json_body(r, message) if form == "J" else dumps(r, message, cyclic)


def mutate(r, body):
    body = bytearray(body)
    for _ in range(r.choice([1, 1, 1, 2, 4])):
        at = r.randrange(len(body))
        choice = r.randrange(6)
        if choice == 0:
            body[at] = r.randrange(256)
        elif choice == 1:
            body[at] ^= 1 << r.randrange(8)
        elif choice == 2:
            body[at:at] = bytes([r.choice(b"()]}lt0123abeqrhjpgu.sd\x85\x86\x87\x88\x8f\x90\x91\x94\x95N")])
        elif choice == 3:
            del body[at:at + r.randrange(1, 4)]
        elif choice == 4:
            end = r.randrange(at, min(len(body), at + 40) + 1)
            to = r.randrange(len(body))
            body[to:to] = body[at:end]
        elif r.random() < 0.3:
            del body[at:]
        if not body:
            break
    return bytes(body)


def assemble(r):
    """A worker's message whose data is made by opcodes that no pickler would put in this order."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s
    pushes = [lambda: r.choice([b"N", b"\x88", b"\x89", b"]", b"}", b"\x8f", b")"]),
              lambda: b"K" + r.randbytes(1), lambda: b"\x8a\x01" + r.randbytes(1), lambda: b"G" + r.randbytes(8),
              lambda: text(r.choice([b"", b"a", b"latin1", b"\xc3\xa9", b"\xed\xa0\x80", b"\xed\x9f", b"_codecs",
                                     b"encode", b"builtins", b"set"])),
              lambda: b"V" + r.choice([b"\\u00e9", b"\\\\u12", b"\\u12", b"\xe9", b"\\U0001f600", b"\\"]) + b"\n",
              lambda: b"S" + r.choice([b"'a'", b"'\\x41'", b"'", b"\"a\\n\"", b"'\\xe9'", b"'a\""]) + b"\n",
              lambda: r.choice([b"I01\n", b"I-7\n", b"I1\n", b"L12L\n", b"L5\n", b"I0x1\n", b"L\n", b"I1_0\n",
                                b"I 1\n"]),
              lambda: r.choice([b"F1.5\n", b"Finf\n", b"F-nan\n", b"F1e400\n", b"F1_0\n", b"F.5\n", b"F1.\n",
                                b"F 1\n", b"F1e5\n"]),
              lambda: b"C\x01a", lambda: b"\x96\x01" + bytes(7) + b"a",
              lambda: r.choice([b"h", b"j"]) + bytes([r.randrange(4)]) + b"", lambda: b"g%d\n" % r.randrange(4),
              lambda: b"c" + r.choice([b"builtins\nset", b"builtins\nfrozenset", b"__builtin__\nset",
                                       b"_codecs\nencode", b"builtins\nbytes", b"builtins\nbytearray",
                                       b"builtins\nlist"]) + b"\n",
              lambda: b"cbuiltins\nset\n]" + r.choice([b"", b"K\x01a", b"]a"]) + b"\x85R",
              lambda: (b"c_codecs\nencode\n" + text(r.choice([b"a", b"\xc3\xa9", b"\xc4\x80"]))
                       + text(b"latin1") + b"\x86R")]
    program, depths = [b"("], [0]
    for _ in range(r.randrange(1, 16)):
        depth = depths[-1]
        choice = r.randrange(8)
        if depth == 0 or choice < 3:
            opcode, change = r.choice(pushes)(), 1
            if opcode[:1] == b"j":
                opcode += bytes(3)
        elif choice == 3:
            opcode, change = r.choice([b"q", b"r"]) + bytes([r.randrange(4)]), 0
            if opcode[:1] == b"r":
                opcode += bytes(3)
        elif choice == 4:
            opcode, change = r.choice([(b"\x94", 0), (b"2", 1), (b"0", -1), (b"\x85", 0), (b"p1\n", 0)])
        elif choice == 5 and depth >= 2:
            opcode, change = r.choice([(b"a", -1), (b"\x86", -1), (b"R", -1), (b"\x93", -1)])
        elif choice == 6 and depth >= 3:
            opcode, change = r.choice([(b"s", -2), (b"\x87", -2)])
        elif len(depths) > 1 and r.random() < 0.7:
            opcode = r.choice([b"t", b"l", b"d", b"\x91", b"e", b"u", b"\x90", b"1"])
            change = int(opcode in (b"t", b"l", b"d", b"\x91"))
            depths.pop()
        else:
            opcode, change = b"(", 0
            depths.append(0)
        program.append(opcode)
        if opcode != b"(":
            depths[-1] += change
    program += [b"t"] * len(depths)
    kind = r.choice([b"FRAME_RENDERED", b"RENDER_COMPLETED"])
    protocol = r.choice([b"", b"\x80\x02", b"\x80\x04"])
    return protocol + b"}(" + text(b"USER_ID") + text(b"u") + text(b"MAIN_DATA") + b"}(" + text(b"DATA") + b"".join(
        program) + r.choice([b"", b"\x94"]) + text(b"TYPE") + text(kind) + b"uu."


def has_surrogates(x):
    if type(x) is str:
        return any(0xD800 <= ord(c) < 0xE000 for c in x)
    if type(x) is dict:
        return any(map(has_surrogates, x.items()))
    return type(x) in (list, tuple) and any(map(has_surrogates, x))


def well_formed(call, message):
    def at(outer, key, kind):
        return type(outer) is dict and type(outer.get(key)) is kind

    if call == "U":
        if not (at(message, "USER_ID", str) and at(message, "MAIN_DATA", dict)):
            return False
        main = message["MAIN_DATA"]
        if not at(main, "TYPE", str):
            return False
        return "DATA" in main or main["TYPE"] not in ("FRAME_RENDERED", "RENDER_COMPLETED")
    if not (at(message, "TYPE", str) and message["TYPE"] == "ADD_BUFFER_MSG" and at(message, "DATA", dict)):
        return False
    data = message["DATA"]
    return at(data, "BUFFER_UUID", str) and 1 <= len(data["BUFFER_UUID"].encode()) <= 4096 and "BUFFER_MSG" in data


def judge(call, form, body, valid):
    outcome, texts = ask(call, form, body)
    loads = json.loads if form == "J" else careful_loads
    if outcome == "E":
        assert not valid, f"refused: {texts}"
        if form == "J":
            try:
                message = loads(body)
            except (ValueError, RecursionError):
                return False
            pairs = json.loads(body, object_pairs_hook=list)
            assert has_surrogates(pairs) or not well_formed(call, message), f"refused: {texts}"
        return False
    message = loads(body)
    if form == "J":
        assert not has_surrogates(message), "surrogates were let through"
    if call == "U":
        check_user(message, outcome, texts, valid)
    else:
        check_interface(message, outcome, texts)
    return True


def main(seed, *counts):
    r = random.Random(seed)
    taken = [0, 0, 0]
    for choice, count in enumerate(counts):
        for number in range(count):
            call, form, body = ("U", "P", assemble(r)) if choice == 2 else make(r)
            while choice == 1 and len(body) > 3000:
                call, form, body = make(r)
            if choice == 1:
                body = mutate(r, body)
            try:
                taken[choice] += judge(call, form, body, choice == 0)
            except BaseException:
                case = f"choice {choice}, case {number} of seed {seed}, {call}{form}"
                return f"{case}\n{traceback.format_exc()[-3000:]}\n{body[:3000]!r}", False
    counted = zip(taken, counts, ("valid", "mutated", "assembled"))
    return "taken: " + ", ".join(f"{some} of {count} {kind}" for some, count, kind in counted), True


def end(summary, passed):
    summary = summary.encode(errors="replace")
    sys.stdout.buffer.write(b"D" + (b"+" if passed else b"-") + struct.pack("<I", len(summary)) + summary)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    end(*main(*map(int, sys.argv[1:])))
