"""Mean and variance per category, from a stream, in float64 and mergeable."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean, and sum of squared deviations of samples, per category (Chan, Golub and LeVeque 1979)."""

    counts: Int64[Tensor, " categories"]
    mean: Float64[Tensor, "categories neurons"]
    squared_deviations: Float64[Tensor, "categories neurons"]

    @classmethod
    def of(cls, values: Float[Tensor, "batch neurons"], labels: Int[Tensor, " batch"], categories: int) -> "Moments":
        """The moments of one batch."""
        values = values.double()
        counts = torch.bincount(labels, minlength=categories)
        zeros = values.new_zeros(categories, values.shape[1])
        mean = zeros.index_add(0, labels, values) / counts.clamp(min=1).unsqueeze(1)
        return cls(counts, mean, zeros.index_add(0, labels, (values - mean[labels]).square()))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples together."""
        counts = self.counts + other.counts
        share = (other.counts.double() / counts.clamp(min=1)).unsqueeze(1)
        delta = other.mean - self.mean
        between = delta.square() * share * self.counts.unsqueeze(1)
        return type(self)(
            counts, self.mean + delta * share, self.squared_deviations + other.squared_deviations + between
        )

    def overall(self) -> "Moments":
        """The moments of all samples as one category."""
        weights = (self.counts.double() / self.counts.sum()).unsqueeze(1)
        mean = (weights * self.mean).sum(0, keepdim=True)
        between = (self.counts.unsqueeze(1) * (self.mean - mean).square()).sum(0, keepdim=True)
        within = self.squared_deviations.sum(0, keepdim=True)
        return type(self)(self.counts.sum(0, keepdim=True), mean, within + between)

    @property
    def variance(self) -> Float64[Tensor, "categories neurons"]:
        """Population variance."""
        return self.squared_deviations / self.counts.clamp(min=1).unsqueeze(1)
