"""From orders and curves to the neurons that are kept."""

import math

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from neusemslice.config import SlicingConfig

_ROUNDING = 1e-9


def keep_masks(
    orders: Int64[Tensor, "categories neurons"], curves: Float64[Tensor, "categories neurons"], config: SlicingConfig
) -> Bool[Tensor, "categories neurons"]:
    """True for the neurons of a layer that the config's cut keeps.

    deeparc keeps a layer whole, or drops it whole where the CKA with the place before it exceeds the threshold.
    """
    if config.strategy == "deeparc":
        return curves <= config.cut
    return keep_first(orders, keep_counts(curves, config))


def keep_counts(curves: Float64[Tensor, "categories neurons"], config: SlicingConfig) -> Int64[Tensor, " categories"]:
    """How many neurons each category keeps: up to the first crossing of theta, or the top fraction. At least one."""
    neurons = curves.shape[1]
    if config.strategy == "semantic":
        return first_crossing(curves, config.cut, config.increment)
    return torch.full((len(curves),), max(1, math.ceil(config.cut * neurons - _ROUNDING)))


def first_crossing(
    curves: Float64[Tensor, "categories neurons"], theta: float, increment: int = 1
) -> Int64[Tensor, " categories"]:
    """The smallest multiple of `increment`, or all, whose coverage reaches theta (formula 5).

    Curves end at 1, so there is one.
    """
    scanned = scanned_counts(curves.shape[1], increment)
    return scanned[(curves[:, scanned - 1] >= theta).int().argmax(1)]


def scanned_counts(neurons: int, increment: int) -> Int64[Tensor, " steps"]:
    """The numbers of neurons that the scan looks at: the multiples of `increment`, and all."""
    return torch.tensor([*range(increment, neurons, increment), neurons])


def keep_first(
    orders: Int64[Tensor, "categories neurons"], counts: Int64[Tensor, " categories"]
) -> Bool[Tensor, "categories neurons"]:
    """True for the first `counts` neurons of each order."""
    in_order = torch.arange(orders.shape[1]) < counts[:, None]
    return torch.zeros_like(orders, dtype=torch.bool).scatter(1, orders, in_order)
