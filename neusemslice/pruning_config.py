"""Parameters of weight pruning, as a frozen value checked at birth. Free of torch, so a service can validate it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from neusemslice.config_values import from_dict, require_choice, require_range
from neusemslice.errors import ConfigError
from neusemslice.training_config import TrainingConfig

PruningMethod = Literal["lamp", "global", "uniform+", "erk"]
"""How one iteration's zeros are shared out among the layers; within a layer the smallest weights always go first.

`lamp`: by magnitude relative to the larger weights of the same layer (Lee et al. 2021).
`global`: by magnitude, all layers as one (Morcos et al. 2019).
`uniform+`: the same share of each layer, with a first convolution spared and a floor for the last (Gale et al. 2019).
`erk`: survivors in proportion to outputs + inputs + kernel sides (Evci et al. 2020).
"""
STOPS = ("iterations", "sparsity", "max_accuracy_drop")


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """How weights are zeroed in iterations, and when that ends. Exactly one of the three stops is given.

    Args:
        method: see `PruningMethod`.
        amount: share of the weights that are still there, zeroed in each iteration, in (0, 1).
        iterations: stop after so many.
        sparsity: stop when this share of the weights is zero, in (0, 1); the last iteration zeroes only what
            is missing.
        max_accuracy_drop: stop when the accuracy on validation data has fallen by more than this below that of the
            start, in [0, 1): 0.01 is one percentage point. The result is the last iteration before.
        fine_tuning: training after each iteration, in which zeros stay zero; None for none.
        distill: whether the training imitates a teacher's logits besides the labels: the original network.

    Raises:
        ConfigError: a value is unknown, out of range, or contradicts another.
    """

    method: PruningMethod = "lamp"
    amount: float = 0.1
    iterations: int | None = None
    sparsity: float | None = None
    max_accuracy_drop: float | None = None
    fine_tuning: TrainingConfig | None = None
    distill: bool = False

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(PruningMethod))
        self._check_stop()
        require_range("amount", self.amount, "a value above 0 and below 1, such as 0.1", holds=0 < self.amount < 1)
        if self.iterations is not None:
            require_range("iterations", self.iterations, "at least 1", holds=self.iterations >= 1)
        if self.sparsity is not None:
            require_range(
                "sparsity", self.sparsity, "a value above 0 and below 1, such as 0.5", holds=0 < self.sparsity < 1
            )
        if self.max_accuracy_drop is not None:
            require_range(
                "max_accuracy_drop",
                self.max_accuracy_drop,
                "a value from 0 to below 1, such as 0.01 for one point",
                holds=0 <= self.max_accuracy_drop < 1,
            )
        if self.distill and self.fine_tuning is None:
            raise ConfigError(
                "distill is about fine-tuning, and there is none.",
                field="distill",
                hint="Give fine_tuning, or leave distill out.",
            )

    def _check_stop(self) -> None:
        given = [field for field in STOPS if getattr(self, field) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} are given, and each says when to stop.",
                field=given[-1],
                hint=f"Give one of: {', '.join(STOPS)}.",
            )
        if not given:
            raise ConfigError(
                "Nothing says when to stop.", field="iterations", hint=f"Give one of: {', '.join(STOPS)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"fine_tuning": self.fine_tuning and self.fine_tuning.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PruningConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        training = values.get("fine_tuning")
        return from_dict(cls, {**values, "fine_tuning": training and TrainingConfig.from_dict(training)})
