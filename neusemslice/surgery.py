"""Cutting one layer down to some of its outputs and inputs.

Each function returns a new layer; only `cut_layer`'s has no tensor in common with the layer it was made from.
"""

import copy

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from neusemslice.copying import copy_layer
from neusemslice.graph_layers import Attention, QueryKeyValue, Reshape, Scatter
from neusemslice.roles import LEARNED, NORMS, is_depthwise, is_producer

Indices = Int64[Tensor, " kept"]
_INPUTS: dict[type[nn.Module], str] = {nn.Linear: "in_features", QueryKeyValue: "embed_dim"}
Present = Bool[Tensor, "..."]
"""For each place of a sample's value, whether it is left; dimensions along which nothing changes may have size one."""


def cut_layer(layer: nn.Module, before: Present, after: Present) -> nn.Module:
    """A layer with tensors of its own that computes what is left after it from what is left before it.

    Args:
        before: what is left of the value that it reads.
        after: what is left of the value that it computes. Neurons are along one dimension of each.
    """
    return copy.deepcopy(_cut(layer, before, after))


def _cut(layer: nn.Module, before: Present, after: Present) -> nn.Module:
    axis = -1 if isinstance(layer, nn.Linear | QueryKeyValue) else 0
    if is_depthwise(layer) and not after.all():
        return keep_channels(layer, _along(before, 0), _along(after, 0))
    if is_producer(layer):
        smaller = layer if before.all() else keep_inputs(layer, _along(before, axis))
        return smaller if after.all() else keep_outputs(smaller, _along(after, axis))
    if after.all():
        return layer
    if isinstance(layer, NORMS):
        return keep_norm(layer, _along(before, 0))
    if isinstance(layer, nn.PReLU):
        return keep_slopes(layer, _along(before, 0))
    if isinstance(layer, LEARNED):
        return keep_learned(layer, after)
    if isinstance(layer, Reshape):
        return keep_shape(layer, after)
    if isinstance(layer, Attention):
        return keep_heads(layer, after)
    if isinstance(layer, Scatter):
        return keep_places(layer, after)
    return layer


def keep_outputs(layer: nn.Module, kept: Indices) -> nn.Module:
    """A convolution, linear layer or projection to heads with only the output channels or features `kept`."""
    smaller = copy_layer(layer)
    _select(smaller, "weight", kept, 0)
    _select(smaller, "bias", kept, 0)
    if isinstance(smaller, QueryKeyValue):
        smaller.num_heads = len(kept) // (3 * smaller.head_dim)
    else:
        setattr(smaller, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(kept))
    return smaller


def keep_inputs(layer: nn.Module, kept: Indices) -> nn.Module:
    """A convolution or linear layer that reads only the input channels or features `kept`.

    A grouped convolution has to keep equally many in each of its groups.
    """
    smaller = copy_layer(layer)
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        _select(smaller, "weight", kept, 1)
    else:
        weight = layer.get_parameter("weight")
        of_group = (kept % weight.shape[1]).view(groups, -1).to(weight.device)
        parts = zip(weight.detach().chunk(groups), of_group, strict=True)
        cut = torch.cat([part.index_select(1, own) for part, own in parts])
        smaller.weight = nn.Parameter(cut, requires_grad=weight.requires_grad)
    setattr(smaller, _INPUTS.get(type(layer), "in_channels"), len(kept))
    return smaller


def keep_channels(layer: nn.Module, inputs: Indices, outputs: Int64[Tensor, " kept_outputs"]) -> nn.Module:
    """A depthwise convolution of only some channels."""
    smaller = keep_outputs(layer, outputs)
    smaller.in_channels = smaller.groups = len(inputs)  # type: ignore[assignment]
    return smaller


def keep_norm(layer: nn.Module, kept: Indices) -> nn.Module:
    """A batch norm of only the features `kept`."""
    smaller = copy_layer(layer)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(smaller, name, kept, 0)
    smaller.num_features = len(kept)  # type: ignore[assignment]
    return smaller


def keep_slopes(layer: nn.PReLU, kept: Indices) -> nn.Module:
    """A PReLU of only the features `kept`, if it has a slope for each."""
    smaller = copy_layer(layer)
    if smaller.num_parameters > 1:
        _select(smaller, "weight", kept, 0)
        smaller.num_parameters = len(kept)
    return smaller


def keep_learned(layer: nn.Module, left: Present) -> nn.Module:
    """A shift, scale or division by only the places that are left."""
    smaller = copy_layer(layer)
    for dim in range(-left.ndim, 0):
        if left.shape[dim] > 1 and _sizes(layer)[dim] > 1:
            _select(smaller, "weight", _along(left, dim), dim)
    smaller.shape = _sizes(smaller)  # type: ignore[assignment]
    return smaller


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    """Shape of a weight that may be a parameter or a buffer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def keep_shape(layer: Reshape, left: Present) -> nn.Module:
    """A reshape to as many places as are left."""
    return Reshape([size if left.shape[dim] == 1 else len(_along(left, dim)) for dim, size in enumerate(layer.shape)])


def keep_heads(layer: Attention, left: Present) -> nn.Module:
    """An attention of as many heads as are left."""
    features = left.shape[-1] // layer.num_heads
    return Attention(int(left.sum()) // features, layer.dropout)


def keep_places(layer: Scatter, left: Present) -> nn.Module:
    """A scatter into only the places that are left."""
    places = left.flatten()
    numbered = places.cumsum(0) - 1
    return Scatter([int(numbered[place]) for place in layer.kept if places[place]], int(places.sum()), layer.dim)


def _along(left: Present, dim: int) -> Indices:
    """Which places are left along one dimension, the only one along which anything is gone."""
    return left.movedim(dim, 0).flatten().nonzero()[:, 0]


def _select(layer: nn.Module, name: str, kept: Indices, dimension: int) -> None:
    tensor = getattr(layer, name)
    if tensor is None:
        return
    selected = tensor.detach().index_select(dimension, kept.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(selected, requires_grad=tensor.requires_grad))
    else:
        setattr(layer, name, selected)
