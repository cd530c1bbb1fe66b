"""Jobs whose supervisor has fallen silent go back to the queue, or end."""

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs.completion import reject_inspected
from app.jobs.events import STATUS, add_event
from app.jobs.leases import back_to_queue, ending, has_expired
from app.jobs.orm import JobRow
from app.jobs.problems import worker_lost
from app.jobs.queue import enqueue
from app.jobs.shards import settle_all
from app.jobs.status import JobStatus

log = structlog.get_logger(__name__)


def reap(database: Database) -> int:
    """Take away every expired lease and return how many there were. Any number of reapers may run."""
    with database.transaction() as session:
        jobs = session.scalars(select(JobRow).where(has_expired()).with_for_update(skip_locked=True)).all()
        for job in jobs:
            with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt, owner=job.lease_owner):
                try:
                    with session.begin_nested():
                        status = _settle(session, job)
                except Exception:
                    log.exception("job.cannot_be_reaped")  # one job must not keep the others from being reaped
                else:
                    log.warning("job.lease_expired", now=status.value)
    settle_all(database)
    return len(jobs)


def _settle(session: Session, job: JobRow) -> JobStatus:
    by_id = update(JobRow).where(JobRow.id == job.id)
    if job.cancel_requested:
        status = JobStatus.CANCELLED
        session.execute(by_id.values(**ending(status)))
    elif job.attempt < job.attempt_limit:
        status = JobStatus.QUEUED
        session.execute(by_id.values(**back_to_queue()))
        enqueue(session, job)
    else:
        status = JobStatus.FAILED
        error = worker_lost(job.attempt)
        session.execute(by_id.values(**ending(status), error=error))
        reject_inspected(session, job.spec, error)
    add_event(session, job.id, STATUS, {"status": status.value, "reason": "worker_lost", "attempt": job.attempt})
    return status
