"""Stops one thread of a process, as a debugger would, until the end of stdin. The other threads run on.

Argument: the thread. Prints `hanging` once the thread has stopped.
"""

import ctypes
import os
import sys

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace({request:#x}, {thread}): {os.strerror(number)}")


thread = int(sys.argv[1])
ptrace(SEIZE, thread)
ptrace(INTERRUPT, thread)
os.waitpid(thread, WALL)
print("hanging", flush=True)
sys.stdin.read()
ptrace(DETACH, thread)
