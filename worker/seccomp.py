"""A filter of system calls (seccomp): what no job needs, and what would lead out of its process, is refused.

A job's process may have threads, but starts no other process; it may only signal itself; of sockets it has none but
local ones, and cannot connect these. With that it needs no privileges, and there is no tree to kill.
"""

import ctypes
import errno
import os
import platform
import struct

from worker.kernel import process_control
from worker.system_calls import ABSENT, CLONE, PRCTL, PRLIMIT, REFUSED, SIGNALS, SOCKET

_SET_SECCOMP, _MODE_FILTER = 22, 2
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000
_AF_UNIX, _SOCK_DGRAM, _SOCK_TYPE = 1, 2, 0xF
_CLONE_THREAD = 0x10000
_SET_PDEATHSIG = 1

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def is_available() -> bool:
    """Whether the kernel filters system calls, and this is a machine whose calls are known here."""
    if platform.machine() not in _ARCHITECTURES:
        return False
    try:
        process_control(_SET_SECCOMP, _MODE_FILTER)
    except OSError as error:
        return error.errno == errno.EFAULT  # it would have taken a filter
    return True


def install() -> None:
    """Filter the calls of this thread and of all that come of it, for good. `no_new_privs` must be set.

    Raises:
        OSError: the kernel does not do it, or this machine's calls are not known here.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the system calls of {platform.machine()} are not known here")
    program = b"".join(_instructions(*_ARCHITECTURES[platform.machine()], os.getpid()))
    process_control(_SET_SECCOMP, _MODE_FILTER, _Program(len(program) // 8, program))


def _instructions(architecture: int, column: int, own: int) -> list[bytes]:
    allow, refuse = _return(_ALLOW), _return(_ERRNO | errno.EPERM)
    denied, absent = _return(_ERRNO | errno.EACCES), _return(_ERRNO | errno.ENOSYS)
    own_or_zero = [_load(_ARGUMENTS), _jump(_EQUAL, 0, 2, 0), _jump(_EQUAL, own, 1, 0), refuse, allow]
    rules = [(numbers, [refuse]) for numbers in REFUSED.values()]
    rules += [(numbers, [absent]) for numbers in ABSENT.values()]
    rules += [(numbers, [_load(_ARGUMENTS), _jump(_EQUAL, own, 1, 0), refuse, allow]) for numbers in SIGNALS.values()]
    rules += [(PRLIMIT, own_or_zero)]
    rules += [(CLONE, [_load(_ARGUMENTS), _jump(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse, allow])]
    rules += [(PRCTL, [_load(_ARGUMENTS), _jump(_EQUAL, _SET_PDEATHSIG, 0, 1), refuse, allow])]
    local = [_load(_ARGUMENTS), _jump(_EQUAL, _AF_UNIX, 1, 0), denied]
    stream = [_load(_ARGUMENTS + 8), _pack(_AND, _SOCK_TYPE), _jump(_EQUAL, _SOCK_DGRAM, 0, 1), denied, allow]
    rules += [(SOCKET, [*local, *stream])]
    program = [_load(_ARCHITECTURE), _jump(_EQUAL, architecture, 1, 0), _return(_KILL), _load(_NUMBER)]
    if column == 0:
        program += [_jump(_AT_LEAST, _X32, 0, 1), absent]
    for numbers, answer in rules:
        number = numbers[column]
        if number is not None:
            program += [_jump(_EQUAL, number, 0, len(answer)), *answer]
    return [*program, allow]


def _pack(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _load(offset: int) -> bytes:
    return _pack(_LOAD, offset)


def _jump(condition: int, value: int, then: int, otherwise: int) -> bytes:
    """Pass over so many instructions if the loaded value meets the condition, and so many if not."""
    return _pack(condition, value, then, otherwise)


def _return(answer: int) -> bytes:
    return _pack(_RETURN, answer)
