"""Which numbers of a network weight pruning works on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx, nn

from neusemslice.errors import UnsupportedModelError
from neusemslice.graph_layers import QueryKeyValue
from neusemslice.roles import CONVOLUTIONS


@dataclass(frozen=True, eq=False)
class PrunableWeight:
    """The weight of one convolution (depthwise and grouped ones too) or linear layer. What is zero counts as zeroed.

    Attributes:
        name: of the parameter, such as `features.0.weight`.
        layer: the path of its layer.
        tensor: the network's own, [outputs, inputs (of a group), *kernel].
        convolution: whether it is a convolution's.
    """

    name: str
    layer: str
    tensor: Float[Tensor, "outputs inputs *kernel"]
    convolution: bool

    @property
    def total(self) -> int:
        """How many weights the layer has."""
        return self.tensor.numel()

    @property
    def unmasked(self) -> int:
        """How many of them are not zero yet."""
        return int(self.tensor.count_nonzero())


def prunable_weights(network: fx.GraphModule) -> tuple[PrunableWeight, ...]:
    """The weights of all convolutions and linear layers, in forward order; a tensor that layers share comes once.

    Biases, norms, slopes and learned shifts are left alone, as in all methods' papers.

    Raises:
        UnsupportedModelError: there is no such layer.
    """
    found: dict[int, PrunableWeight] = {}
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        layer = network.get_submodule(node.target)
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear, QueryKeyValue)):
            weight = layer.get_parameter("weight")
            kept = PrunableWeight(f"{node.target}.weight", node.target, weight, isinstance(layer, CONVOLUTIONS))
            found.setdefault(id(weight), kept)
    if not found:
        raise UnsupportedModelError(
            "The network has no convolution and no linear layer.", node="", hint="There are no weights to prune."
        )
    return tuple(found.values())


def zero(weight: PrunableWeight, survives: Bool[Tensor, "..."]) -> None:
    """Set the weights that do not survive to zero, in place."""
    with torch.no_grad():
        weight.tensor.masked_fill_(~survives, 0.0)


def not_zeroed(network: fx.GraphModule) -> dict[str, Bool[Tensor, "..."]] | None:
    """What may train so that zeroed weights stay zero: everything else. None where no weight is zero."""
    survivors = {weight.name: weight.tensor.detach() != 0 for weight in prunable_weights(network)}
    if all(bool(mask.all()) for mask in survivors.values()):
        return None
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in network.named_parameters()}
    return everything | survivors
