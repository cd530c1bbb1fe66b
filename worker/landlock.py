"""Landlock: which files a process may reach, laid down by the process itself, without privileges (Linux 5.13)."""

import ctypes
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from worker.kernel import system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
TRUNCATION_ABI = 3
"""From here on (Linux 6.2), what may not be written may not be cut short either."""


class Access(IntFlag):
    """Rights on files and folders."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14


_READ = Access.READ_FILE | Access.READ_DIR
_USE = _READ | Access.WRITE_FILE | Access.TRUNCATE
_WRITE = _USE | Access.REMOVE_DIR | Access.REMOVE_FILE | Access.MAKE_DIR | Access.MAKE_REG | Access.REFER
_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The version that the kernel speaks.

    Raises:
        OSError: it has no Landlock, or it was not switched on at boot.
    """
    return system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))


def restrict(*, readable: Iterable[Path], usable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Leave this thread and all that come of it only these paths, for good; returns the ABI.

    What lies under `readable` may be read, under `usable` (devices) also written, and under `writable` also made and
    removed, but for links, sockets and devices. Nothing may be executed. Paths that do not exist, or cannot be reached
    anyway, are passed over. Where the kernel can (ABI 4 and 6), TCP, abstract sockets and signals to processes outside
    are gone too.

    Raises:
        OSError: the kernel does not do it.
    """
    version = abi()
    handled = _handled(version)
    network = _TCP if version >= 4 else 0
    scoped = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    described = _Ruleset(handled, network, scoped)
    rules = system_call(_CREATE_RULESET, ctypes.byref(described), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for paths, rights in ((readable, _READ), (usable, _USE), (writable, _WRITE)):
            for path in paths:
                _allow(rules, path, rights & handled)
        system_call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)
    return version


def _handled(version: int) -> Access:
    handled = Access(0)
    for right in Access:
        handled |= right
    if version < TRUNCATION_ABI:
        handled &= ~Access.TRUNCATE
    if version < 2:
        handled &= ~Access.REFER
    return handled


def _allow(rules: int, path: Path, rights: Access) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = _PathBeneath(rights, place)
        system_call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
    finally:
        os.close(place)
