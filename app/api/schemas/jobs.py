"""What the API shows of a job."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.api.schemas.artifacts import ArtifactRead
from app.api.schemas.events import EventRead
from app.artifacts.orm import ArtifactRow
from app.jobs.fairness import priority_of
from app.jobs.orm import JobEventRow, JobRow
from app.jobs.outlook import Place
from app.jobs.specs import Priority
from app.jobs.status import JobStatus


class Progress(BaseModel):
    """Where a running job is. `fraction` covers the whole job and rises within an attempt."""

    stage: str
    done: int
    total: int
    fraction: float
    eta_s: float | None


class QueuePlace(BaseModel):
    """Where a queued job stands. `position` 1 is next; `eta_s` are seconds until it starts, `null` if nobody can tell.

    Both are estimates: jobs may end sooner or later, and a project's turn depends on what the others submit.
    """

    position: int
    eta_s: float | None


class JobRead(BaseModel):
    """A job."""

    id: str
    kind: str
    status: JobStatus
    cancel_requested: bool
    priority: Priority
    queue: QueuePlace | None
    cloned_from: str | None
    max_runtime_s: float | None
    deadline: datetime | None
    progress: Progress | None
    attempt: int
    config: dict[str, Any]
    seed: int
    metadata: dict[str, str]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    versions: dict[str, str] | None
    artifacts: list[ArtifactRead]
    transitions: list[EventRead]
    last_event: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(
        cls,
        row: JobRow,
        artifacts: Iterable[ArtifactRow] = (),
        transitions: Iterable[JobEventRow] = (),
        place: Place | None = None,
    ) -> "JobRead":
        """From its rows. Lists leave `transitions` out, answers to a POST `queue`."""
        base = f"/v1/jobs/{row.id}"
        return cls(
            id=row.id,
            kind=row.kind,
            status=JobStatus(row.status),
            cancel_requested=row.cancel_requested,
            priority=priority_of(row),
            queue=None if place is None else QueuePlace(position=place.position, eta_s=place.eta_s),
            cloned_from=row.cloned_from,
            max_runtime_s=row.max_runtime_s,
            deadline=row.deadline,
            progress=Progress(**row.progress) if row.progress else None,
            attempt=row.attempt,
            config={key: value for key, value in row.spec.items() if key not in ("kind", "seed")},
            seed=row.spec.get("seed", 0),
            metadata=row.metadata_,
            result=row.result,
            error=row.error,
            versions=row.versions,
            artifacts=[ArtifactRead.of(artifact) for artifact in artifacts],
            transitions=[EventRead.of(event) for event in transitions],
            last_event=row.event_count,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            links={
                "self": base,
                "events": f"{base}/events",
                "cancel": f"{base}/cancel",
                "retry": f"{base}/retry",
                "clone": f"{base}/clone",
                "logs": f"{base}/logs",
                "artifacts": f"{base}/artifacts",
            },
        )
