"""The queue on Celery and Redis. A message says in which queue there is work, and which job made it say so."""

from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from app.jobs.queue import QueueUnavailableError

TAKE_JOBS = "neusemslice.take_jobs"
_PATIENCE_S = 1.0


def make_celery(redis_url: str) -> Celery:
    """The Celery application as both sides see it.

    A message is acknowledged when it arrives, and none is fetched ahead: the lease on the job's row, not Redis, says
    who works on a job, so nothing depends on redelivery or on the visibility timeout.
    """
    app = Celery("neusemslice", broker=redis_url)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=_PATIENCE_S,
        broker_transport_options={
            "socket_timeout": 5.0,
            "socket_connect_timeout": 2.0,
            "retry_policy": {"max_retries": 1},
        },
    )
    return app


class CeleryQueue:
    """See app.jobs.queue.JobQueue."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._celery = make_celery(redis_url)

    def publish(self, job_id: str, queue: str) -> None:
        """See JobQueue."""
        options: dict[str, Any] = {"queue": queue, "retry": False, "ignore_result": True}
        try:
            self._celery.send_task(TAKE_JOBS, args=[queue, job_id], **options)
        except (OperationalError, OSError) as error:
            raise QueueUnavailableError(str(error)) from error

    def is_available(self) -> bool:
        """Whether Redis answers."""
        try:
            with self._redis() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def has_backlog(self, queue: str) -> bool:
        """See JobQueue. While Redis is away, nothing should be added."""
        try:
            with self._redis() as client:
                return bool(client.llen(queue))
        except RedisError:
            return True

    def _redis(self) -> Redis:
        return Redis.from_url(self._url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S)
