"""Parameters of a training, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from neusemslice.config_values import from_dict, require_choice, require_range, require_seed

OptimizerName = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
MAX_EPOCHS = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained.

    Args:
        epochs: passes over the samples, in an order drawn anew for each.
        batch_size: samples a step.
        optimizer: `adam`, `adamw` (decoupled weight decay) or `sgd` (with `momentum`).
        learning_rate: of the first step.
        momentum: of `sgd`, in [0, 1).
        weight_decay: as torch's optimizers take it.
        clip_norm: gradients of what trains are scaled down to this norm where theirs is larger. None: never.
        schedule: `cosine` takes the learning rate from its value to zero over all epochs, step by step.
        patience: with validation data, stop once its loss has not fallen for so many epochs, and go back to the epoch
            at which it was lowest. None: train all epochs and keep the last.
        seed: orders the samples and draws what dropout drops.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    epochs: int = 5
    batch_size: int = 128
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: Schedule = "constant"
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("optimizer", self.optimizer, get_args(OptimizerName))
        require_choice("schedule", self.schedule, get_args(Schedule))
        for field, holds, expected in (
            ("epochs", 1 <= self.epochs <= MAX_EPOCHS, f"1 to {MAX_EPOCHS:,}"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0, such as 0.001"),
            ("momentum", 0 <= self.momentum < 1, "a number from 0 to below 1, such as 0.9"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or a small number, such as 0.0005"),
            ("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "a number above 0"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1"),
        ):
            require_range(field, getattr(self, field), expected, holds=holds)
        require_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        return from_dict(cls, values)
