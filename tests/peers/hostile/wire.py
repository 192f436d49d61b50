"""How a hostile value is put into a message."""

import struct

SLOTS = ("FRAME_RENDERED", "RENDER_COMPLETED", "TEST", "BUFFER_MSG")
# Nested and cyclic values attack the peer's `repr`, which follows them to the end.
RECURSION = "recursion"


def text(value):
    """A str as BINUNICODE."""
    value = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(value)) + value


def in_pickle(slot, data, head=b"\x80\x04"):
    """A whole pickle with `data`, opcodes that push one value, in the given slot."""
    if slot == "BUFFER_MSG":
        inner = text("BUFFER_UUID") + text("hostile") + text("BUFFER_MSG") + data
        return head + b"}(" + text("TYPE") + text("ADD_BUFFER_MSG") + text("DATA") + b"}(" + inner + b"uu."
    inner = text("TYPE") + text(slot) + text("DATA") + data
    return head + b"}(" + text("USER_ID") + text("u") + text("MAIN_DATA") + b"}(" + inner + b"uu."


def in_json(slot, data):
    """A whole JSON document with the text `data` in the given slot."""
    if slot == "BUFFER_MSG":
        return b'{"TYPE": "ADD_BUFFER_MSG", "DATA": {"BUFFER_UUID": "hostile", "BUFFER_MSG": ' + data + b"}}"
    return b'{"USER_ID": "u", "MAIN_DATA": {"TYPE": "' + slot.encode() + b'", "DATA": ' + data + b"}}"
