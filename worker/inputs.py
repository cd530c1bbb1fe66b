"""What a job's process needs: files from the store, and values from the rows that it must not read itself."""

from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from app.artifacts.orm import TABLES, DatasetRow, ModelRow, StoredRow
from app.db import JsonObject
from app.jobs import analyses
from app.jobs.leases import Claim
from app.jobs.specs import InspectDatasetSpec, InspectModelSpec, file_of, parse_spec


@dataclass(frozen=True)
class Inputs:
    """Digests of the input files by name, and plain values."""

    files: dict[str, str] = field(default_factory=dict)
    values: JsonObject = field(default_factory=dict)


def collect_inputs(session: Session, held: Claim) -> Inputs:
    """The inputs of a claimed job: what its spec names, by field, and `analysis` if that was made before."""
    match parse_spec(held.spec):
        case InspectModelSpec(model_id=model_id):
            model = session.get_one(ModelRow, model_id)
            return Inputs({"weights": model.source_digest}, {"architecture": model.spec})
        case InspectDatasetSpec(dataset_id=dataset_id):
            dataset = session.get_one(DatasetRow, dataset_id)
            return Inputs({"source": dataset.source_digest}, {"reading": dataset.spec})
        case spec:
            files = {file_of(pointer): _digest(session, stored) for pointer, stored in spec.references().items()}
            analysis = analyses.find(session, held, spec)
            if analysis is not None:
                files["analysis"] = analysis
            return Inputs(files, {"model_name": session.get_one(ModelRow, spec.model_id).name})


def _digest(session: Session, stored_id: str) -> str:
    row: StoredRow = session.get_one(TABLES[stored_id.partition("_")[0]], stored_id)
    digest = row.digest
    if digest is None:
        raise LookupError(f"{stored_id} has no stored content; only ready assets may be used by jobs")
    return digest
