"""The `restructure` job."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import ArtifactId, Cut, DatasetId, Producing, default_of, refusing
from app.jobs.specs.pruning_params import FineTuningParams, PruningParams
from app.jobs.specs.sharding import Shards, check_shards
from app.jobs.specs.slicing_params import SlicingParams
from neusemslice.config import CALIBRATION_PER_CATEGORY, Branches, Reconstruction
from neusemslice.errors import ConfigError

BRANCHES_OF_DEEPARC = "branches says how neurons are removed, and deeparc drops whole layers."
RECONSTRUCT_OF_DEEPARC = "reconstruct refits layers that lost neurons, and deeparc drops whole layers."


class RestructureSpec(Producing):
    """Remove the non-critical neurons physically and return a smaller checkpoint."""

    produced: ClassVar[str] = "restructured"

    kind: Literal["restructure"]
    dataset_id: DatasetId | None = Field(
        default=None,
        description="For the analysis, for training, for accuracy before and after, to reconstruct from, and for the "
        "layers that `deeparc` sews in. Optional with `slice_id`, but for a slice by `deeparc`.",
    )
    slice_id: ArtifactId | None = Field(default=None, description="A `slice.safetensors` made from this model.")
    cut: Cut | None = Field(default=None, description="Cut the stored slice at another theta or fraction.")
    slicing: SlicingParams | None = Field(default=None, description="Slice first; instead of `slice_id`.")
    branches: Branches = Field(
        default="union",
        description="Where branches are added up: `union` removes what no branch keeps; `scatter` also lets each "
        "branch lose its own, and puts the rest at their places among zeros. Not for `deeparc`.",
    )
    reconstruct: Reconstruction | None = Field(
        default=None,
        description="How the layers that lost inputs are brought back to what they computed, without training: "
        "`least_squares` (all their weights, the default where a dataset is given), `bias`, `norms` (the batch norms' "
        "statistics), or `none`. Not for `deeparc`.",
    )
    calibration_per_category: int = Field(
        default=CALIBRATION_PER_CATEGORY,
        ge=2,
        le=10_000,
        description="Samples of each category of the train split, labels unseen, that `reconstruct` and `deeparc`'s "
        "layers are fitted to.",
    )

    shards: Shards = 1
    fine_tuning: FineTuningParams | None = Field(default=None, description="Train what is left on the train split.")
    pruning: PruningParams | None = Field(default=None, description="Then zero weights, in iterations.")

    @model_validator(mode="after")
    def _can_be_shared_out(self) -> Self:
        with refusing(self):
            check_shards(self.shards, self.slicing)
        return self

    @model_validator(mode="after")
    def _has_data_to_train_on(self) -> Self:
        with refusing(self):
            asks = {
                "fine_tuning": self.fine_tuning is not None,
                "pruning.fine_tuning": self.pruning is not None and self.pruning.fine_tuning is not None,
                "pruning.max_accuracy_drop": self.pruning is not None and self.pruning.max_accuracy_drop is not None,
            }
            if self.dataset_id is None and any(asks.values()):
                raise ConfigError(
                    f"{next(field for field, asked in asks.items() if asked)} needs dataset_id.",
                    field="dataset_id",
                    hint="Give the data that the network is trained and measured on.",
                )
        return self

    @model_validator(mode="after")
    def _has_one_slice(self) -> Self:
        with refusing(self):
            if (self.slice_id is None) == (self.slicing is None):
                raise ConfigError(
                    f"slice_id and slicing are {'both' if self.slicing else 'neither of them'} given.",
                    field="slice_id",
                    hint="Give exactly one of slice_id (an existing slice) and slicing (how to make one).",
                )
            if self.dataset_id is None and self.reconstruct not in (None, "none"):
                raise ConfigError(
                    f"reconstruct={self.reconstruct!r} needs samples to adjust the layers to, and there is no dataset.",
                    field="reconstruct",
                    hint="Give dataset_id, or leave reconstruct out.",
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
            if self.slicing.strategy == "deeparc" and self.reconstruct not in (None, "none"):
                raise ConfigError(RECONSTRUCT_OF_DEEPARC, field="reconstruct", hint="Leave reconstruct out.")
        return self

    def level(self, strategy: str) -> Reconstruction:
        """How the network is reconstructed after a cut by this strategy."""
        if self.reconstruct is not None:
            return self.reconstruct
        return "none" if self.dataset_id is None or strategy == "deeparc" else "least_squares"
