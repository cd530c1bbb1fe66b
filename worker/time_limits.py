"""How long an attempt may run, and why no longer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import JsonObject
from app.jobs.deadlines import deadline_passed, max_runtime_exceeded
from app.jobs.leases import Claim
from app.jobs.orm import JobRow
from app.jobs.problems import timed_out
from app.jobs.specs import queue_of
from app.settings import Settings


@dataclass(frozen=True)
class TimeLimit:
    """The strictest of the operator's limit, the job's own, and its deadline; from the attempt's start."""

    seconds: float
    reason: Literal["timeout", "max_runtime", "deadline"] = "timeout"
    deadline: datetime | None = None

    def problem(self, kind: str, stage: str, *, resumable: bool) -> JsonObject:
        """The error of a job that this limit has stopped at `stage`."""
        match self.reason:
            case "deadline":
                return deadline_passed(self.deadline, where=f"was still at {stage!r}" if stage else "had not begun")
            case "max_runtime":
                return max_runtime_exceeded(self.seconds, resumable=resumable)
        return timed_out(kind, stage, self.seconds, resumable=resumable)


def time_limit(session: Session, held: Claim, settings: Settings) -> TimeLimit:
    """The limit of a claimed job. What is left until a deadline is by the database's clock."""
    remaining = func.extract("epoch", JobRow.deadline - func.clock_timestamp())
    query = select(JobRow.max_runtime_s, JobRow.deadline, remaining).where(JobRow.id == held.job_id)
    max_runtime_s, deadline, remaining_s = session.execute(query).one()
    operators_s = settings.inspection_timeout_s if queue_of(held.kind) == "inspect" else settings.job_timeout_s
    limits = [TimeLimit(operators_s)]
    if max_runtime_s is not None:
        limits.append(TimeLimit(max_runtime_s, "max_runtime"))
    if deadline is not None:
        limits.append(TimeLimit(float(remaining_s), "deadline", deadline))
    return min(limits, key=lambda limit: limit.seconds)
