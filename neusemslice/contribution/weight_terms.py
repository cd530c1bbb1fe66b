"""How the loss of each sample answers to a neuron's own weights: sum over them of (w * dL/dw)^2."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from neusemslice.graph_layers import QueryKeyValue

FEW_POSITIONS = 4
"""Up to here pairs of positions cost less than writing out the weight gradient of each sample."""

_CHUNK_BYTES = 64 * 1024**2

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: conv1d_weight,
    2: conv2d_weight,
    3: conv3d_weight,
}


def weight_terms(
    layer: nn.Module, inputs: Float[Tensor, "batch ..."], gradients: Float[Tensor, "batch ..."]
) -> Float64[Tensor, "batch neurons"]:
    """For each sample and neuron, the sum over the neuron's weights (not its bias) of (w * dL/dw)^2.

    Exact for each sample by itself, whatever the batch. A weight that is used at P positions has the gradient
    sum over p of g_p a_p. Where P is small the square is multiplied out into pairs of positions, so that a linear
    layer costs one matrix product: g^2 (a^2 (w^2)^T). Otherwise the weight gradients are made one sample at a time.

    Args:
        layer: a convolution (1d to 3d, grouped or not), a linear layer, or a projection to attention heads.
        inputs: what the layer was given, a; a linear layer may have been given many positions a sample.
        gradients: dL/d output, g, where L sums the samples' losses.
    """
    if isinstance(layer, nn.Linear | QueryKeyValue):
        outputs, features = layer.weight.shape
        inputs = inputs.reshape(len(inputs), -1, features).transpose(1, 2)
        gradients = gradients.reshape(len(gradients), -1, outputs).transpose(1, 2)
        convolution: Convolution = nn.Conv1d(features, outputs, 1, bias=False, device="meta")
        weight = layer.weight.detach().unsqueeze(2)
    else:
        assert isinstance(layer, Convolution)  # the producers that the engine knows
        convolution, weight = layer, layer.weight.detach()
        inputs = _padded(convolution, inputs)
    positions = gradients[0, 0].numel()
    terms = _from_pairs if positions <= FEW_POSITIONS else _one_by_one
    found: Tensor = terms(convolution, weight, inputs.detach(), gradients)
    if isinstance(layer, QueryKeyValue):
        found = found.unflatten(1, (3, layer.num_heads, layer.head_dim)).sum((1, 3))
    return found


def _one_by_one(layer: Convolution, weight: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    gradient_of = _WEIGHT_GRADIENTS[weight.ndim - 2]
    terms = gradients.new_empty(len(gradients), len(weight))
    for row in range(len(inputs)):
        gradient = gradient_of(
            inputs[row : row + 1],
            weight.shape,
            gradients[row : row + 1],
            stride=layer.stride,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        terms[row] = torch.linalg.vector_norm(gradient.mul_(weight).flatten(1), dim=1)
    return terms.double().square()


def _from_pairs(layer: Convolution, weight: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Sum over positions p, q of g_p g_q (sum over weights of w^2 a_p a_q)."""
    groups = layer.groups
    squared_weights = weight.flatten(1).square().unflatten(0, (groups, -1))
    slopes = gradients.flatten(2).unflatten(1, (groups, -1)).double()
    positions = slopes.shape[3]
    seen = squared_weights.shape[2] * groups * positions
    rows = max(1, _CHUNK_BYTES // (seen * weight.element_size()))
    terms = []
    for part, slope in zip(inputs.split(rows), slopes.split(rows), strict=True):
        patches = _patches(layer, part)
        term = torch.zeros_like(slope[..., 0])
        for first in range(positions):
            for second in range(first, positions):
                products = patches[..., first] * patches[..., second]
                weighted = torch.einsum("gow,bgw->bgo", squared_weights, products)
                term += (1 + (first != second)) * slope[..., first] * slope[..., second] * weighted
        terms.append(term.flatten(1).clamp(min=0))
    return torch.cat(terms)


def _patches(layer: Convolution, inputs: Tensor) -> Float[Tensor, "batch groups weights positions"]:
    """What each weight of one neuron is multiplied with at each position."""
    axes = len(layer.kernel_size)
    for axis, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        inputs = inputs.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    patches = inputs.flatten(2 + axes).flatten(2, 1 + axes).transpose(2, 3)
    grouped: Tensor = patches.unflatten(1, (layer.groups, -1)).flatten(2, 3)
    return grouped


def _padded(layer: Convolution, inputs: Tensor) -> Tensor:
    """The inputs with the layer's own padding written out."""
    if layer.padding == "valid":
        return inputs
    sides: list[int] = []
    for axis, (size, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        if layer.padding == "same":
            total = dilation * (size - 1)
            sides = [total // 2, total - total // 2, *sides]
        else:
            sides = [int(layer.padding[axis])] * 2 + sides
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, sides, mode=mode)
