"""Who may work on a job: the fenced lease. All times are the database's.

A claim raises the job's fence. Every later write names that fence and the running status, so a supervisor whose lease
was taken away (it was paused, cut off, or presumed dead) changes nothing any more.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TextualSelect

from app.db import JsonObject
from app.jobs.claims import Claim
from app.jobs.events import PROGRESS, STATUS, add_event
from app.jobs.fairness import exceeds_limit, limit_of, next_in_turn
from app.jobs.origin import Origin
from app.jobs.orm import JobRow, OutboxRow
from app.jobs.status import JobStatus

__all__ = ["Claim", "LeaseLostError", "claim_next", "close", "give_back", "let_go", "renew"]


class LeaseLostError(Exception):
    """Another supervisor, the reaper or a client has taken the job; stop working on it."""


def claim_next(
    session: Session, queue: str, *, owner: str, lease_s: float, worker: JsonObject | None = None
) -> Claim | None:
    """Take the job of `queue` whose turn it is (app.jobs.fairness); None if there is none.

    `worker` says who works on the attempt; it is shown with the job.
    """
    at_limit: list[str] = []
    while True:
        candidate = next_in_turn(queue, without=at_limit)
        with session.begin_nested() as attempt:
            taken = _take(session, candidate, owner, lease_s, limit=limit_of(queue))
            if taken is None:
                return None
            job, limit = taken
            if limit is None or not exceeds_limit(session, job.project_id, queue, limit):
                return _started(session, job, worker)
            attempt.rollback()
        at_limit.append(job.project_id)


def renew(session: Session, held: Claim, *, lease_s: float, progress: JsonObject | None = None) -> bool:
    """Prolong the lease, pass progress on, and learn whether a client asked to cancel.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    values: dict[str, Any] = {"lease_until": _from_now(lease_s)}
    if progress is not None:
        values["progress"] = progress
    query = update(JobRow).where(_is_held(held)).values(**values).returning(JobRow.cancel_requested)
    cancel_requested = session.execute(query).scalar_one_or_none()
    if cancel_requested is None:
        raise LeaseLostError(held.job_id)
    if progress is not None:
        add_event(session, held.job_id, PROGRESS, progress)
    return cancel_requested


def close(session: Session, held: Claim, status: JobStatus, **values: Any) -> None:
    """End the job in a terminal status, in the caller's transaction with everything else that belongs to the end.

    Raises:
        LeaseLostError: the job is no longer ours; the caller's transaction must not commit.
    """
    query = update(JobRow).where(_is_held(held)).values(**ending(status), **values).returning(JobRow.id)
    if session.execute(query).scalar_one_or_none() is None:
        raise LeaseLostError(held.job_id)
    add_event(session, held.job_id, STATUS, {"status": status.value, "attempt": held.attempt})


def give_back(session: Session, held: Claim, *, reason: str, refund: bool) -> None:
    """Return the job to the queue; with `refund` the attempt does not count. One that is to be cancelled ends.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    if renew(session, held, lease_s=0):
        close(session, held, JobStatus.CANCELLED)
        return
    attempt = JobRow.attempt - 1 if refund else JobRow.attempt
    query = update(JobRow).where(_is_held(held)).values(**back_to_queue(), attempt=attempt).returning(JobRow.queue)
    queue = session.execute(query).scalar_one_or_none()
    if queue is None:
        raise LeaseLostError(held.job_id)
    session.add(OutboxRow(job_id=held.job_id, queue=queue))
    status = {"status": JobStatus.QUEUED.value, "reason": reason, "attempt": held.attempt}
    add_event(session, held.job_id, STATUS, status)


def let_go(session: Session, held: Claim, **values: Any) -> None:
    """Leave the job running with nobody holding it: what it waits for will put it back into the queue.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    nobody = {"lease_owner": None, "lease_until": None, "fence": JobRow.fence + 1}
    query = update(JobRow).where(_is_held(held)).values(**nobody, **values).returning(JobRow.id)
    if session.execute(query).scalar_one_or_none() is None:
        raise LeaseLostError(held.job_id)


def ending(status: JobStatus) -> dict[str, Any]:
    """Column values of a job that has ended."""
    return {"status": status.value, "lease_owner": None, "lease_until": None, "finished_at": func.clock_timestamp()}


def back_to_queue() -> dict[str, Any]:
    """Column values of a job that waits again."""
    return {
        "status": JobStatus.QUEUED.value,
        "lease_owner": None,
        "lease_until": None,
        "progress": None,
        "queued_at": func.clock_timestamp(),
    }


def has_expired() -> ColumnElement[bool]:
    """Running, but its holder has fallen silent."""
    return and_(JobRow.status == JobStatus.RUNNING.value, JobRow.lease_until < func.clock_timestamp())


def _take(
    session: Session, candidate: TextualSelect, owner: str, lease_s: float, *, limit: ColumnElement[Any]
) -> tuple[JobRow, int | None] | None:
    query = (
        update(JobRow)
        .where(JobRow.id == candidate.scalar_subquery())
        .values(
            status=JobStatus.RUNNING.value,
            attempt=JobRow.attempt + 1,
            fence=JobRow.fence + 1,
            lease_owner=owner,
            lease_until=_from_now(lease_s),
            progress=None,
            started_at=func.coalesce(JobRow.started_at, func.clock_timestamp()),
        )
        .returning(JobRow, limit)
    )
    row = session.execute(query, execution_options={"populate_existing": True}).one_or_none()
    return None if row is None else (row[0], row[1])


def _started(session: Session, job: JobRow, worker: JsonObject | None) -> Claim:
    last = job.attempt >= job.attempt_limit
    origin = Origin(job.request_id, job.traceparent)
    held = Claim(job.id, job.fence, job.attempt, last, job.kind, job.project_id, job.spec, origin)
    status = {"status": JobStatus.RUNNING.value, "attempt": held.attempt}
    add_event(session, held.job_id, STATUS, status if worker is None else status | {"worker": worker})
    return held


def _is_held(held: Claim) -> ColumnElement[bool]:
    return and_(JobRow.id == held.job_id, JobRow.fence == held.fence, JobRow.status == JobStatus.RUNNING.value)


def _from_now(seconds: float) -> ColumnElement[Any]:
    return func.clock_timestamp() + timedelta(seconds=seconds)
