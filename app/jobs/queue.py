"""How workers learn of queued jobs. The outbox keeps what has not been announced yet."""

from datetime import timedelta
from typing import Protocol

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.specs import QUEUES
from app.jobs.status import JobStatus

log = structlog.get_logger(__name__)

BATCH = 200


class QueueUnavailableError(Exception):
    """The queue cannot take messages now; the outbox keeps them."""


class JobQueue(Protocol):
    """Announces jobs. A message is only a hint: losing or repeating one does no harm."""

    def publish(self, job_id: str, queue: str) -> None:
        """Tell the workers of `queue` that a job waits.

        Raises:
            QueueUnavailableError: not now.
        """

    def is_available(self) -> bool:
        """Whether messages would get through now."""

    def has_backlog(self, queue: str) -> bool:
        """Whether messages wait in `queue` that no worker has taken yet."""


def enqueue(session: Session, job: JobRow) -> None:
    """Put a message for `job` into the outbox, in the job's own transaction."""
    session.add(OutboxRow(job_id=job.id, queue=job.queue))


def relay_outbox(database: Database, queue: JobQueue) -> int:
    """Publish what the outbox holds, oldest first, and return how much that was.

    Several relays may run: each row is taken by one. A crash between publishing and removing repeats the message.
    """
    with database.transaction() as session:
        rows = session.scalars(
            select(OutboxRow).order_by(OutboxRow.id).limit(BATCH).with_for_update(skip_locked=True)
        ).all()
        published = 0
        for row in rows:
            try:
                queue.publish(row.job_id, row.queue)
            except QueueUnavailableError as error:
                log.warning("queue.unavailable", waiting=len(rows) - published, error=str(error))
                break
            session.delete(row)
            published += 1
        return published


def reannounce_stale(database: Database, queue: JobQueue, *, older_than_s: float) -> int:
    """Put jobs into the outbox again that have waited long: a flushed or restarted queue forgets its messages.

    While a queue still holds messages they are only waiting for a worker, and nothing is added.
    """
    quiet = [name for name in QUEUES if not queue.has_backlog(name)]
    with database.transaction() as session:
        waiting = select(OutboxRow.job_id)
        query = (
            select(JobRow)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.queue.in_(quiet),
                JobRow.queued_at < func.clock_timestamp() - timedelta(seconds=older_than_s),
                JobRow.id.not_in(waiting),
            )
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
        jobs = session.scalars(query).all()
        for job in jobs:
            enqueue(session, job)
            job.queued_at = session.execute(select(func.clock_timestamp())).scalar_one()
        return len(jobs)


class LocalQueue:
    """For the local dispatcher, which polls the jobs table itself: the message is a notification that wakes it."""

    CHANNEL = "job_queued"

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, job_id: str, queue: str) -> None:  # noqa: ARG002 the woken dispatcher looks at the table
        """See JobQueue."""
        with self._database.transaction() as session:
            session.execute(select(func.pg_notify(self.CHANNEL, queue)))

    def is_available(self) -> bool:
        """Always: it is the database itself."""
        return True

    def has_backlog(self, queue: str) -> bool:  # noqa: ARG002 a notification never waits
        """See JobQueue."""
        return False
