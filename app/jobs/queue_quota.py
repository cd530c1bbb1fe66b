"""How many jobs a project may have waiting and running, and has."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import QuotaError
from app.jobs.orm import JobRow
from app.jobs.specs import JOB_KINDS
from app.jobs.status import JobStatus
from app.projects.quotas import hold_limit

ASK_AGAIN_S = 10.0


@dataclass(frozen=True)
class JobCounts:
    """Jobs of a project that have not ended; inspections do not count."""

    queued: int
    running: int


def count_jobs(session: Session, project_id: str) -> JobCounts:
    """Those of this project."""
    return JobCounts(_count(session, project_id, JobStatus.QUEUED), _count(session, project_id, JobStatus.RUNNING))


def check_queue(session: Session, project_id: str) -> None:
    """Make sure that one more job may wait, and that nobody else takes its place before this transaction ends.

    Raises:
        QuotaError: as many wait as may.
    """
    most = hold_limit(session, project_id, "max_queued_jobs")
    if most is None:
        return
    queued = _count(session, project_id, JobStatus.QUEUED)
    if queued >= most:
        raise QuotaError(
            f"The project has {queued} jobs in the queue; it may have {most}.",
            hint="Try again when one has started, cancel one, or ask the operator for more: "
            "`neusemslice projects set NAME --max-queued`.",
            code="queue_quota_exceeded",
            retry_after_s=ASK_AGAIN_S,
        )


def _count(session: Session, project_id: str, status: JobStatus) -> int:
    query = select(func.count()).where(JobRow.project_id == project_id, JobRow.status == status.value)
    return session.execute(query.where(JobRow.kind.in_(JOB_KINDS))).scalar_one()
