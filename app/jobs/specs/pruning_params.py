"""What a restructure job does besides, so that the network keeps its accuracy, or becomes sparse."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import Share, Strict, refusing
from app.jobs.specs.training_params import TrainingParams
from neusemslice.pruning_config import PruningConfig, PruningMethod
from neusemslice.training_config import TrainingConfig

MAX_ITERATIONS = 1000


class FineTuningParams(TrainingParams):
    """Training on the dataset's train split; see `neusemslice.fine_tune`. Weights that are zero stay zero."""

    distill: bool = Field(default=False, description="Imitate the original network's logits besides the labels.")

    def to_config(self, *, seed: int) -> TrainingConfig:
        """The library's form."""
        return TrainingConfig(**self.model_dump(exclude={"distill"}), seed=seed)


class PruningParams(Strict):
    """Zeroing weights in iterations; see `neusemslice.PruningConfig`. Exactly one of the three stops is given."""

    method: PruningMethod = "lamp"
    amount: float = Field(
        default=PruningConfig.amount,
        ge=0.001,
        lt=1,
        description="Share of the weights that are still there, zeroed in each iteration.",
    )
    iterations: int | None = Field(default=None, ge=1, le=MAX_ITERATIONS, description="Stop after so many.")
    sparsity: Share | None = Field(default=None, description="Stop when this share of the weights is zero.")
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Stop before the accuracy falls by more than this (0.01 is one point), measured on a tenth of the "
        "train split, which is not trained on. The test split is never used.",
    )
    fine_tuning: FineTuningParams | None = Field(default=None, description="Train after each iteration.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config(seed=0)
        return self

    def to_config(self, *, seed: int) -> PruningConfig:
        """The library's form."""
        training = self.fine_tuning
        return PruningConfig(
            **self.model_dump(exclude={"fine_tuning"}),
            fine_tuning=None if training is None else training.to_config(seed=seed),
            distill=training is not None and training.distill,
        )
