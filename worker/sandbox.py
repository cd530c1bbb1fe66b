"""What a job's process is shut in by: layers, each of which says whether it is on.

Uploads are untrusted, and what reads them may have holes. From a process that has gone through `confine`, none of the
service's secrets, no other job, no network and no stored file can be reached, whatever it is made to do.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import structlog

from app.errors import ServiceError
from worker import landlock, privileges, readable, seccomp
from worker.kernel import count_threads
from worker.limits import set_limits
from worker.order import CHECKPOINTS, Limits

log = structlog.get_logger(__name__)

Strictness = Literal["required", "best"]
WRITABLE = ("outputs", "tmp", CHECKPOINTS)
DEMANDED = ("files", "network")
_PROBE_S = 60.0


class SandboxUnavailableError(ServiceError):
    """A job's process cannot be shut in here as the settings demand."""

    code = "sandbox_unavailable"


@dataclass(frozen=True)
class Layer:
    """One of the things that hold a job's process in; `how`, or why not."""

    on: bool
    how: str


@dataclass(frozen=True)
class Report:
    """What holds on this machine.

    limits: memory, file size, processor time, open files; no core dump.
    privileges: none can be gained, and the superuser's are given up.
    files: only code and the job's inputs can be read, only its outputs, checkpoints and tmp be written.
    network: no connection to anything, not even to a local socket.
    interfaces: the process is in a network namespace that has none.
    processes: no other process can be started, signalled, or looked into; so none is left behind.
    """

    layers: Mapping[str, Layer]

    def missing(self) -> list[str]:
        """What `required` demands and this machine does not give."""
        return [name for name in DEMANDED if not self.layers[name].on]

    def demand(self) -> None:
        """Raises SandboxUnavailableError if anything is missing."""
        if self.missing():
            lacking = "; ".join(f"{name}: {self.layers[name].how}" for name in self.missing())
            raise SandboxUnavailableError(
                f"Jobs cannot be shut in here ({lacking}).",
                hint="Run workers on Linux 5.13 or newer with Landlock, where seccomp is allowed; or set "
                "NEUSEMSLICE_SANDBOX=best and give them a machine of their own.",
            )

    def to_dict(self) -> dict[str, dict[str, object]]:
        """As JSON, and as the log shows it."""
        return {name: asdict(layer) for name, layer in self.layers.items()}


def confine(root: Path, limits: Limits, *, interfaces: Layer | None = None) -> Report:
    """Shut this process in, for good. It must have one thread, and `root` be an attempt's folder.

    `interfaces` is what became of leaving the network if that has been tried already.
    """
    threads = count_threads()
    if threads != 1:
        raise SandboxUnavailableError(f"{threads} threads run already, and the others would stay free.")
    layers = {"interfaces": interfaces or leave_interfaces()}
    set_limits(limits)
    layers["limits"] = Layer(True, "rlimits")
    layers["privileges"] = _try("no_new_privs, no capabilities", _give_up_privileges)
    layers["files"] = _try("Landlock", lambda: _restrict(root))
    filtered = _try("system call filter", seccomp.install)
    layers["processes"] = filtered
    layers["network"] = filtered
    return Report(layers)


def leave_interfaces() -> Layer:
    """Into a network namespace without interfaces, where that is allowed."""
    return _try("network namespace", privileges.leave_network)


@cache
def shields_inputs() -> bool:
    """Whether a job's process cannot change a file that it may read: then inputs may be links into the store."""
    try:
        version = landlock.abi()
    except OSError:
        return False
    return version >= landlock.TRUNCATION_ABI and seccomp.is_available()


def probe() -> Report:
    """What holds on this machine, found out by shutting a process in like a job's.

    Raises:
        SandboxUnavailableError: that process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": folder}
        command = [sys.executable, "-I", "-m", "worker.sandbox", folder]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    if run.returncode != 0:
        raise SandboxUnavailableError(f"A process could not be shut in: {run.stderr.strip()[-300:]}")
    return Report({name: Layer(**layer) for name, layer in json.loads(run.stdout).items()})


def look(strictness: Strictness) -> Report:
    """What holds on this machine, said in the log; a worker calls this before it takes jobs.

    Raises:
        SandboxUnavailableError: less than is required.
    """
    report = probe()
    off = [name for name, layer in report.layers.items() if not layer.on]
    (log.warning if off else log.info)("worker.sandbox", off=off, **report.to_dict())
    if strictness == "required":
        report.demand()
    return report


def _give_up_privileges() -> None:
    privileges.refuse_new_privileges()
    privileges.drop_capabilities()


def _restrict(root: Path) -> None:
    landlock.restrict(
        readable=[*readable.code(root), root],
        usable=readable.devices(),
        writable=[root / name for name in WRITABLE],
    )


def _try(how: str, action: Callable[[], object]) -> Layer:
    try:
        action()
    except OSError as error:
        return Layer(False, f"{how} refused by {platform.system()} {platform.release()}: {error.strerror}")
    return Layer(True, how)


def main(folder: str) -> None:
    """Print what holds for a process in `folder`."""
    unlimited = Limits(memory_bytes=2**40, file_bytes=2**40, threads=1)
    sys.stdout.write(json.dumps(confine(Path(folder), unlimited).to_dict()))


if __name__ == "__main__":
    main(sys.argv[1])
