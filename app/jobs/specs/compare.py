"""The `compare` job."""

from typing import Literal, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import Common, Cut, DatasetId, Share, refusing
from neusemslice.comparison_config import ComparisonConfig
from neusemslice.config import Estimator, Landscape, MetricName, StrategyName
from neusemslice.errors import ConfigError

MAX_COMPARED_POINTS = 500
"""Strategies x metrics x cuts of one comparison: each is a network to evaluate."""


class CompareSpec(Common):
    """Compare strategies, metrics and cuts on one model and dataset; see `neusemslice.ComparisonConfig`."""

    kind: Literal["compare"]
    dataset_id: DatasetId
    strategies: list[StrategyName] = Field(default=list(ComparisonConfig.strategies), max_length=10)
    metrics: list[MetricName] = Field(default=list(ComparisonConfig.metrics), max_length=20)
    compressions: list[Share] = Field(
        default_factory=list,
        max_length=50,
        description="Shares of the parameters to remove. Default 10 % to 70 %, unless cuts are given.",
    )
    thresholds: list[Cut] = Field(
        default_factory=list, max_length=50, description="Cuts for `semantic`, instead of compressions."
    )
    fractions: list[Cut] = Field(
        default_factory=list,
        max_length=50,
        description="Cuts for the strategies that keep a fraction, instead of compressions.",
    )
    deeparc_thresholds: list[Cut] = Field(
        default=list(ComparisonConfig.deeparc_thresholds),
        max_length=50,
        description="Cuts for `deeparc`, which drops whole layers and takes no compressions.",
    )
    pilot: bool = Field(default=True, description="Also silence each tenth of the contribution order.")
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = Field(default=256, ge=4, le=10_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            config = self.to_config()
            points = sum(len(config.cuts(run.strategy) or config.compressions) for run in config.slicing_configs())
            if points > MAX_COMPARED_POINTS:
                lists = ("strategies", "metrics", "compressions", "thresholds", "fractions", "deeparc_thresholds")
                longest = max(lists, key=lambda field: len(getattr(self, field)))
                raise ConfigError(
                    f"strategies x metrics x cuts are {points} networks to evaluate, and one job evaluates at most "
                    f"{MAX_COMPARED_POINTS}.",
                    field=longest,
                    hint=f"Leave out some {longest}, or submit several jobs.",
                )
        return self

    def to_config(self) -> ComparisonConfig:
        """The library's form."""
        return ComparisonConfig(
            strategies=tuple(self.strategies),
            metrics=tuple(self.metrics),
            compressions=tuple(self.compressions),
            thresholds=tuple(self.thresholds),
            fractions=tuple(self.fractions),
            deeparc_thresholds=tuple(self.deeparc_thresholds),
            pilot=self.pilot,
            estimator=self.estimator,
            landscape=self.landscape,
            samples_per_category=self.samples_per_category,
            seed=self.seed,
        )
