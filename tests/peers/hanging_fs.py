"""A network file system whose server dies: `hanging_fs.py FOLDER SIZE HANG`.

Mounts a file system on FOLDER (FUSE, without a library) in which every name is a file of SIZE zeros. Of a file whose
name begins with "short", only half can be read. While a file HANG exists, no request is answered. Prints a line once
it is mounted, and ends with its parent.
"""

import ctypes
import os
import select
import signal
import struct
import sys

PR_SET_PDEATHSIG = 1
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR = 1, 2, 3, 14, 15, 18, 25, 26, 27, 29
NO_REPLY = (FORGET, 36, 42)  # and INTERRUPT, BATCH_FORGET
ENOSYS = 38
ROOT, WHOLE, SHORT = 1, 2, 3
DIRECT_IO = 1


def attributes(node, size):
    mode, length = (0o40755, 0) if node == ROOT else (0o100644, size)
    return struct.pack("<6Q10I", node, length, 0, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


def answer(opcode, node, body, size):
    if opcode == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 32, 0, *[0] * 8)
    if opcode == LOOKUP:
        found = SHORT if body.startswith(b"short") else WHOLE
        return struct.pack("<4Q2I", found, 0, 0, 0, 0, 0) + attributes(found, size)
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + attributes(node, size)
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<QII", 0, DIRECT_IO, 0)
    if opcode == READ:
        _, offset, count = struct.unpack_from("<QQI", body)
        end = size // 2 if node == SHORT else size
        return bytes(max(0, min(count, end - offset)))
    if opcode in (RELEASE, RELEASEDIR, FLUSH):
        return b""
    return None


def main():
    folder, size, hang = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    if libc.mount(b"hanging", os.fsencode(folder), b"fuse", 0, options.encode()) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    unanswered = []
    while True:
        if select.select([device], [], [], 0.02)[0]:
            unanswered.append(os.read(device, 1 << 20))
        while unanswered and not os.path.exists(hang):
            request = unanswered.pop(0)
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in NO_REPLY:
                continue
            body = answer(opcode, node, request[40:], size)
            error, body = (-ENOSYS, b"") if body is None else (0, body)
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


main()
