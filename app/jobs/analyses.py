"""Analyses are made once: a slice before any cut, found again by the content of all that it rests on."""

import hashlib
import json
from importlib.metadata import version

from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.store import Blob
from app.jobs.leases import Claim
from app.jobs.orm import AnalysisRow
from app.jobs.specs import AnySpec, ClientSpec, ReadaptSpec, RestructureSpec, ShardSpec, SliceSpec, SlicingParams
from app.jobs.specs.analysing import analysis_of, holds_out

METHOD = 2
"""Rises when the same inputs no longer give the same analysis within one release."""


def key_of(session: Session, spec: AnySpec) -> str | None:
    """The name of the job's analysis: the SHA-256 of all that it rests on. The cut, the step and the target are not
    among that, nor are batch sizes. That of a shard is the name of its partial: it begins with that of the whole.
    """
    match spec, analysis_of(spec):
        case (
            SliceSpec() | ReadaptSpec() | RestructureSpec(dataset_id=str()) | ShardSpec(),
            SlicingParams() as slicing,
        ):
            model, dataset = session.get_one(ModelRow, spec.model_id), session.get_one(DatasetRow, spec.dataset_id)
        case _:
            return None
    by_layer = slicing.strategy == "deeparc"
    rests_on = {
        "method": [METHOD, version("neusemslice")],
        "model": model.digest,
        "dataset": dataset.digest,
        "limit_per_category": spec.limit_per_category,
        "left_out": spec.seed if holds_out(slicing) else None,
        "order": "categorywise" if slicing.strategy == "semantic" else slicing.strategy,
        "metric": None if by_layer else slicing.metric,
        "estimator": slicing.estimator,
        "landscape": slicing.landscape,
        "samples_per_category": slicing.samples_per_category,
        "seed": None if by_layer else spec.seed,
    }
    key = hashlib.sha256(json.dumps(rests_on, sort_keys=True).encode()).hexdigest()
    return _partial_key(key, spec.batch_size, spec.index, spec.count) if isinstance(spec, ShardSpec) else key


def find(session: Session, held: Claim, spec: AnySpec) -> str | None:
    """The digest of the job's analysis if its project has made it before."""
    key = key_of(session, spec)
    query = update(AnalysisRow).where(AnalysisRow.project_id == held.project_id, AnalysisRow.key == key)
    used = query.values(used_at=func.clock_timestamp()).returning(AnalysisRow.digest)
    return session.execute(used).scalar_one_or_none()


def find_partials(session: Session, held: Claim, spec: ClientSpec, count: int) -> dict[int, str]:
    """The digests of those of the `count` partials of the job's analysis that its project has made, by shard."""
    key = key_of(session, spec)
    if key is None:
        return {}
    names = {_partial_key(key, spec.batch_size, index, count): index for index in range(count)}
    query = update(AnalysisRow).where(AnalysisRow.project_id == held.project_id, AnalysisRow.key.in_(names))
    used = query.values(used_at=func.clock_timestamp()).returning(AnalysisRow.key, AnalysisRow.digest)
    return {names[name]: digest for name, digest in session.execute(used)}


def keep(session: Session, held: Claim, spec: AnySpec, analysis: Blob) -> None:
    """Let later jobs of the project find the job's analysis, or a shard's partial; it takes the place of one that
    could not be used. Once there is the whole, its partials are of no use any more.
    """
    key = key_of(session, spec)
    if key is None:
        return
    made = {"job_id": held.job_id, "digest": analysis.digest, "size_bytes": analysis.size_bytes}
    query = insert(AnalysisRow).values(project_id=held.project_id, key=key, **made)
    renewed = {**made, "used_at": func.clock_timestamp()}
    session.execute(query.on_conflict_do_update(index_elements=["project_id", "key"], set_=renewed))
    if not isinstance(spec, ShardSpec):
        partials = AnalysisRow.project_id == held.project_id, AnalysisRow.key.startswith(f"{key}:")
        session.execute(delete(AnalysisRow).where(*partials))


def _partial_key(key: str, batch_size: int, index: int, count: int) -> str:
    return f"{key}:{batch_size}:{index}/{count}"
