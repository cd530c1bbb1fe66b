"""Ridge regression with fewer rows than inputs: the same map as `least_squares`, from the products between rows.

A layer of 25,088 inputs has a normal matrix of 5 GB; a few hundred rows have one of a few hundred squared.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from neusemslice.least_squares import (
    ROUNDING,
    LinearMap,
    best_penalty,
    relative,
    require_samples,
    rows_last,
    solve_positive,
)

_BLOCK = 1024
"""Inputs that are brought to float64 at once."""


class KernelLeastSquares:
    """Keeps the rows that it is given, then gives the map."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._halves: list[Tensor] = []
        self._samples = 0

    def add(
        self,
        inputs: Float[Tensor, "samples rows *groups inputs"],
        targets: Float[Tensor, "samples rows *groups outputs"],
    ) -> None:
        """Take some samples, each of a number of rows (positions). A sample's rows stay in one half."""
        odd = torch.arange(self._samples, self._samples + len(inputs), device=inputs.device) % 2 == 1
        self._samples += len(inputs)
        self._halves.append(odd.repeat_interleave(inputs.shape[1]))
        self._inputs.append(rows_last(inputs))
        self._targets.append(rows_last(targets).double())

    def solve(self) -> LinearMap:
        """The map with the penalty that does best on held-out samples.

        Raises:
            DatasetError: fewer than four samples.
        """
        require_samples(self._samples)
        odd, inputs, targets = torch.cat(self._halves), torch.cat(self._inputs, -2), torch.cat(self._targets, -2)
        kernel = _products(inputs)
        width = inputs.shape[-1]
        penalty, error = best_penalty(lambda p: _held_out(kernel, targets, ~odd, width, p))
        error += _held_out(kernel, targets, odd, width, penalty)
        everything = torch.ones_like(odd)
        dual = _dual(kernel, targets, everything, width, penalty)
        middle = inputs.double().mean(-2, keepdim=True)
        parts = [
            (part.double() - mean).mT @ dual
            for part, mean in zip(inputs.split(_BLOCK, -1), middle.split(_BLOCK, -1), strict=True)
        ]
        weight = torch.cat(parts, -2).mT
        bias = targets.mean(-2) - (weight @ middle.mT).squeeze(-1)
        variance = float((targets - targets.mean(-2, keepdim=True)).square().sum())
        return LinearMap(weight, bias, relative(error, variance), error, penalty)


def _products(inputs: Float[Tensor, "*groups rows inputs"]) -> Float64[Tensor, "*groups rows rows"]:
    parts = (part.double() for part in inputs.split(_BLOCK, -1))
    first = next(parts)
    kernel: Tensor = first @ first.mT
    for part in parts:
        kernel += part @ part.mT
    return kernel


def _dual(
    kernel: Float64[Tensor, "*groups rows rows"],
    targets: Float64[Tensor, "*groups rows outputs"],
    fitted: Bool[Tensor, " rows"],
    width: int,
    penalty: float,
) -> Float64[Tensor, "*groups fitted outputs"]:
    """What each fitted row adds to the weights, in multiples of its centred inputs."""
    own = kernel[..., fitted, :][..., fitted]
    square = own.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / width
    centred = _centred(own, own)
    variance = centred.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / width
    ridge = penalty * variance.clamp_min(0) + ROUNDING * square + torch.finfo(torch.float64).tiny ** 0.5
    centred.diagonal(dim1=-2, dim2=-1).add_(ridge)
    chosen = targets[..., fitted, :]
    return solve_positive(centred, chosen - chosen.mean(-2, keepdim=True))


def _held_out(kernel: Tensor, targets: Tensor, fitted: Bool[Tensor, " rows"], width: int, penalty: float) -> float:
    """Squared error on the rows that are not fitted."""
    dual = _dual(kernel, targets, fitted, width, penalty)
    columns = kernel[..., fitted]
    cross = _centred(columns[..., ~fitted, :], columns[..., fitted, :])
    predicted = cross @ dual + targets[..., fitted, :].mean(-2, keepdim=True)
    return float((targets[..., ~fitted, :] - predicted).square().sum())


def _centred(products: Float64[Tensor, "*groups some fitted"], own: Float64[Tensor, "*groups fitted fitted"]) -> Tensor:
    """Products of rows with the fitted ones, after the fitted ones' mean is taken from all."""
    means = own.mean(-2, keepdim=True)
    centred: Tensor = products - products.mean(-1, keepdim=True) - means + means.mean(-1, keepdim=True)
    return centred
