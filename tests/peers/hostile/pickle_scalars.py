"""Pickles whose scalars lie: lengths, UTF-8, numbers and strings in text."""

import struct

LENGTHS = {"BINBYTES8": b"\x8e", "BINUNICODE8": b"\x8d", "BYTEARRAY8": b"\x96", "FRAME": b"\x95"}
UTF8 = {
    "0xFF": b"\xff", "an overlong NUL": b"\xc0\x80", "an overlong slash": b"\xe0\x80\xaf",
    "an overlong euro": b"\xf0\x82\x82\xac", "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "a lone continuation": b"a\x80", "a character cut short": b"\xe2\x82", "a surrogate cut short": b"\xed\xa0",
}
INT = [
    "", "x", "-", "+1", "--1", "1-", "0x10", "0b1", "0o7", "010", "-0", "1_000", " 1", "1 ", "1L", "1.0", "1e3",
    "00x", "001", "+01", "1\r", "1\0", "\u0661",
]
LONG = [*INT, "L", "5LL", "5l", "-L", "0xFFL"]
FLOAT = [
    "", "x", "-", "1e", "1e+", "1_0", "0x1p3", "1e400", "-1e400", " 1", "1 ", "1,5", "infinity", "INF", "+inf",
    "nan(1)", "+nan", "1.5.5", ".", ".5", "5.", "1\0", "1f", "1e5", "1E-400", "0." + "0" * 100_000 + "1",
]
STRING = [
    "", "x", "'", '"', "'x", "x'", "'x\"", "'\\'", "'\\x4'", "'\\xg0'", "'\\q'", "'\\xe9'", "'\\u0041'", "'\\0'",
    "'\\101'", "'\\\n'", "''x", "'a'b'", " 'a'", "'a' ", "'\xe9'",
]
UNICODE = [
    "", "\\u", "\\u12", "\\u12g4", "\\U0001f60", "\\U00110000", "\\Uffffffff", "\\ud800", "\\udc00\\ud800", "\\",
    "\\\\u0041", "\\\\\\u0041", "\\x41", "\\N{DIGIT ONE}", "a\rb", "\xff", "\\u 041", "\\u+041",
]


def lengths():
    attacks = "readers that allocate what a length says"
    for name, opcode in LENGTHS.items():
        for length in (1_000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1):
            yield f"{name} of {length}", opcode + struct.pack("<Q", length) + b"N", attacks, "refused"
    for name, opcode in {"BINBYTES": b"B", "BINUNICODE": b"X"}.items():
        for length in (1_000, 2**31 - 1, 2**31, 2**32 - 1):
            yield f"{name} of {length}", opcode + struct.pack("<I", length), attacks, "refused"
    for name, opcode in {"LONG4": b"\x8b", "BINSTRING": b"T"}.items():
        for length in (1_000, 2**31 - 1, -1, -(2**31)):
            yield f"{name} of {length}", opcode + struct.pack("<i", length), attacks, "refused"
    for name, opcode in {"SHORT_BINBYTES": b"C", "SHORT_BINUNICODE": b"\x8c", "SHORT_BINSTRING": b"U",
                         "LONG1": b"\x8a"}.items():
        yield f"{name} of 255", opcode + b"\xff", attacks, "refused"
    yield "a frame within a frame", b"\x95" + struct.pack("<Q", 10) + b"\x95" + struct.pack("<Q", 1) + b"N", (
        "where frames end"), "refused"
    yield "a frame that ends within an opcode", b"\x95" + struct.pack("<Q", 3) + b"J\x01\0\0\0", (
        "where frames end"), "refused"
    yield "LONG1 of nothing", b"\x8a\x00", "ints without bytes", "accepted"
    yield "LONG4 of nothing", b"\x8b\x00\x00\x00\x00", "ints without bytes", "accepted"


