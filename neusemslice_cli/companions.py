"""Processes beside this one, started again whenever they end."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import structlog

from app.db import Database
from app.settings import Settings

log = structlog.get_logger(__name__)

STOP_S = 10.0
RESTART_S = 0.5


@dataclass(frozen=True)
class Companion:
    """A command of `neusemslice` with its arguments, and what its environment has besides."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def keep_running(settings: Settings, database: Database, companions: Sequence[Companion]) -> Iterator[None]:
    """Have the companions run for as long as the block does; at its end each gets a SIGTERM and some time."""
    stopping = Event()
    keepers = [Thread(target=_keep, args=(companion, settings, database, stopping)) for companion in companions]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        stopping.set()
        for keeper in keepers:
            keeper.join()


def _keep(companion: Companion, settings: Settings, database: Database, stopping: Event) -> None:
    environment = os.environ | {"DATABASE_URL": database.url, "NEUSEMSLICE_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "neusemslice_cli.main", *companion.arguments, "--parent", str(os.getpid())]
    while not stopping.is_set():
        process = subprocess.Popen(command, env={**environment, **companion.environment})
        while process.poll() is None and not stopping.wait(0.1):
            pass
        if process.poll() is not None and not stopping.is_set():
            command_line = " ".join(companion.arguments)
            log.error("companion.ended", command=command_line, exit_code=process.returncode)
            stopping.wait(RESTART_S)
            continue
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
