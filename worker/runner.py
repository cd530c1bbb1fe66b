"""A job's process: reads its order, does the work, leaves the outcome. Started by worker.child, never by hand.

It is given no credential and talks to nobody but its supervisor: files in, files out, progress on a pipe.
"""

import platform
import resource
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

from neusemslice.errors import NeuSemSliceError, StoppedError
from worker.parent import die_with_parent


def main(arguments: list[str]) -> int:
    """Carry out the order in the workspace `arguments[0]`."""
    root, pipe, supervisor = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    die_with_parent(supervisor)
    from worker.order import ORDER, Order, write_outcome

    order = Order.model_validate_json((root / ORDER).read_bytes())
    set_limits(memory_bytes=order.limits.memory_bytes, file_bytes=order.limits.file_bytes)
    stopping, left = Event(), list[dict[str, Any]]()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        from worker.kinds import carry_out

        outcome = carry_out(order, root, pipe, stopping, left) | {"versions": versions()}
    except StoppedError:
        return 0
    except Exception as error:
        traceback.print_exc()
        error_object = describe(error, order.spec.get("kind", ""), order.limits.memory_bytes)
        outcome = {"error": error_object, "outputs": left}
    write_outcome(root, outcome)
    return 0


def set_limits(*, memory_bytes: int, file_bytes: int) -> None:
    """Bound what this process can take from the machine, whatever the files tell it to do."""
    for limit, value in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bounded, bounded))


def describe(error: Exception, kind: str, memory_bytes: int) -> dict[str, Any]:
    """The error object of a job of this kind, which may use so much memory."""
    from app.jobs.problems import internal_error, out_of_memory, problem

    if is_out_of_memory(error):
        return out_of_memory(kind, memory_bytes)
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


def versions() -> dict[str, str]:
    """What computed the result."""
    packages = {name: version(name) for name in ("neusemslice", "torch", "numpy")}
    return packages | {"python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
