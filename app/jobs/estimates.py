"""How long a job will take, by its workload and by how fast earlier ones went."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.artifacts.orm import DatasetRow, ModelRow
from app.db import JsonObject
from app.jobs.fit import Named
from app.jobs.orm import JobRow
from app.jobs.specs import JOB_KINDS, ClientSpec, JobSpec
from app.jobs.status import JobStatus
from app.jobs.workload import Workload, workload

Quality = Literal["same_model", "other_jobs", "assumed"]
WITHIN: dict[Quality, float] = {"same_model": 2.0, "other_jobs": 4.0, "assumed": 20.0}
"""By what factor the time may be wrong. A convention, not a measured bound."""
ASSUMED_RATE = 2e10
"""Operations a second before any job has run: two cores of a server."""
START_S = 5.0
"""Starting a process with torch, reading the network."""
JOBS_LOOKED_AT = 20

_SPEC: TypeAdapter[ClientSpec] = TypeAdapter(JobSpec)


@dataclass(frozen=True)
class Estimate:
    """What a job will take."""

    workload: Workload
    duration_s: float
    quality: Quality
    based_on_jobs: int


def estimate(session: Session, spec: ClientSpec, named: Named) -> Estimate:
    """By the project's last jobs of the same kind on the same model, else by its last jobs, else assumed."""
    work = workload(
        spec, named.model.facts or {}, {pointer: row.facts or {} for pointer, row in named.datasets.items()}
    )
    project_id = named.model.project_id
    same = (JobRow.kind == spec.kind, JobRow.spec["model_id"].astext == spec.model_id)
    quality: Quality
    for quality, conditions in (("same_model", same), ("other_jobs", ())):
        rates = _rates(session, _recent(session, project_id, *conditions))
        if rates:
            return Estimate(work, START_S + work.operations / statistics.median(rates), quality, len(rates))
    return Estimate(work, START_S + work.operations / ASSUMED_RATE, "assumed", 0)


def _recent(session: Session, project_id: str, *conditions: ColumnElement[bool]) -> Sequence[JobRow]:
    ended = (JobRow.status == JobStatus.SUCCEEDED.value, JobRow.kind.in_(JOB_KINDS), JobRow.attempt == 1)
    query = select(JobRow).where(JobRow.project_id == project_id, *ended, *conditions)
    return session.scalars(query.order_by(JobRow.id.desc()).limit(JOBS_LOOKED_AT)).all()


def _rates(session: Session, jobs: Sequence[JobRow]) -> list[float]:
    """Operations a second of each job whose work can be told."""
    found = []
    for job in jobs:
        if job.started_at is None or job.finished_at is None:
            continue
        operations = _operations(session, job.spec)
        took_s = (job.finished_at - job.started_at).total_seconds()
        if operations > 0 and took_s > 0:
            found.append(operations / max(took_s - START_S, took_s / 10))
    return found


def _operations(session: Session, stored: JsonObject) -> float:
    try:
        spec = _SPEC.validate_python(stored)
    except ValidationError:  # of an older version of this code
        return 0.0
    datasets: dict[str, JsonObject] = {}
    for pointer, stored_id in spec.references().items():
        row = session.get(DatasetRow, stored_id) if stored_id.startswith("ds_") else None
        if row is not None:
            datasets[pointer] = row.facts or {}
    model = session.get(ModelRow, spec.model_id)
    return 0.0 if model is None else workload(spec, model.facts or {}, datasets).operations
