"""Parameters of a comparison, as a frozen value checked at birth. Free of torch, so a service can validate with it."""

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from neusemslice.config import (
    THRESHOLD_STRATEGIES,
    Estimator,
    Landscape,
    MetricName,
    SlicingConfig,
    StrategyName,
    check_cut,
    cut_field,
)
from neusemslice.errors import ConfigError

DEFAULT_COMPRESSIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DEFAULT_STRATEGIES: tuple[StrategyName, ...] = ("semantic", "categorywise", "global", "random")
"""Those that choose neurons, and so reach any compression; `deeparc` drops whole layers."""
METRIC_FREE: tuple[StrategyName, ...] = ("random", "deeparc")
"""Strategies that ignore the contribution metric, and run once."""
_TAKEN_BY: dict[str, frozenset[str]] = {
    "thresholds": frozenset({"semantic"}),
    "fractions": frozenset({"categorywise", "global", "random"}),
    "deeparc_thresholds": frozenset({"deeparc"}),
}
"""Strategies that are cut by a field's values."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Which strategies and metrics are compared, and at which cuts.

    Args:
        strategies: the strategies; `random` is the control.
        metrics: the contribution metrics that each strategy but `random` and `deeparc` is run with.
        compressions: shares of the parameters to remove; each slice is cut as near to them as it can be. Default 10 %
            to 70 %, unless cuts are given. `deeparc` takes none.
        thresholds: cuts of the semantic strategy, instead of `compressions`.
        fractions: cuts of the strategies that keep a fraction, instead of `compressions`.
        deeparc_thresholds: cuts of `deeparc`: similarities above which a layer is redundant.
        pilot: also mask the neurons of each tenth of the contribution order (the paper's tables 1 to 3).
        pilot_categories: at most so many categories, evenly spread, are studied with their own order.
        estimator, landscape, samples_per_category, memory_budget_bytes, seed: as in `SlicingConfig`.

    Raises:
        ConfigError: a value is unknown, out of range, given twice, or contradicts another.
    """

    strategies: tuple[StrategyName, ...] = DEFAULT_STRATEGIES
    metrics: tuple[MetricName, ...] = ("avg", "var", "ens", "deeplift", "taylor")
    compressions: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    fractions: tuple[float, ...] = ()
    deeparc_thresholds: tuple[float, ...] = (0.90, 0.95, 0.97, 0.99)
    pilot: bool = True
    pilot_categories: int = 10
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = 256
    memory_budget_bytes: int = 2 * 1024**3
    seed: int = 0

    def __post_init__(self) -> None:
        _require_some_of("strategies", self.strategies, get_args(StrategyName))
        _require_some_of("metrics", self.metrics, get_args(MetricName))
        self._check_used()
        if not (self.thresholds or self.fractions or self.compressions):
            object.__setattr__(self, "compressions", DEFAULT_COMPRESSIONS)
        for field in ("compressions", "thresholds", "fractions", "deeparc_thresholds"):
            values = getattr(self, field)
            if (twice := _first_repeated(values)) is not None:
                raise ConfigError(f"{field} names {twice} twice.", field=field, hint="Give each value once.")
        self._check_cuts()
        if self.pilot_categories < 1:
            raise ConfigError(
                f"pilot_categories={self.pilot_categories} is too small.",
                field="pilot_categories",
                hint="Use at least 1, or pilot=False.",
            )
        self.slicing_configs()

    def _check_used(self) -> None:
        """Raises ConfigError if there are cuts that no strategy takes; a field's default is none of them."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _TAKEN_BY and value != field.default and not _TAKEN_BY[field.name] & set(self.strategies):
                raise ConfigError(
                    f"There are {field.name}, but none of the strategies {list(self.strategies)} is cut by them.",
                    field=field.name,
                    hint=f"Leave {field.name} out, or add one of: {', '.join(sorted(_TAKEN_BY[field.name]))}.",
                )

    def _check_cuts(self) -> None:
        if self.compressions and (self.thresholds or self.fractions):
            raise ConfigError(
                "compressions and cuts are given, which contradict each other.",
                field="compressions",
                hint="Give compressions, or thresholds and fractions.",
            )
        for compression in self.compressions:
            if not 0.0 < compression < 1.0:
                raise ConfigError(
                    f"compressions={self.compressions} is out of range.",
                    field="compressions",
                    hint="Use shares of the parameters above 0 and below 1.",
                )
        for strategy in self.strategies:
            if not self.cuts(strategy) and (strategy == "deeparc" or not self.compressions):
                field = "deeparc_thresholds" if strategy == "deeparc" else f"{cut_field(strategy)}s"
                raise ConfigError(
                    f"There are no {field}, but strategy {strategy!r} is cut by them.",
                    field=field if strategy == "deeparc" else "fractions" if self.fractions else "thresholds",
                    hint=f"Give {field}, or (but for deeparc) compressions instead, or leave the strategy out.",
                )
            for cut in self.cuts(strategy):
                check_cut(strategy, cut)

    def cuts(self, strategy: str) -> tuple[float, ...]:
        """The cuts given for a strategy; none where they are to be found from `compressions`."""
        if strategy == "deeparc":
            return self.deeparc_thresholds
        return self.thresholds if strategy in THRESHOLD_STRATEGIES else self.fractions

    def slicing_configs(self) -> list[SlicingConfig]:
        """One for each strategy and metric, at the default cut; strategies that ignore the metric come once."""
        return [
            self.slicing_config(strategy, metric)
            for strategy in self.strategies
            for metric in (self.metrics[:1] if strategy in METRIC_FREE else self.metrics)
        ]

    def slicing_config(self, strategy: StrategyName, metric: MetricName) -> SlicingConfig:
        """One strategy with one metric, at the default cut."""
        return SlicingConfig(
            strategy=strategy,
            metric=metric,
            estimator=self.estimator,
            landscape=self.landscape,
            samples_per_category=self.samples_per_category,
            memory_budget_bytes=self.memory_budget_bytes,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _require_some_of(field: str, values: tuple[str, ...], choices: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in choices]
    if unknown:
        wrong = f"{unknown[0]!r} is unknown"
    elif not values:
        wrong = "at least one is needed"
    elif (twice := _first_repeated(values)) is not None:
        wrong = f"{twice!r} is named twice"
    else:
        return
    raise ConfigError(
        f"{field}={list(values)}: {wrong}.", field=field, hint=f"Name each once, of: {', '.join(choices)}."
    )


def _first_repeated(values: tuple[Any, ...]) -> Any:
    """The first value that has come before, None if none has."""
    return next((value for place, value in enumerate(values) if value in values[:place]), None)
