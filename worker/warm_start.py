"""Jobs' processes that start at once: forked from a zygote, which a thread keeps ready."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import structlog

from worker.child import environment, start_from_scratch
from worker.launched import Forked, Launched

log = structlog.get_logger(__name__)

ZYGOTE = (sys.executable, "-I", "-m", "worker.zygote")
_PACKET_BYTES = 64 * 1024
_ANSWER_S = 10.0
_PAUSE_S = (1.0, 60.0)


class ZygoteLostError(Exception):
    """There is no zygote, or it does not answer."""


class WarmStart:
    """Launches jobs' processes (see worker.child.Launch): from a zygote, or from scratch while there is none."""

    def __init__(self, threads: int, command: Sequence[str] = ZYGOTE) -> None:
        """`threads` is what each job computes with, `command` what the zygote is started by."""
        self._threads = threads
        self._command = command
        self._closing = Event()
        self._ready = Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._keeper = Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, root: Path, environment: dict[str, str], log_file: int, pipe: int) -> Launched:
        """A process at work on the workspace `root`."""
        if self._ready.is_set():
            try:
                return self._fork(root, environment, log_file, pipe)
            except ZygoteLostError:
                log.warning("zygote.lost")
        return start_from_scratch(root, environment, log_file, pipe)

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Whether the zygote is ready, waiting up to `timeout_s` for it."""
        return self._ready.wait(timeout_s)

    def close(self) -> None:
        """End the zygote, and with it the processes that it has forked."""
        self._closing.set()
        process = self._process
        if process is not None:
            process.kill()
        self._keeper.join()

    def _fork(self, root: Path, environment: dict[str, str], log_file: int, pipe: int) -> Forked:
        """Raises OSError where the machine has no room for another process."""
        control, process = self._control, self._process
        if control is None or process is None:
            raise ZygoteLostError
        request = json.dumps({"root": str(root), "environment": environment}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(control, [request], [log_file, pipe, theirs.fileno()])
            ours.settimeout(_ANSWER_S)
            packet, descriptors, _, _ = socket.recv_fds(ours, _PACKET_BYTES, 1)
        except OSError as error:  # a zygote that does not answer must not answer later
            ours.close()
            process.kill()
            raise ZygoteLostError from error
        if not packet:
            ours.close()
            raise ZygoteLostError
        ours.settimeout(None)
        answer: dict[str, Any] = json.loads(packet)
        if "errno" in answer:
            ours.close()
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return Forked(answer["pid"], descriptors[0], ours, process.kill)

    def _keep(self) -> None:
        """Have a zygote. The thread lives as long as this process: the kernel kills a zygote whose starter ends."""
        pause_s = _PAUSE_S[0]
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                control, process = self._start()
            except OSError as error:
                log.warning("zygote.not_started", error=str(error))
            else:
                with control:
                    state = _first_word(control)
                    if "ready" in state:
                        self._control, pause_s = control, _PAUSE_S[0]
                        self._ready.set()
                        log.info("zygote.ready", took_s=round(time.monotonic() - started, 2))
                    process.wait()
                    self._ready.clear()
                    self._control = None
                if self._closing.is_set():
                    return
                if "unfit" in state:
                    log.warning("zygote.unfit", reason=state["unfit"], effect="every job starts from scratch")
                    return
                log.warning("zygote.died", exit_code=process.returncode)
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S[1])

    def _start(self) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        scrubbed = environment(Path("/"), self._threads) | {"OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), str(os.getpid())],
                env=scrubbed,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._process = process
        if self._closing.is_set():
            process.kill()
        return ours, process


def _first_word(control: socket.socket) -> dict[str, Any]:
    """What the zygote says when it is ready, or why it cannot be; nothing if it died before."""
    try:
        packet = control.recv(_PACKET_BYTES)
    except ConnectionError:
        packet = b""
    said: dict[str, Any] = json.loads(packet) if packet else {}
    return said
