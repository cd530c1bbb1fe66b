"""The append-only story of each job, and the bell that wakes whoever waits for it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.jobs.orm import JobEventRow, JobRow
from app.jobs.specs import JOB_KINDS
from app.jobs.status import JobStatus
from app.webhooks.fanout import EventType, record

CHANGES = "resource_changed"
"""Notified with the id of a job, model or dataset when it changes; delivered at commit."""

STATUS = "status"
PROGRESS = "progress"

_EVENT_TYPE_OF: dict[JobStatus, EventType] = {
    JobStatus.QUEUED: "job.queued",
    JobStatus.RUNNING: "job.started",
    JobStatus.SUCCEEDED: "job.succeeded",
    JobStatus.FAILED: "job.failed",
    JobStatus.CANCELLED: "job.cancelled",
}
_TOLD = (
    JobRow.id,
    JobRow.event_count,
    JobRow.project_id,
    JobRow.kind,
    JobRow.metadata_.label("metadata_"),
    JobRow.error,
)


def add_event(session: Session, job_id: str, event_type: str, data: dict[str, Any]) -> None:
    """Append an event with the next number of its job; at commit, ring the bell and have webhooks told of a status."""
    count = update(JobRow).where(JobRow.id == job_id).values(event_count=JobRow.event_count + 1)
    _tell(session, session.execute(count.returning(*_TOLD)).one(), event_type, data)
    announce(session, job_id)


def add_first_event(session: Session, job: JobRow) -> None:
    """Begin the story of a job that this transaction has queued with an event count of 1. Nobody waits for it yet."""
    _tell(session, job, STATUS, {"status": JobStatus.QUEUED.value})


def _tell(session: Session, job: Any, event_type: str, data: dict[str, Any]) -> None:
    session.add(JobEventRow(job_id=job.id, seq=job.event_count, type=event_type, data=data))
    if event_type == STATUS and job.kind in JOB_KINDS:
        told = {"job_id": job.id, "seq": job.event_count, **data, "kind": job.kind, "metadata": job.metadata_}
        told |= {"error": job.error} if data["status"] == JobStatus.FAILED else {}
        record(session, job.project_id, _EVENT_TYPE_OF[JobStatus(data["status"])], job.id, told)


def announce(session: Session, resource_id: str) -> None:
    """Tell waiting clients, once this transaction commits, that something changed."""
    session.execute(select(func.pg_notify(CHANGES, resource_id)))


def events_after(session: Session, job_id: str, seq: int, *, limit: int) -> Sequence[JobEventRow]:
    """Events numbered above `seq`, in order."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
    return session.scalars(query.order_by(JobEventRow.seq).limit(limit)).all()


def transitions(session: Session, job_id: str) -> Sequence[JobEventRow]:
    """The changes of status alone."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.type == STATUS)
    return session.scalars(query.order_by(JobEventRow.seq)).all()
