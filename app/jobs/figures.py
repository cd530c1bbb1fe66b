"""The whole service in numbers, read from the tables: right whichever process is asked, and whatever has died since."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select, text, union_all
from sqlalchemy.orm import Session

from app.jobs.orm import JobRow, OutboxRow
from app.jobs.specs import QUEUES
from app.jobs.status import JobStatus
from app.jobs.tally import JobTallyRow
from app.jobs.workers import WorkerRow, list_live

_STATEMENT_LIMIT = text("SET LOCAL statement_timeout = 3000")


@dataclass(frozen=True)
class Figures:
    """One reading."""

    under_way: dict[tuple[str, str, str], int]
    """Jobs by queue, kind, and status (`queued` or `running`)."""
    oldest_wait_s: dict[str, float]
    """How long the job that has waited longest waits, by queue; 0 where none does."""
    overdue_leases: int
    """Running jobs whose lease has run out, and which no reaper has taken back yet."""
    unannounced_s: float
    """Age of the oldest message that the queue has not got; 0 if it has all."""
    workers: Sequence[WorkerRow]
    tally: Sequence[Row[Any]]
    """`job_tally` summed up, with its columns but `id`."""


def read_figures(session: Session) -> Figures:
    """What there is now, by indexes alone.

    Raises:
        OperationalError: the database is away, or needs more than three seconds.
    """
    session.execute(_STATEMENT_LIMIT)
    under_way: dict[tuple[str, str, str], int] = {}
    oldest_wait_s = dict.fromkeys(QUEUES, 0.0)
    for queue, kind, status, count, waited_s in session.execute(_jobs_under_way()):
        under_way[queue, kind, status] = count
        if status == JobStatus.QUEUED:
            oldest_wait_s[queue] = max(oldest_wait_s.get(queue, 0.0), float(waited_s))
    running = JobRow.status == JobStatus.RUNNING.value
    overdue = select(func.count()).where(running, JobRow.lease_until < func.clock_timestamp())
    age_s = func.extract("epoch", func.clock_timestamp() - func.min(OutboxRow.created_at))
    return Figures(
        under_way=under_way,
        oldest_wait_s=oldest_wait_s,
        overdue_leases=session.execute(overdue).scalar_one(),
        unannounced_s=float(session.execute(select(age_s)).scalar_one() or 0.0),
        workers=list_live(session),
        tally=session.execute(_summed_tally()).all(),
    )


def _jobs_under_way() -> Any:
    """A part for each status, as each has its own partial index."""
    columns = (JobRow.queue, JobRow.kind, JobRow.status)
    waited_s = func.extract("epoch", func.clock_timestamp() - func.min(JobRow.queued_at))
    return union_all(
        *(
            select(*columns, func.count(), waited_s).where(JobRow.status == status.value).group_by(*columns)
            for status in (JobStatus.QUEUED, JobStatus.RUNNING)
        )
    )


def _summed_tally() -> Any:
    alike = (
        *(JobTallyRow.queue, JobTallyRow.kind, JobTallyRow.before, JobTallyRow.after),
        *(JobTallyRow.reason, JobTallyRow.code, JobTallyRow.le),
    )
    count, seconds = func.sum(JobTallyRow.count).label("number"), func.sum(JobTallyRow.seconds).label("seconds")
    return select(*alike, count, seconds).group_by(*alike)
