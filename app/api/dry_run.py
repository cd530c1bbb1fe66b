"""What a dry run answers."""

from typing import Any, Literal

from pydantic import BaseModel

from app.jobs.estimates import WITHIN, Estimate, Quality
from app.jobs.specs import ClientSpec


class Span(BaseModel):
    """A number that is not known exactly."""

    low: float
    likely: float
    high: float


class EstimateRead(BaseModel):
    """What the job will take. `quality` says what the time rests on: earlier jobs of the kind on this model, other jobs
    of the project, or an assumed speed; `within_factor` how wrong it may well be. Memory is always a rule of thumb.
    """

    duration_s: Span
    memory_bytes: int
    operations: float
    quality: Quality
    based_on_jobs: int
    within_factor: float


class DryRun(BaseModel):
    """A job that would be queued; what cannot be is answered as without `dry_run`."""

    valid: Literal[True] = True
    kind: str
    seed: int
    config: dict[str, Any]
    estimate: EstimateRead

    @classmethod
    def of(cls, spec: ClientSpec, estimate: Estimate) -> "DryRun":
        """From the checked spec and its estimate."""
        factor = WITHIN[estimate.quality]
        likely = round(estimate.duration_s, 1)
        own = {"kind", "seed", "metadata", "priority", "max_runtime_s", "deadline"}
        return cls(
            kind=spec.kind,
            seed=spec.seed,
            config=spec.model_dump(mode="json", exclude=own),
            estimate=EstimateRead(
                duration_s=Span(low=round(likely / factor, 1), likely=likely, high=round(likely * factor, 1)),
                memory_bytes=estimate.workload.memory_bytes,
                operations=estimate.workload.operations,
                quality=estimate.quality,
                based_on_jobs=estimate.based_on_jobs,
                within_factor=factor,
            ),
        )
