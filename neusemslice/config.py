"""Parameters of a slicing, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from neusemslice.config_values import from_dict, require_choice
from neusemslice.errors import ConfigError

MetricName = Literal[
    "avg", "var", "ens", "deeplift", "taylor", "taylor_summed", "taylor_weight", "conductance", "integrated_gradients"
]
StrategyName = Literal["semantic", "categorywise", "global", "random", "deeparc"]
Estimator = Literal["unbiased", "biased"]
Landscape = Literal["pooled", "flattened"]
Target = Literal["target_compression", "target_size_bytes", "target_latency_ms", "max_accuracy_drop"]
Branches = Literal["union", "scatter"]
"""What happens to branches that are added up, each with its own choice of neurons.

`union`: a neuron goes when no branch keeps it; every branch then computes all that are left.
`scatter`: besides, each branch loses its other neurons too, and puts the rest at their places among zeros.
"""
Reconstruction = Literal["none", "bias", "norms", "least_squares"]
"""How the layers that lost inputs are brought back to what they computed in the original network, without training.

`bias`: by their biases. `norms`: by the batch norms' statistics. `least_squares`: by all their weights, refitted in
closed form.
"""

DEFAULT_CUTS: dict[str, float] = {
    "semantic": 0.99,
    "deeparc": 0.99,
    "categorywise": 0.5,
    "global": 0.5,
    "random": 0.5,
}
MOST_SHARDS = 16
"""That can share the work of one analysis: the data is added up in so many blocks, and a shard is at least one."""
THRESHOLD_STRATEGIES = ("semantic", "deeparc")
"""Cut by a similarity to reach; the others keep a fraction."""
CALIBRATION_PER_CATEGORY = 50
"""Samples of each category that the service and the command line reconstruct from, or fit deeparc's layers to."""


def cut_field(strategy: str) -> str:
    """The field of a config that holds the strategy's cut."""
    return "threshold" if strategy in THRESHOLD_STRATEGIES else "fraction"


