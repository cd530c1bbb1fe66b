"""The Celery worker: one task, a thin wrapper around the supervisor."""

import multiprocessing
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import worker_shutting_down

from app.artifacts.store import LocalBlobStore
from app.celery_queue import RUN_JOB, make_celery
from app.db import Database
from app.settings import Settings
from worker.sandbox import look
from worker.supervisor import Supervisor
from worker.warm_start import WarmStart


def make_worker(settings: Settings, database_url: str) -> Celery:
    """The application that `celery worker` runs, with its one task.

    Raises:
        SandboxUnavailableError: jobs cannot be shut in here as the settings require.
    """
    if settings.redis_url is None:
        raise ValueError("REDIS_URL is not set; without Redis the local dispatcher does the work")
    look(settings.sandbox)
    app = make_celery(settings.redis_url)
    draining = multiprocessing.Event()  # made before the pool forks, so that every process shares it

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: Any) -> None:
        """Give the running jobs back instead of waiting for their end."""
        draining.set()

    @cache
    def supervisor() -> Supervisor:
        """Made in the pool's process, after the fork: connections are not shared, nor is the zygote."""
        launch = WarmStart(settings.job_threads) if settings.warm_start else None
        return Supervisor(settings, Database(database_url), LocalBlobStore(settings.blob_dir), draining, launch)

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        """Work on the job if it is free. A message that comes twice or too late finds nothing to do."""
        supervisor().run(job_id)

    return app
