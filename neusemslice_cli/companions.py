"""Processes beside this one, started again whenever they end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread

import structlog

from app.db import Database
from app.settings import Settings
from worker.stop_signals import StopSignals

log = structlog.get_logger(__name__)

STOP_S = 10.0
RESTART_S = 0.5


@dataclass(frozen=True)
class Companion:
    """A command of `neusemslice` with its arguments, and what its environment has besides."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def keep_running(
    settings: Settings, database: Database, companions: Sequence[Companion], stop: StopSignals
) -> Iterator[None]:
    """Have the companions run until the block ends or is told to stop; then each gets a SIGTERM and time to drain.

    A second signal is passed on as well.
    """
    keepers = [Thread(target=_keep, args=(companion, settings, database, stop)) for companion in companions]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        stop.stopping.set()
        for keeper in keepers:
            keeper.join()


def _keep(companion: Companion, settings: Settings, database: Database, stop: StopSignals) -> None:
    environment = os.environ | {"DATABASE_URL": database.url, "NEUSEMSLICE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "neusemslice_cli.main", *companion.arguments, "--parent", str(os.getpid())]
    while not stop.stopping.is_set():
        process = subprocess.Popen(
            command,
            env={**environment, **companion.environment},
            process_group=0,  # a terminal's Ctrl-C reaches it through us alone, once
        )
        while process.poll() is None and not stop.stopping.wait(0.1):
            pass
        if process.poll() is not None and not stop.stopping.is_set():
            command_line = " ".join(companion.arguments)
            log.error("companion.ended", command=command_line, exit_code=process.returncode)
            stop.stopping.wait(RESTART_S)
            continue
        process.terminate()
        deadline = time.monotonic() + settings.drain_grace_s + STOP_S
        while process.poll() is None and time.monotonic() < deadline and not stop.at_once.wait(0.1):
            pass
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
