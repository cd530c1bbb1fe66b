"""How workers learn of queued jobs. The outbox keeps what has not been announced yet."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import Row, any_, delete, func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs.fairness import next_in_turn
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.specs import QUEUES
from app.jobs.status import JobStatus

log = structlog.get_logger(__name__)

BATCH = 200


class QueueUnavailableError(Exception):
    """The queue cannot take messages now; the outbox keeps them."""


class JobQueue(Protocol):
    """Announces jobs. A message is only a hint that there is work in a queue: losing or repeating one does no harm."""

    def publish(self, job_id: str, queue: str) -> None:
        """Tell the workers of `queue` that a job waits. Whoever hears it takes the job whose turn it is.

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

    Several relays may run: each row is taken by one. A crash or a refusal before the end of the batch repeats messages.
    """
    oldest = select(OutboxRow.id).order_by(OutboxRow.id).limit(BATCH).with_for_update(skip_locked=True)
    once = func.array(oldest.scalar_subquery())  # a plan may run what stands in IN several times, and take more
    taken = delete(OutboxRow).where(OutboxRow.id == any_(once))
    rows: Sequence[Row[int, str, str]] = ()
    try:
        with database.transaction() as session:
            rows = session.execute(taken.returning(OutboxRow.id, OutboxRow.job_id, OutboxRow.queue)).all()
            for _, job_id, name in sorted(rows):
                queue.publish(job_id, name)
    except QueueUnavailableError as error:
        log.warning("queue.unavailable", waiting=len(rows), error=str(error))
        return 0
    return len(rows)


def reannounce_stale(database: Database, queue: JobQueue, *, older_than_s: float) -> int:
    """Put messages into the outbox again if jobs wait long that a worker could take: a flushed queue forgets them.

    While messages still wait for the relay or for a worker, nothing is added.
    """
    quiet = [name for name in QUEUES if not queue.has_backlog(name)]
    added = 0
    with database.transaction() as session:
        if session.scalar(select(OutboxRow.id).order_by(OutboxRow.id).limit(1)) is not None:
            return 0
        for name in quiet:
            in_turn = next_in_turn(name, lock=False).scalar_subquery()
            waiting_since = session.scalar(select(JobRow.queued_at).where(JobRow.id == in_turn))
            if waiting_since is None or waiting_since > _ago(session, older_than_s):
                continue
            queued = select(JobRow.id).where(JobRow.status == JobStatus.QUEUED.value, JobRow.queue == name)
            in_index_order = queued.order_by(JobRow.project_id, JobRow.priority, JobRow.id)
            for job_id in session.scalars(in_index_order.limit(BATCH)).all():
                session.add(OutboxRow(job_id=job_id, queue=name))
                added += 1
    return added


def _ago(session: Session, seconds: float) -> datetime:
    then: datetime = session.execute(select(func.clock_timestamp() - timedelta(seconds=seconds))).scalar_one()
    return then


class LocalQueue:
    """For the local dispatcher, which polls the jobs table itself: the message is a notification that wakes it."""

    CHANNEL = "job_queued"

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, job_id: str, queue: str) -> None:  # noqa: ARG002 the woken dispatcher looks at the table
        """See JobQueue."""
        with self._database.autocommit() as session:
            session.execute(select(func.pg_notify(self.CHANNEL, queue)))

    def is_available(self) -> bool:
        """Always: it is the database itself."""
        return True

    def has_backlog(self, queue: str) -> bool:  # noqa: ARG002 every queue is looked at
        """See JobQueue. The dispatcher looks at the table itself, so nothing ever has to be announced again."""
        return True
