"""The Celery worker: one task, a thin wrapper around the supervisor."""

import multiprocessing
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from app import tracing
from app.artifacts.stores import make_store
from app.celery_queue import TAKE_JOBS, make_celery
from app.db import Database
from app.logging import configure_logging
from app.settings import Settings
from worker.heart import Heart
from worker.sandbox import look
from worker.supervisor import Supervisor
from worker.sweeper import sweep_folders
from worker.warm_start import WarmStart

log = structlog.get_logger(__name__)


def make_worker(settings: Settings, database_url: str) -> Celery:
    """The application that `celery worker` runs, with its one task.

    Raises:
        SandboxUnavailableError: jobs cannot be shut in here as the settings require.
    """
    if settings.redis_url is None:
        raise ValueError("REDIS_URL is not set; without Redis the local dispatcher does the work")
    look(settings.sandbox)
    app = make_celery(settings.redis_url)
    draining, at_once = multiprocessing.Event(), multiprocessing.Event()  # made before the pool forks: all share them

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def log_as_all_do(**_: Any) -> None:
        """Connected, this keeps Celery from arranging the log by itself."""
        configure_logging()

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: Any) -> None:
        """The first signal: no more jobs; running ones get their grace. A second one: no grace."""
        (at_once if draining.is_set() else draining).set()

    @cache
    def supervisor() -> Supervisor:
        """Made in the pool's process, after the fork: connections are not shared, nor is the zygote."""
        database = Database(database_url)
        store = make_store(settings, database, patience_s=settings.lease_s)
        launch = WarmStart(settings.job_threads) if settings.warm_start else None
        return Supervisor(settings, database, store, draining, launch, at_once=at_once)

    @cache
    def heart() -> Heart:
        """One in each of the pool's processes, which run one job at a time each."""
        return Heart(settings, supervisor(), sorted(app.amqp.queues.consume_from))

    @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def get_ready(**_: Any) -> None:
        """The first job finds everything warm, and everybody learns that there is a worker."""
        heart().start()

    @worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def leave(**_: Any) -> None:
        """Say that there is none any more."""
        heart().stop()
        tracing.flush()

    @app.task(name=TAKE_JOBS)  # type: ignore[untyped-decorator]
    def take_jobs(queue: str, job_id: str) -> None:
        """Work on the jobs of the queue, each in its turn, until it has none that may run.

        `job_id` says for whom the message was sent; by now another worker may have taken that job, or another may be
        ahead of it. A message that comes twice or too late finds nothing to do. Then this machine is tidied up: a relay
        may be on another.
        """
        log.info("worker.woken", queue=queue, job_id=job_id)
        while not draining.is_set() and supervisor().run_next(queue):
            continue
        sweep_folders(settings, supervisor().database)

    return app


def run_celery(settings: Settings, database_url: str, queues: Sequence[str], *, concurrency: int) -> None:
    """A Celery worker, until it is signalled."""
    name = f"{'-'.join(queues)}-{os.getpid()}@%h"
    arguments = ["worker", "--queues", ",".join(queues), "--concurrency", str(concurrency), "--pool", "prefork"]
    arguments += ["--hostname", name, "--without-mingle", "--without-gossip"]
    make_worker(settings, database_url).worker_main(arguments)
