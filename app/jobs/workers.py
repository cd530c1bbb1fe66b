"""Which workers there are, and for how many jobs they have room; one that is silent counts no more."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, any_, delete, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base

BEATS_MISSED = 3
"""A worker that has been silent for so many of its beats is taken for dead."""


class WorkerRow(Base):
    """A worker as it reported last. It is information only: who may work on a job is said by the job's own lease."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The owner of the leases that it holds."""
    host: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]] = mapped_column(ARRAY(String))
    slots: Mapped[int]
    """How many jobs of each queue it can work on at once."""
    device: Mapped[str]
    version: Mapped[str]
    gpus: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """Readings of the GPUs that it sees."""
    beat_s: Mapped[float]
    """It reports this often."""
    draining: Mapped[bool] = mapped_column(default=False)
    """It takes no more jobs."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_seen: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


@dataclass(frozen=True)
class Worker:
    """What a worker says about itself."""

    id: str
    host: str
    pid: int
    queues: Sequence[str]
    device: str
    version: str
    beat_s: float
    slots: int = 1


def beat(session: Session, worker: Worker, *, gpus: Sequence[dict[str, Any]] = (), draining: bool = False) -> None:
    """Write down that the worker lives, and what it looks like now."""
    about = {
        "host": worker.host,
        "pid": worker.pid,
        "queues": list(worker.queues),
        "slots": worker.slots,
        "device": worker.device,
        "version": worker.version,
        "gpus": list(gpus),
        "beat_s": worker.beat_s,
        "draining": draining,
        "last_seen": func.clock_timestamp(),
    }
    query = insert(WorkerRow).values(id=worker.id, **about)
    session.execute(query.on_conflict_do_update(index_elements=[WorkerRow.id], set_=about))


def leave(session: Session, worker_id: str) -> None:
    """The worker ends in good order."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def live_workers(session: Session, queue: str) -> int:
    """How many jobs of `queue` can run at once, on workers that were heard of lately and take jobs."""
    takes = (is_live(), ~WorkerRow.draining, literal(queue) == any_(WorkerRow.queues))
    return int(session.execute(select(func.coalesce(func.sum(WorkerRow.slots), 0)).where(*takes)).scalar_one())


def list_live(session: Session) -> Sequence[WorkerRow]:
    """Every worker that was heard of lately, oldest first."""
    return session.scalars(select(WorkerRow).where(is_live()).order_by(WorkerRow.started_at)).all()


def forget_silent(session: Session, *, older_than_s: float) -> None:
    """Remove what dead workers left."""
    age_s = func.extract("epoch", func.clock_timestamp() - WorkerRow.last_seen)
    session.execute(delete(WorkerRow).where(age_s > older_than_s))


def is_live() -> ColumnElement[bool]:
    """Heard of lately, by the database's clock."""
    age_s = func.extract("epoch", func.clock_timestamp() - WorkerRow.last_seen)
    return age_s < WorkerRow.beat_s * BEATS_MISSED
