"""Ridge regression from a stream: the map of one value to another, with a held-out estimate of how well it does.

Only sums of products are kept, in float64 and in two halves of the samples: one half chooses the penalty of what was
fitted on the other, each judges what was fitted on the other, then both are fitted together. Several maps, one for
each group, may be fitted at once; they share their penalty.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neusemslice.errors import DatasetError

PENALTIES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties that are tried, relative to the inputs' mean variance."""
_FIRST = 7
"""Where the search for the best of them begins."""
ROUNDING = 1e-13
"""Share of the inputs' mean square that a covariance may be wrong by."""


@dataclass(frozen=True)
class LinearMap:
    """outputs = inputs weight^T + bias.

    Attributes:
        residual: |targets - outputs| over |targets - their mean|, on samples that had no part in the fit.
        error: the sum of the squares of those differences.
        penalty: the one that did best on them.
    """

    weight: Float64[Tensor, "*groups outputs inputs"]
    bias: Float64[Tensor, "*groups outputs"]
    residual: float
    error: float
    penalty: float


class LeastSquares:
    """Takes rows as they come, then gives the map."""

    def __init__(self) -> None:
        self._halves: list[_Sums | None] = [None, None]
        self._samples = 0

    def add(
        self,
        inputs: Float[Tensor, "samples rows *groups inputs"],
        targets: Float[Tensor, "samples rows *groups outputs"],
    ) -> None:
        """Take some samples, each of a number of rows (positions). A sample's rows stay in one half."""
        numbers = torch.arange(self._samples, self._samples + len(inputs))
        self._samples += len(inputs)
        for half in (0, 1):
            chosen = (numbers % 2 == half).to(inputs.device)
            sums = _Sums.of(rows_last(inputs[chosen]).double(), rows_last(targets[chosen]).double())
            before = self._halves[half]
            self._halves[half] = sums if before is None else before.plus(sums)

    def solve(self) -> LinearMap:
        """The map with the penalty that does best on held-out samples.

        Raises:
            DatasetError: fewer than four samples.
        """
        one, other = self._both_halves()
        penalty, error = best_penalty(lambda p: other.error(*one.fit(p)))
        error += one.error(*other.fit(penalty))
        both = one.plus(other)
        return LinearMap(*both.fit(penalty), relative(error, both.variance()), error, penalty)

    def residual_of_identity(self) -> float:
        """|targets - inputs| over |targets - their mean|, where both are of one size.

        Raises:
            DatasetError: fewer than four samples.
        """
        one, other = self._both_halves()
        both = one.plus(other)
        identity = torch.eye(both.gram.shape[-1]).to(both.gram)
        return relative(both.error(identity, torch.zeros_like(both.targets)), both.variance())

    def _both_halves(self) -> tuple["_Sums", "_Sums"]:
        require_samples(self._samples)
        one, other = self._halves
        assert one is not None
        assert other is not None
        return one, other


def require_samples(samples: int) -> None:
    """Raises DatasetError if there are too few to fit and judge a map."""
    if samples < 4:
        raise DatasetError(
            f"{samples} samples are too few to fit or judge a linear map.", hint="Give at least 4, better hundreds."
        )


def rows_last(value: Float[Tensor, "samples rows *groups features"]) -> Float[Tensor, "*groups all_rows features"]:
    """The rows of all samples, for each group."""
    return value.flatten(0, 1).movedim(0, -2)


def best_penalty(error: Callable[[float], float], penalties: Sequence[float] = PENALTIES) -> tuple[float, float]:
    """The penalty of least error and that error, found downhill from the middle: errors have one valley."""
    found: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in found:
            found[place] = error(penalties[place]) if 0 <= place < len(penalties) else math.inf
        return found[place]

    place = _FIRST
    step = 1 if at(place + 1) < at(place) else -1
    while at(place + step) <= at(place) and at(place + step) < math.inf:
        place += step
    return penalties[place], at(place)


def relative(error: float, variance: float) -> float:
    """A squared error as |difference| over |deviation|; 0 if nothing varies, NaN if one of them is not finite."""
    if not math.isfinite(error + variance):
        return math.nan
    return (max(error, 0.0) / variance) ** 0.5 if variance > 0 else 0.0


def solve_positive(matrix: Float64[Tensor, "*groups n n"], right: Float64[Tensor, "*groups n m"]) -> Tensor:
    """matrix^-1 right for a positive definite matrix; zero where rounding made it indefinite.

    A map of zero predicts the mean, so that a penalty too small to be computed with loses against a larger one.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solved = torch.cholesky_solve(right, factor)
    return torch.where((failed == 0)[..., None, None], solved, torch.zeros_like(solved))


@dataclass(frozen=True)
class _Sums:
    """Sums over rows: their number, inputs, targets, and the products of these."""

    rows: int
    inputs: Float64[Tensor, "*groups inputs"]
    targets: Float64[Tensor, "*groups outputs"]
    gram: Float64[Tensor, "*groups inputs inputs"]
    cross: Float64[Tensor, "*groups inputs outputs"]
    squares: Float64[Tensor, "*groups outputs"]

    @classmethod
    def of(
        cls, inputs: Float64[Tensor, "*groups rows inputs"], targets: Float64[Tensor, "*groups rows outputs"]
    ) -> "_Sums":
        return cls(
            inputs.shape[-2],
            inputs.sum(-2),
            targets.sum(-2),
            inputs.mT @ inputs,
            inputs.mT @ targets,
            targets.square().sum(-2),
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

    def fit(
        self, penalty: float
    ) -> tuple[Float64[Tensor, "*groups outputs inputs"], Float64[Tensor, "*groups outputs"]]:
        """Weight and bias; the bias is not penalised."""
        rows = max(self.rows, 1)
        covariance = self.gram - self.inputs.unsqueeze(-1) * self.inputs.unsqueeze(-2) / rows
        cross = self.cross - self.inputs.unsqueeze(-1) * self.targets.unsqueeze(-2) / rows
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        square = self.gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        ridge = penalty * variance.clamp_min(0) + ROUNDING * square + torch.finfo(torch.float64).tiny ** 0.5
        covariance.diagonal(dim1=-2, dim2=-1).add_(ridge)
        weight = solve_positive(covariance, cross).mT
        return weight, (self.targets - (weight @ self.inputs.unsqueeze(-1)).squeeze(-1)) / rows

    def error(
        self, weight: Float64[Tensor, "*groups outputs inputs"], bias: Float64[Tensor, "*groups outputs"]
    ) -> float:
        """Sum over rows and outputs of the squared difference between targets and the map's outputs."""
        summed = (weight @ self.inputs.unsqueeze(-1)).squeeze(-1)
        mapped = ((weight @ self.gram) * weight).sum(-1) + 2 * bias * summed + self.rows * bias.square()
        crossed = (weight.mT * self.cross).sum(-2) + bias * self.targets
        return float((self.squares - 2 * crossed + mapped).sum())

    def variance(self) -> float:
        """Sum over rows and outputs of the squared difference between targets and their mean."""
        return float((self.squares - self.targets.square() / max(self.rows, 1)).sum())
