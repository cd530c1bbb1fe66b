"""Parameters of a training, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from neusemslice.errors import ConfigError

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
        for field, choices in (("optimizer", get_args(OptimizerName)), ("schedule", get_args(Schedule))):
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"{field}={getattr(self, field)!r} is unknown.",
                    field=field,
                    hint=f"Use one of: {', '.join(choices)}.",
                )
        self._check("epochs", 1 <= self.epochs <= MAX_EPOCHS, f"Use 1 to {MAX_EPOCHS:,}.")
        self._check("batch_size", self.batch_size >= 1, "Use at least 1.")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "Use a number above 0, such as 0.001.")
        self._check("momentum", 0 <= self.momentum < 1, "Use a number from 0 to below 1, such as 0.9.")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "Use 0 or a small number, such as 0.0005.")
        self._check("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "Use a number above 0.")
        self._check("patience", self.patience is None or self.patience >= 1, "Use at least 1.")
        self._check("seed", 0 <= self.seed < 2**32, "Use 0 to 2**32 - 1.")

    def _check(self, field: str, holds: bool, hint: str) -> None:
        if not holds:
            raise ConfigError(f"{field}={getattr(self, field)} is out of range.", field=field, hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is no field of a training config.", field=name, hint=f"Known: {sorted(known)}."
                )
        return cls(**values)
