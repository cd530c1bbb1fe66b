"""Which jobs a list shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement

from app.jobs.orm import JobRow
from app.jobs.specs import JOB_KINDS
from app.jobs.status import JobStatus


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Every given condition holds for each job that is shown. Inspections never are."""

    status: JobStatus | None = None
    kind: str | None = None
    model_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Pairs that the job's own metadata contain."""
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL."""
        found: list[ColumnElement[bool]] = [JobRow.kind.in_(JOB_KINDS if self.kind is None else (self.kind,))]
        if self.status is not None:
            found.append(JobRow.status == self.status.value)
        if self.model_id is not None:
            found.append(JobRow.spec["model_id"].astext == self.model_id)
        if self.metadata:
            found.append(JobRow.metadata_.contains(dict(self.metadata)))
        if self.created_after is not None:
            found.append(JobRow.created_at > self.created_after)
        if self.created_before is not None:
            found.append(JobRow.created_at < self.created_before)
        return found
