"""The contribution metrics: what is measured of each sample, and how a category's samples become one score.

    name                  per sample and neuron                                score of a category
    avg                   mean over space of f                                 mean
    var                   mean over space of f                                 population variance
    ens                   mean over space of f                                 (minmax(mean) + minmax(variance)) / 2
    deeplift              Rescale contribution to the own logit                |mean|
    taylor                sum over space of f * dL/df                          mean of the squares
    taylor_summed         sum over space of f * dL/df                          square of the mean
    taylor_weight         sum over the neuron's weights of (w * dL/dw)^2       mean
    conductance           conductance towards the own logit                    |mean|
    integrated_gradients  integrated gradients towards the own logit           |mean|

f is the neuron's value at its read place, L the sample's cross entropy; minmax is over the layer. In a regression each
output c is a category that has every sample: L is (output_c - target_c)^2 / 2, and output c takes the logit's place.
Sources, cost and advice: docs/contribution_metrics.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from neusemslice.batches import is_regression
from neusemslice.config import MetricName
from neusemslice.contribution.deeplift import DeepLift
from neusemslice.contribution.moments import Moments
from neusemslice.contribution.readings import READING_QUANTITIES, LayerValues, ReadingPass
from neusemslice.errors import ConfigError
from neusemslice.reading import samples_at_once
from neusemslice.tracing import SliceableModel

Measure = Callable[[Tensor, Tensor], dict[str, LayerValues]]
"""(inputs [batch, *input shape], checked labels) -> quantity -> values of each layer."""


Advance = Callable[[float], None]
"""Told what share of a batch a pass has done, by those that take long."""


Attribution = Callable[[Tensor, Tensor, Advance], dict[str, Tensor]]
"""(inputs, targets [batch], advance) -> layer name -> contribution of each neuron to the target logit."""


@dataclass(frozen=True)
class Metric:
    """A contribution metric.

    Attributes:
        quantity: what is measured of each sample.
        reduce: how the moments of a category's samples become its scores.
        takes_baseline: whether the samples are compared with a baseline input.
    """

    quantity: str
    reduce: Callable[[Moments], Float64[Tensor, "categories neurons"]]
    takes_baseline: bool = False


def prepare(
    model: SliceableModel, quantities: frozenset[str], baseline: Float[Tensor, "1 ..."], advance: Advance
) -> list[Measure]:
    """The passes that measure the quantities, each quantity in one of them."""
    passes: list[Measure] = []
    if quantities & READING_QUANTITIES:
        passes.append(_InPieces(ReadingPass(model, quantities & READING_QUANTITIES), samples_at_once(model)))
    passes.extend(
        _TowardsCategories(quantity, _attribution(quantity, model, baseline), model.categories, advance)
        for quantity in sorted(quantities - READING_QUANTITIES)
    )
    return passes


def _attribution(quantity: str, model: SliceableModel, baseline: Float[Tensor, "1 ..."]) -> Attribution:
    if quantity == "deeplift":
        deeplift, limit = DeepLift(model, baseline), samples_at_once(model)
        return lambda inputs, targets, _: _piecewise(deeplift.contributions, inputs, targets, limit)
    from neusemslice.contribution import attributions  # here, for captum takes a second to import

    return attributions.METHODS[quantity](model, baseline).contributions


class _InPieces:
    """A pass over so many samples at once: memory does not grow with the batch, and each sample counts by itself."""

    def __init__(self, measure: Measure, limit: int) -> None:
        self._measure, self._limit = measure, limit

    def __call__(
        self, inputs: Float[Tensor, "batch ..."], labels: Shaped[Tensor, "batch ..."]
    ) -> dict[str, LayerValues]:
        pieces = zip(inputs.split(self._limit), labels.split(self._limit), strict=True)
        parts = [self._measure(*piece) for piece in pieces]
        return {quantity: _joined([part[quantity] for part in parts]) for quantity in parts[0]}


def _piecewise(
    attribute: Callable[[Tensor, Tensor], dict[str, Tensor]], inputs: Tensor, targets: Tensor, limit: int
) -> dict[str, Tensor]:
    pieces = zip(inputs.split(limit), targets.split(limit), strict=True)
    return _joined([attribute(*piece) for piece in pieces])


def _joined(parts: Sequence[LayerValues]) -> dict[str, Tensor]:
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


class _TowardsCategories:
    """Contributions to the logit of each sample's own category, or to every output of a regression."""

    def __init__(self, quantity: str, attribution: Attribution, categories: int, advance: Advance) -> None:
        self._quantity = quantity
        self._attribution = attribution
        self._categories = categories
        self._advance = advance

    def __call__(
        self, inputs: Float[Tensor, "batch ..."], labels: Shaped[Tensor, "batch ..."]
    ) -> dict[str, LayerValues]:
        if not is_regression(labels):
            return {self._quantity: self._attribution(inputs, labels, self._advance)}
        by_output = [
            self._attribution(
                inputs,
                torch.full((len(inputs),), output, device=inputs.device),
                partial(self._advance_output, output),
            )
            for output in range(self._categories)
        ]
        return {self._quantity: {name: torch.stack([own[name] for own in by_output], dim=1) for name in by_output[0]}}

    def _advance_output(self, output: int, share: float) -> None:
        self._advance((output + share) / self._categories)


def _mean(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean


def _variance(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.variance


def _ensemble(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return (_minmax(moments.mean) + _minmax(moments.variance)) / 2


def _absolute_mean(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean.abs()


def _mean_square(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean_square


def _squared_mean(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean.square()


def _minmax(scores: Float64[Tensor, "categories neurons"]) -> Float64[Tensor, "categories neurons"]:
    """Each category's scores scaled to [0, 1] over the layer; a constant layer gives zeros."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low), 0.0)


DEAR_QUANTITIES = frozenset({"conductance", "integrated_gradients"})
"""Those that take dozens of passes over a batch."""

METRICS: dict[MetricName, Metric] = {
    "avg": Metric("activation", _mean),
    "var": Metric("activation", _variance),
    "ens": Metric("activation", _ensemble),
    "deeplift": Metric("deeplift", _absolute_mean, takes_baseline=True),
    "taylor": Metric("loss_slope", _mean_square),
    "taylor_summed": Metric("loss_slope", _squared_mean),
    "taylor_weight": Metric("weight_term", _mean),
    "conductance": Metric("conductance", _absolute_mean, takes_baseline=True),
    "integrated_gradients": Metric("integrated_gradients", _absolute_mean, takes_baseline=True),
}
"""Every metric by its name in `SlicingConfig`."""


def require_metric(name: str) -> MetricName:
    """The name, if there is such a metric.

    Raises:
        ConfigError: there is none.
    """
    for metric in METRICS:
        if metric == name:
            return metric
    raise ConfigError(
        f"metric={name!r} is unknown.", field="metric", hint=f"Use one of: {', '.join(get_args(MetricName))}."
    )
