"""The `slice` job."""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import Common, Cut, DatasetId, refusing
from app.jobs.specs.sharding import Shards, check_shards
from app.jobs.specs.slicing_params import SlicingParams


class SliceSpec(Common):
    """Find the critical neurons of a model on a dataset's train split."""

    kind: Literal["slice"]
    dataset_id: DatasetId
    slicing: SlicingParams = SlicingParams()
    sweep: list[Cut] = Field(
        default_factory=list,
        max_length=100,
        description="Also cut at each of these (theta, or fraction) and report compression and accuracy.",
    )
    shards: Shards = 1

    @model_validator(mode="after")
    def _can_be_shared_out(self) -> Self:
        with refusing(self):
            check_shards(self.shards, self.slicing)
        return self
