"""A job's own process: fresh, its own group, a scrubbed environment, and never outliving its supervisor."""

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from worker.order import LOG

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_LINE_MAX_BYTES = 64 * 1024


class Child:
    """The running process and the pipe on which it reports."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self._process = process
        self._pipe = pipe
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)

    @classmethod
    def start(cls, root: Path, *, threads: int) -> Self:
        """Start the runner on a prepared workspace."""
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"HOME": str(root), "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": str(threads)}
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        command = [sys.executable, "-I", "-m", "worker.runner", str(root), str(writing), str(os.getpid())]
        try:
            with (root / LOG).open("wb") as log:
                process = subprocess.Popen(
                    command,
                    cwd=root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(process, reading)

    @property
    def pid(self) -> int:
        """The process, and its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

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
            self._wait(timeout_s)
        *lines, self._buffer = self._buffer.split(b"\n")
        self._buffer = self._buffer[-_LINE_MAX_BYTES:]
        return [message for line in lines if (message := _parse(line)) is not None]

    def stop(self, grace_s: float) -> None:
        """Ask the process to end, then kill its whole group."""
        if self.exit_code() is None:
            self._signal(signal.SIGTERM)
            self._wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill whatever is left of its group and let go of the pipe."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._pipe >= 0:
            self._selector.close()
            os.close(self._pipe)
            self._pipe = -1

    def _wait(self, timeout_s: float) -> None:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return


def _parse(line: bytes) -> dict[str, Any] | None:
    """A message, or None: a damaged line of progress is not worth a job."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
