"""System calls that Python does not offer. Linux only: elsewhere they raise OSError, as on a kernel without them."""

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """A function of the C library that gives a negative number and an errno when it fails."""
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(38, f"this system has no {name}")
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number: int, *arguments: object) -> int:
    """A system call that the C library has no function for."""
    return call("syscall", ctypes.c_long(number), *arguments)


def process_control(option: int, *values: int | ctypes.Structure) -> None:
    """prctl(2); a structure is passed by its address."""
    given = [
        ctypes.byref(value) if isinstance(value, ctypes.Structure) else ctypes.c_ulong(value or 0) for value in values
    ]
    unused = [ctypes.c_ulong(0)] * (4 - len(given))
    call("prctl", ctypes.c_int(option), *given, *unused)


def count_threads() -> int:
    """Threads of this process, also those that Python does not know of."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Threads:"):
            return int(line.split()[1])
    raise OSError("/proc/self/status does not tell the number of threads")
