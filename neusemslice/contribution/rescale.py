"""DeepLIFT's Rescale rule (Shrikumar et al. 2017): a nonlinearity's slope is replaced by dy/dx against a baseline.

With x, y a layer's input and output and x0, y0 the same on the baseline, a rule gives multipliers such that
sum over inputs of multiplier * (x - x0) = y - y0, exactly. Linear layers satisfy this with their own gradient.

A function of several inputs has many such multipliers; each rule below becomes the gradient when x approaches x0, and
treats x and x0 alike:

    product     a b         (b + b0)/2 for a, (a + a0)/2 for b                                           (bilinear)
    LayerNorm   c / d       2 dc / (d + d0) - (c/d + c0/d0) mean((c + c0) dc) / (d + d0)^2, with c = x - mean(x) and
                            d = (mean c^2 + eps)^(1/2): the product rule of c and 1/d with the weights d/(d + d0) and
                            d0/(d + d0), so that nothing large cancels where the baseline hardly varies
    softmax     p(s)        L_i (ds_i - sum_j L_j ds_j / sum_j L_j), L the logarithmic mean of p and p0:
                            since p - p0 = L (log p - log p0) and both sum to one; the Jacobian is diag p - p p^T
    attention               products and softmax, one after the other
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neusemslice.graph_layers import Attention, Multiply
from neusemslice.roles import ACTIVATIONS, MAX_POOLS

Value = Float[Tensor, "batch ..."]
Reference = Float[Tensor, "1 ..."]
Inputs = Sequence[Value]
References = Sequence[Reference]
Rule = Callable[[nn.Module, Inputs, References, Reference], Value]
"""(layer, x, x0, y0) -> y, whose gradient towards x is the multiplier; x and x0 have one entry for each input of the
layer, x0 and y0 are the baseline's, a batch of one."""

CLOSE = 16
"""Where |x - x0| is below this many rounding errors of numbers around max(1, |x|), the local slope stands in."""


def rescale(layer: nn.Module, xs: Inputs, x0s: References, y0: Reference) -> Value:
    """Elementwise: slope (y - y0) / (x - x0)."""
    (x,), (x0,) = xs, x0s
    inputs = x.detach()
    y, difference = layer(inputs), inputs - x0
    close = difference.abs() < CLOSE * torch.finfo(x.dtype).eps * inputs.abs().clamp(min=1)
    slope = (y - y0) / difference
    if close.any():
        slope = torch.where(close, _derivative(layer, inputs), slope)
    output: Tensor = _Slope.apply(x, y, slope)
    return output


def rescale_max_pool(layer: nn.Module, xs: Inputs, x0s: References, y0: Reference) -> Value:
    """Max pooling: m - y0 is credited to the argmax of x, y - m to that of x0, with m = max(y, y0), over x - x0 there.

    One of the two is zero, so each window has one winner. Its multiplier lies in [0, 1]: no division blows up.
    """
    (x,), (x0,) = xs, x0s
    pool = _INDEXED[type(layer)]
    y, at_x = pool(layer, x.detach())
    _, at_x0 = pool(layer, x0)
    plane = -2 if type(layer).__name__.endswith("2d") else -1
    winner = torch.where(y >= y0, at_x, at_x0).flatten(plane)
    difference = (x.detach() - x0).flatten(plane).gather(-1, winner)
    change = (y - y0).flatten(plane)
    multiplier = torch.where(difference == 0, 1.0, change / difference.masked_fill(difference == 0, 1))
    output: Tensor = _Winners.apply(x, y, winner, multiplier)
    return output


