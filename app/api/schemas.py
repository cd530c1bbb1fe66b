"""What the API shows."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from app.artifacts.orm import (
    ArtifactRow,
    AssetColumns,
    AssetStatus,
    DatasetRow,
    ModelRow,
    UploadPartRow,
    UploadRow,
    UploadStatus,
)
from app.artifacts.uploads import part_count
from app.jobs.fairness import priority_of
from app.jobs.orm import JobEventRow, JobRow
from app.jobs.outlook import Place
from app.jobs.specs import Priority, references
from app.jobs.status import JobStatus

ItemT = TypeVar("ItemT", bound=BaseModel)


class Page(BaseModel, Generic[ItemT]):
    """One page of a list, newest first."""

    data: list[ItemT]
    next_cursor: str | None


def page(items: Sequence[ItemT], ids: Sequence[str], limit: int) -> "Page[ItemT]":
    """The first `limit` of `items`, which were asked for with one to spare."""
    return Page(data=list(items[:limit]), next_cursor=ids[limit - 1] if len(items) > limit else None)


class ArtifactRead(BaseModel):
    """A file that a job produced."""

    id: str
    job_id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: ArtifactRow) -> "ArtifactRead":
        """From its row."""
        return cls(
            id=row.id,
            job_id=row.job_id,
            name=row.name,
            media_type=row.media_type,
            size_bytes=row.size_bytes,
            sha256=row.digest,
            created_at=row.created_at,
            links={"content": f"/v1/artifacts/{row.id}/content"},
        )


class AssetRead(BaseModel):
    """What models and datasets have in common."""

    id: str
    name: str
    status: AssetStatus
    size_bytes: int
    sha256: str | None
    facts: dict[str, Any] | None
    error: dict[str, Any] | None
    metadata: dict[str, str]
    created_at: datetime
    links: dict[str, str]


class Production(BaseModel):
    """The job that a model came from. `inputs` are the fields that named what else went into it."""

    job_id: str
    kind: str
    inputs: dict[str, str]

    @classmethod
    def of(cls, row: JobRow) -> "Production":
        """From its row."""
        named = references(row.spec).items()
        inputs = {pointer.removeprefix("/"): stored for pointer, stored in named if pointer != "/model_id"}
        return cls(job_id=row.id, kind=row.kind, inputs=inputs)


class Ancestor(BaseModel):
    """A model in the line of another. One that was uploaded has no `produced_by`."""

    model_id: str
    name: str
    deleted: bool
    produced_by: Production | None

    @classmethod
    def of(cls, row: ModelRow, job: JobRow | None) -> "Ancestor":
        """From its rows."""
        produced_by = None if job is None else Production.of(job)
        return cls(model_id=row.id, name=row.name, deleted=row.deleted_at is not None, produced_by=produced_by)


class ModelRead(AssetRead):
    """A network. `lineage` leads from the model itself to the upload that it goes back to; lists leave it out."""

    architecture: dict[str, Any]
    parent_model_id: str | None
    produced_by_job_id: str | None
    lineage: list[Ancestor]

    @classmethod
    def of(cls, row: ModelRow, lineage: Iterable[tuple[ModelRow, JobRow | None]] = ()) -> "ModelRead":
        """From its rows."""
        links = {"self": f"/v1/models/{row.id}", "content": f"/v1/models/{row.id}/content"}
        return cls(
            **_asset(row),
            architecture=row.spec,
            parent_model_id=row.parent_model_id,
            produced_by_job_id=row.produced_by_job_id,
            lineage=[Ancestor.of(model, job) for model, job in lineage],
            links=links,
        )


class DatasetRead(AssetRead):
    """A dataset."""

    reading: dict[str, Any]

    @classmethod
    def of(cls, row: DatasetRow) -> "DatasetRead":
        """From its row."""
        return cls(**_asset(row), reading=row.spec, links={"self": f"/v1/datasets/{row.id}"})


def _asset(row: AssetColumns) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "size_bytes": row.size_bytes,
        "sha256": row.digest,
        "facts": row.facts,
        "error": row.error,
        "metadata": row.metadata_,
        "created_at": row.created_at,
    }


class UploadPartRead(BaseModel):
    """A part that has arrived."""

    number: int
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, row: UploadPartRow) -> "UploadPartRead":
        """From its row."""
        return cls(number=row.number, size_bytes=row.size_bytes, sha256=row.sha256)


class UploadRead(BaseModel):
    """An upload in parts. `sha256` is the declared one until the file is complete, then its own."""

    id: str
    name: str
    status: UploadStatus
    size_bytes: int
    part_bytes: int
    part_count: int
    parts: list[UploadPartRead]
    sha256: str | None
    created_at: datetime
    expires_at: datetime
    links: dict[str, str]

    @classmethod
    def of(cls, row: UploadRow, parts: Iterable[UploadPartRow]) -> "UploadRead":
        """From its rows."""
        base = f"/v1/uploads/{row.id}"
        return cls(
            id=row.id,
            name=row.name,
            status=UploadStatus(row.status),
            size_bytes=row.size_bytes,
            part_bytes=row.part_bytes,
            part_count=part_count(row),
            parts=[UploadPartRead.of(part) for part in parts],
            sha256=row.digest if row.status == UploadStatus.COMPLETE else row.sha256,
            created_at=row.created_at,
            expires_at=row.expires_at,
            links={"self": base, "parts": f"{base}/parts/{{number}}", "complete": f"{base}/complete"},
        )


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


class EventRead(BaseModel):
    """Something that happened to a job."""

    seq: int
    type: str
    at: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, row: JobEventRow) -> "EventRead":
        """From its row."""
        return cls(seq=row.seq, type=row.type, at=row.at, data=row.data)


class EventPage(BaseModel):
    """Events in order; ask on with `after` = the last `seq`."""

    data: list[EventRead]
    has_more: bool


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
