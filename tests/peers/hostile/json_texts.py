"""JSON that attacks its reader."""

from hostile.wire import RECURSION

BAD = [
    "", "nul", "nulll", "True", "None", "undefined", "'a'", "a", "[", "]", "{", "}", "[1,]", "[,1]", "[1 2]",
    "{1: 2}", '{"a"}', '{"a":}', '{"a": 1,}', '{,}', '{"a" 1}', '{"a": 1 "b": 2}', "[1}", '{"a": 1]', "// x\n1",
    "1 /* x */", "#", "01", "-01", "1.", ".5", "+1", "-", "--1", "1e", "1e+", "1.e5", "0x10", "1_000", "1L", "nan",
    "NAN", "inf", "-NaN", "+Infinity", "infinity", "Infinityy", "-Infinity1", "1e5.5", "\u0661", "1\u00a02",
    "\u00a01", "\u20281", '"', '"a', '"\\', '"\\"', '"\\u"', '"\\u12"', '"\\u12g4"', '"\\u+123"', '"\\u 123"',
    '"\\U00000041"', '"\\x41"', '"\\a"', '"\\\'"', '"\\0"', '"\\ud83d\\u"', '"\\ud83d\\u12"', "\0", "1\0", "\f1",
    "\v1", "\ufeff1", "[\ufeff]",
]
SURROGATES = [
    '"\\ud800"', '"\\udbff"', '"\\udc00"', '"\\udfff"', '"a\\ud800b"', '"\\ud800\\ud800"', '"\\udc00\\ud800"',
    '"\\ud83d\\u0041"', '"\\ud83d\\ud83d\\ude00"', '"\\ud83dx\\ude00"', '"\\uD800"', '{"\\ud800": 1}',
    '[[[{"a": ["\\udfff"]}]]]', '{"a": "\\ud800", "a": 1}', '"\\ud83d\\\\ude00"', '"\\ud83d"',
]
GOOD = [
    "NaN", "Infinity", "-Infinity", "[NaN, {\"a\": -Infinity}]", "1e400", "-1e400", "1e999999999999",
    "1e-999999999999", "0e999999999999", "-0", "-0.0", "-0e0", "1E5", "1e+5", "0.1e-7",
    "123456789012345678901234567890", '{"a": 1, "a": 2}', '{"a": {"x": 1}, "b": 2, "a": [3]}',
    '{"a": 1, "\\u0061": 2}', '{"": 1, "": 2}', '{"a": NaN, "a": 1}', '"\\u0000"',
    '"\x7f\u0085\u2028\u2029\ufeff\uffff"', '"\\ud83d\\ude00"', '"\\uD83D\\uDE00"', '"\\ufeff\\uffff\\u202e"',
    '"\\/\\b\\f\\n\\r\\t\\"\\\\"', " \t\r\n[ \t\r\n] ", '{"TYPE": 1, "DATA": {"TYPE": 2}}',
    "\"" + "\\ud83d\\ude00" * 100 + "\"", "1." + "0" * 1_000 + "1", "0." + "9" * 100_000,
    "1" + "0" * 300 + ".5e-300",
]


