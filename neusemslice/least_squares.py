"""Ridge regression from a stream: the map of one value to another, with a held-out estimate of how well it does.

Only sums of products are kept, in float64 and in two halves of the samples: each half chooses and judges the penalty of
what was fitted on the other, then both are fitted together.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neusemslice.errors import DatasetError

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1)
"""Ridge penalties that are tried, relative to the inputs' mean variance."""


@dataclass(frozen=True)
class LinearMap:
    """outputs = inputs weight^T + bias.

    Attributes:
        residual: |targets - outputs| over |targets - their mean|, on samples that had no part in the fit.
    """

    weight: Float64[Tensor, "outputs inputs"]
    bias: Float64[Tensor, " outputs"]
    residual: float


class LeastSquares:
    """Takes rows as they come, then gives the map."""

    def __init__(self) -> None:
        self._halves: list[_Sums | None] = [None, None]
        self._samples = 0

    def add(self, inputs: Float[Tensor, "samples rows inputs"], targets: Float[Tensor, "samples rows outputs"]) -> None:
        """Take some samples, each of a number of rows (positions). A sample's rows stay in one half."""
        numbers = torch.arange(self._samples, self._samples + len(inputs))
        self._samples += len(inputs)
        for half in (0, 1):
            chosen = (numbers % 2 == half).to(inputs.device)
            sums = _Sums.of(inputs[chosen].flatten(0, 1).double(), targets[chosen].flatten(0, 1).double())
            before = self._halves[half]
            self._halves[half] = sums if before is None else before.plus(sums)

    def solve(self) -> LinearMap:
        """The map with the penalty that does best on held-out samples.

        Raises:
            DatasetError: fewer than four samples.
        """
        one, other = self._both_halves()
        errors = {penalty: other.error(*one.fit(penalty)) + one.error(*other.fit(penalty)) for penalty in PENALTIES}
        best = min(PENALTIES, key=errors.__getitem__)
        both = one.plus(other)
        return LinearMap(*both.fit(best), _relative(errors[best], both))

    def residual_of_identity(self) -> float:
        """|targets - inputs| over |targets - their mean|, where both are of one size.

        Raises:
            DatasetError: fewer than four samples.
        """
        one, other = self._both_halves()
        both = one.plus(other)
        return _relative(both.error(torch.eye(len(both.inputs)).to(both.gram), torch.zeros_like(both.targets)), both)

    def _both_halves(self) -> tuple["_Sums", "_Sums"]:
        one, other = self._halves
        if self._samples < 4 or one is None or other is None:
            raise DatasetError(
                f"{self._samples} samples are too few to fit or judge a linear map.",
                hint="Give at least 4, better hundreds.",
            )
        return one, other


@dataclass(frozen=True)
class _Sums:
    """Sums over rows: their number, inputs, targets, and the products of these."""

    rows: int
    inputs: Float64[Tensor, " inputs"]
    targets: Float64[Tensor, " outputs"]
    gram: Float64[Tensor, "inputs inputs"]
    cross: Float64[Tensor, "inputs outputs"]
    squares: Float64[Tensor, " outputs"]

    @classmethod
    def of(cls, inputs: Float64[Tensor, "rows inputs"], targets: Float64[Tensor, "rows outputs"]) -> "_Sums":
        return cls(
            len(inputs),
            inputs.sum(0),
            targets.sum(0),
            inputs.T @ inputs,
            inputs.T @ targets,
            targets.square().sum(0),
        )

    def plus(self, other: "_Sums") -> "_Sums":
        """Of both together."""
        return _Sums(
            self.rows + other.rows,
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.gram + other.gram,
            self.cross + other.cross,
            self.squares + other.squares,
        )

    def fit(self, penalty: float) -> tuple[Float64[Tensor, "outputs inputs"], Float64[Tensor, " outputs"]]:
        """Weight and bias; the bias is not penalised."""
        rows = max(self.rows, 1)
        covariance = self.gram - self.inputs.outer(self.inputs) / rows
        cross = self.cross - self.inputs.outer(self.targets) / rows
        ridge = (penalty * covariance.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        covariance.diagonal().add_(ridge)
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(covariance)).T
        return weight, (self.targets - weight @ self.inputs) / rows

    def error(self, weight: Float64[Tensor, "outputs inputs"], bias: Float64[Tensor, " outputs"]) -> float:
        """Sum over rows and outputs of the squared difference between targets and the map's outputs."""
        mapped = ((weight @ self.gram) * weight).sum(1) + 2 * bias * (weight @ self.inputs) + self.rows * bias.square()
        crossed = (weight.T * self.cross).sum(0) + bias * self.targets
        return float((self.squares - 2 * crossed + mapped).sum())

    def variance(self) -> float:
        """Sum over rows and outputs of the squared difference between targets and their mean."""
        return float((self.squares - self.targets.square() / max(self.rows, 1)).sum())


def _relative(error: float, sums: _Sums) -> float:
    variance = sums.variance()
    return (max(error, 0.0) / variance) ** 0.5 if variance > 0 else 0.0
