"""What a job's process needs: files from the store, and values from the rows that it must not read itself."""

from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from app.artifacts.orm import TABLES, DatasetRow, ModelRow, StoredRow
from app.db import JsonObject
from app.jobs import analyses, shards
from app.jobs.leases import Claim
from app.jobs.specs import ClientSpec, InspectDatasetSpec, InspectModelSpec, ShardSpec, file_of, parse_spec
from app.jobs.specs.sharding import PARTIAL


@dataclass(frozen=True)
class Inputs:
    """Digests of the input files by name, and plain values."""

    files: dict[str, str] = field(default_factory=dict)
    values: JsonObject = field(default_factory=dict)


def collect_inputs(session: Session, held: Claim) -> Inputs:
    """The inputs of a claimed job: what its spec names, by field, and `analysis` if that was made before, or otherwise
    `partial_0` and so on if its shards have been.
    """
    match parse_spec(held.spec):
        case InspectModelSpec(model_id=model_id):
            model = session.get_one(ModelRow, model_id)
            return Inputs({"weights": model.source_digest}, {"architecture": model.spec})
        case InspectDatasetSpec(dataset_id=dataset_id):
            dataset = session.get_one(DatasetRow, dataset_id)
            return Inputs({"source": dataset.source_digest}, {"reading": dataset.spec})
        case spec:
            files = {file_of(pointer): _digest(session, stored) for pointer, stored in spec.references().items()}
            if not isinstance(spec, ShardSpec):
                files |= _analysis_of(session, held, spec)
            return Inputs(files, {"model_name": session.get_one(ModelRow, spec.model_id).name})


def _analysis_of(session: Session, held: Claim, spec: ClientSpec) -> dict[str, str]:
    whole = analyses.find(session, held, spec)
    if whole is not None:
        return {"analysis": whole}
    return {f"{PARTIAL}{index}": digest for index, digest in shards.find_partials(session, held, spec).items()}


def _digest(session: Session, stored_id: str) -> str:
    row: StoredRow = session.get_one(TABLES[stored_id.partition("_")[0]], stored_id)
    digest = row.digest
    if digest is None:
        raise LookupError(f"{stored_id} has no stored content; only ready assets may be used by jobs")
    return digest
