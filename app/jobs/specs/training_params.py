"""How a job trains, whatever it trains on."""

from typing import Self

from pydantic import Field, model_validator

from app.jobs.specs.common import Strict, refusing
from neusemslice.training_config import OptimizerName, Schedule, TrainingConfig

MAX_EPOCHS = 1000
"""Of one training in a job: its curve, one record an epoch, is part of the result."""


class TrainingParams(Strict):
    """See `neusemslice.TrainingConfig`."""

    epochs: int = Field(default=TrainingConfig.epochs, ge=1, le=MAX_EPOCHS)
    batch_size: int = Field(default=TrainingConfig.batch_size, ge=1, le=8192, description="Samples a step.")
    optimizer: OptimizerName = "adam"
    learning_rate: float = Field(default=TrainingConfig.learning_rate, gt=0, le=1000)
    momentum: float = Field(default=TrainingConfig.momentum, ge=0, lt=1, description="Of `sgd`.")
    weight_decay: float = Field(default=0.0, ge=0, le=1000)
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of a step's gradients. Default: any.")
    schedule: Schedule = "constant"
    patience: int | None = Field(
        default=None,
        ge=1,
        le=MAX_EPOCHS,
        description="Stop once the loss on held-out samples has not fallen for so many epochs. Default: never.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config(seed=0)
        return self

    def to_config(self, *, seed: int) -> TrainingConfig:
        """The library's form."""
        return TrainingConfig(**self.model_dump(), seed=seed)
