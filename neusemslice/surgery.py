"""Cutting one layer down to some of its outputs or inputs. Each function returns a new layer."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from neusemslice.roles import ACTIVATIONS, CARRIERS, NORMS

Indices = Int64[Tensor, " kept"]


def keep_outputs(layer: nn.Module, kept: Indices) -> nn.Module:
    """A convolution or linear layer with only the output channels or features `kept`."""
    smaller = copy.deepcopy(layer)
    _select(smaller, "weight", kept, 0)
    _select(smaller, "bias", kept, 0)
    setattr(smaller, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(kept))
    return smaller


def keep_inputs(layer: nn.Module, kept: Indices) -> nn.Module:
    """A convolution or linear layer that reads only the input channels or features `kept`."""
    smaller = copy.deepcopy(layer)
    _select(smaller, "weight", kept, 1)
    setattr(smaller, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(kept))
    return smaller


def keep_norm(layer: nn.Module, kept: Indices) -> nn.Module:
    """A batch norm of only the features `kept`."""
    smaller = copy.deepcopy(layer)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(smaller, name, kept, 0)
    smaller.num_features = len(kept)  # type: ignore[assignment]
    return smaller


def keep_slopes(layer: nn.Module, kept: Indices) -> nn.Module:
    """A PReLU of only the features `kept`, if it has a slope for each."""
    smaller = copy.deepcopy(layer)
    if isinstance(smaller, nn.PReLU) and smaller.num_parameters > 1:
        _select(smaller, "weight", kept, 0)
        smaller.num_parameters = len(kept)
    return smaller


def keep_all(layer: nn.Module, _: Indices) -> nn.Module:
    """A layer that has nothing for each feature."""
    return copy.deepcopy(layer)


SURGEONS: dict[type[nn.Module], Callable[[nn.Module, Indices], nn.Module]] = {
    **dict.fromkeys(NORMS, keep_norm),
    **dict.fromkeys((*ACTIVATIONS, *CARRIERS), keep_all),
    nn.PReLU: keep_slopes,
}
"""What becomes of a layer between two producers when only some features pass through it."""


def _select(layer: nn.Module, name: str, kept: Indices, dimension: int) -> None:
    tensor = getattr(layer, name)
    if tensor is None:
        return
    selected = tensor.detach().index_select(dimension, kept.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(selected, requires_grad=tensor.requires_grad))
    else:
        setattr(layer, name, selected)


def positions_of(kept: Indices, positions: int) -> Int64[Tensor, " places"]:
    """Where the kept channels' values are after a flatten that gives each channel `positions` places."""
    return (kept[:, None] * positions + torch.arange(positions)).flatten()
