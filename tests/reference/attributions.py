"""Conductance and integrated gradients by their formulas, one point of the path after the other, in float64."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


def _points(number: int) -> tuple[Tensor, Tensor]:
    """Places and weights of the Gauss-Legendre quadrature of [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(number)
    return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)


def _gradient(tail: nn.Module, value: Tensor, target: int) -> Tensor:
    leaf = value.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tail(leaf)[0, target], leaf)
    return gradient


def conductance(head: nn.Module, tail: nn.Module, sample: Tensor, baseline: Tensor, target: int, steps: int) -> Tensor:
    """Sum over the path of the gradient at a point times the change to the next one, at the value behind `head`."""
    places, _ = _points(steps + 1)
    with torch.no_grad():
        values = [head((baseline + place * (sample - baseline)).unsqueeze(0)) for place in places]
    terms = [_gradient(tail, value, target) * (following - value) for value, following in pairwise(values)]
    return torch.stack(terms).sum(0)[0]


def integrated_gradients(
    head: nn.Module, tail: nn.Module, sample: Tensor, baseline: Tensor, target: int, steps: int
) -> Tensor:
    """(h - h0) times the mean gradient on the straight line from h0 to h, the values behind `head`."""
    with torch.no_grad():
        value, start = head(sample.unsqueeze(0)), head(baseline.unsqueeze(0))
    mean = sum(
        weight * _gradient(tail, start + place * (value - start), target)
        for place, weight in zip(*_points(steps), strict=True)
    )
    return ((value - start) * mean)[0]
