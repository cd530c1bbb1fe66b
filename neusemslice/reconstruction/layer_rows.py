"""A convolution or linear layer as what it is at each position: a linear map of a row of inputs."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad

from neusemslice.roles import CONVOLUTIONS

Rows = Float[Tensor, "samples positions groups features"]
Positions = Int64[Tensor, "samples positions"]
"""Numbers of output positions of each sample, row by row."""


class LayerRows:
    """One layer, read and written as a map of rows.

    Attributes:
        groups: of a convolution, each with inputs and outputs of its own.
        inputs: of each group, the kernel's window included.
        outputs: of each group.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        weight = layer.get_parameter("weight")
        self.groups = int(getattr(layer, "groups", 1))
        self.outputs = len(weight) // self.groups
        self.inputs = math.prod(weight.shape[1:])

    @property
    def weight(self) -> Float[Tensor, "groups outputs inputs"]:
        weight: Tensor = self._layer.get_parameter("weight").detach()
        return weight.reshape(self.groups, self.outputs, self.inputs)

    def add(self, weight: Float[Tensor, "groups outputs inputs"]) -> None:
        """Correct the layer's weight by so much."""
        own = self._layer.get_parameter("weight")
        own.data = (self.weight.double() + weight).reshape(own.shape).to(own)

    def read(self, value: Float[Tensor, "samples ..."], at: Positions) -> Rows:
        """What the layer reads for its outputs at some positions."""
        if not isinstance(self._layer, CONVOLUTIONS):
            return _at(value.flatten(1, -2) if value.ndim > 2 else value.unsqueeze(1), at).unsqueeze(2)
        windows = _windows(self._layer, value)
        spatial = (windows.ndim - 2) // 2
        places = torch.unravel_index(at, windows.shape[1 : 1 + spatial])
        samples = torch.arange(len(value), device=value.device).unsqueeze(1)
        return windows[(samples, *places)].reshape(*at.shape, self.groups, self.inputs)

    def given(self, value: Float[Tensor, "samples ..."], at: Positions, kept: Int64[Tensor, " kept"]) -> Rows:
        """What the layer should give at some positions, out of the whole layer's outputs."""
        if isinstance(self._layer, CONVOLUTIONS):
            value = value.movedim(1, -1)
        flat = value.flatten(1, -2) if value.ndim > 2 else value.unsqueeze(1)
        rows: Tensor = _at(flat, at)[..., kept].unflatten(2, (self.groups, self.outputs))
        return rows

    def positions(self, value: Float[Tensor, "samples ..."]) -> int:
        """How many positions a sample has in what the layer gives."""
        sizes = value.shape[2:] if isinstance(self._layer, CONVOLUTIONS) else value.shape[1:-1]
        return math.prod(sizes)


def _at(value: Float[Tensor, "samples all features"], at: Positions) -> Float[Tensor, "samples positions features"]:
    return value[torch.arange(len(value), device=value.device).unsqueeze(1), at]


def _windows(layer: nn.Module, value: Float[Tensor, "samples channels ..."]) -> Tensor:
    """What a convolution sees at each position, [samples, *positions, channels, *window], without a copy."""
    widths: list[int] = layer._reversed_padding_repeated_twice  # type: ignore[assignment] # noqa: SLF001 what "same" means
    mode = str(layer.padding_mode)
    if any(widths):
        value = pad(value, widths, mode="constant" if mode == "zeros" else mode)
    spatial = value.ndim - 2
    sizes, steps, spread = (getattr(layer, name) for name in ("kernel_size", "stride", "dilation"))
    for dim in range(spatial):
        value = value.unfold(2 + dim, (sizes[dim] - 1) * spread[dim] + 1, steps[dim])[..., :: spread[dim]]
    return value.movedim(1, spatial + 1)
