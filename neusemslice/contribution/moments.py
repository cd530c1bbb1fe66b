"""Mean and variance per category, from a stream, in float64 and mergeable."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean, and sum of squared deviations of samples, per category (Chan, Golub and LeVeque 1979)."""

    counts: Int64[Tensor, " categories"]
    mean: Float64[Tensor, "categories neurons"]
    squared_deviations: Float64[Tensor, "categories neurons"]

    @classmethod
    def of(cls, values: Float[Tensor, "batch neurons"], labels: Int[Tensor, " batch"], categories: int) -> "Moments":
        """The moments of samples that belong to one category each."""
        values = values.double()
        counts = torch.bincount(labels, minlength=categories)
        zeros = values.new_zeros(categories, values.shape[1])
        mean = zeros.index_add(0, labels, values) / counts.clamp(min=1).unsqueeze(1)
        return cls(counts, mean, zeros.index_add(0, labels, (values - mean[labels]).square()))

    @classmethod
    def of_all(cls, values: Float[Tensor, "batch categories neurons"]) -> "Moments":
        """The moments of samples that belong to every category, with values of their own for each."""
        values = values.double()
        mean = values.sum(0) / max(len(values), 1)
        counts = torch.full((values.shape[1],), len(values), device=values.device)
        return cls(counts, mean, (values - mean).square().sum(0))

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

    def neurons(self, start: int, stop: int) -> "Moments":
        """The moments of some of the neurons."""
        return type(self)(self.counts, self.mean[:, start:stop], self.squared_deviations[:, start:stop])

    def to(self, device: torch.device | str) -> "Moments":
        """The same moments on another device."""
        return type(self)(self.counts.to(device), self.mean.to(device), self.squared_deviations.to(device))

    @property
    def variance(self) -> Float64[Tensor, "categories neurons"]:
        """Population variance."""
        return self.squared_deviations / self.counts.clamp(min=1).unsqueeze(1)

    @property
    def mean_square(self) -> Float64[Tensor, "categories neurons"]:
        """Mean of the squares."""
        return self.variance + self.mean.square()


class RunningMoments:
    """The moments of all batches so far. A batch costs what it holds, however many categories there are.

    Args:
        categories: how many.
        neurons: how many.
        device: where the batches are.
    """

    def __init__(self, categories: int, neurons: int, device: torch.device) -> None:
        zeros = torch.zeros(categories, neurons, dtype=torch.float64, device=device)
        self.moments = Moments(torch.zeros(categories, dtype=torch.int64, device=device), zeros, zeros.clone())

    def add(self, values: Float[Tensor, "batch neurons"], labels: Int64[Tensor, " batch"]) -> None:
        """Take in samples that belong to one category each."""
        present, places = labels.unique(return_inverse=True)
        batch = Moments.of(values, places, len(present))
        old = self.moments
        new = Moments(old.counts[present], old.mean[present], old.squared_deviations[present]).merge(batch)
        old.counts[present] = new.counts
        old.mean[present] = new.mean
        old.squared_deviations[present] = new.squared_deviations

    def add_to_all(self, values: Float[Tensor, "batch categories neurons"]) -> None:
        """Take in samples that belong to every category."""
        self.moments = self.moments.merge(Moments.of_all(values))