@dataclass(frozen=True, kw_only=True)
class SlicingConfig:
    """How neurons are scored and where the cut is made.

    Give the cut itself (`threshold` or `fraction`, whichever the strategy takes), or a target that it is searched for
    (`target_compression`, `target_size_bytes`, `target_latency_ms` or `max_accuracy_drop`), or nothing for the default.

    Args:
        strategy: `semantic` keeps, per layer and category, the smallest prefix of neurons in contribution order whose
            CKA coverage reaches `threshold`; `categorywise` and `global` keep the top `fraction` of each layer;
            `random` keeps a random `fraction` (the control); `deeparc` drops whole layers: those at which the CKA with
            the place before exceeds `threshold` (see `neusemslice.deeparc`).
        metric: contribution metric that orders the neurons; deeparc takes none.
        threshold: theta in (0, 1], for `semantic` and `deeparc` (default 0.99).
        fraction: share of each layer's neurons kept, in (0, 1], for the three other strategies. Default 0.5.
        target_compression: share of the parameters to remove, in (0, 1); not for `deeparc`.
        target_size_bytes: most bytes of the checkpoint file; as little as possible is removed. Not for `deeparc`.
        target_latency_ms: most milliseconds of one forward pass on the model's device, measured. Not for `deeparc`.
        latency_batch_size: samples of that pass.
        max_accuracy_drop: accuracy that may be lost on validation data, in [0, 1): 0.01 is one percentage point; not
            for `deeparc`.
        increment: step t of the semantic scan (paper, section 3.3): the number of neurons kept grows by t.
        estimator: CKA estimator. The biased one rises towards 1 when samples are fewer than neurons.
        landscape: `pooled` averages a convolution's output over space before comparing; `flattened` keeps all of it.
        samples_per_category: at most this many samples of a category enter the CKA (all of them enter the scores).
        memory_budget_bytes: features held at once, and what comparing them takes; the data is read several times if
            they do not fit together. Results do not depend on it.
        seed: orders the random strategy and the random control curve.
        resolved_cut: set by the search for a target, never by hand: the threshold or fraction it found.

    Raises:
        ConfigError: a value is unknown, out of range, or does not belong to the strategy.
    """

    strategy: StrategyName = "semantic"
    metric: MetricName = "taylor"
    threshold: float | None = None
    fraction: float | None = None
    target_compression: float | None = None
    target_size_bytes: int | None = None
    target_latency_ms: float | None = None
    latency_batch_size: int = 1
    max_accuracy_drop: float | None = None
    increment: int = 1
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = 256
    memory_budget_bytes: int = 2 * 1024**3
    seed: int = 0
    resolved_cut: float | None = None

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, get_args(StrategyName))
        require_choice("metric", self.metric, get_args(MetricName))
        require_choice("estimator", self.estimator, get_args(Estimator))
        require_choice("landscape", self.landscape, get_args(Landscape))
        self._check_cut_and_target()
        smallest = 4 if self.estimator == "unbiased" else 2
        for field, least in (
            ("latency_batch_size", 1),
            ("increment", 1),
            ("samples_per_category", smallest),
            ("memory_budget_bytes", 1),
            ("seed", 0),
        ):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"{field}={getattr(self, field)} is too small.", field=field, hint=f"Use at least {least}."
                )
        if self.increment != 1 and self.strategy != "semantic":
            raise ConfigError(
                f"increment is the step of the semantic scan, but strategy={self.strategy!r}.",
                field="increment",
                hint="Leave increment out.",
            )

    def _check_cut_and_target(self) -> None:
        own = cut_field(self.strategy)
        other = "fraction" if own == "threshold" else "threshold"
        if getattr(self, other) is not None:
            raise ConfigError(
                f"{other} is no parameter of strategy={self.strategy!r}.", field=other, hint=f"Give {own} instead."
            )
        given = [name for name in (own, *get_args(Target)) if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} contradict each other.", field=given[-1], hint="Give one.")
        if self.latency_batch_size != 1 and self.target_latency_ms is None:
            raise ConfigError(
                "latency_batch_size says how target_latency_ms is measured, and there is none.",
                field="latency_batch_size",
                hint="Give target_latency_ms, or leave latency_batch_size out.",
            )
        if self.target is None:
            if self.resolved_cut is not None:
                raise ConfigError("resolved_cut needs a target.", field="resolved_cut", hint=f"Give {own} instead.")
            if not given:
                object.__setattr__(self, own, DEFAULT_CUTS[self.strategy])
            check_cut(self.strategy, self.cut)
            return
        if self.strategy == "deeparc":
            raise ConfigError(
                f"{self.target} is no parameter of strategy='deeparc', which drops whole layers.",
                field=self.target,
                hint="Give threshold instead.",
            )
        self._check_target(self.target)
        if self.resolved_cut is not None:
            check_cut(self.strategy, self.resolved_cut)

    def _check_target(self, target: Target) -> None:
        value = getattr(self, target)
        if target == "target_compression":
            holds = 0 < value < 1
        elif target == "max_accuracy_drop":
            holds = 0 <= value < 1
        else:
            holds = 0 < value < math.inf
        if not holds:
            raise ConfigError(
                f"{target}={value} is out of range.",
                field=target,
                hint="Use a number above 0."
                if target in ("target_size_bytes", "target_latency_ms")
                else "Use a share between 0 and 1, such as 0.5 for half of the parameters or 0.01 for one point.",
            )

    @property
    def target(self) -> Target | None:
        """The field that holds the target, if there is one."""
        return next((target for target in get_args(Target) if getattr(self, target) is not None), None)

    @property
    def cut(self) -> float:
        """The one number that decides how much is kept: theta, or the fraction.

        Raises:
            ConfigError: the config has a target that no search has been made for.
        """
        cut = self.resolved_cut if self.target else getattr(self, cut_field(self.strategy))
        if cut is None:
            raise ConfigError(
                f"{self.target} has not been searched for yet.", field=str(self.target), hint="Slice a model with it."
            )
        return float(cut)

    def with_cut(self, cut: float) -> "SlicingConfig":
        """The same config with this theta (semantic, deeparc) or fraction (the other strategies), and no target."""
        given: dict[str, Any] = dict.fromkeys((*get_args(Target), "resolved_cut")) | {"latency_batch_size": 1}
        return type(self)(**{**self.to_dict(), **given, cut_field(self.strategy): cut})

    def resolved(self, cut: float) -> "SlicingConfig":
        """The same config and target, with the cut that was found for it."""
        return type(self)(**{**self.to_dict(), "resolved_cut": cut})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SlicingConfig":
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is unknown or a value is refused.
        """
        return from_dict(cls, values)


def check_cut(strategy: str, cut: float) -> None:
    """Raises ConfigError unless `cut` lies in (0, 1]."""
    field = cut_field(strategy)
    if not 0.0 < cut <= 1.0:
        raise ConfigError(f"{field}={cut} is out of range.", field=field, hint="Use a value above 0 and at most 1.")


def require_shardable(config: SlicingConfig) -> None:
    """Raises ConfigError unless an analysis with this config can be made in shards."""
    if config.strategy == "deeparc":
        raise ConfigError(
            "strategy='deeparc' compares some samples of all categories at once: there is nothing to share out.",
            field="strategy",
            hint="Slice without shards.",
        )
    if config.landscape == "flattened":
        raise ConfigError(
            "landscape='flattened' keeps every position of every output, too much to hand on from shard to shard.",
            field="landscape",
            hint="Slice without shards, or use landscape='pooled'.",
        )