def strings():
    for name, data in UTF8.items():
        for opcode in (b"\x8c" + bytes([len(data)]), b"X" + struct.pack("<I", len(data)),
                       b"\x8d" + struct.pack("<Q", len(data))):
            yield f"{name} by 0x{opcode[0]:02x}", opcode + data, "reading UTF-8", "refused"
        yield f"{name} as a key", b"}\x8c" + bytes([len(data)]) + data + b"Ns", "reading UTF-8", "refused"
    for name, data in {"a lone surrogate": b"\xed\xa0\x80",
                       "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80"}.items():
        yield name, b"\x8c" + bytes([len(data)]) + data, "reading UTF-8", "accepted"
        yield f"{name} as a key", b"}\x8c" + bytes([len(data)]) + data + b"Ns", "reading UTF-8", "accepted"
    yield "a string of Python 2 that is not ASCII", b"U\x01\xe9", "reading ASCII", "refused"
    yield "a MiB of surrogates", b"X" + struct.pack("<I", 3 * 349_525) + b"\xed\xa0\x80" * 349_525, (
        "reading UTF-8, one error after another"), "accepted"
    yield "a MiB of escapes", b"V" + b"\\u0041" * 174_762 + b"\n", "reading escapes", "accepted"
    yield "a MiB of backslashes", b"V" + b"\\" * (1 << 20) + b"\n", "reading escapes", "accepted"
    yield "a MiB of quoted escapes", b"S'" + b"\\x41" * (1 << 18) + b"'\n", "reading escapes", "accepted"


def numbers():
    digits = "reading decimal digits, the time of which grows with their square"
    for name, opcode, end in (("INT", b"I", b"\n"), ("LONG", b"L", b"L\n")):
        for sign in (b"", b"-"):
            data = opcode + sign + b"7" * 1_000_000 + end
            yield f"{name} of a million digits {sign.decode()}", data, digits, "refused"
            yield f"{name} of 65,536 digits {sign.decode()}", opcode + sign + b"7" * 65_536 + end, digits, "accepted"
    yield "64 times LONG of 65,536 digits", b"(" + (b"L" + b"7" * 65_536 + b"L\n") * 64 + b"t", digits, "accepted"
    yield "65 times LONG of 65,536 digits", b"(" + (b"L" + b"7" * 65_536 + b"L\n") * 65 + b"t", digits, "refused"
    yield "1,000 times LONG of 4,300 digits", b"(" + (b"L" + b"7" * 4_300 + b"L\n") * 1_000 + b"t", digits, "accepted"
    million = struct.pack("<i", 1 << 20)
    yield "LONG4 of a MiB", b"\x8b" + million + b"\x7f" * (1 << 20), "writing it in decimal", "accepted"
    yield "LONG4 of a MiB of 0xFF", b"\x8b" + million + b"\xff" * (1 << 20), "ints not at their shortest", "accepted"
    for name, data in {"NaN": b"\x7f\xf8\0\0\0\0\0\0", "another NaN": b"\xff\xf0\0\0\0\0\0\1",
                       "Infinity": b"\x7f\xf0\0\0\0\0\0\0", "-Infinity": b"\xff\xf0\0\0\0\0\0\0",
                       "the smallest": b"\0\0\0\0\0\0\0\1"}.items():
        yield f"BINFLOAT {name}", b"G" + data, "writing JSON", "accepted"


def values():
    """Opcodes that push what pretends to be one value: a name, the opcodes, what is attacked, what is expected."""
    for part in (lengths, strings, numbers):
        yield from part()
    for name, opcode, lines in (("INT", b"I", INT), ("LONG", b"L", LONG), ("FLOAT", b"F", FLOAT),
                                ("STRING", b"S", STRING), ("UNICODE", b"V", UNICODE)):
        for line in lines:
            data = opcode + line.encode("latin-1" if line != "\u0661" else "utf-8") + b"\n"
            yield f"{name} {line[:20]!r}", data, "reading text as protocol 0 writes it", "either"