def nested(depth):
    return {
        "lists": b"[" * depth + b"]" * depth,
        "lists that never end": b"[" * depth,
        "dicts": b'{"a":' * depth + b"1" + b"}" * depth,
        "dicts that never end": b'{"":' * depth,
        "lists in dicts": b'[{"a":' * (depth // 2) + b"1" + b"}]" * (depth // 2),
    }


def values():
    """A text that pretends to be one value: a name, the bytes, what is attacked, what is expected."""
    for text in BAD:
        yield repr(text), text.encode(), "reading JSON as Python does", "refused"
    for text in SURROGATES:
        yield text, text.encode(), "a str that has no UTF-8", "refused"
    for text in GOOD:
        yield repr(text[:40]), text.encode(), "reading JSON as Python does", "accepted"
    for depth in (190, 1_000, 10_000, 100_000, 1_000_000):
        for name, data in nested(depth).items():
            fits = depth == 190 and "never" not in name
            yield f"{depth} {name}", data, RECURSION, "accepted" if fits else "refused"
    for char in range(0x20):
        yield f"U+{char:04X} in a string", b'"a' + bytes([char]) + b'"', "control characters in strings", "refused"
    for name, data in {"0xFF": b"\xff", "an overlong NUL": b"\xc0\x80", "a surrogate": b"\xed\xa0\x80",
                       "beyond U+10FFFF": b"\xf4\x90\x80\x80", "a character cut short": b"\xe2\x82"}.items():
        yield f"{name} in a string", b'"' + data + b'"', "reading UTF-8", "refused"
    digits = "reading decimal digits, the time of which grows with their square"
    yield "an int of a million digits", b"7" * 1_000_000, digits, "refused"
    yield "an int of 65,536 digits", b"-" + b"7" * 65_536, digits, "accepted"
    yield "65 ints of 65,536 digits", b"[" + b",".join([b"7" * 65_536] * 65) + b"]", digits, "refused"
    yield "1,000 ints of 4,300 digits", b"[" + b",".join([b"7" * 4_300] * 1_000) + b"]", digits, "accepted"
    yield "a float of a million digits", b"0." + b"7" * 1_000_000, digits, "accepted"
    yield "an exponent of a million digits", b"1e" + b"7" * 1_000_000, digits, "accepted"
    flood = "the tables of values"
    yield "100,000 lists", b"[" + b"[]," * 99_999 + b"[]]", flood, "accepted"
    yield "five million ints", b"[" + b"1," * 4_999_999 + b"1]", flood, "refused"
    yield "200,000 keys that are one", b"{" + b'"a":1,' * 199_999 + b'"a":1}', flood, "accepted"
    yield "50,000 keys", b"{" + b",".join(b'"%d":1' % n for n in range(50_000)) + b"}", flood, "accepted"
    yield "a MiB of white space", b" " * (1 << 20) + b"1", flood, "accepted"
    yield "a MiB of escapes", b'"' + b"\\u0041" * 174_762 + b'"', "reading escapes", "accepted"
    yield "a MiB of escapes, one wrong", b'"' + b"\\u0041" * 174_762 + b'\\x"', "reading escapes", "refused"
    yield "a key of a MiB", b'{"' + b"k" * (1 << 20) + b'": 1}', "keys", "accepted"


MESSAGES = [('{"USER_ID": "u", "MAIN_DATA": {"TYPE": "FRAME_RENDERED", "DATA": 1}}', "user"),
            ('{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "hostile", "BUFFER_MSG": 1}}', "order")]


def bodies():
    """Whole bodies: a name, the format, the bytes, what is attacked, what is expected."""
    for text, of in MESSAGES:
        for name, body in {
            "with a BOM": b"\xef\xbb\xbf" + text.encode(), "in UTF-16": text.encode("utf-16"),
            "in UTF-16 without a BOM": text.encode("utf-16-be"), "in UTF-32": text.encode("utf-32"),
            "in UTF-32 without a BOM": text.encode("utf-32-le"), "in white space": b" \r\n\t" + text.encode() + b"\n",
        }.items():
            # Valid for one call; the other lacks its keys.
            yield f"the {of} message {name}", "json", body, "finding out the encoding", "either"
        for name, body in {
            "with two BOMs": b"\xef\xbb\xbf" * 2 + text.encode(), "with half a BOM": b"\xef\xbb" + text.encode(),
            "with a BOM behind": text.encode() + b"\xef\xbb\xbf", "in UTF-16 cut short": text.encode("utf-16")[:-1],
            "in UTF-32 cut short": text.encode("utf-32")[:-3], "in UTF-7": b"+" + text.encode("utf-7"),
            "with a BOM of UTF-16 before UTF-8": b"\xff\xfe" + text.encode(),
            "with garbage behind": text.encode() + b"x", "with a NUL behind": text.encode() + b"\0",
            "twice": text.encode() * 2, "with a comma behind": text.encode() + b",",
            "in UTF-16 with half a pair": text.replace("E", "\ud800", 1).encode("utf-16", "surrogatepass"),
            "in UTF-32 with a number too large": text.encode("utf-32-le") + b"\xff\xff\xff\x7f",
        }.items():
            yield f"the {of} message {name}", "json", body, "finding out the encoding and the end", "refused"
    for name, text in {
        "an empty body": "", "white space": "  \n", "null": "null", "a list": "[]", "an int": "7", "a string": '"u"',
        "an empty dict": "{}", "a dict of other types": '{"USER_ID": 1, "MAIN_DATA": [], "TYPE": null, "DATA": "x"}',
        "a TYPE that is a list": '{"USER_ID": "u", "MAIN_DATA": {"TYPE": []}, "TYPE": []}', "a pickle": "\x80\x04N.",
        "HTML": "<html>", "zeros": "\0" * 1_000_000, "a BOM alone": "\ufeff",
    }.items():
        yield name, "json", text.encode(), "what is no message", "refused"
