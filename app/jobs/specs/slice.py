"""The `slice` job."""

from typing import Literal

from pydantic import Field

from app.jobs.specs.common import Common, Cut, DatasetId
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
