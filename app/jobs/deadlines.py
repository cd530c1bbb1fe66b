"""Jobs that are of no use after a certain time. The time is the database's."""

from datetime import datetime

import structlog
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from app.db import Database, JsonObject
from app.errors import FieldError, InvalidInputError
from app.jobs import shards
from app.jobs.events import STATUS, add_event
from app.jobs.leases import ending
from app.jobs.orm import JobRow
from app.jobs.problems import problem
from app.jobs.status import JobStatus

log = structlog.get_logger(__name__)

BATCH = 200
_WHY: JsonObject = {"reason": "deadline_passed"}


def end_overdue(database: Database) -> int:
    """Fail the jobs that wait after their deadline, and return how many. Any number of processes may do this.

    A shard ends with its parent, whose deadline it has.
    """
    return _end_queued(database) + _end_waiting_for_shards(database)


def _end_queued(database: Database) -> int:
    queued = (JobRow.status == JobStatus.QUEUED.value, JobRow.parent_job_id.is_(None))
    with database.transaction() as session:
        query = select(JobRow).where(*queued, _is_overdue()).limit(BATCH).with_for_update(skip_locked=True)
        jobs = session.scalars(query).all()
        for job in jobs:
            error = deadline_passed(job.deadline, where="still waited for a worker")
            session.execute(update(JobRow).where(JobRow.id == job.id).values(**ending(JobStatus.FAILED), error=error))
            status = {"status": JobStatus.FAILED.value, "attempt": job.attempt}
            add_event(session, job.id, STATUS, status | _WHY)
            log.warning("job.deadline_passed", job_id=job.id)
        return len(jobs)


def _end_waiting_for_shards(database: Database) -> int:
    """A transaction for each: whoever holds a job's lock may wait for those of its shards, and for no other's."""
    overdue = select(JobRow.id).where(shards.waiting_jobs(), _is_overdue())
    ended = 0
    with database.transaction() as session:
        parents = session.scalars(overdue.limit(BATCH)).all()
    for parent_id in parents:
        with database.transaction() as session:
            query = select(JobRow).where(JobRow.id == parent_id, shards.waiting_jobs(), _is_overdue())
            parent = session.scalars(query.with_for_update(skip_locked=True, key_share=True)).one_or_none()
            if parent is not None:
                error = deadline_passed(parent.deadline, where="still waited for its shards")
                shards.end(session, parent, JobStatus.FAILED, _WHY, error=error)
                log.warning("job.deadline_passed", job_id=parent.id)
                ended += 1
    return ended


def _is_overdue() -> ColumnElement[bool]:
    """By a clock that stands still within a statement, as an index can only be asked for what does not change."""
    return JobRow.deadline < func.statement_timestamp()


def has_passed(session: Session, deadline: datetime | None) -> bool:
    """Whether it has, by the database's clock."""
    return deadline is not None and session.execute(select(func.clock_timestamp() >= deadline)).scalar_one()


def require_ahead(session: Session, deadline: datetime | None) -> None:
    """Refuse a deadline in the past.

    Raises:
        InvalidInputError: it is; points at `/deadline`.
    """
    if has_passed(session, deadline):
        detail = f"{deadline} has passed"
        raise InvalidInputError(
            f"The job could never start: {detail}.",
            errors=[FieldError("/deadline", detail)],
            hint="Give a time to come, with its offset, such as 2030-01-31T06:00:00Z.",
        )


def deadline_passed(deadline: datetime | None, *, where: str) -> JsonObject:
    """The job is of no use any more; `where` says how far it had come."""
    detail = f"The deadline, {deadline}, has passed, and the job {where}."
    return problem("deadline_passed", detail, hint="POST …/clone, with a later deadline or none.")


def max_runtime_exceeded(limit_s: float, *, resumable: bool) -> JsonObject:
    """The job ran longer than its client wanted."""
    hint = "POST …/retry: the job goes on from its last checkpoint." if resumable else ""
    return problem(
        "max_runtime_exceeded",
        f"The job ran longer than its max_runtime_s, {limit_s:g} s.",
        hint=hint or "POST …/clone with a larger max_runtime_s.",
        retryable=resumable,
    )
