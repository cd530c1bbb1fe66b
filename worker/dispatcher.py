"""The local worker: takes jobs straight from the table, from each queue side by side."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from threading import Event, Thread

import psycopg
import structlog

from app.artifacts.stores import make_store
from app.db import Database
from app.jobs.queue import LocalQueue
from app.jobs.specs import QUEUES
from app.settings import Settings
from worker.couriers import couriers
from worker.heart import beating
from worker.maintenance import maintain
from worker.sandbox import look
from worker.stop_signals import StopSignals
from worker.supervisor import Supervisor
from worker.warm_start import WarmStart

log = structlog.get_logger(__name__)


def dispatch(
    settings: Settings, database: Database, stop: StopSignals, *, queues: Sequence[str] = QUEUES, concurrency: int = 1
) -> None:
    """Work until the signal to stop; then drain, and after a second signal wait for nothing.

    Raises:
        SandboxUnavailableError: jobs cannot be shut in here as the settings require.
    """
    look(settings.sandbox)
    with ExitStack() as closing:
        launch = closing.enter_context(WarmStart(settings.job_threads)) if settings.warm_start else None
        store = make_store(settings, database, patience_s=settings.lease_s)
        supervisor = Supervisor(settings, database, store, stop.stopping, launch, at_once=stop.at_once)
        closing.enter_context(beating(settings, supervisor, queues, slots=concurrency))
        lanes = [queue for queue in queues for _ in range(concurrency)]
        _dispatch(settings, database, supervisor, stop.stopping, lanes)


def _dispatch(
    settings: Settings, database: Database, supervisor: Supervisor, stopping: Event, queues: Sequence[str]
) -> None:
    bells = [(queue, Event()) for queue in queues]
    lanes = [Thread(target=_work, args=(settings, supervisor, queue, bell, stopping)) for queue, bell in bells]
    ringing = [bell for _, bell in bells]
    listener = Thread(target=_listen, args=(settings, database, ringing, stopping), daemon=True)
    for thread in (*lanes, listener):
        thread.start()
    with couriers(settings, database, stopping):
        maintain(settings, database, LocalQueue(database), stopping)
        for bell in ringing:
            bell.set()
        for lane in lanes:
            lane.join()


def _work(settings: Settings, supervisor: Supervisor, queue: str, bell: Event, stopping: Event) -> None:
    """One lane. The thread lives as long as the process: the kernel kills a child whose starting thread ends."""
    while not stopping.is_set():
        bell.clear()
        try:
            busy = supervisor.run_next(queue)
        except Exception:
            log.exception("dispatcher.failed", queue=queue)  # the lane goes on; the reaper settles the job
            busy = False
        if not busy:
            bell.wait(settings.poll_s)


def _listen(settings: Settings, database: Database, bells: Iterable[Event], stopping: Event) -> None:
    """Ring when a job is queued; without this connection the lanes still look every `poll_s`."""
    while not stopping.is_set():
        try:
            with database.listen(LocalQueue.CHANNEL) as connection:
                while not stopping.is_set():
                    for _ in connection.notifies(timeout=settings.poll_s, stop_after=1):
                        for bell in bells:
                            bell.set()
        except psycopg.OperationalError as error:
            log.warning("dispatcher.disconnected", error=str(error))
            stopping.wait(settings.poll_s)
