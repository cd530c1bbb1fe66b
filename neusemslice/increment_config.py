"""Parameters of an increment, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from neusemslice.config import Reconstruction, SlicingConfig
from neusemslice.config_values import from_dict, require_choice, require_range, require_seed
from neusemslice.errors import ConfigError
from neusemslice.training_config import TrainingConfig

IncrementMethod = Literal[
    "isolated", "semantic", "semantic+replay", "global", "categorywise", "deeparc", "retrain", "replay"
]
STRATEGIES = {
    "semantic": "semantic",
    "semantic+replay": "semantic",
    "global": "global",
    "categorywise": "categorywise",
    "deeparc": "deeparc",
}
"""How the methods of the paper that freeze neurons choose them. `isolated` takes any strategy but deeparc."""
REPLAYING = ("semantic+replay", "replay")
DEFAULT_THRESHOLD = 0.9
DEFAULT_REPLAY_FRACTION = 0.1
DEFAULT_DIRECTIONS = 64
MAX_DIRECTIONS = 4096


@dataclass(frozen=True, kw_only=True)
class IncrementConfig:
    """How a network learns a further task.

    Args:
        method: `isolated` cuts the critical neurons of the earlier tasks loose from all others, refits them, and trains
            the others: what the network gives for earlier tasks stays the same to the last bit. The others are the
            paper's: `semantic`, `global` and `categorywise` freeze the parameters of the neurons that this strategy
            finds critical (formula 11), `deeparc` those of the layers that are not redundant; `semantic+replay` also
            trains on samples of the earlier tasks, `replay` does so and freezes nothing, `retrain` does neither.
        slicing: how critical neurons are found. Default: theta 0.9 where the strategy is semantic, otherwise the
            strategy's own default. Not for `retrain` and `replay`.
        training: how the new task is trained.
        replay_fraction: share of each earlier category's training samples that is kept and trained on again, in
            (0, 1]; for the methods that replay. Default 0.1.
        reconstruct: how critical neurons that are cut loose are brought back to what they computed, see
            `neusemslice.config.Reconstruction`. For `isolated`.
        decision_directions: for `isolated`, in how many directions the values of the first task's critical neurons are
            compared to decide between tasks; what is kept for that grows with it (see
            `neusemslice.increments.discriminant`).
        seed: draws the new outputs' first weights and the samples that are kept.

    Raises:
        ConfigError: a value is unknown, out of range, or does not belong to the method.
    """

    method: IncrementMethod = "isolated"
    slicing: SlicingConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    replay_fraction: float | None = None
    reconstruct: Reconstruction = "least_squares"
    decision_directions: int = DEFAULT_DIRECTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(IncrementMethod))
        require_choice("reconstruct", self.reconstruct, get_args(Reconstruction))
        self._settle_slicing()
        self._settle_replay()
        require_range(
            "decision_directions",
            self.decision_directions,
            f"1 to {MAX_DIRECTIONS:,}",
            holds=1 <= self.decision_directions <= MAX_DIRECTIONS,
        )
        require_seed(self.seed)

    @property
    def freezes(self) -> bool:
        """Whether critical neurons of earlier tasks stay as they are."""
        return self.method not in ("retrain", "replay")

    @property
    def isolates(self) -> bool:
        """Whether they are cut loose from the others besides."""
        return self.method == "isolated"

    @property
    def replays(self) -> bool:
        """Whether samples of earlier tasks are kept."""
        return self.method in REPLAYING

    def _settle_slicing(self) -> None:
        wanted = STRATEGIES.get(self.method)
        if self.slicing is None:
            if self.freezes:
                strategy = wanted or "semantic"
                cut = {"threshold": DEFAULT_THRESHOLD} if strategy == "semantic" else {}
                object.__setattr__(self, "slicing", SlicingConfig(strategy=strategy, seed=self.seed, **cut))  # type: ignore[arg-type]
            return
        strategy = self.slicing.strategy
        if not self.freezes:
            raise ConfigError(
                f"slicing finds neurons to freeze, and method={self.method!r} freezes none.",
                field="slicing",
                hint="Leave slicing out, or choose another method.",
            )
        if (wanted is not None and strategy != wanted) or (self.isolates and strategy == "deeparc"):
            raise ConfigError(
                f"slicing has strategy={strategy!r}, which is not that of method={self.method!r}.",
                field="slicing",
                hint=f"Give strategy={wanted!r}." if wanted else "Give a strategy that chooses neurons.",
            )
        if self.slicing.max_accuracy_drop is not None:
            raise ConfigError(
                "slicing has max_accuracy_drop, which needs validation data of every task.",
                field="slicing",
                hint="Give a cut, or target_compression.",
            )

    def _settle_replay(self) -> None:
        fraction = self.replay_fraction
        if self.replays:
            fraction = DEFAULT_REPLAY_FRACTION if fraction is None else fraction
            object.__setattr__(self, "replay_fraction", fraction)
            require_range(
                "replay_fraction", fraction, "a share above 0 and at most 1, such as 0.1", holds=0 < fraction <= 1
            )
        elif fraction is not None:
            raise ConfigError(
                f"replay_fraction is no parameter of method={self.method!r}.",
                field="replay_fraction",
                hint=f"Leave it out, or use one of: {', '.join(REPLAYING)}.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "IncrementConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        made = dict(values)
        if made.get("slicing") is not None:
            made["slicing"] = SlicingConfig.from_dict(made["slicing"])
        if "training" in made:
            made["training"] = TrainingConfig.from_dict(made["training"])
        return from_dict(cls, made)
