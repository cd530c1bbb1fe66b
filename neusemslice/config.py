"""Parameters of a slicing, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from neusemslice.errors import ConfigError

MetricName = Literal[
    "avg", "var", "ens", "deeplift", "taylor", "taylor_summed", "taylor_weight", "conductance", "integrated_gradients"
]
StrategyName = Literal["semantic", "categorywise", "global", "random"]
Estimator = Literal["unbiased", "biased"]
Landscape = Literal["pooled", "flattened"]

DEFAULT_THRESHOLD = 0.95
DEFAULT_FRACTION = 0.5


def _require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{field}={value!r} is unknown.", field=field, hint=f"Use one of: {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True)
class SlicingConfig:
    """How neurons are scored and where the cut is made.

    Args:
        strategy: `semantic` keeps, per layer and category, the smallest prefix of neurons in contribution order whose
            CKA coverage reaches `threshold`; `categorywise` and `global` keep the top `fraction` of each layer;
            `random` keeps a random `fraction` (the control).
        metric: contribution metric that orders the neurons.
        threshold: coverage theta in (0, 1], for `semantic` only. Default 0.95.
        fraction: share of each layer's neurons kept, in (0, 1], for the three other strategies. Default 0.5.
        estimator: CKA estimator. The biased one rises towards 1 when samples are fewer than neurons.
        landscape: `pooled` averages a convolution's output over space before comparing; `flattened` keeps all of it.
        samples_per_category: at most this many samples of a category enter the CKA (all of them enter the scores).
        memory_budget_bytes: features held at once; layers are taken in groups that fit.
        seed: orders the random strategy and the random control curve.

    Raises:
        ConfigError: a value is unknown, out of range, or does not belong to the strategy.
    """

    strategy: StrategyName = "semantic"
    metric: MetricName = "taylor"
    threshold: float | None = None
    fraction: float | None = None
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = 256
    memory_budget_bytes: int = 2 * 1024**3
    seed: int = 0

    def __post_init__(self) -> None:
        _require_choice("strategy", self.strategy, get_args(StrategyName))
        _require_choice("metric", self.metric, get_args(MetricName))
        _require_choice("estimator", self.estimator, get_args(Estimator))
        _require_choice("landscape", self.landscape, get_args(Landscape))
        if self.strategy == "semantic":
            self._reject("fraction", "is for the top-k strategies", "Give threshold (0 < theta <= 1) instead.")
            self._default("threshold", DEFAULT_THRESHOLD)
        else:
            self._reject("threshold", "is for strategy='semantic'", "Give fraction (share of neurons kept) instead.")
            self._default("fraction", DEFAULT_FRACTION)
        check_cut(self.strategy, self.cut)
        smallest = 4 if self.estimator == "unbiased" else 2
        for field, least in (("samples_per_category", smallest), ("memory_budget_bytes", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"{field}={getattr(self, field)} is too small.", field=field, hint=f"Use at least {least}."
                )

    def _reject(self, field: str, reason: str, hint: str) -> None:
        if getattr(self, field) is not None:
            raise ConfigError(f"{field} {reason}, but strategy={self.strategy!r}.", field=field, hint=hint)

    def _default(self, field: str, value: float) -> None:
        if getattr(self, field) is None:
            object.__setattr__(self, field, value)

    @property
    def cut(self) -> float:
        """The one number that decides how much is kept: theta, or the fraction."""
        cut = self.threshold if self.strategy == "semantic" else self.fraction
        assert cut is not None  # set in __post_init__
        return cut

    def with_cut(self, cut: float) -> "SlicingConfig":
        """The same config with another theta (semantic) or fraction (the other strategies)."""
        field = "threshold" if self.strategy == "semantic" else "fraction"
        return type(self)(**{**self.to_dict(), field: cut})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SlicingConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is no field of a slicing config.", field=name, hint=f"Known: {sorted(known)}."
                )
        return cls(**values)


def check_cut(strategy: str, cut: float) -> None:
    """Raises ConfigError unless `cut` lies in (0, 1]."""
    field = "threshold" if strategy == "semantic" else "fraction"
    if not 0.0 < cut <= 1.0:
        raise ConfigError(f"{field}={cut} is out of range.", field=field, hint="Use a value above 0 and at most 1.")
