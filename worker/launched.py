"""The processes that run jobs, as their supervisor holds them: started from scratch, or forked by the zygote."""

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from signal import SIGKILL, Signals, pidfd_send_signal
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

SILENT_S = 10.0
"""How long after a process's end its zygote may take to tell of it."""


class Launched(Protocol):
    """A process with all that came of it."""

    @property
    def pid(self) -> int:
        """Its number; also its group's."""

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, up to `timeout_s`."""

    def send(self, number: Signals) -> None:
        """Signal it; SIGKILL takes its whole group with it. No harm if it has ended."""


class FromScratch:
    """A child of this process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """See Launched."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """See Launched."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> None:
        """See Launched."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def send(self, number: Signals) -> None:
        """See Launched."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Forked:
    """A child of the zygote, which kills what is left of its group, reaps it and tells how it ended.

    Should the zygote die, its children die with it: then SIGKILL is the answer. A zygote that tells nothing after a
    child's end (it was stopped, or hangs) is as good as dead, and is killed.
    """

    def __init__(self, pid: int, handle: int, ends: socket.socket, kill_zygote: Callable[[], None]) -> None:
        self._pid = pid
        self._handle = handle
        self._ends = ends
        self._kill_zygote = kill_zygote
        self._exit_code: int | None = None
        self._ended_at: float | None = None

    @property
    def pid(self) -> int:
        """See Launched."""
        return self._pid

    def exit_code(self) -> int | None:
        """See Launched."""
        self.wait(0)
        return self._exit_code

    def wait(self, timeout_s: float) -> None:
        """See Launched."""
        if self._exit_code is not None:
            return
        if not _is_readable(self._ends.fileno(), timeout_s):
            self._suspect_zygote()
            return
        told = self._receive()
        if told:
            self._exit_code = int(json.loads(told)["exit_code"])
        else:
            _is_readable(self._handle, None)
            self._exit_code = -SIGKILL
        os.close(self._handle)
        self._ends.close()

    def send(self, number: Signals) -> None:
        """See Launched."""
        if self._exit_code is None:
            with suppress(ProcessLookupError):
                pidfd_send_signal(self._handle, number)

    def _suspect_zygote(self) -> None:
        """It has told nothing yet."""
        if self._ended_at is None:
            self._ended_at = time.monotonic() if _is_readable(self._handle, 0) else None
        elif time.monotonic() - self._ended_at > SILENT_S:
            log.warning("zygote.silent", pid=self._pid)
            self._kill_zygote()

    def _receive(self) -> bytes:
        try:
            return self._ends.recv(1024)
        except ConnectionError:
            return b""


def _is_readable(handle: int, timeout_s: float | None) -> bool:
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))
