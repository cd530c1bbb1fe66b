"""What a process gives up for good: the network, capabilities, and gaining privileges by executing a file."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from worker.kernel import call, process_control

_NEW_USER, _NEW_IPC, _NEW_NETWORK = 0x10000000, 0x08000000, 0x40000000
_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def leave_network() -> None:
    """Go into a namespace without any network interface and with no shared memory of others.

    Without privileges, into a user namespace of one's own first; the process must have one thread. Where the kernel
    does not let it keep the user's number in there, it has none, and the user's rights all the same.

    Raises:
        OSError: the kernel, or the container that this runs in, does not allow it.
    """
    try:
        call("unshare", ctypes.c_int(_NEW_NETWORK | _NEW_IPC))
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        call("unshare", ctypes.c_int(_NEW_USER | _NEW_NETWORK | _NEW_IPC))
        own = Path("/proc/self")
        with suppress(PermissionError):
            (own / "setgroups").write_text("deny")
            (own / "uid_map").write_text(f"{user} {user} 1")
            (own / "gid_map").write_text(f"{group} {group} 1")


def refuse_new_privileges() -> None:
    """No file that is executed from here on gives more rights than this process has (setuid, capabilities)."""
    process_control(_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Even the superuser is left with what a user may do to his own files."""
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION, 0)), nothing)
