"""The contribution metrics: what is measured of each sample, and how a category's samples become one score.

    name      per sample and neuron                        score of a category
    avg       mean over space of f                         mean
    var       mean over space of f                         population variance
    ens       mean over space of f                         (minmax(mean) + minmax(variance)) / 2, over the layer
    taylor    (sum over space of f * dL/df)^2              mean                (Molchanov et al. 2019, per sample)
    deeplift  Rescale contribution to the own logit        |mean|              (Shrikumar et al. 2017)

f is the neuron's value at its read place, L the sample's cross entropy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from neusemslice.contribution.deeplift import DeepLift
from neusemslice.contribution.moments import Moments
from neusemslice.reading import Reader
from neusemslice.tracing import SliceableModel

Measure = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(inputs [batch, *input shape], labels [batch]) -> layer name -> a number per sample and neuron [batch, neurons]."""


@dataclass(frozen=True)
class Metric:
    """A contribution metric: per-sample measurements, reduced per category."""

    prepare: Callable[[SliceableModel], Measure]
    reduce: Callable[[Moments], Float64[Tensor, "categories neurons"]]


def mean_activation(model: SliceableModel) -> Measure:
    """Measures the mean of f over space, forward only."""
    reader = Reader(model)

    def measure(
        inputs: Float[Tensor, "batch ..."],
        labels: Int64[Tensor, " batch"],  # noqa: ARG001 the protocol's
    ) -> dict[str, Float[Tensor, "batch _"]]:
        with torch.no_grad():
            reading = reader.read(inputs)
        return {layer.name: layer.per_neuron(reading.values[layer.name]).mean(2) for layer in model.sliceable_layers}

    return measure


def taylor_term(model: SliceableModel) -> Measure:
    """Measures (sum over space of f * dL/df)^2: one forward and one backward for all layers."""
    reader = Reader(model)

    def measure(
        inputs: Float[Tensor, "batch ..."], labels: Int64[Tensor, " batch"]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        with torch.enable_grad():
            reading = reader.read(inputs)
        doubt, direction = loss_gradient(reading.logits.detach(), labels)
        gradients = torch.autograd.grad(
            reading.logits, list(reading.values.values()), grad_outputs=direction.to(reading.logits.dtype)
        )
        terms = {}
        for (name, value), gradient in zip(reading.values.items(), gradients, strict=True):
            slope = model.layer(name).per_neuron(value.detach() * gradient).sum(2, dtype=torch.float64)
            terms[name] = (slope * doubt).square()
        return terms

    return measure


def loss_gradient(
    logits: Float[Tensor, "batch categories"], labels: Int64[Tensor, " batch"]
) -> tuple[Float64[Tensor, "batch 1"], Float64[Tensor, "batch categories"]]:
    """The cross entropy's gradient towards the logits, as a size for each sample and a direction.

    The gradient is p - onehot(label). Its entry at the label, p - 1, is minus the sum of the other entries; taken as
    that sum it keeps its digits when the network is sure, where p - 1 itself would be rounded to 0. With the size (the
    probability of being wrong) set apart, what goes back through the network is of the order of 1.
    """
    log_p = logits.double().log_softmax(1)
    wrong = log_p.scatter(1, labels.unsqueeze(1), -torch.inf)
    log_doubt = wrong.logsumexp(1, keepdim=True)
    direction = (wrong - log_doubt).exp().scatter(1, labels.unsqueeze(1), -1.0)
    return log_doubt.exp(), direction


def deeplift_contribution(model: SliceableModel) -> Measure:
    """Measures the contribution to the logit of the sample's own category, against an all-zero baseline."""
    return DeepLift(model).contributions


def _mean(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean


def _variance(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.variance


def _ensemble(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return (_minmax(moments.mean) + _minmax(moments.variance)) / 2


def _absolute_mean(moments: Moments) -> Float64[Tensor, "categories neurons"]:
    return moments.mean.abs()


def _minmax(scores: Float64[Tensor, "categories neurons"]) -> Float64[Tensor, "categories neurons"]:
    """Each category's scores scaled to [0, 1] over the layer; a constant layer gives zeros."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low), 0.0)


METRICS: dict[str, Metric] = {
    "avg": Metric(mean_activation, _mean),
    "var": Metric(mean_activation, _variance),
    "ens": Metric(mean_activation, _ensemble),
    "deeplift": Metric(deeplift_contribution, _absolute_mean),
    "taylor": Metric(taylor_term, _mean),
}
"""Every metric by its name in `SlicingConfig`."""
