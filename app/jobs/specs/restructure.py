"""The `restructure` job."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import ArtifactId, Cut, DatasetId, Producing, default_of, refusing
from app.jobs.specs.slicing_params import SlicingParams
from neusemslice.config import Branches
from neusemslice.errors import ConfigError

BRANCHES_OF_DEEPARC = "branches says how neurons are removed, and deeparc drops whole layers."


class RestructureSpec(Producing):
    """Remove the non-critical neurons physically and return a smaller checkpoint."""

    produced: ClassVar[str] = "restructured"

    kind: Literal["restructure"]
    dataset_id: DatasetId | None = Field(
        default=None,
        description="For the analysis, for accuracy before and after, and for the layers that `deeparc` sews in. "
        "Optional with `slice_id`, but for a slice by `deeparc`.",
    )
    slice_id: ArtifactId | None = Field(default=None, description="A `slice.safetensors` made from this model.")
    cut: Cut | None = Field(default=None, description="Cut the stored slice at another theta or fraction.")
    slicing: SlicingParams | None = Field(default=None, description="Slice first; instead of `slice_id`.")
    branches: Branches = Field(
        default="union",
        description="Where branches are added up: `union` removes what no branch keeps; `scatter` also lets each "
        "branch lose its own, and puts the rest at their places among zeros. Not for `deeparc`.",
    )

    @model_validator(mode="after")
    def _has_one_slice(self) -> Self:
        with refusing(self):
            if (self.slice_id is None) == (self.slicing is None):
                raise ConfigError(
                    f"slice_id and slicing are {'both' if self.slicing else 'neither of them'} given.",
                    field="slice_id",
                    hint="Give exactly one of slice_id (an existing slice) and slicing (how to make one).",
                )
            if self.slicing is None:
                return self
            if self.dataset_id is None:
                raise ConfigError(
                    "slicing needs dataset_id.", field="dataset_id", hint="Give the data on which neurons are scored."
                )
            if self.cut is not None:
                raise ConfigError(
                    "cut re-cuts a stored slice, and slicing makes a new one.",
                    field="cut",
                    hint="Set slicing.threshold or slicing.fraction instead.",
                )
            if self.slicing.strategy == "deeparc" and self.branches != default_of(self, "branches"):
                raise ConfigError(BRANCHES_OF_DEEPARC, field="branches", hint="Leave branches out.")
        return self
