"""The Celery worker: one task, a thin wrapper around the supervisor."""

from functools import cache

from celery import Celery

from app.artifacts.store import LocalBlobStore
from app.celery_queue import RUN_JOB, make_celery
from app.db import Database
from app.settings import Settings
from worker.supervisor import Supervisor


def make_worker(settings: Settings, database_url: str) -> Celery:
    """The application that `celery worker` runs, with its one task."""
    if settings.redis_url is None:
        raise ValueError("REDIS_URL is not set; without Redis the local dispatcher does the work")
    app = make_celery(settings.redis_url)

    @cache
    def supervisor() -> Supervisor:
        """Made in the pool's process, after the fork: connections are not shared."""
        return Supervisor(settings, Database(database_url), LocalBlobStore(settings.blob_dir))

    @app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        """Work on the job if it is free. A message that comes twice or too late finds nothing to do."""
        supervisor().run(job_id)

    return app
