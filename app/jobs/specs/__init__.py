"""What a job is asked to do: one validated shape for each kind. `kind` tells them apart.

Another kind is a module here, an entry each in `ClientSpec` and `JobKind`, and a case in `worker.kinds`.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter

from app.jobs.specs.common import (
    ArtifactId,
    Common,
    DatasetId,
    JobId,
    Metadata,
    ModelId,
    Moment,
    Name,
    Priority,
    Producing,
    Strict,
    UploadId,
    file_of,
    references,
)
from app.jobs.specs.compare import CompareSpec
from app.jobs.specs.increment import IncrementSpec
from app.jobs.specs.inspections import InspectDatasetSpec, InspectModelSpec
from app.jobs.specs.readapt import AttackParams, ReadaptSpec
from app.jobs.specs.restructure import BRANCHES_OF_DEEPARC, RECONSTRUCT_OF_DEEPARC, RestructureSpec
from app.jobs.specs.sharding import ShardSpec
from app.jobs.specs.slice import SliceSpec
from app.jobs.specs.slicing_params import SlicingParams
from app.jobs.specs.training_params import TrainingParams

__all__ = [
    "BRANCHES_OF_DEEPARC",
    "COMPUTE",
    "INSPECT",
    "JOB_KINDS",
    "QUEUES",
    "RECONSTRUCT_OF_DEEPARC",
    "AnySpec",
    "ArtifactId",
    "AttackParams",
    "ClientSpec",
    "Common",
    "CompareSpec",
    "DatasetId",
    "IncrementSpec",
    "InspectDatasetSpec",
    "InspectModelSpec",
    "InspectionSpec",
    "JobId",
    "JobKind",
    "JobSpec",
    "Metadata",
    "ModelId",
    "Moment",
    "Name",
    "Priority",
    "Producing",
    "ReadaptSpec",
    "RestructureSpec",
    "ShardSpec",
    "SliceSpec",
    "SlicingParams",
    "Strict",
    "TrainingParams",
    "UploadId",
    "file_of",
    "parse_spec",
    "queue_of",
    "references",
]

ClientSpec = SliceSpec | RestructureSpec | ReadaptSpec | IncrementSpec | CompareSpec
InspectionSpec = InspectModelSpec | InspectDatasetSpec
AnySpec = ClientSpec | InspectionSpec | ShardSpec
JobSpec = Annotated[ClientSpec, Field(discriminator="kind")]
JobKind = Literal["slice", "restructure", "readapt", "increment", "compare"]

JOB_KINDS: tuple[str, ...] = get_args(JobKind)
_ANY_SPEC: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="kind")])


def parse_spec(spec: dict[str, Any]) -> AnySpec:
    """The typed form of a stored spec."""
    return _ANY_SPEC.validate_python(spec)


def queue_of(kind: str) -> str:
    """Inspections are short and have a queue of their own, so that an hour's slicing does not hold up an upload."""
    return INSPECT if kind.startswith("inspect_") else COMPUTE


INSPECT, COMPUTE = "inspect", "compute"
QUEUES = (INSPECT, COMPUTE)
