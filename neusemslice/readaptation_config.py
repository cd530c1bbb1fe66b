"""Parameters of attacks and of a re-adaptation, as frozen values checked at birth. Free of torch."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from neusemslice.config import SlicingConfig, StrategyName, check_cut
from neusemslice.config_values import from_dict, require_choice, require_range, require_seed
from neusemslice.errors import ConfigError
from neusemslice.training_config import TrainingConfig

AttackMethod = Literal["fgsm", "pgd"]
Norm = Literal["inf", "2"]
ReadaptMethod = Literal["full", "deeparc", "global", "categorywise", "semantic", "semantic+deeparc"]
"""What trains: everything, deeparc's layers, the neurons that a strategy keeps, or what both of two keep."""

MAX_STEPS = 1000
DEFAULT_DEEPARC_THRESHOLD = 0.99
STRATEGY_OF: dict[str, StrategyName | None] = {
    "full": None,
    "deeparc": "deeparc",
    "global": "global",
    "categorywise": "categorywise",
    "semantic": "semantic",
    "semantic+deeparc": "semantic",
}
"""Of the slice that says which neurons (or, for deeparc, layers) train."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """How samples are disturbed so that the network errs.

    Strengths are shares of the valid input range, before any normalisation: with pixels from 0 to 255, or from 0 to 1,
    8/255 is eight grey levels of 256, whatever scale, mean and deviation the network's inputs have been given since.

    Args:
        method: `fgsm`, one step along the gradient (Goodfellow et al. 2015), or `pgd`, several with a projection after
            each (Madry et al. 2018).
        epsilons: strengths. One in (0, 1] for the norm `inf`; with several, sample after sample takes the next one.
        norm: `inf` bounds the change of each value, `2` the root of the summed squares of a sample's changes, for
            which strengths above 1 make sense too.
        steps: of `pgd`.
        step: of `pgd`, as a share of the strength: 0.25 moves by a quarter of epsilon.
        random_start: begin `pgd` at a random point within epsilon, drawn for each sample from the seed.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    method: AttackMethod = "fgsm"
    epsilons: tuple[float, ...] = (0.1,)
    norm: Norm = "inf"
    steps: int = 10
    step: float = 0.25
    random_start: bool = True

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(AttackMethod))
        require_choice("norm", self.norm, get_args(Norm))
        most = 1.0 if self.norm == "inf" else math.inf
        wrong = [epsilon for epsilon in self.epsilons if not (0 < epsilon <= most and math.isfinite(epsilon))]
        if wrong or not self.epsilons:
            raise ConfigError(
                f"epsilons={list(self.epsilons)} is out of range." if wrong else "There are no epsilons.",
                field="epsilons",
                hint="Use shares of the input range above 0 and at most 1: 8/255 is eight of 256 grey levels."
                if self.norm == "inf"
                else "Use numbers above 0: the length of the change, with the input range as unit.",
            )
        require_range("steps", self.steps, f"1 to {MAX_STEPS}", holds=1 <= self.steps <= MAX_STEPS)
        require_range("step", self.step, "a share of epsilon, such as 0.25", holds=0 < self.step <= 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"epsilons": list(self.epsilons)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AttackConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        return from_dict(cls, values | ({"epsilons": tuple(values["epsilons"])} if "epsilons" in values else {}))


@dataclass(frozen=True, kw_only=True)
class ReadaptConfig:
    """What trains, on what, and how.

    Args:
        method: what trains; the last layer always does.
        attack: how clean samples are attacked; None where the user brings new samples of their own.
        samples: clean samples drawn from the data, each with its attacked counterpart; and again so many others that
            the result is attacked with.
        training: epochs, steps and the optimizer, the same for every method. With `patience`, `validation_share` of
            the samples are held out and training stops early.
        slicing: how critical neurons (or deeparc's layers) are found; of the method's strategy. None: the strategy's
            defaults. Not for `full`.
        deeparc_threshold: similarity above which a layer is redundant and stays as it is, in `semantic+deeparc` only.
            Default 0.99.
        validation_share: share of the samples held out, in (0, 1); only looked at with `training.patience`.
        seed: draws the samples, the held-out part and the attacks' random starts.

    Raises:
        ConfigError: a value is unknown, out of range, or contradicts another.
    """

    method: ReadaptMethod = "semantic"
    attack: AttackConfig | None = None
    samples: int = 1000
    training: TrainingConfig = field(default_factory=TrainingConfig)
    slicing: SlicingConfig | None = None
    deeparc_threshold: float | None = None
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(ReadaptMethod))
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples} is too small.", field="samples", hint="Use at least 1.")
        require_range(
            "validation_share",
            self.validation_share,
            "a share between 0 and 1, such as 0.1",
            holds=0 < self.validation_share < 1,
        )
        require_seed(self.seed)
        wanted = STRATEGY_OF[self.method]
        if self.slicing is not None and self.slicing.strategy != wanted:
            raise ConfigError(
                f"method={self.method!r} takes "
                + ("no slicing" if wanted is None else f"slicing by strategy {wanted!r}")
                + f", and slicing.strategy is {self.slicing.strategy!r}.",
                field="slicing",
                hint="Leave slicing out." if wanted is None else f"Set slicing.strategy to {wanted!r}.",
            )
        if self.deeparc_threshold is None:
            return
        if self.method != "semantic+deeparc":
            raise ConfigError(
                f"deeparc_threshold is no parameter of method={self.method!r}.",
                field="deeparc_threshold",
                hint="Set slicing.threshold." if self.method == "deeparc" else "Leave deeparc_threshold out.",
            )
        try:
            check_cut("deeparc", self.deeparc_threshold)
        except ConfigError as error:
            raise ConfigError(error.message, field="deeparc_threshold", hint=error.hint) from error

    def slicing_configs(self) -> list[SlicingConfig]:
        """The analyses that say what trains: none for `full`, two for `semantic+deeparc`, otherwise one."""
        strategy = STRATEGY_OF[self.method]
        if strategy is None:
            return []
        own = self.slicing or SlicingConfig(strategy=strategy, seed=self.seed)
        if self.method != "semantic+deeparc":
            return [own]
        threshold = DEFAULT_DEEPARC_THRESHOLD if self.deeparc_threshold is None else self.deeparc_threshold
        return [own, SlicingConfig(strategy="deeparc", threshold=threshold)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"attack": None if self.attack is None else self.attack.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ReadaptConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        parts: dict[str, Callable[[dict[str, Any]], object]] = {
            "attack": AttackConfig.from_dict,
            "training": TrainingConfig.from_dict,
            "slicing": SlicingConfig.from_dict,
        }
        whole = {
            name: parts[name](value) if name in parts and isinstance(value, dict) else value
            for name, value in values.items()
        }
        return from_dict(cls, whole)
