"""The queue of a deployment: Celery where there is a Redis, otherwise the local dispatcher's."""

from app.db import Database
from app.jobs.queue import JobQueue, LocalQueue
from app.settings import Settings


def make_queue(settings: Settings, database: Database) -> JobQueue:
    """The queue that the settings ask for."""
    if settings.redis_url is None:
        return LocalQueue(database)
    from app.celery_queue import CeleryQueue

    return CeleryQueue(settings.redis_url)
