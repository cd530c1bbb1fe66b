"""How a job slices, whatever it does with the slice."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import Cut, Share, Strict, default_of, refusing
from neusemslice.config import Estimator, Landscape, MetricName, SlicingConfig, StrategyName
from neusemslice.errors import ConfigError


class SlicingParams(Strict):
    """How neurons are scored and where the cut is made; see `neusemslice.SlicingConfig`."""

    strategy: StrategyName = "semantic"
    metric: MetricName = Field(default="taylor", description="Contribution metric. Not for `deeparc`.")
    threshold: Cut | None = Field(
        default=None, description="Coverage theta for `semantic`, similarity for `deeparc`. Default 0.99."
    )
    fraction: Cut | None = Field(
        default=None, description="Share of neurons kept, for the other strategies. Default 0.5."
    )
    target_compression: Share | None = Field(
        default=None, description="Share of the parameters to remove; the cut is searched for."
    )
    target_size_bytes: int | None = Field(
        default=None, gt=0, le=2**50, description="Most bytes of the checkpoint file; the cut is searched for."
    )
    target_latency_ms: Annotated[float, Field(gt=0, le=10**9)] | None = Field(
        default=None,
        description="Most milliseconds of one forward pass on the worker's device; the cut is searched for by timing.",
    )
    latency_batch_size: int = Field(default=1, ge=1, le=8192, description="Samples of that pass.")
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Accuracy that may be lost (0.01 is one point); the cut is searched for on a tenth of the train "
        "split, which the analysis then leaves out. The test split is never used.",
    )
    increment: int = Field(default=1, ge=1, le=100_000, description="Step of the scan, for `semantic` only.")
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = Field(default=256, ge=4, le=10_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config(seed=0)
            if self.strategy == "deeparc" and self.metric != default_of(self, "metric"):
                raise ConfigError(
                    "metric orders neurons, and strategy='deeparc' drops whole layers.",
                    field="metric",
                    hint="Leave metric out, or choose another strategy.",
                )
        return self

    def to_config(self, *, seed: int) -> SlicingConfig:
        """The library's form."""
        return SlicingConfig(**self.model_dump(), seed=seed)
