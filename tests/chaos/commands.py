"""Runs one command of the service in a process that was forked from one that has imported it.

Importing the service takes seconds, and there are to be hundreds of kills. Nothing here is of pytest.
"""

import os
import signal
import sys
import time
from pathlib import Path

import neusemslice_cli.serve
import worker.dispatcher
from neusemslice_cli.main import main
from tests.chaos.failpoints import Armed
from worker.parent import die_with_parent

IMPORTED = (neusemslice_cli.serve, worker.dispatcher)
"""What the commands would otherwise import when they run: the HTTP application, and the supervisor."""


def run(
    arguments: tuple[str, ...], environment: dict[str, str], log: Path, points: tuple[Armed, ...], clock_s: float
) -> None:
    """Be the command `neusemslice ARGUMENTS…`, with these points armed and a clock that is `clock_s` ahead."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["neusemslice", *arguments]
    if clock_s:
        _set_clock_ahead(clock_s)
    for point in points:
        point.arm()
    main()


def _set_clock_ahead(seconds: float) -> None:
    """The wall clock as Python code reads it; what measures durations stays right, as on a machine set wrong."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
