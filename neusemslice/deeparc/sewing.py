"""What a sewing layer between two values looks like: a linear map of the neurons, the same at every position."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neusemslice.deeparc.places import NodeReader, neuron_axis
from neusemslice.errors import UnsupportedModelError
from neusemslice.least_squares import LinearMap
from neusemslice.tracing import SliceableModel

MOST_INPUTS = 4096
"""Of a sewing layer behind a flatten; with more the value is averaged over space first."""

_POOLS: dict[int, type[nn.Module]] = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d}
_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Pattern:
    """The layers of a sewing: some without parameters, then a linear one.

    Attributes:
        before: pooling and flatten.
        linear: the linear layer's type.
        axis: of the neurons, in what the linear layer reads and gives.
        same_shape: whether the value may be left as it is.
    """

    before: tuple[nn.Module, ...]
    linear: type[nn.Module]
    axis: int
    same_shape: bool

    def prepare(self, value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """What the linear layer reads."""
        for layer in self.before:
            value = layer(value)
        return value

    def rows(self, value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch positions neurons"]:
        """A row of neurons for each position of what the linear layer reads or gives."""
        value = value.movedim(self.axis, -1)
        return value.reshape(len(value), -1, value.shape[-1])

    def layers(self, found: LinearMap, like: Tensor) -> list[nn.Module]:
        """The sewing, with the linear layer's parameters of the device and type of `like`."""
        outputs, inputs = found.weight.shape
        with torch.device("meta"):
            linear = self.linear(inputs, outputs, *([] if self.linear is nn.Linear else [1]))
        positions = [1] * (linear.get_parameter("weight").ndim - 2)
        linear.weight = nn.Parameter(found.weight.reshape(outputs, inputs, *positions).to(like))
        linear.bias = nn.Parameter(found.bias.to(like))
        return [*self.before, linear]


def choose_pattern(model: SliceableModel, first: str, last: str) -> Pattern:
    """The sewing from the value at one place to that at a later one.

    Raises:
        UnsupportedModelError: no layer leads from one shape to the other.
    """
    network = model.graph_module
    values = NodeReader(network, [first, last]).read(
        torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype)
    )
    source, target = values[first].shape, values[last].shape
    rank, same_shape = len(source), source == target
    nodes = {node.target: node for node in network.graph.nodes}
    axes = neuron_axis(network, nodes[first]) % rank, neuron_axis(network, nodes[last]) % len(target)
    if len(target) == 2:
        too_wide = rank in _POOLS and source.numel() > MOST_INPUTS
        pool = [_POOLS[rank](1)] if too_wide and axes[0] == 1 else []
        return Pattern((*pool, *([nn.Flatten()] if rank > 2 else [])), nn.Linear, 1, same_shape)
    if rank == len(target) and axes == (1, 1):
        resized = source[2:] != target[2:]
        if not resized or rank in _POOLS:
            pool = [_POOLS[rank](tuple(target[2:]))] if resized else []
            return Pattern(tuple(pool), _CONVOLUTIONS[rank], 1, same_shape)
    if source[:-1] == target[:-1] and axes == (rank - 1, rank - 1):
        return Pattern((), nn.Linear, -1, same_shape)
    raise UnsupportedModelError(
        f"No sewing layer leads from {first!r} {tuple(source[1:])} to {last!r} {tuple(target[1:])}.",
        node=last,
        hint="Raise the threshold, so that this run stays.",
    )
