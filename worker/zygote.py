"""The zygote: a process that has imported everything that jobs need, done nothing with it, and forks one for each job.

It has one thread, no credential and no connection but a socket to its supervisor, and has never touched a GPU. It ends
with its supervisor, and its jobs with it. Started by worker.warm_start.

A request is a packet {root, environment, threads} with three descriptors: the job's log, its pipe, and a socket for
the answers, which are {pid} with a handle of the process, and at its end {exit_code}.
"""

import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from setproctitle import setproctitle

from worker.kernel import count_threads, process_control
from worker.parent import die_with_parent
from worker.runner import work
from worker.sandbox import leave_interfaces

_MODULES = (
    "worker.inspections",
    "worker.slicing",
    "worker.restructuring",
    "worker.readapting",
    "worker.incrementing",
    "worker.comparing",
    "torch.fx.experimental.symbolic_shapes",
)
_SET_CHILD_SUBREAPER = 36
_PACKET_BYTES = 64 * 1024
_PIPE = 3

Work = Callable[[Path, int], int]
"""Carries out the order in a workspace, reporting on a pipe, and returns the exit code."""


class UnfitError(Exception):
    """Jobs cannot be forked from this process."""


def main(arguments: list[str]) -> None:
    """Get ready, say so on the socket `arguments[0]`, and serve the supervisor `arguments[1]`."""
    control = socket.socket(fileno=int(arguments[0]))
    die_with_parent(int(arguments[1]))
    try:
        preload()
        check_fitness()
    except UnfitError as error:
        control.send(json.dumps({"unfit": str(error)}).encode())
        return
    interfaces = leave_interfaces()
    control.send(json.dumps({"ready": True}).encode())
    serve(control, partial(work, interfaces=interfaces))


def preload() -> None:
    """Import all that jobs use."""
    for name in _MODULES:
        import_module(name)


def check_fitness() -> None:
    """Raises UnfitError where a fork would not be what a fresh process is."""
    threads = count_threads()
    if threads != 1:
        raise UnfitError(f"its imports have started threads ({threads} in all), which a fork would leave behind")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise UnfitError("its imports have touched the GPU, which a fork cannot use then")
    try:
        os.close(os.pidfd_open(os.getpid()))
        _children()
    except OSError as error:
        raise UnfitError(f"the kernel gives no handles of processes, or no list of children ({error})") from error


def serve(control: socket.socket, work: Work) -> None:
    """Fork a process for each request, and tell how it ended, until the supervisor is gone."""
    process_control(_SET_CHILD_SUBREAPER, 1)
    wake, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    jobs: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if wake in ready:
            os.read(wake, 4096)
            _settle(jobs)
        if control in ready:
            packet, descriptors, _, _ = socket.recv_fds(control, _PACKET_BYTES, 3)
            if not packet:
                return
            _take_up(json.loads(packet), descriptors, jobs, work)


def _take_up(request: Mapping[str, Any], descriptors: list[int], jobs: dict[int, socket.socket], work: Work) -> None:
    log, pipe, ends = descriptors
    answers = socket.socket(fileno=ends)
    zygote = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        answers.send(json.dumps({"errno": error.errno}).encode())
        answers.close()
        return
    finally:
        if os.getpid() == zygote:
            os.close(log)
            os.close(pipe)
    if pid == 0:
        _become(request, log, pipe, zygote, work)
    handle = os.pidfd_open(pid)
    try:
        socket.send_fds(answers, [json.dumps({"pid": pid}).encode()], [handle])
    except OSError:  # nobody waits for it any more
        os.kill(pid, signal.SIGKILL)
    finally:
        os.close(handle)
    jobs[pid] = answers


def _settle(jobs: dict[int, socket.socket]) -> None:
    """Of every job that has ended, kill what is left and tell how it ended."""
    for pid in list(jobs):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            continue
        with suppress(ProcessLookupError):  # it was killed before it could make a group of its own
            os.killpg(pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
        os.waitpid(pid, 0)
        _end_orphans(jobs)
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with jobs.pop(pid) as answers:
            _tell(answers, {"exit_code": code})


def _end_orphans(jobs: Mapping[int, socket.socket]) -> None:
    """What has come to this process and is no job was left by one: a process that has outlived its parent."""
    while orphans := [pid for pid in _children() if pid not in jobs]:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()]


def _tell(answers: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        answers.send(json.dumps(message).encode())
    except OSError:
        return  # nobody waits for it any more


def _become(request: Mapping[str, Any], log: int, pipe: int, zygote: int, work: Work) -> NoReturn:
    """Be the job's process: as if it had been started for it."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        die_with_parent(zygote)
        _take_descriptors(log, pipe)
        root = Path(request["root"])
        setproctitle(f"worker.runner {root}")
        os.environ.clear()
        os.environ.update(request["environment"])
        tempfile.tempdir = None
        os.chdir(root)
        _renew_random_numbers()
        code = work(root, _PIPE)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_descriptors(log: int, pipe: int) -> None:
    """Nothing is open but the log, the pipe, and an empty input."""
    empty = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((empty, 0), (log, 1), (log, 2), (pipe, _PIPE)):
        os.dup2(descriptor, place)
    os.closerange(_PIPE + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _renew_random_numbers() -> None:
    """Numpy's are drawn anew in every process, Python's by the fork itself; torch begins with the same in each."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
