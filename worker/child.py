"""A job's own process: its own group, a scrubbed environment, shut in, and never outliving its supervisor."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from worker.launched import FromScratch, Launched
from worker.order import LOG

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_LINE_MAX_BYTES = 64 * 1024
_LOOK_AGAIN_S = 1.0

Launch = Callable[[Path, dict[str, str], int, int], Launched]
"""Makes a process of a workspace, its environment, its log and the pipe that it reports on (both as descriptors)."""


class Child:
    """The running process and the pipe on which it reports."""

    def __init__(self, process: Launched, pipe: int) -> None:
        self._process = process
        self._pipe = pipe
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)

    @classmethod
    def start(cls, root: Path, *, threads: int, launch: Launch | None = None) -> Self:
        """Start the runner on a prepared workspace: from scratch, or as `launch` does it."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with ExitStack() as closing:
            closing.callback(os.close, writing)
            failed = closing.enter_context(ExitStack())
            failed.callback(os.close, reading)
            log = closing.enter_context((root / LOG).open("wb"))
            process = (launch or start_from_scratch)(root, environment(root, threads), log.fileno(), writing)
            failed.pop_all()
        return cls(process, reading)

    @property
    def pid(self) -> int:
        """The process, and its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.exit_code()

    def messages(self, timeout_s: float) -> list[dict[str, Any]]:
        """What it has reported, waiting up to `timeout_s` for something to come."""
        if self._selector.get_map() and self._selector.select(timeout_s):
            try:
                chunk = os.read(self._pipe, _LINE_MAX_BYTES)
            except BlockingIOError:
                chunk = b""
            else:
                if not chunk:
                    self._selector.unregister(self._pipe)
            self._buffer += chunk
        elif not self._selector.get_map():
            self._process.wait(timeout_s)
        *lines, self._buffer = self._buffer.split(b"\n")
        self._buffer = self._buffer[-_LINE_MAX_BYTES:]
        return [message for line in lines if (message := _parse(line)) is not None]

    def stop(self, grace_s: float) -> None:
        """Ask the process to end, then kill its whole group."""
        if self.exit_code() is None:
            self._process.send(signal.SIGTERM)
            self._process.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill whatever is left of its group and let go of the pipe."""
        self._process.send(signal.SIGKILL)
        while self._process.exit_code() is None:
            self._process.wait(_LOOK_AGAIN_S)
        if self._pipe >= 0:
            self._selector.close()
            os.close(self._pipe)
            self._pipe = -1


def environment(root: Path, threads: int) -> dict[str, str]:
    """All that a job's process gets of its worker's environment, and its own folder as home."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    place = str(root / "tmp")
    return passed_on | {"HOME": place, "TMPDIR": place, "OMP_NUM_THREADS": str(threads)}


def start_from_scratch(root: Path, environment: dict[str, str], log: int, pipe: int) -> FromScratch:
    """A fresh interpreter, as a child of this process."""
    command = [sys.executable, "-I", "-m", "worker.runner", str(root), str(pipe), str(os.getpid())]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(pipe,),
        start_new_session=True,
    )
    return FromScratch(process)


def _parse(line: bytes) -> dict[str, Any] | None:
    """A message, or None: a damaged line of progress is not worth a job."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