def rescale_product(layer: nn.Module, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Two branches multiplied, a gate for example."""
    return _product(torch.mul, xs, x0s)


def rescale_layer_norm(layer: Any, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Normalisation over the last dimensions."""
    (x,), (x0,) = xs, x0s
    normalised = _normalised(x, x0, tuple(range(-len(layer.normalized_shape), 0)), layer.eps)
    scaled = normalised if layer.weight is None else normalised * layer.weight
    return _with_value(scaled, layer(x.detach()))


def rescale_group_norm(layer: Any, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Normalisation over groups of channels."""
    (x,), (x0,) = xs, x0s
    grouped, grouped0 = (value.unflatten(1, (layer.num_groups, -1)).flatten(2) for value in (x, x0))
    normalised = _normalised(grouped, grouped0, (2,), layer.eps).view_as(x)
    if layer.weight is not None:
        normalised = normalised * layer.weight.view(1, -1, *[1] * (x.ndim - 2))
    return _with_value(normalised, layer(x.detach()))


def rescale_softmax(layer: Any, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Softmax inside the network."""
    return _softmax(xs[0], x0s[0], layer.dim)


def rescale_log_softmax(layer: Any, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Log-softmax inside the network: only what is subtracted is not linear."""
    (x,), (x0,) = xs, x0s
    weights = _logarithmic_mean(x, x0, layer.dim)
    shift = (weights * x).sum(layer.dim, keepdim=True) / weights.sum(layer.dim, keepdim=True)
    return _with_value(x - shift, x.detach().log_softmax(layer.dim))


def rescale_attention(layer: Any, xs: Inputs, x0s: References, y0: Reference) -> Value:  # noqa: ARG001 a rule's
    """Scores are products of queries and keys, their softmax is multiplied with the contents."""
    (x,), (x0,) = xs, x0s
    query, key, content = layer.heads(x)
    query0, key0, content0 = layer.heads(x0)
    scale = query.shape[-1] ** -0.5
    keys, keys0 = key.transpose(2, 3) * scale, key0.transpose(2, 3) * scale
    scores = _product(torch.matmul, (query, keys), (query0, keys0))
    scores0 = query0 @ keys0
    weights = _softmax(scores, scores0, 3)
    context = _product(torch.matmul, (weights, content), (scores0.softmax(3), content0))
    joined: Tensor = layer.join(context)
    return joined


def _product(multiply: Callable[[Tensor, Tensor], Tensor], xs: Inputs, x0s: References) -> Value:
    """The bilinear rule."""
    (one, other), (one0, other0) = xs, x0s
    middle, other_middle = (one.detach() + one0) / 2, (other.detach() + other0) / 2
    return _with_value(multiply(one, other_middle) + multiply(middle, other), multiply(one.detach(), other.detach()))


def _normalised(x: Value, x0: Reference, dims: tuple[int, ...], eps: float) -> Value:
    """C / d with c = x - mean and d = sqrt(mean c^2 + eps), linearised; its value is not used."""
    centred, centred0 = x - x.mean(dims, keepdim=True), x0 - x0.mean(dims, keepdim=True)
    deviation, deviation0 = (
        (value.detach().square().mean(dims, keepdim=True) + eps).sqrt() for value in (centred, centred0)
    )
    value, total = centred.detach(), deviation + deviation0
    change = ((value + centred0) * centred).mean(dims, keepdim=True)
    return 2 * centred / total - (value / deviation + centred0 / deviation0) * change / total.square()


def _softmax(x: Value, x0: Reference, dim: int) -> Value:
    weights = _logarithmic_mean(x, x0, dim)
    shift = (weights * x).sum(dim, keepdim=True) / weights.sum(dim, keepdim=True)
    return _with_value(weights * (x - shift), x.detach().softmax(dim))


def _logarithmic_mean(x: Value, x0: Reference, dim: int) -> Value:
    """(p - p0) / (log p - log p0) of two softmaxes, without cancellation: the larger times (1 - e^-|d|) / |d|."""
    log_p, log_p0 = x.detach().log_softmax(dim), x0.log_softmax(dim)
    distance = (log_p - log_p0).abs()
    shrink = torch.where(distance > 0, -torch.expm1(-distance) / distance.masked_fill(distance == 0, 1), 1.0)
    return torch.maximum(log_p, log_p0).exp() * shrink


def _with_value(surrogate: Value, value: Value) -> Value:
    """`value`, with the gradient of `surrogate`."""
    output: Tensor = _Substituted.apply(surrogate, value)
    return output


class _Substituted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Value, value: Value) -> Value:  # noqa: ARG004 autograd's signature
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Value) -> tuple[Value, None]:  # noqa: ARG004
        return gradients[0], None


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
        winner: Int64[Tensor, "*planes windows"],
        multiplier: Float[Tensor, "*planes windows"],
    ) -> Value:
        ctx.save_for_backward(winner, multiplier)
        ctx.input_shape = x.shape
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Value) -> tuple[Value, None, None, None]:
        winner, multiplier = ctx.saved_tensors
        credit = gradients[0].reshape(winner.shape) * multiplier
        plane = torch.Size(ctx.input_shape).numel() // winner.shape[:-1].numel()
        collected = credit.new_zeros(*winner.shape[:-1], plane).scatter_add(-1, winner, credit)
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
    Multiply: rescale_product,
    nn.LayerNorm: rescale_layer_norm,
    nn.GroupNorm: rescale_group_norm,
    nn.Softmax: rescale_softmax,
    nn.LogSoftmax: rescale_log_softmax,
    Attention: rescale_attention,
}
"""Every nonlinear layer the engine accepts; all others are affine in eval mode."""
