"""How a job ends: everything that its end changes is one commit, and only its lease holder can make it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy.orm import Session

from app.artifacts.catalog import accept, reject
from app.artifacts.orm import ArtifactRow, AssetStatus, DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.db import JsonObject
from app.ids import new_id
from app.jobs import analyses, shards
from app.jobs.events import announce
from app.jobs.leases import Claim, close
from app.jobs.specs import Producing, parse_spec
from app.jobs.status import JobStatus


@dataclass(frozen=True)
class Output:
    """A file that the job's process left, already in the store."""

    name: str
    media_type: str
    blob: Blob
    role: Literal["artifact", "model", "dataset", "analysis"] = "artifact"
    facts: JsonObject = field(default_factory=dict)
    """For a model or dataset: what the catalogue shows about it."""


def succeed(
    session: Session, held: Claim, *, result: JsonObject, versions: JsonObject, outputs: Sequence[Output]
) -> None:
    """Commit a success: status, result, artifacts, produced or inspected models and datasets.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    parent_id = shards.lock_parent(session, held)
    spec, inspected = parse_spec(held.spec), _inspected(session, held.spec)
    produced: JsonObject = {}
    if inspected is not None:
        _accept_inspected(session, inspected, outputs)
    else:
        _add_artifacts(session, held, outputs)
        if isinstance(spec, Producing):
            produced["model_id"] = _add_model(session, held, spec, outputs)
    close(session, held, JobStatus.SUCCEEDED, result=result | produced, versions=versions, error=None)
    shards.settle(session, parent_id)


def fail(session: Session, held: Claim, error: JsonObject, outputs: Sequence[Output] = ()) -> None:
    """Commit a failure with what was of use all the same; an inspected upload is rejected with the same error.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    parent_id = shards.lock_parent(session, held)
    if _inspected(session, held.spec) is None:
        _add_artifacts(session, held, outputs)
    reject_inspected(session, held.spec, error)
    close(session, held, JobStatus.FAILED, error=error)
    shards.settle(session, parent_id)


def cancel(session: Session, held: Claim) -> None:
    """Commit a cancellation that a client asked for.

    Raises:
        LeaseLostError: the job is no longer ours.
    """
    parent_id = shards.lock_parent(session, held)
    close(session, held, JobStatus.CANCELLED)
    shards.settle(session, parent_id)


def reject_inspected(session: Session, spec: JsonObject, error: JsonObject) -> None:
    """If the job was an inspection, its upload is unusable."""
    asset = _inspected(session, spec)
    if asset is not None:
        reject(asset, error)
        announce(session, asset.id)


def _inspected(session: Session, spec: JsonObject) -> ModelRow | DatasetRow | None:
    """The upload that the job inspects, if it is an inspection. A spec of any version of this code will do."""
    match spec:
        case {"kind": "inspect_model", "model_id": str(model_id)}:
            return session.get_one(ModelRow, model_id)
        case {"kind": "inspect_dataset", "dataset_id": str(dataset_id)}:
            return session.get_one(DatasetRow, dataset_id)
    return None


def _accept_inspected(session: Session, asset: ModelRow | DatasetRow, outputs: Sequence[Output]) -> None:
    (canonical,) = outputs
    accept(asset, digest=canonical.blob.digest, size_bytes=canonical.blob.size_bytes, facts=canonical.facts)
    announce(session, asset.id)


def _add_artifacts(session: Session, held: Claim, outputs: Sequence[Output]) -> None:
    for output in outputs:
        if output.role == "analysis":
            analyses.keep(session, held, parse_spec(held.spec), output.blob)
            continue
        session.add(
            ArtifactRow(
                id=new_id("art"),
                project_id=held.project_id,
                job_id=held.job_id,
                fence=held.fence,
                name=output.name,
                media_type=output.media_type,
                digest=output.blob.digest,
                size_bytes=output.blob.size_bytes,
            )
        )


def _add_model(session: Session, held: Claim, spec: Producing, outputs: Sequence[Output]) -> str:
    (checkpoint,) = [output for output in outputs if output.role == "model"]
    parent = session.get_one(ModelRow, spec.model_id)
    facts = dict(checkpoint.facts)
    model = ModelRow(
        id=new_id("mdl"),
        project_id=held.project_id,
        name=spec.name or f"{parent.name} ({spec.produced})",
        spec=facts.pop("architecture"),
        source_digest=checkpoint.blob.digest,
        parent_model_id=parent.id,
        produced_by_job_id=held.job_id,
        status=AssetStatus.READY.value,
        digest=checkpoint.blob.digest,
        size_bytes=checkpoint.blob.size_bytes,
        facts=facts,
    )
    session.add(model)
    session.flush()
    return model.id
