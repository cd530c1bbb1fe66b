"""Which category some features look like: a normal distribution for each, in a few directions of the feature space.

The score of a category is the logarithm of its density (quadratic discriminant analysis),

    -1/2 (z - m)^T S^-1 (z - m) - 1/2 log |S|,

with z the features along the directions in which those of the first task vary most, scaled to unit variance there. A
category's covariance S is shrunk towards the mean of all, the more the fewer samples it has (regularised discriminant
analysis, Friedman 1989). What is kept of a category is its mean, covariance and number of samples, in half precision:
features that never change again keep them valid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float16, Float32, Float64, Int64
from torch import Tensor

SHRINKAGE = 0.1
"""Weight of the mean covariance of all categories in each of them, however many samples it has."""
RIDGE = 1e-2
"""Added to each variance, relative to their mean."""
SMALLEST_SHARE = 1e-6
"""Directions with less than this share of the variance of the first are left out."""


@dataclass(frozen=True, eq=False)
class Discriminant:
    """What is known of the features of all categories seen.

    Attributes:
        centre: mean features of the first task.
        directions: along which features are compared, each with 1 as its largest entry.
        lengths: what to multiply by for unit variance of the first task.
        means, covariances: of each category along the directions; of a covariance the lower triangle, row by row.
        counts: samples of each category.
    """

    centre: Float16[Tensor, " features"]
    directions: Float16[Tensor, "features directions"]
    lengths: Float32[Tensor, " directions"]
    means: Float16[Tensor, "categories directions"]
    covariances: Float16[Tensor, "categories triangle"]
    counts: Int64[Tensor, " categories"]

    @property
    def bytes_kept(self) -> int:
        """Of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def along(self, features: Float64[Tensor, "samples features"]) -> Float64[Tensor, "samples directions"]:
        """The features in the directions that are compared."""
        return (features - self.centre.double()) @ self.directions.double() * self.lengths.double()

    def with_categories(
        self, data: Iterable[tuple[Tensor, Int64[Tensor, " _"]]], categories: Sequence[int]
    ) -> "Discriminant":
        """Also knowing these categories, from the features and labels of their samples."""
        number_of = {label: number for number, label in enumerate(categories)}
        size = self.directions.shape[1]
        counts = torch.zeros(len(categories), dtype=torch.int64)
        sums = torch.zeros(len(categories), size, dtype=torch.float64)
        products = torch.zeros(len(categories), size, size, dtype=torch.float64)
        for features, labels in data:
            projected = self.along(features)
            for label in labels.unique().tolist():
                own = projected[labels == label]
                number = number_of[label]
                counts[number] += len(own)
                sums[number] += own.sum(0)
                products[number] += own.T @ own
        means = sums / counts[:, None]
        covariances = products / counts[:, None, None] - means[:, :, None] * means[:, None, :]
        rows, columns = torch.tril_indices(size, size)
        return replace(
            self,
            means=torch.cat([self.means, means.half()]),
            covariances=torch.cat([self.covariances, covariances[:, rows, columns].half()]),
            counts=torch.cat([self.counts, counts]),
        )

    def scores(self, features: Float64[Tensor, "samples features"]) -> Float64[Tensor, "samples categories"]:
        """The log density of each category, but for a constant."""
        projected = self.along(features)
        scores = []
        for mean, covariance in zip(self.means.double(), self._shrunk(), strict=True):
            root = torch.linalg.cholesky(covariance)
            away = torch.linalg.solve_triangular(root, (projected - mean).T, upper=False)
            scores.append(-0.5 * away.square().sum(0) - root.diagonal().log().sum())
        return torch.stack(scores, 1)

    def _shrunk(self) -> Float64[Tensor, "categories directions directions"]:
        size = self.directions.shape[1]
        rows, columns = torch.tril_indices(size, size)
        full = torch.zeros(len(self.counts), size, size, dtype=torch.float64)
        full[:, rows, columns] = self.covariances.double()
        full[:, columns, rows] = self.covariances.double()
        shared = full.mean(0)
        weight = ((SHRINKAGE * self.counts + size) / (self.counts + size))[:, None, None]
        ridge = RIDGE * shared.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        return (1 - weight) * full + weight * shared + ridge


def find_directions(
    features: Float64[Tensor, "samples features"], sizes: Sequence[int], directions: int
) -> Discriminant:
    """A discriminant that knows no category yet, with the directions in which these features vary most.

    Args:
        features: of samples of the first task.
        sizes: features of each layer; every layer's are given the same total variance first.
        directions: how many, at most.
    """
    centre = features.mean(0)
    centred = features - centre
    parts = centred.split(list(sizes), 1)
    scale = torch.cat([part.var(0).sum().sqrt().clamp_min(1e-12).expand(part.shape[1]) for part in parts])
    _, values, axes = torch.linalg.svd(centred / scale, full_matrices=False)
    used = max(1, min(directions, int((values.square() > SMALLEST_SHARE * values[0].square()).sum())))
    steps = axes[:used].T / scale[:, None]
    largest = steps.abs().amax(0)
    deviations = values[:used] / len(features) ** 0.5
    return Discriminant(
        centre.half(),
        (steps / largest).half(),
        (largest / deviations.clamp_min(1e-12)).float(),
        torch.zeros(0, used, dtype=torch.float16),
        torch.zeros(0, used * (used + 1) // 2, dtype=torch.float16),
        torch.zeros(0, dtype=torch.int64),
    )
