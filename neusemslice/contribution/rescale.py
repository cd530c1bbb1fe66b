"""DeepLIFT's Rescale rule (Shrikumar et al. 2017): a nonlinearity's slope is replaced by dy/dx against a baseline.

With x, y a layer's input and output and x0, y0 the same on the baseline, a rule gives multipliers such that
sum over inputs of multiplier * (x - x0) = y - y0, exactly. Linear layers satisfy this with their own gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neusemslice.roles import ACTIVATIONS, MAX_POOLS

Value = Float[Tensor, "batch ..."]
Reference = Float[Tensor, "1 ..."]
Rule = Callable[[nn.Module, Value, Reference, Reference], Value]
"""(layer, x, x0, y0) -> y, whose gradient towards x is the multiplier; x0 and y0 are the baseline's, a batch of one."""

CLOSE = 16
"""Where |x - x0| is below this many rounding errors of numbers around max(1, |x|), the local slope stands in."""


def rescale(layer: nn.Module, x: Value, x0: Reference, y0: Reference) -> Value:
    """Elementwise: slope (y - y0) / (x - x0)."""
    inputs = x.detach()
    y, difference = layer(inputs), inputs - x0
    close = difference.abs() < CLOSE * torch.finfo(x.dtype).eps * inputs.abs().clamp(min=1)
    slope = (y - y0) / difference
    if close.any():
        slope = torch.where(close, _derivative(layer, inputs), slope)
    output: Tensor = _Slope.apply(x, y, slope)
    return output


def rescale_max_pool(layer: nn.Module, x: Value, x0: Reference, y0: Reference) -> Value:
    """Max pooling: m - y0 is credited to the argmax of x, y - m to that of x0, with m = max(y, y0), over x - x0 there.

    One of the two is zero, so each window has one winner. Its multiplier lies in [0, 1]: no division blows up.
    """
    pool = _INDEXED[type(layer)]
    y, at_x = pool(layer, x.detach())
    _, at_x0 = pool(layer, x0)
    winner = torch.where(y >= y0, at_x, at_x0).flatten(2)
    difference = (x.detach() - x0).flatten(2).gather(2, winner)
    change = (y - y0).flatten(2)
    multiplier = torch.where(difference == 0, 1.0, change / difference.masked_fill(difference == 0, 1))
    output: Tensor = _Winners.apply(x, y, winner, multiplier)
    return output


def _derivative(layer: nn.Module, inputs: Value) -> Value:
    with torch.enable_grad():
        leaf = inputs.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(layer(leaf).sum(), leaf)
    return derivative


class _Slope(torch.autograd.Function):
    """y, with `slope` as its gradient towards x."""

    @staticmethod
    def forward(ctx: Any, x: Value, y: Value, slope: Value) -> Value:  # noqa: ARG004 autograd's signature
        ctx.save_for_backward(slope)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Value) -> tuple[Value, None, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None


class _Winners(torch.autograd.Function):
    """Pooled y, with the gradient of each window sent to its winner's place in x; windows may overlap."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Value,
        y: Value,
        winner: Int64[Tensor, "batch channels windows"],
        multiplier: Float[Tensor, "batch channels windows"],
    ) -> Value:
        ctx.save_for_backward(winner, multiplier)
        ctx.input_shape = x.shape
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Value) -> tuple[Value, None, None, None]:
        winner, multiplier = ctx.saved_tensors
        credit = gradients[0].flatten(2) * multiplier
        collected = credit.new_zeros(ctx.input_shape).flatten(2).scatter_add(2, winner, credit)
        return collected.reshape(ctx.input_shape), None, None, None


def _indexed_max_pool(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    def pool(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return function(
            x,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            ceil_mode=layer.ceil_mode,
            return_indices=True,
        )

    return pool


def _indexed_adaptive(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    def pool(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return function(x, layer.output_size, return_indices=True)

    return pool


_INDEXED: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    nn.MaxPool1d: _indexed_max_pool(F.max_pool1d),
    nn.MaxPool2d: _indexed_max_pool(F.max_pool2d),
    nn.AdaptiveMaxPool1d: _indexed_adaptive(F.adaptive_max_pool1d),
    nn.AdaptiveMaxPool2d: _indexed_adaptive(F.adaptive_max_pool2d),
}

RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(ACTIVATIONS, rescale),
    **dict.fromkeys(MAX_POOLS, rescale_max_pool),
}
"""Every nonlinear layer the engine accepts; all others are affine in eval mode."""
