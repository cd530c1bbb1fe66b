"""The append-only story of each job, and the bell that wakes whoever waits for it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.jobs.orm import JobEventRow, JobRow

CHANGES = "resource_changed"
"""Notified with the id of a job, model or dataset when it changes; delivered at commit."""

STATUS = "status"
PROGRESS = "progress"


def add_event(session: Session, job_id: str, event_type: str, data: dict[str, Any]) -> None:
    """Append an event with the next number of its job, and ring the bell at commit."""
    count = update(JobRow).where(JobRow.id == job_id).values(event_count=JobRow.event_count + 1)
    seq = session.execute(count.returning(JobRow.event_count)).scalar_one()
    session.add(JobEventRow(job_id=job_id, seq=seq, type=event_type, data=data))
    announce(session, job_id)


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
