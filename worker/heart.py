"""A worker's sign of life: a row in the database for everybody, and a file for the health check of its own machine."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from threading import Event, Thread

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.jobs.workers import Worker, beat, leave
from app.settings import Settings
from worker.gpu_readings import read_gpus
from worker.heartbeat_file import HeartbeatFile
from worker.supervisor import Supervisor

log = structlog.get_logger(__name__)

_LOOK_S = 0.5


class Heart:
    """Beats in a thread of its own until it is stopped."""

    def __init__(self, settings: Settings, supervisor: Supervisor, queues: Sequence[str], *, slots: int = 1) -> None:
        self._worker = Worker(
            id=supervisor.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=queues,
            device=settings.device,
            version=version("neusemslice"),
            beat_s=settings.beat_s,
            slots=slots,
        )
        self._database = supervisor.database
        self._file = HeartbeatFile(settings.data_dir, "worker")
        self._draining = supervisor.draining
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Beat at once, then every `beat_s`, and when the worker begins to drain."""
        self._thread.start()

    def stop(self) -> None:
        """End in good order: the worker counts no more."""
        self._stopped.set()
        self._thread.join()
        self._file.remove()
        try:
            with self._database.transaction() as session:
                leave(session, self._worker.id)
        except SQLAlchemyError as error:
            log.warning("worker.leave_failed", error=str(error))

    def _run(self) -> None:
        while not self._stopped.is_set():
            said_draining = self._draining.is_set()
            try:
                self._file.touch(self._worker.beat_s)
                with self._database.transaction() as session:
                    beat(session, self._worker, gpus=read_gpus(), draining=said_draining)
            except (OSError, SQLAlchemyError) as error:
                log.warning("worker.beat_failed", error=str(error))
            waited = 0.0
            while waited < self._worker.beat_s and self._draining.is_set() == said_draining:
                step = min(_LOOK_S, self._worker.beat_s - waited)
                if self._stopped.wait(step):
                    return
                waited += step


@contextmanager
def beating(settings: Settings, supervisor: Supervisor, queues: Sequence[str], *, slots: int = 1) -> Iterator[None]:
    """A heart for as long as the block runs."""
    heart = Heart(settings, supervisor, queues, slots=slots)
    heart.start()
    try:
        yield
    finally:
        heart.stop()
