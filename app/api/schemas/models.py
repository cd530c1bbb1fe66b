"""What the API shows of a model, and of where it comes from."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from app.api.schemas.assets import AssetRead, shared_fields
from app.artifacts.orm import ModelRow
from app.jobs.orm import JobRow
from app.jobs.specs import references


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
            **shared_fields(row),
            architecture=row.spec,
            parent_model_id=row.parent_model_id,
            produced_by_job_id=row.produced_by_job_id,
            lineage=[Ancestor.of(model, job) for model, job in lineage],
            links=links,
        )
