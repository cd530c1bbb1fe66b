"""What a job's process needs: files from the store, and values from the rows that it must not read itself."""

from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.db import JsonObject
from app.jobs.leases import Claim
from app.jobs.specs import CompareSpec, InspectDatasetSpec, InspectModelSpec, RestructureSpec, SliceSpec, parse_spec


@dataclass(frozen=True)
class Inputs:
    """Digests of the input files by name, and plain values."""

    files: dict[str, str] = field(default_factory=dict)
    values: JsonObject = field(default_factory=dict)


def collect_inputs(session: Session, held: Claim) -> Inputs:
    """The inputs of a claimed job."""
    match parse_spec(held.spec):
        case InspectModelSpec(model_id=model_id):
            model = session.get_one(ModelRow, model_id)
            return Inputs({"weights": model.source_digest}, {"architecture": model.spec})
        case InspectDatasetSpec(dataset_id=dataset_id):
            dataset = session.get_one(DatasetRow, dataset_id)
            return Inputs({"source": dataset.source_digest}, {"reading": dataset.spec})
        case SliceSpec(model_id=model_id, dataset_id=dataset_id):
            return Inputs({"model": _model(session, model_id), "dataset": _dataset(session, dataset_id)})
        case CompareSpec(model_id=model_id, dataset_id=dataset_id):
            files = {"model": _model(session, model_id), "dataset": _dataset(session, dataset_id)}
            return Inputs(files, {"model_name": session.get_one(ModelRow, model_id).name})
        case RestructureSpec(model_id=model_id, dataset_id=dataset_id, slice_id=slice_id):
            files = {"model": _model(session, model_id)}
            if dataset_id is not None:
                files["dataset"] = _dataset(session, dataset_id)
            if slice_id is not None:
                files["slice"] = session.get_one(ArtifactRow, slice_id).digest
            return Inputs(files)


def _model(session: Session, model_id: str) -> str:
    return _ready(session.get_one(ModelRow, model_id).digest, model_id)


def _dataset(session: Session, dataset_id: str) -> str:
    return _ready(session.get_one(DatasetRow, dataset_id).digest, dataset_id)


def _ready(digest: str | None, asset_id: str) -> str:
    if digest is None:
        raise LookupError(f"{asset_id} has no stored content; only ready assets may be used by jobs")
    return digest
