"""What a job's process must not be able to do, tried by one: `python escapes.py HOW ABOUT` prints what happened.

HOW is `free`; `shut`, in the sandbox; or `poor`, in that of a worker without the superuser's rights, such as the
image's. ABOUT is JSON: the attempt's folder and where the things are that it must not reach.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from worker.order import Limits
from worker.privileges import drop_capabilities
from worker.sandbox import confine

MIB = 2**20


def escapes(root: Path, about: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What is tried, by name."""
    model = root / "inputs" / "model"
    return {
        "read the API key": Path(about["secret"]).read_text,
        "read another job's order": Path(about["neighbour"]).read_text,
        "list the data folder": lambda: len(list(Path(about["secret"]).parent.iterdir())),
        "read the worker's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "read the worker's memory": lambda: Path(f"/proc/{os.getppid()}/mem").open("rb").close(),
        "reach the private Postgres": lambda: connect(socket.AF_UNIX, about["postgres"]),
        "reach a server": lambda: connect(socket.AF_INET, ("127.0.0.1", about["port"])),
        "make a datagram socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "signal the worker": lambda: os.kill(os.getppid(), 0),
        "signal the group": lambda: os.kill(0, signal.SIGCONT),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": fork,
        "fork without end": fork_without_end,
        "outlive the worker": lambda: prctl(1, 0),
        "leave the session": os.setsid,
        "get a namespace": lambda: call("unshare", 0x10000000),
        "attach shared memory": lambda: call("shmget", 0, 4096, 0o1600),
        "write beside the outputs": lambda: (root / "new.txt").write_text("x"),
        "write elsewhere": lambda: Path(about["elsewhere"]).write_text("x"),
        "make a link in the outputs": lambda: (root / "outputs" / "link").symlink_to("/etc/passwd"),
        "link an input into the outputs": lambda: os.link(model, root / "outputs" / "model"),
        "remove the outputs folder": lambda: shutil.rmtree(root / "outputs"),
        "write into an input": lambda: model.open("r+b").close(),
        "cut an input short": lambda: os.truncate(model, 0),
        "cut an input short, opening it": lambda: os.close(os.open(model, os.O_RDONLY | os.O_TRUNC)),
        "let an input be written": lambda: model.chmod(0o666),
        "remove an input": model.unlink,
        "write a file that is too large": lambda: (root / "tmp" / "large").write_bytes(bytes(3 * MIB)),
        "take too much memory": lambda: len(bytearray(2**31)),
        "open too many files": open_many_files,
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, 2**40)),
    }


def duties(root: Path) -> dict[str, Callable[[], object]]:
    """What a job must be able to do all the same."""
    return {
        "read an input": (root / "inputs" / "model").read_bytes,
        "read its order": (root / "order.json").read_text,
        "write an output": lambda: write_whole(root / "outputs" / "a.json"),
        "write a checkpoint": lambda: write_whole(root / "checkpoints" / "a.safetensors"),
        "write a temporary file": lambda: (root / "tmp" / "a").write_text("x"),
        "load a library": lambda: __import__("numpy").zeros(3),
        "have threads": have_threads,
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "throw something away": lambda: Path(os.devnull).write_text("x"),
        "leave no core": lambda: resource.getrlimit(resource.RLIMIT_CORE),
    }


def connect(family: int, address: Any) -> None:
    with socket.socket(family) as client:
        client.connect(address)


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_without_end() -> int:
    """How many processes came of a thousand tries."""
    started = 0
    for _ in range(1000):
        try:
            fork()
        except PermissionError:
            continue
        started += 1
    return started


def open_many_files() -> None:
    with ExitStack() as opened:
        for _ in range(500):
            opened.enter_context(Path(os.devnull).open())


def have_threads() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def write_whole(path: Path) -> None:
    path.with_suffix(".tmp").write_text("x")
    path.with_suffix(".tmp").replace(path)


def call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def prctl(option: int, value: int) -> None:
    call("prctl", option, value, 0, 0, 0)


def main(how: str, told: str) -> None:
    about = json.loads(told)
    root = Path(about["root"])
    if how == "poor":
        drop_capabilities()
    if how != "free":
        report = confine(root, Limits(memory_bytes=2**30, file_bytes=2 * MIB, threads=1, open_files=200))
    tried = escapes(root, about) | duties(root)
    happened: dict[str, Any] = {}
    for name in about["only"] or tried:
        try:
            happened[name] = repr(tried[name]())
        except (OSError, MemoryError, ValueError) as error:
            happened[name] = type(error).__name__
    if how == "poor":
        happened["layers that are off"] = [name for name, layer in report.layers.items() if not layer.on]
    sys.stdout.write(json.dumps(happened))


if __name__ == "__main__":
    main(*sys.argv[1:])
