"""A job's process: reads its order, does the work, leaves the outcome. Never started by hand.

It is given no credential and talks to nobody but its supervisor: files in, files out, progress on a pipe.
"""

import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import structlog

from app.logging import configure_logging
from neusemslice.errors import NeuSemSliceError, StoppedError
from worker.order import ORDER, Order, write_outcome
from worker.parent import die_with_parent
from worker.sandbox import Layer, confine

log = structlog.get_logger(__name__)

_NO_ROOM = ("no space left on device", "disk quota exceeded")


def main(arguments: list[str]) -> int:
    """Carry out the order in the workspace `arguments[0]`, in a process that was started for it."""
    root, pipe, supervisor = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    die_with_parent(supervisor)
    return work(root, pipe)


def work(root: Path, pipe: int, *, interfaces: Layer | None = None) -> int:
    """Shut this process in, carry out the order in the workspace and leave the outcome there; returns the exit code.

    `interfaces` is what became of leaving the network if that has been tried already.
    """
    order = Order.model_validate_json((root / ORDER).read_bytes())
    configure_logging()
    structlog.contextvars.bind_contextvars(**order.log_context)
    stopping, left = Event(), list[dict[str, Any]]()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        shut_in = confine(root, order.limits, interfaces=interfaces)
        if order.limits.sandbox == "required":
            shut_in.demand()
        from worker.kinds import carry_out

        outcome = carry_out(order, root, pipe, stopping, left) | {"versions": versions()}
    except StoppedError:
        return 0
    except Exception as error:
        log.exception("process.failed")
        if says(error, *_NO_ROOM):
            make_room(root, keep={output["name"] for output in left})
        error_object = describe(error, order.spec.get("kind", ""), order.limits.memory_bytes)
        outcome = {"error": error_object, "outputs": left}
    write_outcome(root, outcome)
    return 0


def describe(error: Exception, kind: str, memory_bytes: int) -> dict[str, Any]:
    """The error object of a job of this kind, which may use so much memory."""
    from app.jobs.problems import disk_full, file_too_large, internal_error, out_of_memory, problem

    if is_out_of_memory(error):
        return out_of_memory(kind, memory_bytes)
    if says(error, *_NO_ROOM):
        return disk_full(kind)
    if says(error, "file too large"):
        return file_too_large(kind)
    if isinstance(error, NeuSemSliceError):
        described = problem(error.code, error.message, hint=error.hint)
        place = {name: value for name in ("node", "where", "field") if (value := getattr(error, name, ""))}
        return described | place
    return internal_error(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's on the CPU, and torch's on a GPU; or another error that came of one of these."""
    words = ("out of memory", "can't allocate memory")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    ):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def says(error: BaseException, *words: str) -> bool:
    """Whether it, or what it came of, is the system's error of these words: writers of files wrap it in their own."""
    if not isinstance(error, NeuSemSliceError) and any(word in str(error).lower() for word in words):
        return True
    return error.__cause__ is not None and says(error.__cause__, *words)


def make_room(root: Path, keep: set[str]) -> None:
    """Remove what cannot be finished on a full disk, so that at least the outcome fits."""
    for path in (*(root / "outputs").iterdir(), *(root / "tmp").iterdir()):
        if path.is_file() and not (path.parent.name == "outputs" and path.name in keep):
            path.unlink()


def versions() -> dict[str, str]:
    """What computed the result."""
    packages = {name: version(name) for name in ("neusemslice", "torch", "numpy")}
    return packages | {"python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
