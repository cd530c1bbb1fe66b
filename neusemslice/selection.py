"""From orders and curves to the neurons that are kept."""

import math

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from neusemslice.config import SlicingConfig

_ROUNDING = 1e-9


def keep_counts(curves: Float64[Tensor, "categories neurons"], config: SlicingConfig) -> Int64[Tensor, " categories"]:
    """How many neurons each category keeps: up to the first crossing of theta, or the top fraction. At least one."""
    neurons = curves.shape[1]
    if config.strategy == "semantic":
        return first_crossing(curves, config.cut)
    return torch.full((len(curves),), max(1, math.ceil(config.cut * neurons - _ROUNDING)))


def first_crossing(curves: Float64[Tensor, "categories neurons"], theta: float) -> Int64[Tensor, " categories"]:
    """The smallest k whose coverage reaches theta (formula 5). Curves end at 1, so there is one."""
    return (curves >= theta).int().argmax(1) + 1


def keep_first(
    orders: Int64[Tensor, "categories neurons"], counts: Int64[Tensor, " categories"]
) -> Bool[Tensor, "categories neurons"]:
    """True for the first `counts` neurons of each order."""
    in_order = torch.arange(orders.shape[1]) < counts[:, None]
    return torch.zeros_like(orders, dtype=torch.bool).scatter(1, orders, in_order)
