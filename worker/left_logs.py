"""Logs of attempts whose supervisor died before it could keep them: they lie in the work folder until they are found.

The next supervisor of the job keeps them before it clears the folder, and the sweeper those of jobs that nobody takes
up again. Both keep them once: a log that is kept leaves the folder.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.logs import keep_log
from app.jobs.orm import JobRow
from app.jobs.status import JobStatus
from worker.attempt_log import read_bounded
from worker.order import LOG, ORDER, Order
from worker.workspace import fence_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LeftLog:
    """What an attempt has printed so far."""

    job_id: str
    fence: int
    path: Path

    @property
    def attempt(self) -> int:
        """Which attempt it was, as its process was told."""
        order = Order.model_validate_json(self.path.with_name(ORDER).read_bytes())
        return int(order.log_context["attempt"])


def keep_left_logs(session: Session, job_dirs: Iterable[Path]) -> list[Path]:
    """Keep the logs in these folders of jobs, but for those of attempts that are worked on.

    Returns the files, which are to go once that is committed, also those of which nobody can tell the attempt.
    """
    left_logs = [left for folder in job_dirs for left in _logs(folder)]
    if not left_logs:
        return []
    query = select(JobRow.id, JobRow.fence, JobRow.status).where(JobRow.id.in_({left.job_id for left in left_logs}))
    jobs = {row.id: row for row in session.execute(query)}
    kept = []
    for left in left_logs:
        job = jobs.get(left.job_id)
        if job is None or (job.fence == left.fence and job.status == JobStatus.RUNNING.value):
            continue
        try:
            keep_log(session, left, read_bounded(left.path))
        except FileNotFoundError:  # its supervisor lives, has kept it, and clears the folder now
            continue
        except (ValueError, KeyError) as error:  # the machine went down before the order was on the disk
            log.warning("job.log_lost", job_id=left.job_id, fence=left.fence, error=type(error).__name__)
        kept.append(left.path)
    return kept


def _logs(job_dir: Path) -> Iterator[LeftLog]:
    with suppress(FileNotFoundError, NotADirectoryError):  # there is none yet, or none any more
        for attempt in job_dir.iterdir():
            if fence_of(attempt) > 0 and (attempt / LOG).is_file():
                yield LeftLog(job_dir.name, fence_of(attempt), attempt / LOG)
